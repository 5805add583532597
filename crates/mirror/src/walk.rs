//! The walk: which node to list, look at or read next, and the items that come of it.

use crate::border::{ExcludedNames, ExcludedNodes};
use crate::compare::Comparing;
use crate::places::Place;
use crate::{Exclusions, LeftOut, NodeFacts, Progress, ReadError, SourceReader};
use standin_model::{NodeId, NodeKind, Operation, Timestamp};
use std::collections::{HashMap, HashSet, VecDeque};

/// What a run has to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Everything,
    /// Only what changed at or after this time, by the source's clock; the caller has taken off its slack.
    ChangedSince(Timestamp),
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is more to read.
    More,
    /// Nothing can be read before the replica has answered; see [`Mirror::answered`].
    Waiting,
    /// Nothing is left: after one more barrier the caller may append `Consistent`.
    Finished,
}

/// A node that could not be read.
#[derive(Debug)]
pub struct Trouble {
    pub node: NodeId,
    pub error: ReadError,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Look at the node, then list or read it. `changed` is its change time as listed.
    Visit { node: NodeId, directory: bool, changed: Timestamp },
    /// Send a directory's listing again, and visit what is new in it.
    Relist { node: NodeId },
    /// Go on reading a file.
    Read { node: NodeId, offset: u64 },
    /// Remember everything below as excluded.
    Hollow { node: NodeId },
}

impl Task {
    /// Looks at the node whatever its change time is.
    fn visit(node: NodeId) -> Task {
        Task::Visit { node, directory: false, changed: Timestamp(i64::MAX) }
    }
}

/// What a task's items take besides content, for the budget.
const TASK_BYTES: usize = 256;
/// Nodes per step; keeps the time between two barriers short where everything is tiny.
const STEP_NODES_MAX: usize = 128;

pub struct Mirror {
    pub(crate) tasks: VecDeque<Task>,
    /// Nodes to visit when no task is left: only when the walk has been everywhere is it known what of them is excluded.
    pub(crate) owed: VecDeque<NodeId>,
    pub(crate) scope: Scope,
    /// Everything is shown but what is stale; otherwise nothing is but what is in `shown`.
    pub(crate) live: bool,
    /// Nothing has been lost or left out since the last `finished`: what changed before the next loss is known to the replica.
    pub(crate) whole: bool,
    shown: HashSet<NodeId>,
    /// Shown by a walk that a loss interrupted, and when that loss began: this walk need not read them again unless they changed since.
    pub(crate) known: HashMap<NodeId, Timestamp>,
    /// Listed to the replica, so that it has them, but not shown yet.
    pub(crate) announced: HashSet<NodeId>,
    /// Not shown, and owed a read whatever their change time says: an operation on them was left out, lost, or asked for.
    pub(crate) stale: HashSet<NodeId>,
    /// Directories that are shown but whose names are owed another listing; there is a task for each.
    pub(crate) unlisted: HashSet<NodeId>,
    /// Files that were created without a name, and have none yet.
    pub(crate) unnamed: HashSet<NodeId>,
    /// No operations come; see `alone`.
    pub(crate) alone: bool,
    /// Only then: nodes that were found without a name, and have none yet.
    pub(crate) nameless: HashSet<NodeId>,
    /// Files read in part, and how far.
    pub(crate) reading: HashMap<NodeId, u64>,
    /// Files read in the last step. Their chunks may already contain operations that come after the step's barrier, which is harmless unless
    /// such an operation must not be applied twice.
    pub(crate) recent: HashSet<NodeId>,
    /// Files that are compared with the replica's.
    pub(crate) comparing: Comparing,
    pub(crate) hollow: HashSet<NodeId>,
    /// Excluded when a loss began: what happened to them until then is in no stream, whatever their change time says. For the walk that finds them
    /// outside of what is excluded.
    pub(crate) once_excluded: HashSet<NodeId>,
    pub(crate) excluded: ExcludedNodes,
    pub(crate) excluded_names: ExcludedNames,
    /// Nodes with excluded names that were read since everything was listed, without a name by which they were met.
    pub(crate) offered: HashSet<NodeId>,
    /// Excluded in the last step because their excluded names were as many as their links: there may have been others since its barrier.
    pub(crate) unsure: HashSet<NodeId>,
    /// Nodes that moved from one excluded directory to another before they were met; there is a task for each.
    pub(crate) unmet: HashSet<NodeId>,
    /// Directories below which other rules hold since they moved, or that came out of what is excluded: all that is there is visited.
    pub(crate) reconsidered: HashSet<NodeId>,
    pub(crate) places: HashMap<NodeId, Place>,
    pub(crate) exclusions: Exclusions,
    pub(crate) progress: Progress,
    pub(crate) left_out: LeftOut,
    troubles: Vec<Trouble>,
}

impl Mirror {
    /// `roots` are the root directories of the volumes with their mount points.
    pub fn new(roots: &[(NodeId, Vec<u8>)], scope: Scope, exclusions: Exclusions) -> Mirror {
        let mut mirror = Mirror {
            tasks: VecDeque::new(),
            owed: VecDeque::new(),
            scope,
            live: false,
            whole: false,
            shown: HashSet::new(),
            known: HashMap::new(),
            announced: HashSet::new(),
            stale: HashSet::new(),
            unlisted: HashSet::new(),
            unnamed: HashSet::new(),
            alone: false,
            nameless: HashSet::new(),
            reading: HashMap::new(),
            recent: HashSet::new(),
            comparing: Comparing::default(),
            hollow: HashSet::new(),
            once_excluded: HashSet::new(),
            excluded: ExcludedNodes::default(),
            excluded_names: ExcludedNames::default(),
            unsure: HashSet::new(),
            offered: HashSet::new(),
            unmet: HashSet::new(),
            reconsidered: HashSet::new(),
            places: HashMap::new(),
            exclusions,
            progress: Progress::default(),
            left_out: LeftOut::default(),
            troubles: Vec::new(),
        };
        for (root, mount_point) in roots {
            let path = if mount_point == b"/" { Vec::new() } else { mount_point.clone() };
            mirror.places.insert(*root, Place { parent: None, path_part: path });
        }
        mirror.restart(scope, roots.iter().map(|(root, _)| *root));
        mirror
    }

    /// Starts a walk over everything again: at the beginning, and after a loss that named no nodes. What an unfinished run still owes stays owed.
    pub fn restart(&mut self, scope: Scope, roots: impl Iterator<Item = NodeId>) {
        match scope {
            // What an interrupted walk had shown is known up to the loss; the others keep the time of the loss before.
            Scope::ChangedSince(since) if !self.live => self.known.extend(self.shown.drain().map(|node| (node, since))),
            // Everything, or what is not live but whole: nothing is known by itself.
            _ => self.known.clear(),
        }
        self.widen(scope);
        self.live = false;
        self.shown.clear();
        self.announced.clear();
        // The walk meets it all, and no name that a loss hides is counted.
        self.once_excluded.extend(self.excluded.drain());
        self.once_excluded.extend(self.hollow.iter().copied());
        self.excluded_names.clear();
        self.hollow.clear();
        self.unmet.clear();
        self.unsure.clear();
        self.offered.clear();
        self.reconsidered.clear();
        // Read in part only, or listed too early: no change time tells that.
        self.stale.extend(self.unlisted.drain());
        self.stale.extend(self.reading.drain().map(|(node, _)| node));
        self.stale.extend(self.comparing.clear());
        self.recent.clear();
        (self.progress, self.left_out) = (Progress::default(), LeftOut::default());
        self.tasks = roots.map(|node| Task::Visit { node, directory: true, changed: Timestamp(i64::MAX) }).collect();
        // They need not be reachable any more, and somebody waits for an answer all the same.
        let mut stale: Vec<NodeId> = self.stale.iter().copied().collect();
        // In an order that a replay has as well.
        stale.sort_unstable();
        self.owed = stale.into();
    }

    fn widen(&mut self, scope: Scope) {
        if self.whole {
            self.progress = Progress::default();
        }
        self.scope = match (self.scope, scope) {
            _ if self.whole => scope,
            (Scope::ChangedSince(a), Scope::ChangedSince(b)) => Scope::ChangedSince(a.min(b)),
            _ => Scope::Everything,
        };
        self.whole = false;
    }

    /// Has these nodes shown again, whatever their change time says. Works while live and during a walk. `since` is when the loss began:
    /// what changed before it is known to the replica. A node that is gone is answered by `Forget`.
    pub fn mark_dirty(&mut self, nodes: impl IntoIterator<Item = NodeId>, since: Timestamp) {
        self.widen(Scope::ChangedSince(since));
        for node in nodes {
            self.revisit(node);
        }
    }

    /// The same, where operations on them were lost.
    pub fn mark_lost(&mut self, nodes: &[NodeId], since: Timestamp) {
        self.lose_names(nodes);
        self.mark_dirty(nodes.iter().copied(), since);
    }

    /// Has these nodes read when the walk comes to them, whatever their change time says. What no walk meets is left alone: excluded, or without a
    /// name.
    pub fn distrust(&mut self, nodes: impl IntoIterator<Item = NodeId>) {
        nodes.into_iter().for_each(|node| self.owe(node));
    }

    pub fn is_idle(&self) -> bool {
        self.tasks.is_empty() && self.owed.is_empty() && self.comparing.is_idle()
    }

    /// Whether the replica has been made equal since the last loss.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// The caller appended `Consistent`: from now on every operation passes, but for nodes that stayed stale because they have no name.
    pub fn finished(&mut self) {
        assert!(self.is_idle(), "a walk with tasks left is not finished");
        (self.live, self.whole) = (true, true);
        self.shown = HashSet::new();
        self.known = HashMap::new();
        self.once_excluded = HashSet::new();
        self.announced.clear();
        self.recent.clear();
        self.reading.clear();
    }

    pub fn progress(&self) -> Progress {
        Progress { tasks_left: (self.tasks.len() + self.owed.len() + self.comparing.len()) as u64, ..self.progress.clone() }
    }

    pub fn left_out(&self) -> LeftOut {
        self.left_out
    }

    /// Whether nothing about this node is replicated.
    pub fn excludes(&self, node: NodeId) -> bool {
        self.excluded.contains(&node)
    }

    pub fn take_troubles(&mut self) -> Vec<Trouble> {
        std::mem::take(&mut self.troubles)
    }

    /// Whether somebody waits for a read of this node.
    pub fn is_owed(&self, node: NodeId) -> bool {
        self.stale.contains(&node)
    }

    /// Its end was lost, so that the next walk has to tell it.
    pub fn owe_end(&mut self, node: NodeId) {
        self.stale.insert(node);
    }

    pub fn is_shown(&self, node: NodeId) -> bool {
        !self.stale.contains(&node) && (self.live || self.shown.contains(&node))
    }

    pub(crate) fn set_shown(&mut self, node: NodeId) {
        self.stale.remove(&node);
        self.once_excluded.remove(&node);
        self.announced.remove(&node);
        if !self.live {
            self.shown.insert(node);
        }
    }

    /// Something about the node was left out of the stream: it is owed a read that nothing may filter.
    pub(crate) fn owe(&mut self, node: NodeId) {
        if !self.excluded.contains(&node) {
            self.stale.insert(node);
        }
    }

    pub(crate) fn owe_names(&mut self, directory: NodeId) {
        // Where a listing is owed already, there is nothing to add.
        if !self.hollow.contains(&directory) && !self.unlisted.contains(&directory) {
            self.owe(directory);
        }
    }

    /// The node counts as not shown, and perhaps not known, from here on.
    pub(crate) fn make_stale(&mut self, node: NodeId) {
        self.stale.insert(node);
        self.shown.remove(&node);
        self.announced.remove(&node);
        self.unread(node);
    }

    fn unread(&mut self, node: NodeId) {
        self.recent.remove(&node);
        self.comparing.forget(node);
        if self.reading.remove(&node).is_some() {
            self.tasks.retain(|task| !matches!(task, Task::Read { node: n, .. } if *n == node));
        }
    }

    /// Has the node read again from its beginning.
    pub(crate) fn revisit(&mut self, node: NodeId) {
        self.make_stale(node);
        self.owed.push_back(node);
    }

    /// Has the directory's names listed again; until then operations on them are left out.
    pub(crate) fn relist(&mut self, directory: NodeId) {
        if self.unlisted.insert(directory) {
            self.tasks.push_back(Task::Relist { node: directory });
        }
    }

    /// Shows what comes next, with items of about `budget` bytes at most. Must run right after a barrier; its items must be appended before any
    /// operation that comes after that barrier.
    pub fn step(&mut self, reader: &mut impl SourceReader, budget: usize, out: &mut Vec<Operation>) -> Step {
        let mut left = budget;
        self.recent.clear();
        self.unsure.clear();
        for _ in 0..STEP_NODES_MAX {
            let Some(result) = self.do_next(reader, &mut left, out) else { break };
            if let Err(error) = result {
                self.make_stale(error.node);
                self.troubles.push(Trouble { node: error.node, error });
            }
            left = left.saturating_sub(TASK_BYTES);
            if left == 0 {
                break;
            }
        }
        if self.is_idle() {
            Step::Finished
        } else if self.can_go_on() {
            Step::More
        } else {
            Step::Waiting
        }
    }

    fn can_go_on(&self) -> bool {
        let has_task = !self.tasks.is_empty() || !self.owed.is_empty();
        self.comparing.has_again() || has_task && !self.comparing.is_full()
    }

    /// `None` where nothing can be done now.
    fn do_next(&mut self, reader: &mut impl SourceReader, left: &mut usize, out: &mut Vec<Operation>) -> Option<Result<(), ReadError>> {
        // First what is behind the walk: it makes room for what comes next.
        if let Some(again) = self.comparing.take_again() {
            return Some(self.read_again(again, reader, left, out));
        }
        if self.comparing.is_full() {
            return None;
        }
        let task = self.tasks.pop_front().or_else(|| self.owed.pop_front().map(Task::visit))?;
        Some(match task {
            Task::Visit { node, directory, changed } => self.visit(node, directory, changed, reader, left, out),
            Task::Relist { node } => self.list_again(node, reader, out),
            Task::Read { node, offset } => self.read(node, offset, reader, left, out),
            Task::Hollow { node } => self.hollow_out(node, reader),
        })
    }

    pub(crate) fn unchanged(&self, node: NodeId, changed: Timestamp) -> bool {
        let known = self.known.get(&node).copied();
        let since = match self.scope {
            Scope::Everything => known,
            Scope::ChangedSince(since) => Some(known.map_or(since, |known| known.max(since))),
        };
        since.is_some_and(|since| changed < since) && !self.stale.contains(&node) && !self.once_excluded.contains(&node)
    }

    fn visit(
        &mut self,
        node: NodeId,
        directory: bool,
        changed: Timestamp,
        reader: &mut impl SourceReader,
        left: &mut usize,
        out: &mut Vec<Operation>,
    ) -> Result<(), ReadError> {
        let owed = self.stale.contains(&node);
        if self.excluded.contains(&node) {
            if self.unsure.contains(&node) {
                // What a barrier brings may bring it back, with the names that the replica has.
                self.owed.push_back(node);
                return Ok(());
            }
            // To the replica it is gone. It stays stale, so that a walk after a loss says so again.
            if owed {
                out.push(Operation::Forget { node });
            }
            if self.hollow.contains(&node) {
                // It could not be listed when its turn came.
                self.tasks.push_front(Task::Hollow { node });
            }
            return Ok(());
        }
        if self.is_shown(node) {
            return Ok(());
        }
        self.progress.of(node.volume).nodes += 1;
        if self.unchanged(node, changed) {
            self.set_shown(node);
            return if directory { self.list(node, false, false, reader, out) } else { Ok(()) };
        }
        let facts = reader.look(node)?;
        let is_gone = facts.is_none();
        let Some(facts) = facts.filter(|facts| facts.named) else {
            // Gone, or without a name, which is the same to a tree. It stays stale until its own `Forget` or a name comes.
            if owed {
                out.push(Operation::Forget { node });
            }
            self.found_no_name(node, is_gone);
            return Ok(());
        };
        if facts.kind != NodeKind::Directory && self.settle_border(node, facts.links) {
            self.owed.push_back(node);
            return Ok(());
        }
        if owed && self.lists_all(node) {
            return Ok(());
        }
        let send = !self.unchanged(node, facts.changed);
        self.set_shown(node);
        self.progress.nodes_sent += 1;
        out.push(node_item(node, &facts));
        match facts.kind {
            NodeKind::Directory => self.list(node, send, true, reader, out),
            NodeKind::File => {
                self.begin_comparing(node, facts.size);
                self.read(node, 0, reader, left, out)
            }
            _ => Ok(()),
        }
    }

    fn read(
        &mut self,
        node: NodeId,
        offset: u64,
        reader: &mut impl SourceReader,
        left: &mut usize,
        out: &mut Vec<Operation>,
    ) -> Result<(), ReadError> {
        if *left == 0 {
            self.reading.insert(node, offset);
            self.tasks.push_front(Task::Read { node, offset });
            return Ok(());
        }
        self.recent.insert(node);
        self.reading.remove(&node);
        let Some(content) = reader.read(node, offset, *left)? else {
            self.comparing.end(node);
            return Ok(());
        };
        self.show(node, content.chunks, left, out);
        if content.end {
            self.comparing.end(node);
            return Ok(());
        }
        self.reading.insert(node, content.next);
        if !self.comparing.park(node) {
            self.tasks.push_front(Task::Read { node, offset: content.next });
        }
        Ok(())
    }
}

pub(crate) fn node_item(node: NodeId, facts: &NodeFacts) -> Operation {
    Operation::MirrorNode {
        node,
        kind: facts.kind,
        attributes: facts.attributes,
        accessed: facts.accessed,
        flags: facts.flags,
        project: facts.project,
        size: facts.size,
        xattrs: facts.xattrs.clone(),
    }
}
