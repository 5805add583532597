//! Streams in a journal, made without a network: what a worker is given to apply, and what a sealer is given to seal.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use standin_agent::nodes::Nodes;
use standin_agent::observe::Observed;
use standin_agent::pump::{Pump, Turn, now};
use standin_agent::queue::SharedQueue;
use standin_agent::reader::LinuxReader;
use standin_journal::{Journal, JournalOptions, Queue, QueueOptions, Sealer};
use standin_mirror::{Exclusions, Mirror, Scope};
use standin_model::{
    Attributes, ByteLen, ByteOffset, DirectoryEntry, FileSystem, Marker, Name, NodeId, NodeKind, OpSeq, Operation, Timestamp, VolumeId,
};

use super::source::Quiet;
use crate::random::Random;

const VOLUME: VolumeId = VolumeId(0);
/// As in the agent's pump.
pub const SEGMENT_BYTES: usize = 1 << 20;
pub const PAGE: usize = 8192;

/// The whole mirror of a set, as an agent would send it. Returns its last item.
pub fn of_set(root: &Path, journal: &Path) -> Result<OpSeq> {
    let nodes = Nodes::open_volumes(&[(VOLUME, root.display().to_string(), FileSystem::Ext4)]).context("opening the set")?;
    let root = nodes.root(VOLUME).context("the set has no root")?;
    let mut journal = Journal::open(journal, JournalOptions::default())?;
    let spill = journal.directory().join("spill");
    let queue = SharedQueue::new(Queue::open(spill, QueueOptions { memory_bytes_max: 64 << 20, disk_bytes_max: 0 })?);
    let mirror = Mirror::new(&[(root, b"/".to_vec())], Scope::Everything, Exclusions::default());
    let (capture, reader) = (Observed::new(Quiet, 0), LinuxReader::new(nodes));
    let mut pump = Pump::new(capture, reader, mirror, vec![root], Sealer::new(1, OpSeq(1), 1), queue.clone(), Box::new(now));
    pump.started(1, true);
    let mut last = OpSeq::ZERO;
    while pump.turn(Duration::from_millis(1))? == Turn::Busy || !pump.is_consistent() {
        while let Some(segment) = queue.next_after(last, Duration::ZERO)? {
            journal.append(&segment)?;
            last = segment.last_seq();
            queue.acknowledge(last)?;
        }
    }
    journal.sync()?;
    Ok(last)
}

/// A file of pages, and then pages written all over it.
pub struct Writes {
    /// Last item of the file's own mirror.
    pub shown: OpSeq,
    pub last: OpSeq,
    pub pages: u64,
    pub count: u64,
    pub seed: u64,
}

impl Writes {
    pub fn new(pages: u64, count: u64, seed: u64) -> Writes {
        Writes { shown: OpSeq::ZERO, last: OpSeq::ZERO, pages, count, seed }
    }

    /// Page numbers in the order in which they are written, and which of the patterns comes there.
    pub fn order(&self) -> impl Iterator<Item = (u64, usize)> + use<> {
        let (mut random, pages) = (Random(self.seed), self.pages);
        (0..self.count).map(move |_| (random.below(pages), random.below(PATTERNS as u64) as usize))
    }

    pub fn record(mut self, journal: &Path) -> Result<Writes> {
        let node = |inode| NodeId { volume: VOLUME, subvolume: 0, inode, generation: 1 };
        let (root, file) = (node(2), node(12));
        let shown = |node, kind, size| Operation::MirrorNode {
            node,
            kind,
            attributes: Attributes { mode: 0o700, owner: 0, group: 0, modified: Timestamp(0) },
            accessed: Timestamp(0),
            flags: 0,
            project: 0,
            size: ByteLen(size),
            xattrs: Vec::new(),
        };
        let name = Name::new("pages").map_err(|_| anyhow::anyhow!("the name is not allowed"))?;
        let entry = DirectoryEntry { name, node: file, kind: NodeKind::File, device: 0, target: Vec::new() };
        let mut into = Recorder { sealer: Sealer::new(1, OpSeq(1), 1), journal: Journal::open(journal, JournalOptions::default())? };
        into.push(Operation::Marker(Marker::ResyncStarted))?;
        into.push(shown(root, NodeKind::Directory, 0))?;
        into.push(Operation::MirrorDirectory { node: root, entries: vec![entry], first: true, last: true })?;
        into.push(shown(file, NodeKind::File, self.pages * PAGE as u64))?;
        let patterns = patterns(self.seed);
        for number in 0..self.pages {
            let data = patterns[number as usize % PATTERNS].clone();
            into.push(Operation::MirrorData { node: file, offset: ByteOffset(number * PAGE as u64), data })?;
        }
        into.push(Operation::Marker(Marker::Consistent))?;
        self.shown = into.seal()?;
        for (number, pattern) in self.order() {
            into.push(Operation::Write { node: file, offset: ByteOffset(number * PAGE as u64), data: patterns[pattern].clone() })?;
        }
        self.last = into.seal()?;
        into.journal.sync()?;
        Ok(self)
    }
}

pub const PATTERNS: usize = 64;

/// Pages that keep a tenth of their bytes when compressed, as a database's do.
pub fn patterns(seed: u64) -> Vec<Vec<u8>> {
    let mut random = Random(seed ^ 1);
    let page = |_| {
        let mut page = vec![b' '; PAGE];
        page.chunks_mut(128).for_each(|row| random.fill(&mut row[..12]));
        page
    };
    (0..PATTERNS).map(page).collect()
}

struct Recorder {
    sealer: Sealer,
    journal: Journal,
}

impl Recorder {
    fn push(&mut self, operation: Operation) -> Result<()> {
        self.sealer.push(operation, now());
        if self.sealer.raw_len() >= SEGMENT_BYTES {
            self.seal()?;
        }
        Ok(())
    }

    fn seal(&mut self) -> Result<OpSeq> {
        if let Some(segment) = self.sealer.seal() {
            self.journal.append(&segment)?;
        }
        Ok(self.journal.last())
    }
}
