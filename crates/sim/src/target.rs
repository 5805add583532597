//! The appliance's side: a journal that loses power, the replica behind it, and the checker of the promise.

use crate::reader::World;
use crate::replica::Replica;
use crate::source::Source;
use crate::totals::Totals;
use crate::trace::trace;
use crate::tree::{self, Hashes};
use standin_journal::{Journal, JournalOptions, JournalReader, Segment};
use standin_model::*;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Length of a journal file's header, see docs/formats/segment.md.
const FILE_HEADER_BYTES: u64 = 48;

pub struct Target {
    /// `None` only while the power is off.
    journal: Option<Journal>,
    directory: PathBuf,
    /// File lengths at the last sync: what a power cut cannot take away.
    synced: BTreeMap<PathBuf, u64>,
    pub received: OpSeq,
    /// What the agent was told to be durable.
    pub acknowledged: OpSeq,
    pub replica: Replica,
    /// Capture time of the last applied segment while the replica was consistent.
    pub whole_at: Option<Timestamp>,
    /// Wants that are not answered yet, and those among them that the agent was not told.
    wants: BTreeSet<NodeId>,
    untold: BTreeSet<NodeId>,
    /// The newest state of the source's history that the replica was seen at.
    at: usize,
    /// Somebody wrote to the replica's disk, and it promises nothing until that is mended.
    pub is_damaged: bool,
    /// No two sub-blocks have one hash.
    pub signatures_are_exact: bool,
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn open_journal(directory: &Path) -> Result<Journal, String> {
    // Files of the smallest size, so that a run crosses many of them.
    let options = JournalOptions { file_bytes_max: 64 << 10, ..JournalOptions::default() };
    Journal::open(directory, options).map_err(said)
}

impl Target {
    pub fn open(directory: &Path, world: &RefCell<World>) -> Result<Target, String> {
        let directory = directory.join("journal");
        let mut target = Target {
            journal: Some(open_journal(&directory)?),
            directory,
            synced: BTreeMap::new(),
            received: OpSeq::ZERO,
            acknowledged: OpSeq::ZERO,
            replica: Replica::new(&world.borrow().source.roots),
            whole_at: None,
            wants: BTreeSet::new(),
            untold: BTreeSet::new(),
            at: 0,
            is_damaged: false,
            signatures_are_exact: true,
        };
        target.note_lengths()?;
        Ok(target)
    }

    fn journal(&mut self) -> &mut Journal {
        self.journal.as_mut().expect("the power is on")
    }

    pub fn receive(&mut self, segment: &Segment) -> Result<(), String> {
        self.journal().append(segment).map_err(said)?;
        self.received = segment.last_seq();
        Ok(())
    }

    pub fn sync(&mut self) -> Result<OpSeq, String> {
        let durable = self.journal().sync().map_err(said)?;
        self.note_lengths()?;
        Ok(durable)
    }

    fn note_lengths(&mut self) -> Result<(), String> {
        self.synced = lengths(&self.directory)?;
        Ok(())
    }

    /// Applies what is durable; returns how many states were found to be the source's own.
    pub fn apply(&mut self, world: &RefCell<World>, totals: &mut Totals) -> Result<(), String> {
        while self.apply_until_death(world, totals)? {
            totals.worker_crashes += 1;
        }
        let fresh = self.replica.take_wants();
        self.count(totals)?;
        self.wants.extend(&fresh);
        self.untold.extend(fresh);
        if self.replica.is_consistent() {
            self.wants.clear();
        }
        Ok(())
    }

    /// True when the worker died in the middle of an item.
    fn apply_until_death(&mut self, world: &RefCell<World>, totals: &mut Totals) -> Result<bool, String> {
        let durable = self.journal().durable();
        if self.replica.applied() >= durable {
            return Ok(false);
        }
        let mut reader = JournalReader::open(&self.directory, self.replica.applied().next()).map_err(said)?;
        while let Some(segment) = reader.next(durable).map_err(said)? {
            let items = segment.items().map_err(said)?;
            // What a segment mends, and what is missing when it turns into a gap, is only at its end in order.
            let whole_only = items.iter().any(|item| {
                item.operation.is_mirror() || matches!(item.operation, Operation::Marker(Marker::Gap { .. } | Marker::Consistent))
            });
            for item in items {
                trace!("apply   {} {}", item.seq, crate::trace::short(&item.operation));
                if item.seq > self.replica.applied() && world.borrow_mut().kills_worker(&item.operation) {
                    let end = self.journal().last();
                    trace!("worker  killed in {}; redo through {end}", item.seq);
                    self.replica.die_in(&item, end);
                    return Ok(true);
                }
                self.replica.apply(&item);
                if !whole_only {
                    totals.prefixes += self.check(&world.borrow().source, |hashes| hashes.timeless)?;
                }
            }
            self.replica.set_due_times();
            self.check(&world.borrow().source, |hashes| hashes.whole)?;
            if self.replica.is_consistent() && !self.replica.is_redoing() {
                self.whole_at = Some(segment.captured_at());
            }
        }
        Ok(false)
    }

    /// Where hashes tell the truth, a patch gives what the source has.
    fn count(&mut self, totals: &mut Totals) -> Result<(), String> {
        let replica = &mut self.replica;
        totals.patches += std::mem::take(&mut replica.patches);
        totals.unproven_patches += std::mem::take(&mut replica.unproven);
        let refused = std::mem::take(&mut replica.refused);
        totals.refused_patches += refused;
        if refused > 0 && self.signatures_are_exact && !self.is_damaged {
            return Err(format!("{refused} patches were made against what the replica does not have, before item {}", replica.applied()));
        }
        Ok(())
    }

    pub fn take_wants(&mut self) -> Vec<NodeId> {
        std::mem::take(&mut self.untold).into_iter().collect()
    }

    /// A new agent knows nothing of what the one before was asked for.
    pub fn offer_wants_again(&mut self) {
        self.untold = self.wants.clone();
    }

    /// The promise: a replica that is called consistent equals the source at some prefix of its history, and prefixes only grow. Times are part
    /// of it at the end of a segment.
    fn check(&mut self, source: &Source, part: impl Fn(Hashes) -> u64) -> Result<u64, String> {
        if self.is_damaged || !self.replica.is_consistent() || self.replica.is_redoing() {
            return Ok(0);
        }
        let now = part(tree::hash(&self.replica));
        match source.history[self.at..].iter().position(|hashes| part(*hashes) == now) {
            Some(ahead) => self.at += ahead,
            None => {
                let replica = tree::picture(&self.replica);
                let mut closest = tree::differences(&tree::picture(source), &replica);
                for (ahead, picture) in source.pictures.iter().skip(self.at).enumerate() {
                    let what = tree::differences(picture, &replica);
                    if ahead < 8 {
                        trace!("checker {ahead} states ahead: {}", what.join("; "));
                    }
                    if what.len() < closest.len() {
                        closest = what;
                    }
                }
                closest.truncate(6);
                let (applied, closest) = (self.replica.applied(), closest.join("; "));
                return Err(format!("after item {applied} the replica is no state of the source: {closest}"));
            }
        }
        Ok(1)
    }

    pub fn compare(&self, source: &Source) -> Result<(), String> {
        let what = tree::differences(&tree::picture(source), &tree::picture(&self.replica));
        if what.is_empty() { Ok(()) } else { Err(what.into_iter().take(6).collect::<Vec<_>>().join("; ")) }
    }

    /// The appliance loses power: what was not synced may be torn off anywhere, and the replica's disk may be anything since its mark.
    pub fn cut_power(&mut self, world: &RefCell<World>) -> Result<(), String> {
        let durable = self.journal().durable().max(self.acknowledged);
        self.journal = None;
        let random = &mut world.borrow_mut().random;
        self.tear(random.next())?;
        self.journal = Some(open_journal(&self.directory)?);
        // Opening makes durable what it found.
        self.note_lengths()?;
        let kept = self.journal().last();
        if kept < durable {
            return Err(format!("the journal lost items that it called durable: {kept} after {durable}"));
        }
        self.received = kept;
        let disk_kept = random.one_in(2);
        trace!("power   cut; journal through {kept}, disk as of the {}", if disk_kept { "cut" } else { "mark" });
        self.replica.crash(disk_kept, kept);
        Ok(())
    }

    pub fn kill_worker(&mut self) {
        let end = self.journal().last();
        trace!("worker  killed; redo through {end}");
        self.replica.crash(true, end);
    }

    /// Cuts the journal's newest file somewhere behind what was synced; the older ones were synced before it was begun.
    fn tear(&mut self, chance: u64) -> Result<(), String> {
        if let Some((path, len)) = lengths(&self.directory)?.into_iter().rfind(|(path, _)| is_journal(path)) {
            // A file's header is synced when the file is made.
            let kept = self.synced.get(&path).copied().unwrap_or(FILE_HEADER_BYTES);
            let file = File::options().write(true).open(&path).map_err(said)?;
            file.set_len(kept + chance % (len.saturating_sub(kept) + 1)).map_err(said)?;
        }
        Ok(())
    }
}

pub fn is_journal(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "journal")
}

/// A directory's files and how long they are.
pub fn lengths(directory: &Path) -> Result<BTreeMap<PathBuf, u64>, String> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).map_err(said)? {
        let entry = entry.map_err(said)?;
        found.insert(entry.path(), entry.metadata().map_err(said)?.len());
    }
    Ok(found)
}
