//! The walk: which node to list, look at or read next, and the items that come of it.

use crate::{Chunk, Exclusions, ListedEntry, NodeFacts, Progress, ReadError, SourceReader};
use standin_model::{ByteLen, ByteOffset, Name, NodeId, NodeKind, Operation, Timestamp};
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

/// Where a directory hangs, so that exclusion rules can be asked for paths.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub parent: Option<NodeId>,
    pub path_part: Vec<u8>,
}

/// A listing page holds this many entries: about 64 KiB on the wire, so that no item grows with the directory.
const LISTING_PAGE_ENTRIES: usize = 1024;
/// Nodes per step; keeps the time between two barriers short where everything is tiny.
const STEP_NODES_MAX: usize = 128;

pub struct Mirror {
    pub(crate) tasks: VecDeque<Task>,
    pub(crate) scope: Scope,
    /// `None` once everything is shown.
    pub(crate) shown: Option<HashSet<NodeId>>,
    /// Files read in part, and how far.
    pub(crate) reading: HashMap<NodeId, u64>,
    /// Files read in the last step. Their chunks may already contain operations that come after the step's barrier, which is harmless unless
    /// such an operation must not be applied twice.
    pub(crate) recent: HashSet<NodeId>,
    pub(crate) hollow: HashSet<NodeId>,
    pub(crate) excluded: HashSet<NodeId>,
    pub(crate) places: HashMap<NodeId, Place>,
    pub(crate) exclusions: Exclusions,
    pub(crate) dirty: HashSet<NodeId>,
    pub(crate) progress: Progress,
    troubles: Vec<Trouble>,
}

impl Mirror {
    /// `roots` are the root directories of the volumes with their mount points.
    pub fn new(roots: &[(NodeId, Vec<u8>)], scope: Scope, exclusions: Exclusions) -> Mirror {
        let mut mirror = Mirror {
            tasks: VecDeque::new(),
            scope,
            shown: Some(HashSet::new()),
            reading: HashMap::new(),
            recent: HashSet::new(),
            hollow: HashSet::new(),
            excluded: HashSet::new(),
            places: HashMap::new(),
            exclusions,
            dirty: HashSet::new(),
            progress: Progress::default(),
            troubles: Vec::new(),
        };
        for (root, mount_point) in roots {
            let path = if mount_point == b"/" { Vec::new() } else { mount_point.clone() };
            mirror.places.insert(*root, Place { parent: None, path_part: path });
        }
        mirror.restart(scope, roots.iter().map(|(root, _)| *root));
        mirror
    }

    /// Starts a walk over everything again: at the beginning, and after a loss that named no nodes.
    pub fn restart(&mut self, scope: Scope, roots: impl Iterator<Item = NodeId>) {
        self.scope = scope;
        self.shown = Some(HashSet::new());
        self.reading.clear();
        self.recent.clear();
        self.dirty.clear();
        self.progress = Progress::default();
        self.tasks = roots.map(|node| Task::Visit { node, directory: true, changed: Timestamp(i64::MAX) }).collect();
    }

    /// Has these nodes shown again, whatever their change time says. Works while live and during a walk. `since` is when the loss began:
    /// what changed before it is known to the replica.
    pub fn mark_dirty(&mut self, nodes: impl IntoIterator<Item = NodeId>, since: Timestamp) {
        if self.shown.is_none() && self.tasks.is_empty() {
            self.scope = Scope::ChangedSince(since);
        }
        for node in nodes {
            if self.excluded.contains(&node) || !self.dirty.insert(node) {
                continue;
            }
            // During a walk a node not yet shown is going to be read anyway, unless the filter would skip it: then `dirty` tells.
            if self.is_shown(node) || self.shown.is_none() {
                self.tasks.push_front(Task::Visit { node, directory: false, changed: Timestamp(i64::MAX) });
            }
        }
    }

    pub fn is_idle(&self) -> bool {
        self.tasks.is_empty()
    }

    /// The caller appended `Consistent`: from now on every operation passes.
    pub fn finished(&mut self) {
        assert!(self.tasks.is_empty(), "a walk with tasks left is not finished");
        self.shown = None;
        self.dirty.clear();
        self.recent.clear();
        self.reading.clear();
    }

    pub fn progress(&self) -> Progress {
        Progress { tasks_left: self.tasks.len() as u64, ..self.progress }
    }

    pub fn take_troubles(&mut self) -> Vec<Trouble> {
        std::mem::take(&mut self.troubles)
    }

    pub fn is_shown(&self, node: NodeId) -> bool {
        self.shown.as_ref().is_none_or(|shown| shown.contains(&node))
    }

    pub(crate) fn set_shown(&mut self, node: NodeId) {
        if let Some(shown) = &mut self.shown {
            shown.insert(node);
        }
    }

    /// Reads what comes next, at most about `budget` bytes. Must run right after a barrier; its items must be appended before any
    /// operation that comes after that barrier.
    pub fn step(&mut self, reader: &mut impl SourceReader, budget: usize, out: &mut Vec<Operation>) -> Step {
        let mut left = budget;
        self.recent.clear();
        for _ in 0..STEP_NODES_MAX {
            let Some(task) = self.tasks.pop_front() else { return Step::Finished };
            let result = match task {
                Task::Visit { node, directory, changed } => self.visit(node, directory, changed, reader, &mut left, out),
                Task::Relist { node } => self.list(node, true, true, reader, out),
                Task::Read { node, offset } => self.read(node, offset, reader, &mut left, out),
                Task::Hollow { node } => self.hollow_out(node, reader),
            };
            if let Err(error) = result {
                self.troubles.push(Trouble { node: error.node, error });
            }
            if left == 0 {
                break;
            }
        }
        if self.tasks.is_empty() { Step::Finished } else { Step::More }
    }

    fn unchanged(&self, node: NodeId, changed: Timestamp) -> bool {
        match self.scope {
            Scope::Everything => false,
            Scope::ChangedSince(since) => changed < since && !self.dirty.contains(&node),
        }
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
        let forced = self.dirty.remove(&node);
        if self.excluded.contains(&node) || (self.is_shown(node) && self.shown.is_some() && !forced) {
            return Ok(());
        }
        self.progress.nodes_done += 1;
        if !forced && self.unchanged(node, changed) {
            self.set_shown(node);
            return if directory { self.list(node, false, false, reader, out) } else { Ok(()) };
        }
        let Some(facts) = reader.look(node)? else {
            // Somebody waits for this node: the replica wanted it, or a loss named it. That it is gone is the answer.
            if forced {
                out.push(Operation::Forget { node });
            }
            return Ok(());
        };
        self.set_shown(node);
        self.progress.nodes_sent += 1;
        out.push(node_item(node, &facts));
        match facts.kind {
            NodeKind::Directory => self.list(node, !self.unchanged(node, facts.changed) || forced, forced, reader, out),
            NodeKind::File => self.read(node, 0, reader, left, out),
            _ => Ok(()),
        }
    }

    /// Lists a directory: `send` puts the listing in the stream, `new_only` visits only what the replica cannot know.
    fn list(
        &mut self,
        node: NodeId,
        send: bool,
        new_only: bool,
        reader: &mut impl SourceReader,
        out: &mut Vec<Operation>,
    ) -> Result<(), ReadError> {
        let path = self.path_of(node);
        if self.hollow.contains(&node) || path.as_ref().is_some_and(|p| !p.is_empty() && self.exclusions.matches(p)) {
            self.hollow.insert(node);
            self.tasks.push_front(Task::Hollow { node });
            if send {
                out.push(Operation::MirrorDirectory { node, entries: Vec::new(), first: true, last: true });
            }
            return Ok(());
        }
        let Some(listed) = reader.list(node)? else { return Ok(()) };
        let kept: Vec<ListedEntry> = listed.into_iter().filter(|l| !self.leave_out(node, path.as_deref(), l)).collect();
        for listed in kept.iter().rev() {
            self.queue_child(node, listed, new_only);
        }
        if send {
            page_listing(node, kept, out);
        }
        Ok(())
    }

    fn leave_out(&mut self, parent: NodeId, path: Option<&[u8]>, listed: &ListedEntry) -> bool {
        let child = listed.entry.node;
        if listed.entry.kind == NodeKind::Directory {
            self.places.insert(child, Place { parent: Some(parent), path_part: listed.entry.name.as_bytes().to_vec() });
            return false;
        }
        let out = path.is_some_and(|p| !self.exclusions.is_empty() && self.exclusions.matches(&join(p, &listed.entry.name)));
        if out {
            self.excluded.insert(child);
        }
        out
    }

    fn queue_child(&mut self, parent: NodeId, listed: &ListedEntry, new_only: bool) {
        let (node, directory) = (listed.entry.node, listed.entry.kind == NodeKind::Directory);
        if self.hollow.contains(&parent) || (self.shown.is_some() && self.is_shown(node)) {
            return;
        }
        // While live, a node that the replica does not know has changed (been created, linked or moved) since the gap began.
        if new_only && self.shown.is_none() && self.unchanged(node, listed.changed) {
            return;
        }
        if new_only && self.shown.is_none() {
            self.dirty.insert(node);
        }
        let task = Task::Visit { node, directory, changed: listed.changed };
        if directory { self.tasks.push_back(task) } else { self.tasks.push_front(task) }
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
        let Some(content) = reader.read(node, offset, *left)? else { return Ok(()) };
        for chunk in content.chunks {
            match chunk {
                Chunk::Data { offset, data } => {
                    *left = left.saturating_sub(data.len());
                    self.progress.bytes_done += data.len() as u64;
                    out.push(Operation::MirrorData { node, offset: ByteOffset(offset), data });
                }
                Chunk::Hole { offset, len } => out.push(Operation::MirrorHole { node, offset: ByteOffset(offset), len: ByteLen(len) }),
                Chunk::Allocated { offset, len } => {
                    let (offset, len) = (ByteOffset(offset), ByteLen(len));
                    out.push(Operation::MirrorHole { node, offset, len });
                    out.push(Operation::Allocate { node, offset, len, keep_size: true });
                }
            }
        }
        if !content.end {
            self.reading.insert(node, content.next);
            self.tasks.push_front(Task::Read { node, offset: content.next });
        }
        Ok(())
    }

    /// Remembers every node below an excluded directory, so that later operations on them are recognised.
    fn hollow_out(&mut self, node: NodeId, reader: &mut impl SourceReader) -> Result<(), ReadError> {
        for listed in reader.list(node)?.unwrap_or_default() {
            let child = listed.entry.node;
            self.excluded.insert(child);
            if listed.entry.kind == NodeKind::Directory {
                self.hollow.insert(child);
                self.tasks.push_front(Task::Hollow { node: child });
            }
        }
        Ok(())
    }

    /// Absolute path of a directory as far as it is known.
    pub(crate) fn path_of(&self, node: NodeId) -> Option<Vec<u8>> {
        let mut parts = Vec::new();
        let mut at = node;
        // No path is deeper than its 4096 bytes allow; the bound also ends a cycle that a race could make.
        for _ in 0..4096 {
            let place = self.places.get(&at)?;
            parts.push(&place.path_part);
            match place.parent {
                Some(parent) => at = parent,
                None => return Some(assemble(&parts)),
            }
        }
        None
    }
}

fn assemble(parts: &[&Vec<u8>]) -> Vec<u8> {
    let mut path = parts.last().map(|root| root.to_vec()).unwrap_or_default();
    for part in parts.iter().rev().skip(1) {
        path.push(b'/');
        path.extend_from_slice(part);
    }
    path
}

pub(crate) fn join(path: &[u8], name: &Name) -> Vec<u8> {
    [path, b"/", name.as_bytes()].concat()
}

fn node_item(node: NodeId, facts: &NodeFacts) -> Operation {
    Operation::MirrorNode {
        node,
        kind: facts.kind,
        attributes: facts.attributes,
        accessed: facts.accessed,
        flags: facts.flags,
        size: facts.size,
        xattrs: facts.xattrs.clone(),
    }
}

fn page_listing(node: NodeId, listed: Vec<ListedEntry>, out: &mut Vec<Operation>) {
    let mut entries: Vec<_> = listed.into_iter().map(|l| l.entry).collect();
    let mut first = true;
    loop {
        let rest = entries.split_off(entries.len().min(LISTING_PAGE_ENTRIES));
        let last = rest.is_empty();
        out.push(Operation::MirrorDirectory { node, entries, first, last });
        if last {
            return;
        }
        (entries, first) = (rest, false);
    }
}
