//! One seed: a world, a pump, a link, a journal that loses power, a replica; and the faults that befall them.

use crate::random::Random;
use crate::reader::{View, World};
use crate::source::Source;
use crate::target::Target;
use crate::totals::Totals;
use crate::trace::trace;
use crate::verify::{self, Verifications};
use standin_agent::pump::{CHANGE_SLACK_NS, Captured, Loss, Pump, Turn};
use standin_agent::queue::SharedQueue;
use standin_journal::{Queue, QueueOptions, Sealer, Segment};
use standin_mirror::{Exclusions, Mirror, Scope};
use standin_model::*;
use standin_protection::VerificationState;
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

struct Run<'a> {
    world: Rc<RefCell<World>>,
    pump: Pump<View, View>,
    queue: SharedQueue,
    bounds: QueueOptions,
    target: Target,
    directory: &'a Path,
    totals: Totals,
    epoch: u64,
    verifications: Verifications,
    /// Rounds until the link is back.
    cut_off: u64,
}

/// Runs one seed; the error says what was wrong.
pub fn run(seed: u64) -> Result<Totals, String> {
    let directory = scratch().map_err(|e| e.to_string())?;
    let mut random = Random(seed);
    let mut source = Source::new();
    for _ in 0..random.below(60) {
        source.act(&mut random);
    }
    source.settle();
    source.ring.clear();
    let budget = 40 + random.below(400) as u32;
    // Some agents have all the memory they want, some spill to disk, some lose what does not fit.
    let bounds = match random.below(4) {
        0 => QueueOptions { memory_bytes_max: 4 << 10, disk_bytes_max: 0 },
        1 => QueueOptions { memory_bytes_max: 4 << 10, disk_bytes_max: 256 << 20 },
        _ => QueueOptions { memory_bytes_max: 1 << 40, disk_bytes_max: 0 },
    };
    let world = Rc::new(RefCell::new(World { source, random, budget, frozen: false }));
    let mut run = Run::new(world, bounds, directory.path())?;
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
    fn new(world: Rc<RefCell<World>>, bounds: QueueOptions, directory: &'a Path) -> Result<Run<'a>, String> {
        let target = Target::open(directory, &world)?;
        let (pump, queue) = start_pump(&world, directory, bounds, 1, OpSeq(1), Scope::Everything)?;
        Ok(Run {
            world,
            pump,
            queue,
            bounds,
            target,
            directory,
            totals: Totals::default(),
            epoch: 1,
            cut_off: 0,
            verifications: Verifications::default(),
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
            self.restart_agent()?;
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
        Ok(())
    }

    /// The link works for a while: queue → journal → acknowledgement → apply → wants.
    fn transfer(&mut self) -> Result<(), String> {
        if self.cut_off > 0 {
            self.cut_off -= 1;
            // The appliance works on without it.
            return self.apply();
        }
        while let Some(segment) = self.queue.next_after(self.target.received, Duration::ZERO).map_err(said)? {
            let arrived = Segment::parse(segment.bytes.to_vec()).map_err(said)?;
            self.target.receive(&arrived)?;
            if self.chance(5) {
                return Ok(());
            }
        }
        let durable = self.target.sync()?;
        self.queue.acknowledge(durable).map_err(said)?;
        self.apply()?;
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

    fn apply(&mut self) -> Result<(), String> {
        self.totals.prefixes += self.target.apply(&self.world)?;
        Ok(())
    }

    /// The ring overflows: some records are gone, and the kernel's map says whose, or not even that.
    fn lose_something(&mut self) {
        let mut world = self.world.borrow_mut();
        let World { source, random, .. } = &mut *world;
        let start = random.below(source.ring.len() as u64 + 1) as usize;
        let end = start + random.below((source.ring.len() - start) as u64 + 1) as usize;
        let lost: Vec<Captured> = source.ring.drain(start..end).collect();
        let reason = "ring full".to_owned();
        let mut loss = Loss::new(reason.clone(), Timestamp(0));
        for event in &lost {
            trace!("lost    {}", crate::trace::short(event));
            if let Captured::Operation { operation, .. } = event {
                loss.note(operation);
            }
        }
        let event = match loss.nodes {
            Some(nodes) if !random.one_in(4) => Captured::LostNodes { nodes: nodes.into_iter().collect(), reason },
            _ => Captured::LostEverything { reason },
        };
        source.ring.insert(start, event);
        self.totals.losses += 1;
    }

    /// SIGKILL: ring, queue and pump are gone; the appliance tells where to go on.
    fn restart_agent(&mut self) -> Result<(), String> {
        self.totals.restarts += 1;
        self.verifications.interrupt();
        self.totals.operations += self.pump.figures().operations;
        self.totals.overflows += self.pump.figures().overflows;
        self.epoch += 1;
        self.cut_off = 0;
        let durable = self.target.sync()?;
        self.apply()?;
        let mut world = self.world.borrow_mut();
        world.source.ring.clear();
        world.disturb(5);
        world.source.ring.clear();
        drop(world);
        let scope = self.target.whole_at.map_or(Scope::Everything, |at| Scope::ChangedSince(Timestamp(at.0 - CHANGE_SLACK_NS)));
        trace!("agent   killed; epoch {} from {} with {scope:?}", self.epoch, durable.next());
        (self.pump, self.queue) = start_pump(&self.world, self.directory, self.bounds, self.epoch, durable.next(), scope)?;
        self.target.received = durable;
        self.target.offer_wants_again();
        Ok(())
    }

    /// Freeze, drain, compare: the replica must be the source, and must know it.
    fn finish(&mut self) -> Result<(), String> {
        self.world.borrow_mut().source.settle();
        self.world.borrow_mut().frozen = true;
        self.cut_off = 0;
        for _ in 0..100 {
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

fn start_pump(
    world: &Rc<RefCell<World>>,
    directory: &Path,
    bounds: QueueOptions,
    epoch: u64,
    start: OpSeq,
    scope: Scope,
) -> Result<(Pump<View, View>, SharedQueue), String> {
    let mut queue = Queue::open(directory.join("queue"), bounds).map_err(said)?;
    queue.acknowledge(OpSeq(start.0 - 1)).map_err(said)?;
    let queue = SharedQueue::new(queue);
    let view = View(Rc::clone(world));
    let root = world.borrow().source.root;
    let mirror = Mirror::new(&[(root, b"/".to_vec())], scope, Exclusions::default());
    // The pump's clock has to be `Send`, which a view of this single-threaded world is not.
    let time = Arc::clone(&world.borrow().source.time);
    let clock = Box::new(move || Timestamp(time.load(Ordering::Relaxed)));
    Ok((Pump::new(view.clone(), view, mirror, vec![root], Sealer::new(epoch, start, 1), queue.clone(), clock), queue))
}
