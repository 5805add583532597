//! Apply: executes the ordered stream on the replica's file systems, by node id and never by path.
//!
//! Apply is redo from the last durable mark. Every operation means "make it so", so that repeating a part of the stream over a later
//! state of the replica ends in the same state. While redo or a resync runs, nothing is destroyed: what loses its last name goes to a
//! hidden *limbo* directory of its volume, which is purged when the state is known to be whole (see `purge`).
//!
//! Invariants: items come in order without holes; the table on disk never knows more than the synced file systems hold; a node that the
//! stream names and the replica lacks is *wanted*, never an error. On an [`ApplyError`] the caller drops the applier and opens it again.

mod attributes;
mod check;
mod content;
mod create;
mod differ;
mod error;
mod fds;
mod handle;
mod listing;
mod look;
mod names;
mod patch;
mod place;
mod purge;
mod record;
mod shift;
mod state;
pub(crate) mod sys;
mod table;
mod times;
mod unproven;
mod unsettled;
mod volume;
mod want;

pub(crate) use attributes::{GUARDS, SETTABLE};
pub use check::{Comparison, Difference};
pub use differ::DIFFERS_MAX;
pub use error::ApplyError;
pub use look::{Mark, last_mark};
pub use state::{ApplyCounters, NAMED_POINTS_MAX, ReplicaState};
pub use volume::LIMBO_NAME;
pub use want::WANTED_MAX;

use fds::OpenNodes;
use record::{FORMAT_VERSION, Intent, Meta};
use standin_model::{Differs, Item, Name, NodeId, OpSeq, Operation, VolumeId};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use table::NodeTable;
use times::Touch;
use unproven::Unproven;
use unsettled::Unsettled;
use volume::Volumes;

/// A replica file system, mounted where only the worker sees it.
#[derive(Clone, Debug)]
pub struct VolumeConfig {
    pub id: VolumeId,
    pub mount: PathBuf,
    /// The source's node of the file system's root directory.
    pub root: NodeId,
}

#[derive(Clone, Debug)]
pub struct ApplyConfig {
    pub volumes: Vec<VolumeConfig>,
    /// The node table's file, on the appliance's own disk.
    pub table: PathBuf,
}

/// Where redo ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Redo {
    /// The journal's end is not known yet, so that everything may be redo.
    Unknown,
    Through(OpSeq),
    Done,
}

type Done = Result<(), ApplyError>;

pub struct Applier {
    volumes: Volumes,
    table: NodeTable,
    open: OpenNodes,
    applied: OpSeq,
    marked: OpSeq,
    redo: Redo,
    state: ReplicaState,
    counters: ApplyCounters,
    wanted: BTreeSet<NodeId>,
    /// Wanted nodes that have come since the last `Consistent`, with or without all of their content.
    answered: BTreeSet<NodeId>,
    /// Wanted directories that have come since, but for their listing.
    half_wanted: BTreeSet<NodeId>,
    /// Wants that the caller has not taken yet.
    fresh_wants: Vec<NodeId>,
    suspects: BTreeSet<NodeId>,
    intent: Option<Intent>,
    /// Nodes whose times our own work has changed, or that the stream gave new ones.
    touched: HashMap<NodeId, Touch>,
    /// Listings between their first and last page: the names seen so far.
    listings: HashMap<NodeId, HashSet<Name>>,
    /// Nodes that a clone since the last mark has read: they must not change before the next mark.
    clone_origins: HashSet<NodeId>,
    /// Names that redo could not give because their node is missing: the node, and the directory.
    unplaced: Vec<(NodeId, NodeId)>,
    /// Nodes that redo took for gone because a `Consistent` left them without a name, and whether the stream had taken it.
    buried: HashMap<NodeId, bool>,
    /// Of a redo: ranges that are not as their patches say.
    unproven: Unproven,
    unsettled: Unsettled,
    source_boot: Option<u64>,
    /// Of checks, that the caller has not taken yet.
    comparisons: Vec<Comparison>,
    checked_at: Option<std::time::Instant>,
    /// Answers to digests, that the caller has not taken yet.
    differs: Vec<Differs>,
    limbo_used: bool,
    finished: bool,
    /// Something changed since the last mark.
    unmarked: bool,
}

impl Applier {
    /// Opens the volumes and loads the table. Needs CAP_DAC_READ_SEARCH, as every user of file handles does.
    ///
    /// Until [`Applier::redo_through`] is called, everything is treated as redo.
    pub fn open(config: ApplyConfig) -> Result<Applier, ApplyError> {
        let (table, meta, unsettled) = NodeTable::open(&config.table)?;
        let volumes = Volumes::open(&config.volumes)?;
        let mut applier = Applier {
            volumes,
            table,
            open: OpenNodes::default(),
            applied: meta.applied,
            marked: meta.applied,
            redo: Redo::Unknown,
            state: meta.state,
            counters: ApplyCounters::default(),
            fresh_wants: meta.wanted.iter().copied().collect(),
            wanted: meta.wanted,
            answered: meta.answered,
            half_wanted: BTreeSet::new(),
            suspects: meta.suspects,
            intent: meta.intent,
            touched: HashMap::new(),
            listings: HashMap::new(),
            clone_origins: HashSet::new(),
            unplaced: meta.unplaced,
            buried: meta.buried.into_iter().collect(),
            unproven: Unproven::load(meta.unproven),
            unsettled,
            source_boot: meta.source_boot,
            comparisons: Vec::new(),
            checked_at: None,
            differs: Vec::new(),
            // Limbo may hold what a crashed process left.
            limbo_used: true,
            finished: false,
            unmarked: false,
        };
        applier.register_roots(&config.volumes);
        applier.lift_guards()?;
        applier.drop_strangers()?;
        Ok(applier)
    }

    /// Last item whose effect is in the replica; right after `open`, the last durable mark.
    pub fn applied(&self) -> OpSeq {
        self.applied
    }

    /// Last item whose effect survives a crash of the appliance.
    pub fn marked(&self) -> OpSeq {
        self.marked
    }

    /// Says how far the journal reached when it was recovered. Items up to there may have been applied before.
    pub fn redo_through(&mut self, end: OpSeq) -> Done {
        self.redo = Redo::Through(end);
        self.end_redo_if_reached()
    }

    pub fn state(&self) -> ReplicaState {
        ReplicaState { wanted: self.wanted.len() as u64, ..self.state.clone() }
    }

    pub fn counters(&self) -> ApplyCounters {
        self.counters
    }

    /// Applies one item. Items up to `applied` are skipped, so that a caller may start at a segment's boundary.
    pub fn apply(&mut self, item: &Item) -> Result<(), ApplyError> {
        if item.seq <= self.applied {
            return Ok(());
        }
        if self.finished {
            return Err(ApplyError::Finished);
        }
        if item.seq != self.applied.next() {
            return Err(ApplyError::OutOfOrder { last: self.applied, got: item.seq });
        }
        if self.state.quiesced_at.is_some() && !matches!(item.operation, Operation::Marker(_) | Operation::Check(_)) {
            self.state.quiesced_at = None;
        }
        self.check_volume(&item.operation)?;
        for node in item.operation.changed_nodes() {
            self.unsettled.changed(node, item.seq);
        }
        self.execute(item.seq, &item.operation)?;
        self.counters.items += 1;
        self.applied = item.seq;
        self.unmarked = true;
        if self.mark_is_due(&item.operation) {
            self.mark()?;
        }
        self.end_redo_if_reached()
    }

    /// Applies a segment's items and then sets the times that are due.
    pub fn apply_segment<'a>(&mut self, items: impl IntoIterator<Item = &'a Item>) -> Result<(), ApplyError> {
        for item in items {
            self.apply(item)?;
        }
        self.set_due_times()
    }

    /// Makes everything applied so far durable: the file systems first, then the table with the position.
    pub fn mark(&mut self) -> Result<OpSeq, ApplyError> {
        self.purge_if_whole()?;
        self.set_due_times()?;
        self.forget_old_checks();
        if self.unmarked || self.table.has_changes() {
            self.mark_with_intent(None)?;
        }
        Ok(self.marked)
    }

    fn mark_with_intent(&mut self, intent: Option<Intent>) -> Done {
        self.set_due_times()?;
        self.volumes.sync()?;
        self.intent = intent;
        let meta = Meta {
            version: FORMAT_VERSION,
            applied: self.applied,
            state: self.state(),
            wanted: self.wanted.clone(),
            answered: self.answered.clone(),
            suspects: self.suspects.clone(),
            intent,
            unplaced: self.unplaced.clone(),
            buried: self.buried.iter().map(|(node, unlinked)| (*node, *unlinked)).collect(),
            unproven: self.unproven.saved(),
            source_boot: self.source_boot,
            unsettled_overflow: self.unsettled.overflow(),
        };
        self.table.commit(&meta, &self.unsettled)?;
        self.unsettled.committed();
        self.marked = self.applied;
        self.clone_origins.clear();
        self.counters.marks += 1;
        self.unmarked = false;
        Ok(())
    }

    /// A listing, a clone or a rename may name nodes of one volume only; anything else is not from our agent.
    fn check_volume(&self, operation: &Operation) -> Done {
        match operation.node() {
            // The source may forget a node before its volume's root is shown: there is nothing to forget yet.
            Some(_) if matches!(operation, Operation::Forget { .. }) => Ok(()),
            Some(node) if self.volumes.find(node.volume).is_none() => Err(ApplyError::UnknownVolume { node }),
            _ => Ok(()),
        }
    }

    fn execute(&mut self, seq: OpSeq, operation: &Operation) -> Done {
        use Operation::*;
        self.unproven.note(operation);
        match operation {
            Write { .. } | Zero { .. } | Punch { .. } | Allocate { .. } | Truncate { .. } => self.content(operation),
            MirrorData { .. } | MirrorHole { .. } => self.content(operation),
            Patch { .. } => self.patch(operation),
            MirrorDigests { .. } => self.compare_digests(seq, operation),
            Collapse { node, offset, len } => self.shift(seq, *node, shift::Direction::Collapse, *offset, *len),
            Insert { node, offset, len } => self.shift(seq, *node, shift::Direction::Insert, *offset, *len),
            CloneRange { origin, origin_offset, node, offset, len } => self.clone_range(*origin, *origin_offset, *node, *offset, *len),
            Create { .. } | CreateUnnamed { .. } | Mkdir { .. } | Symlink { .. } | Mknod { .. } => self.create(operation),
            Link { parent, name, node } => self.link(*parent, name, *node),
            Unlink { parent, name, node } => self.unlink(*parent, name, *node, false),
            Rmdir { parent, name, node } => self.unlink(*parent, name, *node, true),
            Rename { .. } => self.rename(operation),
            Forget { node } => self.forget(*node),
            SetMode { .. } | SetOwner { .. } | SetTimes { .. } => self.attribute(operation),
            SetXattr { .. } | RemoveXattr { .. } | SetFlags { .. } | SetProject { .. } => self.attribute(operation),
            MirrorDirectory { node, entries, first, last } => self.mirror_directory(*node, entries, *first, *last),
            MirrorNode { .. } => self.mirror_node(operation),
            Marker(marker) => self.marker(seq, marker),
            Check(check) => self.check(check),
        }
    }

    fn mark_is_due(&self, operation: &Operation) -> bool {
        matches!(operation, Operation::Collapse { .. } | Operation::Insert { .. })
    }

    /// Whether the file systems may be further than `applied` says: what is applied now may have been applied before a crash.
    pub fn is_redoing(&self) -> bool {
        self.redoing()
    }

    fn redoing(&self) -> bool {
        self.redo != Redo::Done
    }

    /// Whether a node without a name may yet turn out to be needed.
    fn careful(&self) -> bool {
        self.redoing() || self.state.resync_running || self.state.gap_open || !self.wanted.is_empty()
    }
}

#[cfg(test)]
mod tests;
