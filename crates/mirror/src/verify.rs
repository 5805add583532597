//! Verification: reads the live source once, as digests that the replica is compared with.
//!
//! Place on the spine: beside the walk, while the job is live. The pump calls [`Verify::step`] right after a barrier, takes the next barrier, tells every operation
//! that it brought ([`Verify::note`]), and appends what [`Verify::take_due`] gives. So:
//!
//! 1. What a read saw of a node is what the node was at both barriers, because no operation on it came between them; else the read is thrown away and done
//!    again. Hence the check is true at its place in the stream, and the replica is compared when it is exactly there.
//! 2. The kernel shows a change to readers a moment before it is told of (a page of a mapped file: until it is written back). A check that saw such a change does
//!    not match. Later passes read again only what did not match, and hold each check back ([`HOLDS`]); an operation on the node meanwhile throws it away. So
//!    a difference counts only when it is seen three times, the last time on a node that stood still for seconds.
//! 3. Content of larger files is checked in blocks, so that a file that is written somewhere all the time is compared everywhere else.
//!
//! A node that never stands still is *busy* after a bounded number of tries: it is counted with its bytes and not compared.

mod note;
mod read;

use crate::{Chunk, Mirror, NodeFacts, ReadError, SourceReader};
use standin_model::check::{BLOCK_BYTES, BUSY_NAMED_MAX, NODES_MAX, ZEROS_BYTES_MAX};
use standin_model::*;
use std::collections::{BTreeMap, HashSet, VecDeque};

/// How long a check of each pass waits, in nanoseconds: none in the first, which reads everything; in the last, longer than a mapped write takes to be written back.
const HOLDS: [i64; 3] = [0, 2_000_000_000, 5_000_000_000];
/// After so many reads that something happened to, a node is busy.
const TRIES_MAX: u8 = 8;
/// Before another try, times the number of tries, in nanoseconds: 7 s in all.
const TRY_AFTER: i64 = 250_000_000;
/// Reads that wait for another try or to be due, 100 bytes each; beyond it, nodes are busy at once, and reading waits.
const WAITING_MAX: usize = 32 * 1024;
/// Nodes that came or moved while a pass ran, 50 bytes each; beyond it, one that moves counts as busy.
const MET_MAX: usize = 128 * 1024;
/// Content per read call: a call may reach beyond its block by less than this.
const READ_BYTES: usize = 256 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    /// Attributes and, of a directory, names; of a file, content too: at once or, if `chain`, by tasks of its own.
    Node { node: NodeId, chain: bool },
    /// One block of a file and then the next ones.
    Content { node: NodeId, offset: u64 },
    /// One block by itself.
    Block { node: NodeId, offset: u64 },
}

impl Task {
    fn node(&self) -> NodeId {
        match self {
            Task::Node { node, .. } | Task::Content { node, .. } | Task::Block { node, .. } => *node,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Read {
    Node { digest: NodeDigest, content: u64, chain: bool },
    Block { offset: u64, len: u64, digest: Digest },
    Zeros { offset: u64, len: u64 },
}

#[derive(Clone, Copy, Debug)]
struct Held {
    read: Read,
    tries: u8,
    due: Timestamp,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    pub run: u64,
    pub pass: u8,
    pub nodes: u64,
    pub bytes: u64,
    /// The pass is through, and the appliance has the next word.
    pub is_waiting: bool,
}

pub struct Verify {
    run: u64,
    pass: u8,
    tasks: VecDeque<Task>,
    /// To be tried again, from a time on.
    again: VecDeque<(Task, u8, Timestamp)>,
    /// Read, and not in the stream yet.
    held: BTreeMap<NodeId, Vec<Held>>,
    held_count: usize,
    /// Directories whose entries are queued or done.
    listed: HashSet<NodeId>,
    /// Done among the files with several names.
    linked: HashSet<NodeId>,
    /// Came or moved since the pass began, so that they need not be met again.
    met: HashSet<NodeId>,
    busy: BTreeMap<NodeId, u64>,
    end: PassEnd,
    ended: bool,
    /// What the present step has read.
    cost: u64,
}

impl Verify {
    /// The first pass: everything below the roots.
    pub fn new(run: u64, roots: impl IntoIterator<Item = NodeId>) -> Verify {
        Verify::begin(run, 1, roots.into_iter().map(|node| Task::Node { node, chain: true }).collect())
    }

    /// A later pass: these alone, each by itself.
    pub fn again(run: u64, pass: u8, suspects: impl IntoIterator<Item = Suspect>) -> Verify {
        let task = |suspect: Suspect| match suspect {
            Suspect { node, range: None } => vec![Task::Node { node, chain: false }],
            Suspect { node, range: Some((offset, len)) } => {
                let blocks = len.0.min(ZEROS_BYTES_MAX).div_ceil(BLOCK_BYTES);
                let at = |block: u64| (offset.0 / BLOCK_BYTES).saturating_add(block).saturating_mul(BLOCK_BYTES);
                (0..blocks).map(|block| Task::Block { node, offset: at(block) }).collect()
            }
        };
        Verify::begin(run, pass.max(2), suspects.into_iter().flat_map(task).collect())
    }

    fn begin(run: u64, pass: u8, tasks: VecDeque<Task>) -> Verify {
        Verify {
            run,
            pass,
            tasks,
            again: VecDeque::new(),
            held: BTreeMap::new(),
            held_count: 0,
            listed: HashSet::new(),
            linked: HashSet::new(),
            met: HashSet::new(),
            busy: BTreeMap::new(),
            end: PassEnd::default(),
            ended: false,
            cost: 0,
        }
    }

    pub fn run(&self) -> u64 {
        self.run
    }

    pub fn is_ended(&self) -> bool {
        self.ended
    }

    pub fn progress(&self) -> VerifyProgress {
        VerifyProgress { run: self.run, pass: self.pass, nodes: self.end.nodes, bytes: self.end.bytes, is_waiting: self.ended }
    }

    fn hold(&self) -> i64 {
        HOLDS[usize::from(self.pass.max(1) - 1).min(HOLDS.len() - 1)]
    }

    /// Reads what comes next, at most about `budget` bytes of content; returns what it read, with a page for each node. Must run right after a barrier, while
    /// the job is live.
    pub fn step(&mut self, mirror: &Mirror, reader: &mut impl SourceReader, budget: u64, now: Timestamp) -> u64 {
        self.cost = 0;
        for _ in 0..NODES_MAX {
            if self.cost >= budget || self.held_count >= WAITING_MAX {
                break;
            }
            let Some((task, tries)) = self.next_task(now) else { break };
            let node = task.node();
            if mirror.excluded.contains(&node) {
                continue;
            }
            if !mirror.is_shown(node) {
                self.try_again(task, tries + 1, 0, now);
                continue;
            }
            let result = match task {
                Task::Node { node, chain } => self.look(node, chain, tries, mirror, reader, now),
                Task::Content { node, offset } => self.block(node, offset, true, tries, reader, now),
                Task::Block { node, offset } => self.block(node, offset, false, tries, reader, now),
            };
            match result {
                Ok(()) => {}
                Err(_) if tries + 1 < TRIES_MAX => self.try_again(task, tries + 1, 0, now),
                Err(_) => self.end.unread_nodes += 1,
            }
        }
        self.cost
    }

    fn next_task(&mut self, now: Timestamp) -> Option<(Task, u8)> {
        if let Some(task) = self.tasks.pop_front() {
            return Some((task, 0));
        }
        let at = self.again.iter().position(|(.., from)| *from <= now)?;
        self.again.remove(at).map(|(task, tries, _)| (task, tries))
    }

    fn keep(&mut self, node: NodeId, read: Read, tries: u8, now: Timestamp) {
        let due = Timestamp(now.0.saturating_add(self.hold()));
        self.held.entry(node).or_default().push(Held { read, tries, due });
        self.held_count += 1;
    }

    /// The checks whose time has come, and the end of the pass behind the last. Must be called right after a barrier whose operations were noted.
    pub fn take_due(&mut self, now: Timestamp) -> Vec<Operation> {
        let mut out = Vec::new();
        let mut group: Vec<(NodeId, NodeDigest)> = Vec::new();
        let mut left = BTreeMap::new();
        for (node, held) in std::mem::take(&mut self.held) {
            for one in held {
                if one.due > now {
                    left.entry(node).or_insert_with(Vec::new).push(one);
                    continue;
                }
                self.held_count -= 1;
                self.note_read(&one.read, node, &mut group, &mut out);
            }
        }
        self.close(&mut group, &mut out);
        self.held = left;
        if !self.ended && self.tasks.is_empty() && self.again.is_empty() && self.held.is_empty() {
            out.push(self.finish());
        }
        out
    }

    fn note_read(&mut self, read: &Read, node: NodeId, group: &mut Vec<(NodeId, NodeDigest)>, out: &mut Vec<Operation>) {
        let of = match *read {
            Read::Node { digest, .. } if self.pass == 1 => {
                let apart = group.first().is_some_and(|(first, _)| (first.volume, first.subvolume) != (node.volume, node.subvolume));
                if apart || group.len() >= NODES_MAX {
                    self.close(group, out);
                }
                self.end.nodes += 1;
                return group.push((node, digest));
            }
            Read::Node { digest, .. } => {
                self.end.nodes += 1;
                CheckOf::Node { node, digest }
            }
            Read::Block { offset, len, digest } => CheckOf::Range { node, offset: ByteOffset(offset), len: ByteLen(len), digest },
            Read::Zeros { offset, len } => CheckOf::Zeros { node, offset: ByteOffset(offset), len: ByteLen(len) },
        };
        out.push(self.check(of));
    }

    fn close(&mut self, group: &mut Vec<(NodeId, NodeDigest)>, out: &mut Vec<Operation>) {
        let Some((first, _)) = group.first() else { return };
        let (volume, subvolume) = (first.volume, first.subvolume);
        let digest = Digest::of_nodes(group.iter().map(|(node, digest)| (*node, digest)));
        let inodes = group.drain(..).map(|(node, _)| node.inode).collect();
        out.push(self.check(CheckOf::Nodes { volume, subvolume, inodes, digest }));
    }

    fn check(&mut self, of: CheckOf) -> Operation {
        self.end.checks += 1;
        Operation::Check(Check { run: self.run, pass: self.pass, of })
    }

    fn finish(&mut self) -> Operation {
        self.ended = true;
        self.listed = HashSet::new();
        self.linked = HashSet::new();
        self.met = HashSet::new();
        let busy = std::mem::take(&mut self.busy);
        self.end.busy_nodes = busy.len() as u64;
        self.end.busy_bytes = busy.values().sum();
        self.end.busy = busy.into_iter().take(BUSY_NAMED_MAX).map(|(node, bytes)| (node, ByteLen(bytes))).collect();
        Operation::Check(Check { run: self.run, pass: self.pass, of: CheckOf::End(self.end.clone()) })
    }
}

#[cfg(test)]
mod tests;
