//! One seed: a world, a pump, a journal that loses power, a replica; and the checker of the promise.

use crate::reader::{View, World};
use crate::replica::Replica;
use crate::source::{Random, Source, Thing};
use standin_agent::pump::{Captured, Pump, Turn};
use standin_agent::queue::SharedQueue;
use standin_journal::{Journal, JournalOptions, JournalReader, Queue, QueueOptions, Sealer, Segment};
use standin_mirror::{Exclusions, Mirror, Scope};
use standin_model::*;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

#[derive(Clone, Copy, Default)]
pub struct Totals {
    pub operations: u64,
    pub comparisons: u64,
    pub gaps: u64,
    pub restarts: u64,
    pub power_cuts: u64,
}

impl Totals {
    pub fn add(&mut self, other: Totals) {
        self.operations += other.operations;
        self.comparisons += other.comparisons;
        self.gaps += other.gaps;
        self.restarts += other.restarts;
        self.power_cuts += other.power_cuts;
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Totals { operations, comparisons, gaps, restarts, power_cuts } = self;
        write!(
            f,
            "{operations} operations, {comparisons} comparisons equal, {gaps} gaps, {restarts} agent restarts, {power_cuts} appliance power cuts"
        )
    }
}

/// Length of a journal file's header, see docs/formats/segment.md.
const FILE_HEADER_BYTES: u64 = 48;

struct Target {
    /// `None` only while the power is off.
    journal: Option<Journal>,
    /// File lengths at the last sync: what a power cut cannot take away.
    synced: BTreeMap<PathBuf, u64>,
    replica: Replica,
    /// Replica as of the journal's start: what redo begins from after a crash.
    sent: OpSeq,
}

struct Run<'a> {
    world: Rc<RefCell<World>>,
    pump: Pump<View, View>,
    queue: SharedQueue,
    target: Target,
    directory: &'a Path,
    totals: Totals,
    epoch: u64,
}

/// Runs one seed; the error says what was wrong.
pub fn run(seed: u64) -> Result<Totals, String> {
    let directory = tempfile::tempdir().map_err(|e| e.to_string())?;
    let mut random = Random(seed);
    let mut source = Source::new();
    for _ in 0..random.below(60) {
        source.act(&mut random);
    }
    source.ring.clear();
    let budget = 40 + random.below(400) as u32;
    let world = Rc::new(RefCell::new(World { source, random, budget, frozen: false }));
    let mut run = Run::new(world, directory.path())?;
    run.live()?;
    run.finish()?;
    Ok(run.totals)
}

fn open_journal(directory: &Path) -> Result<Journal, String> {
    // Files of the smallest size, so that a run crosses many of them.
    let options = JournalOptions { file_bytes_max: 64 << 10, ..JournalOptions::default() };
    Journal::open(directory.join("journal"), options).map_err(|e| e.to_string())
}

impl<'a> Run<'a> {
    fn new(world: Rc<RefCell<World>>, directory: &'a Path) -> Result<Run<'a>, String> {
        let root = world.borrow().source.root;
        let target =
            Target { journal: Some(open_journal(directory)?), synced: BTreeMap::new(), replica: Replica::new(root), sent: OpSeq::ZERO };
        let (pump, queue) = start_pump(&world, directory, 1, OpSeq(1), Scope::Everything)?;
        Ok(Run { world, pump, queue, target, directory, totals: Totals::default(), epoch: 1 })
    }

    fn chance(&self, one_in: u64) -> bool {
        self.world.borrow_mut().random.one_in(one_in)
    }

    fn live(&mut self) -> Result<(), String> {
        while self.world.borrow().budget > 0 {
            self.world.borrow_mut().disturb(4);
            self.pump.turn(Duration::from_millis(1)).map_err(|e| e.to_string())?;
            if self.chance(4) {
                self.transfer()?;
            }
            if self.chance(60) {
                self.lose_something();
            }
            if self.chance(150) {
                self.restart_agent()?;
            }
            if self.chance(100) {
                self.cut_power()?;
            }
        }
        Ok(())
    }

    /// The link works for a while: queue → journal → acknowledgement → apply → wants.
    fn transfer(&mut self) -> Result<(), String> {
        while let Some(segment) = self.queue.next_after(self.target.sent, Duration::ZERO).map_err(|e| e.to_string())? {
            let arrived = Segment::parse(segment.bytes.to_vec()).map_err(|e| e.to_string())?;
            self.target.journal().append(&arrived).map_err(|e| e.to_string())?;
            self.target.sent = arrived.last_seq();
            if self.chance(5) {
                return Ok(());
            }
        }
        let durable = self.sync()?;
        self.queue.acknowledge(durable).map_err(|e| e.to_string())?;
        self.apply(durable)
    }

    fn apply(&mut self, durable: OpSeq) -> Result<(), String> {
        let mut reader =
            JournalReader::open(self.directory.join("journal"), self.target.replica.applied.next()).map_err(|e| e.to_string())?;
        while let Some(segment) = reader.next(durable).map_err(|e| e.to_string())? {
            for item in segment.items().map_err(|e| e.to_string())? {
                self.target.replica.apply(&item);
            }
        }
        let wants: Vec<NodeId> = std::mem::take(&mut self.target.replica.wants).into_iter().collect();
        if !wants.is_empty() && self.target.replica.consistent_at.is_none() && !self.target.replica.resyncing {
            self.pump.want(wants);
        }
        Ok(())
    }

    /// The ring overflows: some records are gone, and the kernel's map says whose.
    fn lose_something(&mut self) {
        let mut world = self.world.borrow_mut();
        let waiting = world.source.ring.len() as u64;
        let count = world.random.below(waiting + 1) as usize;
        let lost: Vec<Captured> = world.source.ring.drain(..count).collect();
        let reason = "ring full".to_owned();
        let mut loss = standin_agent::pump::Loss::new(reason.clone(), Timestamp(0));
        for event in &lost {
            if let Captured::Operation { operation, .. } = event {
                loss.note(operation);
            }
        }
        let event = match loss.nodes {
            Some(nodes) if !world.random.one_in(4) => Captured::LostNodes { nodes: nodes.into_iter().collect(), reason },
            _ => Captured::LostEverything { reason },
        };
        world.source.ring.insert(0, event);
        self.totals.gaps += 1;
    }

    /// SIGKILL: ring, queue and pump are gone; the appliance tells where to go on.
    fn restart_agent(&mut self) -> Result<(), String> {
        self.totals.restarts += 1;
        self.epoch += 1;
        let durable = self.sync()?;
        self.apply(durable)?;
        let mut world = self.world.borrow_mut();
        world.source.ring.clear();
        world.disturb(5);
        world.source.ring.clear();
        drop(world);
        let scope = match self.last_captured_time(durable)? {
            Some(time) => Scope::ChangedSince(time),
            None => Scope::Everything,
        };
        (self.pump, self.queue) = start_pump(&self.world, self.directory, self.epoch, durable.next(), scope)?;
        self.target.sent = durable;
        self.target.replica.wants.clear();
        Ok(())
    }

    /// When the replica was last known to be whole; `None` before the first consistent point and during a resync.
    fn last_captured_time(&self, durable: OpSeq) -> Result<Option<Timestamp>, String> {
        if self.target.replica.consistent_at.is_none() {
            return Ok(None);
        }
        let mut reader = JournalReader::open(self.directory.join("journal"), OpSeq(1)).map_err(|e| e.to_string())?;
        let mut last = None;
        while let Some(segment) = reader.next(durable).map_err(|e| e.to_string())? {
            last = Some(segment.captured_at());
        }
        Ok(last)
    }

    /// The appliance loses power: what was not synced may be torn off anywhere.
    fn cut_power(&mut self) -> Result<(), String> {
        self.totals.power_cuts += 1;
        let durable = self.target.journal().durable();
        self.target.journal = None;
        self.tear()?;
        self.target.journal = Some(open_journal(self.directory)?);
        let kept = self.target.journal().last();
        if kept < durable {
            return Err(format!("the journal lost durable items: {kept} after {durable}"));
        }
        self.target.sent = kept;
        if self.chance(2) {
            // The replica's disk went back to an empty mark; redo brings it to the same place.
            let root = self.world.borrow().source.root;
            self.target.replica = Replica::new(root);
            let durable = self.sync()?;
            self.apply(durable)?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<OpSeq, String> {
        let durable = self.target.journal().sync().map_err(|e| e.to_string())?;
        self.target.synced = lengths(&self.directory.join("journal"))?;
        Ok(durable)
    }

    /// Cuts the journal's newest file somewhere behind what was synced; the older ones were synced before it was begun.
    fn tear(&mut self) -> Result<(), String> {
        if let Some((path, len)) =
            lengths(&self.directory.join("journal"))?.into_iter().rfind(|(path, _)| path.extension().is_some_and(|e| e == "journal"))
        {
            // A file's header is synced when the file is made.
            let kept = self.target.synced.get(&path).copied().unwrap_or(FILE_HEADER_BYTES);
            let keep = kept + self.world.borrow_mut().random.below(len.saturating_sub(kept) + 1);
            let file = File::options().write(true).open(&path).map_err(|e| e.to_string())?;
            file.set_len(keep).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// Freeze, drain, compare: the replica must be the source, and must know it.
    fn finish(&mut self) -> Result<(), String> {
        self.world.borrow_mut().frozen = true;
        for _ in 0..50 {
            while self.pump.turn(Duration::ZERO).map_err(|e| e.to_string())? == Turn::Busy {}
            let quiesced = self.pump.quiesced().map_err(|e| e.to_string())?;
            for _ in 0..8 {
                self.transfer()?;
            }
            if quiesced.is_some_and(|seq| self.target.replica.applied >= seq) && self.target.replica.consistent_at.is_some() {
                return self.compare();
            }
        }
        Err("the replica never became consistent".to_owned())
    }

    fn compare(&mut self) -> Result<(), String> {
        self.totals.comparisons += 1;
        let world = self.world.borrow();
        let source = world.source.nodes.tree(world.source.root);
        let replica = self.target.replica.nodes.tree(self.target.replica.root);
        self.totals.operations += self.pump.figures().operations;
        for (path, thing) in &source {
            match replica.get(path) {
                None => return Err(format!("{path:?} is missing on the replica")),
                Some(other) if other != thing => return Err(format!("{path:?} differs: {}", difference(thing, other))),
                Some(_) => {}
            }
        }
        match replica.keys().find(|path| !source.contains_key(*path)) {
            Some(path) => Err(format!("{path:?} is only on the replica")),
            None => Ok(()),
        }
    }
}

impl Target {
    fn journal(&mut self) -> &mut Journal {
        self.journal.as_mut().expect("the power is on")
    }
}

/// In words, without the whole content.
fn difference(source: &Thing, replica: &Thing) -> String {
    let at = source.content.iter().zip(&replica.content).position(|(a, b)| a != b);
    let facts = |t: &Thing| {
        format!("directory {} mode {:o} names {} xattrs {} bytes {}", t.directory, t.mode, t.names, t.xattrs.len(), t.content.len())
    };
    format!("source {}, replica {}, first different byte {at:?}", facts(source), facts(replica))
}

/// The journal's segment files and how long they are.
fn lengths(directory: &Path) -> Result<BTreeMap<PathBuf, u64>, String> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).map_err(|e| e.to_string())? {
        let entry = entry.map_err(|e| e.to_string())?;
        found.insert(entry.path(), entry.metadata().map_err(|e| e.to_string())?.len());
    }
    Ok(found)
}

fn start_pump(
    world: &Rc<RefCell<World>>,
    directory: &Path,
    epoch: u64,
    start: OpSeq,
    scope: Scope,
) -> Result<(Pump<View, View>, SharedQueue), String> {
    let options = QueueOptions { memory_bytes_max: 1 << 40, disk_bytes_max: 0 };
    let mut queue = Queue::open(directory.join(format!("queue-{epoch}")), options).map_err(|e| e.to_string())?;
    queue.acknowledge(OpSeq(start.0 - 1)).map_err(|e| e.to_string())?;
    let queue = SharedQueue::new(queue);
    let view = View(Rc::clone(world));
    let root = world.borrow().source.root;
    let mirror = Mirror::new(&[(root, b"/".to_vec())], scope, Exclusions::default());
    let clock = VirtualClock::of(world);
    let pump = Pump::new(view.clone(), view, mirror, vec![root], Sealer::new(epoch, start, 1), queue.clone(), clock);
    Ok((pump, queue))
}

struct VirtualClock;

impl VirtualClock {
    /// The pump's clock has to be `Send`, which a view of this single-threaded world is not; so time is mirrored into an atomic per world.
    fn of(world: &Rc<RefCell<World>>) -> standin_agent::pump::Clock {
        let shared = std::sync::Arc::clone(&world.borrow().source.time);
        Box::new(move || Timestamp(shared.load(std::sync::atomic::Ordering::Relaxed)))
    }
}
