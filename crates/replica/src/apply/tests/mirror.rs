//! Mirror and resync while the source goes on: a small agent shows the oracle to the applier, by the rules of the design note. An operation
//! passes only where its directory is listed or its node shown; what enters a listed directory unknown comes as a page of its own.

use super::oracle::{Node, ROOT};
use super::random::crash;
use super::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const PAGE_ENTRIES: usize = 3;

struct Agent {
    oracle: Oracle,
    out: Vec<Operation>,
    /// Directories whose listing has begun, nodes whose attributes and content have come, nodes that the replica has heard of.
    listed: BTreeSet<NodeId>,
    shown: BTreeSet<NodeId>,
    known: BTreeSet<NodeId>,
    queue: VecDeque<NodeId>,
    /// What the replica had when the last gap opened.
    before: BTreeMap<NodeId, Node>,
}

impl Agent {
    fn new(seed: u64) -> Agent {
        Agent {
            oracle: Oracle::new(seed),
            out: Vec::new(),
            listed: BTreeSet::new(),
            shown: BTreeSet::new(),
            known: BTreeSet::from([ROOT]),
            queue: VecDeque::new(),
            before: BTreeMap::new(),
        }
    }

    /// Operations that nobody saw.
    fn lose(&mut self, steps: u64) {
        (0..steps).for_each(|_| self.oracle.step(&mut Vec::new()));
        self.oracle.end_segment(&mut Vec::new());
    }

    fn live(&mut self, steps: u64) {
        let mut operations = Vec::new();
        for _ in 0..steps {
            self.oracle.step(&mut operations);
            operations.drain(..).for_each(|operation| self.pass(operation));
        }
        self.oracle.end_segment(&mut operations);
        operations.into_iter().for_each(|operation| self.pass(operation));
    }

    fn pass(&mut self, operation: Operation) {
        use Operation::*;
        let passes = match &operation {
            Create { parent, node, .. } | Mkdir { parent, node, .. } | Symlink { parent, node, .. } | Mknod { parent, node, .. } => {
                let seen = self.listed.contains(parent);
                seen.then(|| self.born(*node)).is_some()
            }
            CreateUnnamed { node, .. } => {
                self.born(*node);
                true
            }
            Link { parent, name, node } => self.listed.contains(parent) && (self.known.contains(node) || self.page_of_one(*parent, name)),
            Unlink { parent, .. } | Rmdir { parent, .. } => self.listed.contains(parent),
            Rename { .. } => return self.pass_rename(operation),
            CloneRange { origin, node, .. } if self.shown.contains(node) && !self.shown.contains(origin) => {
                self.shown.remove(node);
                self.before.remove(node);
                self.queue.push_back(*node);
                false
            }
            Forget { .. } => true,
            other => other.node().is_some_and(|node| self.shown.contains(&node)),
        };
        if passes {
            if let Link { node, .. } = &operation {
                // It may have been shown by no other name yet.
                self.queue.push_back(*node);
            }
            self.out.push(operation);
        }
    }

    fn born(&mut self, node: NodeId) {
        self.known.insert(node);
        self.shown.insert(node);
        self.listed.insert(node);
    }

    fn pass_rename(&mut self, operation: Operation) {
        let Operation::Rename { parent, name, node, new_parent, new_name, mode, victim } = &operation else { return };
        let (old_seen, new_seen) = (self.listed.contains(parent), self.listed.contains(new_parent));
        let all_known =
            self.known.contains(node) && victim.is_none_or(|victim| self.known.contains(&victim) || *mode != RenameMode::Exchange);
        if old_seen && new_seen && all_known {
            self.queue.extend([*node].into_iter().chain(*victim));
            self.out.push(operation);
            return;
        }
        if old_seen && *mode != RenameMode::Exchange {
            self.out.push(Operation::Unlink { parent: *parent, name: name.clone(), node: *node });
        }
        if new_seen {
            self.page_of_one(*new_parent, new_name);
        }
        if old_seen && matches!(mode, RenameMode::Exchange | RenameMode::Whiteout) {
            self.page_of_one(*parent, name);
        }
    }

    fn entry(&mut self, parent: NodeId, name: &Name) -> Option<DirectoryEntry> {
        let node = *self.oracle.node(parent).names.get(name)?;
        let found = self.oracle.node(node);
        let target = if found.kind == NodeKind::Symlink { found.content.clone() } else { Vec::new() };
        let entry = DirectoryEntry { name: name.clone(), node, kind: found.kind, device: found.device, target };
        if !self.known.insert(node) {
            return Some(entry);
        }
        self.before.remove(&node);
        Some(entry)
    }

    /// Shows one name of a listed directory; returns false, so that the operation itself does not pass.
    fn page_of_one(&mut self, parent: NodeId, name: &Name) -> bool {
        if let Some(entry) = self.entry(parent, name) {
            self.queue.push_back(entry.node);
            self.out.push(Operation::MirrorDirectory { node: parent, entries: vec![entry], first: false, last: false });
        }
        false
    }

    fn mirror(&mut self) {
        self.out.push(Operation::Marker(Marker::ResyncStarted));
        (self.listed, self.shown) = (BTreeSet::new(), BTreeSet::new());
        self.queue = VecDeque::from([ROOT]);
        while let Some(node) = self.queue.pop_front() {
            if self.oracle.nodes.contains_key(&node) {
                self.walk(node);
            }
            let steps = self.oracle.random.below(3);
            self.live(steps);
        }
        self.out.push(Operation::Marker(Marker::Consistent));
    }

    fn walk(&mut self, node: NodeId) {
        if self.oracle.node(node).kind == NodeKind::Directory && !self.listed.contains(&node) {
            self.list(node);
        }
        // The directory may have gone while it was listed.
        let Some(now) = self.oracle.nodes.get(&node).cloned() else { return };
        if !self.shown.insert(node) {
            return;
        }
        let same = |old: &Node| old.attributes == now.attributes && old.xattrs == now.xattrs && old.content == now.content;
        if !self.before.get(&node).is_some_and(same) {
            self.show(node, &now);
        }
    }

    fn list(&mut self, node: NodeId) {
        self.listed.insert(node);
        let mut cursor: Option<Name> = None;
        loop {
            let Some(found) = self.oracle.nodes.get(&node) else { return };
            let after = |name: &&Name| cursor.as_ref().is_none_or(|cursor| *name > cursor);
            let names: Vec<Name> = found.names.keys().filter(after).take(PAGE_ENTRIES).cloned().collect();
            let entries: Vec<_> = names.iter().filter_map(|name| self.entry(node, name)).collect();
            self.queue.extend(entries.iter().map(|entry| entry.node));
            let last = names.len() < PAGE_ENTRIES;
            self.out.push(Operation::MirrorDirectory { node, entries, first: cursor.is_none(), last });
            if last {
                return;
            }
            cursor = names.last().cloned();
            self.live(1);
        }
    }

    fn show(&mut self, node: NodeId, now: &Node) {
        let size = ByteLen(if now.kind == NodeKind::File { now.content.len() as u64 } else { 0 });
        let xattrs = now.xattrs.clone().into_iter().collect();
        let (kind, attributes) = (now.kind, now.attributes);
        self.out.push(Operation::MirrorNode { node, kind, attributes, accessed: attributes.modified, flags: 0, project: 0, size, xattrs });
        if kind != NodeKind::File {
            return;
        }
        for (at, piece) in now.content.chunks(4096).enumerate() {
            let offset = ByteOffset(at as u64 * 4096);
            self.out.push(if piece.iter().all(|byte| *byte == 0) {
                Operation::MirrorHole { node, offset, len: ByteLen(piece.len() as u64) }
            } else {
                Operation::MirrorData { node, offset, data: piece.to_vec() }
            });
        }
    }

    /// A gap, losses, and the resync that heals them.
    fn gap_and_resync(&mut self) {
        self.out.push(Operation::Marker(Marker::Gap { reason: "ring full".into() }));
        self.before = self.oracle.nodes.clone();
        // The replica forgets what has no name, also where the gap gives it one.
        for node in self.oracle.without_name() {
            self.before.remove(&node);
            self.known.remove(&node);
        }
        self.lose(60);
        // Files without a name are in no listing; a real agent shows them by their descriptors.
        for node in self.oracle.drop_unnamed() {
            self.out.push(Operation::Forget { node });
        }
        self.mirror();
    }
}

/// A server with some history is mirrored while it works, loses events once, and is mirrored again.
pub fn history(seed: u64, can_shift: bool) -> (Vec<Item>, Oracle) {
    history_with(seed, can_shift, false)
}

pub fn history_with(seed: u64, can_shift: bool, makes_patches: bool) -> (Vec<Item>, Oracle) {
    let mut agent = Agent::new(seed);
    agent.oracle.makes_patches = makes_patches;
    agent.oracle.can_shift = can_shift;
    agent.lose(250);
    agent.oracle.drop_unnamed();
    agent.mirror();
    agent.live(60);
    agent.gap_and_resync();
    agent.live(60);
    (numbered(agent.out), agent.oracle)
}

/// What the agent sends for wanted nodes.
fn answer(oracle: &mut Oracle, wanted: &[NodeId]) -> Vec<Operation> {
    let nodes = std::mem::replace(oracle, Oracle::new(0));
    let mut agent = Agent { oracle: nodes, ..Agent::new(0) };
    agent.out.push(Operation::Marker(Marker::ResyncStarted));
    for node in wanted {
        let Some(now) = agent.oracle.nodes.get(node).cloned() else {
            agent.out.push(Operation::Forget { node: *node });
            continue;
        };
        if now.kind == NodeKind::Directory {
            let entries = now.names.keys().filter_map(|name| agent.entry(*node, name)).collect();
            agent.out.push(Operation::MirrorDirectory { node: *node, entries, first: true, last: true });
        }
        agent.show(*node, &now);
    }
    agent.out.push(Operation::Marker(Marker::Consistent));
    *oracle = agent.oracle;
    agent.out
}

/// A listing that a crash has cut is wanted again. The agent answers, and the answer may hold more that is unknown; then `check` looks.
pub fn answer_wants(applier: &mut Applier, mut oracle: Oracle, check: impl FnOnce(&mut Applier, &Oracle)) {
    for _ in 0..4 {
        let wanted = applier.take_wants();
        if wanted.is_empty() {
            break;
        }
        for operation in answer(&mut oracle, &wanted) {
            applier.apply(&Item { seq: applier.applied().next(), operation }).unwrap();
        }
        applier.mark().unwrap();
    }
    assert!(applier.state().is_consistent(), "{:?}", applier.state());
    check(applier, &oracle);
}

#[test]
fn mirror_and_resync_of_a_busy_tree_give_the_oracles_tree() {
    for seed in random::seeds(40) {
        let Some(lab) = Lab::new("mirror") else { return };
        let (items, oracle) = history(seed, !is_btrfs());
        let mut applier = lab.open();
        applier.redo_through(OpSeq::ZERO).unwrap();
        for segment in items.chunks(50) {
            applier.apply_segment(segment).unwrap();
        }
        applier.mark().unwrap();
        let context = format!("mirror seed {seed}");
        assert_eq!(applier.counters().operations_failed, 0, "{context}");
        assert_eq!(applier.take_wants(), [], "{context}");
        assert!(applier.state().is_consistent(), "{context}: {:?}", applier.state());
        random::assert_healthy(&lab, &mut applier, &oracle, &context);
    }
}

#[test]
fn mirror_and_resync_survive_crashes() {
    for seed in random::seeds(40) {
        let (items, oracle) = history(seed, !is_btrfs());
        let Some((lab, mut applier, context)) = crash(seed, 1 + (seed % 4) as usize, &items) else { return };
        answer_wants(&mut applier, oracle, |applier, oracle| random::assert_healthy(&lab, applier, oracle, &context));
    }
}
