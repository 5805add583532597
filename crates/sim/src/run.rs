//! One seed: a world, a pump, a link, a journal that loses power, a replica; and the faults that befall them.

use crate::mutant::{Mutant, Spoiled, Whim};
use crate::random::Random;
use crate::reader::{View, World};
use crate::source::Source;
use crate::target::{self, Target};
use crate::totals::Totals;
use crate::trace::trace;
use crate::verify::{self, Verifications};
use standin_agent::pump::{CHANGE_SLACK_NS, Captured, Limits, Loss, Pump, Turn};
use standin_agent::queue::SharedQueue;
use standin_agent::signature::{SignatureSizes, Signatures};
use standin_journal::{Queue, QueueOptions, Sealer, Segment};
use standin_mirror::{CompareSizes, Exclusions, Mirror, Scope};
use standin_model::*;
use standin_protection::{StartOrder, StreamFacts, VerificationState, decide_start};
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

struct Run<'a> {
    world: Rc<RefCell<World>>,
    pump: SimPump,
    queue: SharedQueue,
    agent: AgentBounds,
    target: Target,
    directory: &'a Path,
    totals: Totals,
    epoch: u64,
    verifications: Verifications,
    /// Rounds until the link is back.
    cut_off: u64,
    /// The source's kernel.
    boot: u64,
    /// The disks are being synced, which covers everything up to here.
    settling: Option<OpSeq>,
    whim: Whim,
}

type SimPump = Pump<Spoiled<View>, View>;

/// What an agent may hold.
#[derive(Clone, Copy)]
struct AgentBounds {
    queue: QueueOptions,
    pump: Limits,
    /// An old appliance does not compare.
    compare: Option<CompareSizes>,
    /// Room for signatures; none where pages go as they are.
    signature_bytes: usize,
    signatures: SignatureSizes,
}

impl AgentBounds {
    /// Some agents have all the memory they want, some spill to disk, some lose what does not fit; some cut their segments small, and some cannot
    /// remember what they lost.
    fn draw(random: &mut Random) -> AgentBounds {
        let (memory_bytes_max, disk_bytes_max) = match random.below(6) {
            0 => (4 << 10, 0),
            1 => (4 << 10, 256 << 20),
            2..=3 => (512, 256 << 20),
            _ => (1 << 40, 0),
        };
        let queue = QueueOptions { memory_bytes_max, disk_bytes_max };
        let whole = Limits::default();
        let segment_bytes = if random.one_in(2) { 1 << 10 } else { whole.segment_bytes };
        let loss_nodes = if random.one_in(2) { random.below(10) as usize } else { whole.loss_nodes };
        // A step that the whole queue cannot take would be lost each time.
        let step_bytes = if disk_bytes_max == 0 { whole.step_bytes.min(memory_bytes_max as usize / 4) } else { whole.step_bytes };
        let compare = match random.below(5) {
            0 => None,
            1..=2 => Some(CompareSizes { file_bytes_min: random.below(500), coarse: 64, fine: 16 }),
            _ => Some(CompareSizes { file_bytes_min: random.below(500), coarse: 512, fine: 64 }),
        };
        let signature_bytes = [0, 2_000, 10_000, 1 << 20, 1 << 20][random.below(5) as usize];
        // Few bits match where they should not.
        let hash_bits = if random.one_in(4) { 2 + random.below(4) as u32 } else { 32 };
        let mirror_bytes_min = random.below(100) as usize;
        let signatures = SignatureSizes { fine: 8, coarse: 32, write_bytes_min: 1, mirror_bytes_min, hash_bits };
        AgentBounds { queue, pump: Limits { segment_bytes, step_bytes, loss_nodes }, compare, signature_bytes, signatures }
    }
}

/// Runs one seed; the error says what was wrong.
pub fn run(seed: u64, mutant: Option<Mutant>) -> Result<Totals, String> {
    let directory = scratch().map_err(|e| e.to_string())?;
    let mut random = Random(seed);
    let whim = Whim::new(mutant, seed);
    let mut source = Source::new(1 + random.below(6).saturating_sub(3) as u16);
    source.counts_generations = !whim.is(Mutant::IgnoreGeneration);
    let exclusions = if random.one_in(4) { source.exclude(&mut random) } else { vec![] };
    for _ in 0..random.below(60) {
        source.act(&mut random);
    }
    source.settle();
    source.ring.clear();
    let budget = 40 + random.below(400) as u32;
    let mut agent = AgentBounds::draw(&mut random);
    if whim.is(Mutant::TrustPatches) || whim.is(Mutant::ForgetUnproven) {
        (agent.signature_bytes, agent.signatures.hash_bits) = (1 << 20, 2);
    }
    let world = Rc::new(RefCell::new(World { source, random, budget, exclusions, frozen: false }));
    let mut run = Run::new(world, agent, directory.path(), whim)?;
    run.live()?;
    run.finish()?;
    Ok(run.totals)
}

/// In memory where the system has such a place: nothing here needs a real disk, and syncing one takes most of the time.
fn scratch() -> std::io::Result<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl<'a> Run<'a> {
    fn new(world: Rc<RefCell<World>>, agent: AgentBounds, directory: &'a Path, whim: Whim) -> Result<Run<'a>, String> {
        let mut target = Target::open(directory, &world)?;
        target.replica.forgets_intents = whim.is(Mutant::RepeatShift);
        target.replica.trusts_patches = whim.is(Mutant::TrustPatches);
        target.replica.forgets_unproven = whim.is(Mutant::ForgetUnproven);
        target.signatures_are_exact = agent.signatures.hash_bits == 32;
        let order = decide_start(&StreamFacts::default());
        let (pump, queue) = start_pump(&world, directory, agent, &whim, &order, 1)?;
        Ok(Run {
            world,
            pump,
            queue,
            agent,
            target,
            directory,
            totals: Totals::default(),
            epoch: order.epoch,
            verifications: Verifications::default(),
            cut_off: 0,
            boot: 1,
            settling: None,
            whim,
        })
    }

    fn chance(&self, one_in: u64) -> bool {
        self.world.borrow_mut().random.one_in(one_in)
    }
    fn below(&self, bound: u64) -> u64 {
        self.world.borrow_mut().random.below(bound)
    }

    fn live(&mut self) -> Result<(), String> {
        while self.world.borrow().budget > 0 {
            self.world.borrow_mut().disturb(4);
            // Now and then the pump finds no rest, and its segments grow.
            let patience = Duration::from_millis(self.below(3));
            self.pump.turn(patience).map_err(said)?;
            self.befall()?;
        }
        Ok(())
    }

    /// What may happen between two turns.
    fn befall(&mut self) -> Result<(), String> {
        if self.chance(4) {
            self.transfer()?;
        }
        if !self.verifications.is_running() && self.chance(20) {
            self.verifications.begin(&mut self.pump, false);
        }
        if self.chance(60) {
            self.lose_something();
        }
        if self.chance(150) {
            self.totals.restarts += 1;
            self.restart_agent(Outage::Kill)?;
        }
        if self.chance(400) {
            self.totals.reboots += 1;
            self.restart_agent(Outage::Reboot)?;
        }
        if self.chance(300) {
            self.totals.source_power_cuts += 1;
            self.restart_agent(Outage::PowerCut)?;
        }
        if self.chance(100) {
            self.totals.power_cuts += 1;
            self.verifications.interrupt();
            self.target.cut_power(&self.world)?;
        }
        if self.chance(100) {
            self.totals.worker_crashes += 1;
            self.verifications.interrupt();
            self.target.kill_worker();
        }
        if self.chance(80) {
            self.totals.partitions += 1;
            self.cut_off = 1 + self.below(20);
            trace!("link    down for {} rounds", self.cut_off);
        }
        if self.chance(40) {
            self.target.replica.mark();
        }
        if self.chance(20) {
            self.settle()?;
        }
        if self.chance(10) {
            let fill = self.chance(2);
            self.fill_disk(fill)?;
        }
        Ok(())
    }

    /// The link works for a while: queue → journal → acknowledgement → apply → wants.
    fn transfer(&mut self) -> Result<(), String> {
        if self.cut_off > 0 {
            self.cut_off -= 1;
            // The appliance works on without it, and its answers reach nobody.
            self.apply()?;
            self.totals.lost_answers += self.target.replica.take_differs().len() as u64;
            return Ok(());
        }
        while let Some(segment) = self.queue.next_after(self.target.received, Duration::ZERO).map_err(said)? {
            let arrived = Segment::parse(segment.bytes.to_vec()).map_err(said)?;
            self.target.receive(&arrived)?;
            if self.chance(5) {
                return Ok(());
            }
        }
        if self.whim.acts(Mutant::AcknowledgeEarly, 2) {
            self.target.acknowledged = self.target.received;
            return self.queue.acknowledge(self.target.received).map_err(said);
        }
        let durable = self.target.sync()?;
        self.target.acknowledged = durable;
        self.queue.acknowledge(durable).map_err(said)?;
        self.apply()?;
        self.answer();
        let wants = self.target.take_wants();
        if !wants.is_empty() {
            trace!("wants   {}", crate::trace::short(&wants));
            self.totals.wants += wants.len() as u64;
            self.pump.want(wants);
        }
        self.verifications.go_on(&mut self.pump, &mut self.target);
        if !self.target.is_damaged {
            self.totals.verified += self.verifications.judge()?;
        }
        Ok(())
    }

    /// What the replica has otherwise, and then how far it is.
    fn answer(&mut self) {
        let mut answers = self.target.replica.take_differs();
        if self.chance(10) {
            // Somebody's queue is full.
            let kept = self.below(answers.len() as u64 + 1) as usize;
            self.totals.lost_answers += (answers.len() - kept) as u64;
            answers.truncate(kept);
        }
        for differs in &mut answers {
            trace!("answer  {} {:?}", differs.seq, differs.blocks);
            self.totals.different_blocks += differs.blocks.len() as u64;
            self.totals.answers += 1;
            self.totals.equal_answers += u64::from(differs.blocks.is_empty());
            if self.whim.acts(Mutant::OverlookDifference, 4) {
                differs.blocks = differs.blocks.iter().skip(1).collect();
            }
        }
        self.pump.answers().tell(answers);
        if !self.chance(4) {
            self.pump.answers().applied(self.target.replica.applied());
        }
    }

    fn apply(&mut self) -> Result<(), String> {
        self.target.apply(&self.world, &mut self.totals)
    }

    /// The ring overflows: some records are gone, and the kernel's map says whose, or not even that.
    fn lose_something(&mut self) {
        let mut world = self.world.borrow_mut();
        let World { source, random, .. } = &mut *world;
        let start = random.below(source.ring.len() as u64 + 1) as usize;
        let end = start + random.below((source.ring.len() - start) as u64 + 1) as usize;
        let lost: Vec<Captured> = source.ring.drain(start..end).collect();
        let reason = "ring full".to_owned();
        let mut loss = Loss::new(reason.clone(), Timestamp(0), usize::MAX);
        for event in &lost {
            trace!("lost    {}", crate::trace::short(event));
            if let Captured::Operation { operation, .. } = event {
                loss.note(operation);
            }
        }
        let event = match loss.nodes {
            Some(nodes) if !random.one_in(4) => {
                let mut nodes: Vec<NodeId> = nodes.into_iter().collect();
                nodes.sort_unstable();
                Captured::LostNodes { nodes, reason }
            }
            _ => Captured::LostEverything { reason },
        };
        source.ring.insert(start, event);
        self.totals.losses += 1;
    }

    /// The source's disk has no room for the queue, or has room again: a file stands where the queue's directory would.
    fn fill_disk(&mut self, fill: bool) -> Result<(), String> {
        let queue = self.directory.join("queue");
        if queue.is_file() {
            std::fs::remove_file(&queue).map_err(said)?;
        }
        // While something is spilled, the directory is in use.
        let is_spilled = queue.is_dir() && target::lengths(&queue)?.keys().any(|path| target::is_journal(path));
        if fill && !is_spilled {
            if queue.is_dir() {
                std::fs::remove_dir_all(&queue).map_err(said)?;
            }
            trace!("source  disk full");
            std::fs::write(&queue, b"").map_err(said)?;
        }
        Ok(())
    }

    /// Ring, queue and pump are gone; the appliance tells where to go on.
    fn restart_agent(&mut self, outage: Outage) -> Result<(), String> {
        self.verifications.interrupt();
        self.totals.operations += self.pump.figures().operations;
        self.totals.overflows += self.pump.figures().overflows;
        self.cut_off = 0;
        self.fill_disk(false)?;
        self.settling = None;
        let drained = outage == Outage::PowerCut && self.chance(2) && self.drain()?;
        self.tear_queue()?;
        let durable = self.target.sync()?;
        if self.chance(2) {
            self.apply()?;
        }
        self.befall_source(outage, drained);
        self.boot += u64::from(outage != Outage::Kill);
        let captured_at = self.target.whole_at;
        let mirrored = captured_at.is_some();
        let facts = StreamFacts { epoch: self.epoch, agent_epoch: None, durable, captured_at, mirrored };
        let mut order = decide_start(&facts);
        if self.whim.is(Mutant::ResumeBehind) {
            order.epoch = self.epoch;
            order.next = OpSeq(1 + self.whim.below(durable.0));
        }
        trace!("agent   starts after {outage:?}: {order:?}");
        (self.pump, self.queue) = start_pump(&self.world, self.directory, self.agent, &self.whim, &order, self.boot)?;
        self.epoch = order.epoch;
        self.target.received = durable;
        self.target.offer_wants_again();
        Ok(())
    }

    fn befall_source(&mut self, outage: Outage, drained: bool) {
        let mut world = self.world.borrow_mut();
        let World { source, random, .. } = &mut *world;
        source.ring.clear();
        match outage {
            Outage::Kill => {}
            Outage::Reboot => {
                // Services end one after another, and the agent was the first.
                world.disturb(5);
                world.source.shut_down();
                world.source.pass(BOOT_NS);
            }
            Outage::PowerCut => {
                source.cut_power(random, drained);
                source.pass(BOOT_NS);
            }
        }
        world.disturb(5);
        world.source.ring.clear();
    }

    /// Everything that has happened is durable at the appliance; false where that cannot be had.
    fn drain(&mut self) -> Result<bool, String> {
        self.world.borrow_mut().source.settle();
        self.world.borrow_mut().frozen = true;
        for _ in 0..20 {
            self.pump.turn(Duration::ZERO).map_err(said)?;
            self.transfer()?;
        }
        self.world.borrow_mut().frozen = false;
        let position = self.pump.position().map_err(said)?;
        self.transfer()?;
        Ok(position.is_some_and(|position| self.target.acknowledged >= position))
    }

    /// Syncs the source's disks, and some time later says so in the stream.
    fn settle(&mut self) -> Result<(), String> {
        match self.settling.take() {
            Some(through) => self.pump.settled(through),
            None => {
                self.settling = self.pump.position().map_err(said)?;
                self.world.borrow_mut().source.write_back();
            }
        }
        Ok(())
    }

    /// What an agent leaves of its queue may be anything.
    fn tear_queue(&mut self) -> Result<(), String> {
        let queue = self.directory.join("queue");
        if !queue.is_dir() {
            return Ok(());
        }
        for (path, len) in target::lengths(&queue)? {
            let file = std::fs::File::options().write(true).open(&path).map_err(said)?;
            file.set_len(self.below(2 * len + 1)).map_err(said)?;
        }
        Ok(())
    }

    /// Freeze, drain, compare: the replica must be the source, and must know it.
    fn finish(&mut self) -> Result<(), String> {
        self.world.borrow_mut().source.settle();
        self.world.borrow_mut().frozen = true;
        self.cut_off = 0;
        self.fill_disk(false)?;
        for _ in 0..1000 {
            // A node that could not be read is tried again when time has passed.
            self.world.borrow_mut().source.pass(10_000_000_000);
            for _ in 0..200 {
                if self.pump.turn(Duration::ZERO).map_err(said)? == Turn::Idle {
                    break;
                }
            }
            let quiesced = self.pump.quiesced().map_err(said)?;
            for _ in 0..8 {
                self.transfer()?;
            }
            if quiesced.is_some_and(|seq| self.target.replica.applied() >= seq) && self.target.replica.is_consistent() {
                if quiesced != Some(self.target.replica.applied()) {
                    return Err(format!("item {} follows the source's rest", self.target.replica.applied()));
                }
                self.totals.comparisons += 1;
                self.totals.operations += self.pump.figures().operations;
                self.totals.overflows += self.pump.figures().overflows;
                self.target.compare(&self.world.borrow().source)?;
                return self.verify_at_rest();
            }
        }
        Err(format!("the replica never became consistent: {}", self.target.replica.worth()))
    }
}

impl Run<'_> {
    /// Of a source that stands still everything can be verified; and damage is found and mended.
    fn verify_at_rest(&mut self) -> Result<(), String> {
        self.verify_once(false)?;
        if self.verifications.ended.take() != Some(VerificationState::Equal) {
            return Err("a right replica at rest was not found equal".to_owned());
        }
        self.totals.verified += 1;
        let Some(what) = verify::damage(&mut self.target, &mut self.world.borrow_mut().random) else { return Ok(()) };
        self.verify_once(true)?;
        let ended = self.verifications.ended.take();
        if ended != Some(VerificationState::Repaired) {
            return Err(format!("{what}: the verification ended with {ended:?}"));
        }
        self.totals.mended += 1;
        self.target.is_damaged = false;
        self.target.compare(&self.world.borrow().source).map_err(|why| format!("{what}, mended: {why}"))
    }

    fn verify_once(&mut self, repair: bool) -> Result<(), String> {
        // Keeps the verdict for the caller.
        self.target.is_damaged = true;
        self.verifications.begin(&mut self.pump, repair);
        for _ in 0..2000 {
            self.world.borrow_mut().source.pass(100_000_000);
            self.pump.turn(Duration::from_millis(1)).map_err(said)?;
            self.transfer()?;
            if !self.verifications.is_running() {
                self.target.is_damaged = repair;
                return Ok(());
            }
        }
        Err("a verification at rest does not end".to_owned())
    }
}
/// What ends an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outage {
    /// SIGKILL.
    Kill,
    Reboot,
    PowerCut,
}

const BOOT_NS: i64 = 60_000_000_000;

fn start_pump(
    world: &Rc<RefCell<World>>,
    directory: &Path,
    agent: AgentBounds,
    whim: &Whim,
    order: &StartOrder,
    boot: u64,
) -> Result<(SimPump, SharedQueue), String> {
    let mut queue = Queue::open(directory.join("queue"), agent.queue).map_err(said)?;
    queue.acknowledge(OpSeq(order.next.0 - 1)).map_err(said)?;
    let queue = SharedQueue::new(queue);
    let view = View(Rc::clone(world));
    let exclusions = Exclusions::new(&world.borrow().exclusions).map_err(said)?;
    let roots = world.borrow().source.roots.clone();
    let mount_point = |root: &NodeId| if root.volume.0 == 0 { b"/".to_vec() } else { format!("/v{}", root.volume.0).into_bytes() };
    let mounted: Vec<(NodeId, Vec<u8>)> = roots.iter().map(|root| (*root, mount_point(root))).collect();
    let scope = order.since.map_or(Scope::Everything, |since| Scope::ChangedSince(Timestamp(since.0 - CHANGE_SLACK_NS)));
    let mut mirror = Mirror::new(&mounted, scope, exclusions);
    if let Some(sizes) = agent.compare {
        mirror = mirror.compare(sizes);
    }
    // The pump's clock has to be `Send`, which a view of this single-threaded world is not.
    let time = Arc::clone(&world.borrow().source.time);
    let clock = Box::new(move || Timestamp(time.load(Ordering::Relaxed)));
    let capture = Spoiled { inner: view.clone(), whim: whim.clone() };
    let sealer = Sealer::new(order.epoch, order.next, 1);
    let mut pump = Pump::new(capture, view, mirror, roots, sealer, queue.clone(), clock).with_limits(agent.pump);
    pump = pump.with_signatures(Signatures::new(agent.signature_bytes, order.epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15), agent.signatures));
    pump.started(boot, order.since.is_none());
    pump.finishes_early = whim.is(Mutant::FinishEarly);
    Ok((pump, queue))
}
