//! Comparing: a changed file goes into the stream as digests first, and only what the replica has otherwise follows as data.
//!
//! Digests are content: where the replica answers that nothing differs, they are worth what the data would have been. Where something differs, they
//! are nothing, and the file is one that is still being read: what differs is read again behind a later barrier, first as digests of smaller blocks, then
//! as data. Writes pass meanwhile, as they do behind any frontier; what must not be applied twice has the file read from its beginning.
//!
//! Answers come by the item's number. Whoever hears that an item was applied and has no answer to it has lost the answer, and sends the whole range. Answers
//! to items that nobody waits for mean nothing. See docs/design/2026-11-27-differences.md.

use crate::{Chunk, Mirror, ReadError, Scope, SourceReader};
use standin_model::difference::blocks_of;
use standin_model::{ByteLen, ByteOffset, DIGESTS_MAX, Differs, Digest, NodeId, OpSeq, Operation};
use std::collections::{BTreeMap, HashMap, VecDeque};

/// Which files are compared, and in blocks of which size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompareSizes {
    /// A smaller file is sent whole: its data is hardly more than a round trip.
    pub file_bytes_min: u64,
    pub coarse: u32,
    pub fine: u32,
}

impl Default for CompareSizes {
    fn default() -> CompareSizes {
        // 16 bytes for 64 KiB cost 0.024 % of what is read; 4 KiB is the least that file systems write.
        CompareSizes { file_bytes_min: 128 << 10, coarse: 64 << 10, fine: 4 << 10 }
    }
}

/// Items without an answer, of all files; then the walk waits. About 100 bytes each, and as much again for what differs in them.
const OPEN_MAX: usize = 4096;
/// Items without an answer of one file: 16 MiB on their way, and other files have their turn.
const FILE_OPEN_MAX: u32 = 16;

/// How a range goes into the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Coarse,
    Fine,
    Data,
}

/// An item of digests that waits for its answer.
#[derive(Clone, Copy, Debug)]
struct Asked {
    node: NodeId,
    offset: u64,
    len: u64,
    block: u32,
}

/// What is to be read again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Again {
    node: NodeId,
    offset: u64,
    len: u64,
    level: Level,
}

/// Whether the replica has anything of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Has {
    Unknown,
    Something,
    /// All that was asked for differs: the rest goes as data at once.
    Nothing,
}

#[derive(Debug)]
struct Compared {
    has: Has,
    /// Items that have no number yet.
    fresh: u32,
    open: u32,
    again: u32,
    /// It waits for answers before it is read on.
    parked: bool,
    /// It was read to its end.
    ended: bool,
}

impl Compared {
    fn is_done(&self) -> bool {
        self.ended && self.fresh == 0 && self.open == 0 && self.again == 0
    }

    /// Whether it has to wait before it is read on.
    fn waits(&self) -> bool {
        let open = self.fresh + self.open;
        if self.has == Has::Unknown { open > 0 } else { open >= FILE_OPEN_MAX }
    }
}

#[derive(Default)]
pub(crate) struct Comparing {
    sizes: Option<CompareSizes>,
    /// Files are sent whole for now: there is no time for the replica's answers.
    at_once: bool,
    /// Files that are compared: read in part, or with answers or second reads to come.
    files: HashMap<NodeId, Compared>,
    open: BTreeMap<OpSeq, Asked>,
    again_fine: VecDeque<Again>,
    again_data: VecDeque<Again>,
}

impl Comparing {
    pub fn is_idle(&self) -> bool {
        self.files.is_empty()
    }
    pub fn len(&self) -> usize {
        self.files.len()
    }
    pub fn contains(&self, node: NodeId) -> bool {
        self.files.contains_key(&node)
    }
    pub fn is_full(&self) -> bool {
        self.open.len() >= OPEN_MAX
    }
    pub fn has_again(&self) -> bool {
        !self.again_data.is_empty() || !self.again_fine.is_empty() && !self.is_full()
    }

    /// What to read again next. Data makes room, and smaller digests need some.
    pub fn take_again(&mut self) -> Option<Again> {
        let has_room = !self.is_full();
        self.again_data.pop_front().or_else(|| self.again_fine.pop_front_if(|_| has_room))
    }

    fn begin(&mut self, node: NodeId) {
        self.forget(node);
        self.files.insert(node, Compared { has: Has::Unknown, fresh: 0, open: 0, again: 0, parked: false, ended: false });
    }

    /// How the file is read from here on.
    fn level(&self, node: NodeId) -> Level {
        match self.files.get(&node) {
            Some(file) if file.has != Has::Nothing => Level::Coarse,
            _ => Level::Data,
        }
    }

    /// The file has been read to its end, or there is nothing to read any more.
    pub fn end(&mut self, node: NodeId) {
        if let Some(file) = self.files.get_mut(&node) {
            file.ended = true;
            self.settle(node);
        }
    }

    /// Whether the file has to wait for answers before it is read on; then somebody says when.
    pub fn park(&mut self, node: NodeId) -> bool {
        let Some(file) = self.files.get_mut(&node) else { return false };
        file.parked = file.waits();
        file.parked
    }

    /// Answers to the time before mean nothing.
    pub fn forget(&mut self, node: NodeId) {
        if self.files.remove(&node).is_some() {
            self.open.retain(|_, asked| asked.node != node);
            self.again_fine.retain(|again| again.node != node);
            self.again_data.retain(|again| again.node != node);
        }
    }

    /// All files that were being compared.
    pub fn clear(&mut self) -> impl Iterator<Item = NodeId> + use<> {
        let fresh = Comparing { sizes: self.sizes, at_once: self.at_once, ..Comparing::default() };
        let was = std::mem::replace(self, fresh);
        was.files.into_keys()
    }

    fn settle(&mut self, node: NodeId) {
        if self.files.get(&node).is_some_and(Compared::is_done) {
            self.files.remove(&node);
        }
    }

    fn read_again(&mut self, again: Again) {
        let Some(file) = self.files.get_mut(&again.node) else { return };
        file.again += 1;
        if again.level == Level::Data { self.again_data.push_back(again) } else { self.again_fine.push_back(again) }
    }

    /// What the answer to an item comes to.
    fn judge(&mut self, asked: Asked, differs: &Differs) {
        let Some(file) = self.files.get_mut(&asked.node) else { return };
        let is_coarse = self.sizes.is_some_and(|sizes| sizes.coarse == asked.block);
        let count = blocks_of(asked.len, asked.block).min(DIGESTS_MAX as u64) as u16;
        let everything = (0..count).all(|block| differs.blocks.contains(block as u8));
        if !everything {
            file.has = Has::Something;
        } else if is_coarse && file.has == Has::Unknown && file.fresh + file.open == 0 {
            file.has = Has::Nothing;
        }
        // Whoever has nothing need not be asked for smaller blocks.
        let level = if is_coarse && file.has == Has::Something { Level::Fine } else { Level::Data };
        let mut run: Option<u16> = None;
        for block in 0..=count {
            let is_in = block < count && differs.blocks.contains(block as u8);
            match run {
                None if is_in => run = Some(block),
                Some(first) if !is_in => {
                    let (from, to) = (u64::from(first) * u64::from(asked.block), u64::from(block) * u64::from(asked.block));
                    let len = to.min(asked.len) - from;
                    self.read_again(Again { node: asked.node, offset: asked.offset + from, len, level });
                    run = None;
                }
                _ => {}
            }
        }
    }

    fn take(&mut self, seq: OpSeq) -> Option<Asked> {
        let asked = self.open.remove(&seq)?;
        if let Some(file) = self.files.get_mut(&asked.node) {
            file.open = file.open.saturating_sub(1);
        }
        Some(asked)
    }
}

impl Mirror {
    /// Files are compared with the replica's from here on, where a resync reads them.
    pub fn compare(mut self, sizes: CompareSizes) -> Mirror {
        assert!(sizes.fine > 0 && sizes.fine < sizes.coarse && sizes.coarse % sizes.fine == 0, "blocks lie in blocks");
        self.comparing.sizes = Some(sizes);
        self
    }

    /// Whether files that are begun from here on may be compared. Without it they are sent whole, and no answer is waited for.
    pub fn ask(&mut self, may_ask: bool) {
        self.comparing.at_once = !may_ask;
    }

    /// Whether answers are waited for.
    pub fn awaits_answers(&self) -> bool {
        !self.comparing.is_idle()
    }

    /// An item that a step returned has got its number. Must be called for each of them, in their order.
    pub fn numbered(&mut self, seq: OpSeq, operation: &Operation) {
        let Operation::MirrorDigests { node, offset, len, block, .. } = operation else { return };
        // It may have been given up in the same step.
        let Some(file) = self.comparing.files.get_mut(node) else { return };
        file.fresh = file.fresh.saturating_sub(1);
        file.open += 1;
        self.comparing.open.insert(seq, Asked { node: *node, offset: offset.0, len: len.0, block: *block });
    }

    /// The replica has compared an item.
    pub fn answered(&mut self, differs: &Differs) {
        let Some(asked) = self.comparing.take(differs.seq) else { return };
        self.comparing.judge(asked, differs);
        self.go_on(asked.node);
    }

    /// The replica has everything up to there, and has answered what it answers: where an answer has not come, it never will.
    pub fn applied(&mut self, applied: OpSeq) {
        while let Some(seq) = self.comparing.open.keys().next().copied().filter(|seq| *seq <= applied) {
            let Some(Asked { node, offset, len, .. }) = self.comparing.take(seq) else { return };
            self.comparing.read_again(Again { node, offset, len, level: Level::Data });
            self.go_on(node);
        }
    }

    /// Items from this number on never left; their numbers will be others' items. What they showed is shown again.
    pub fn take_back(&mut self, first: OpSeq) {
        let nodes: Vec<NodeId> = self.comparing.open.range(first..).map(|(_, asked)| asked.node).collect();
        for node in nodes {
            if self.comparing.contains(node) {
                self.revisit(node);
            }
        }
    }

    fn go_on(&mut self, node: NodeId) {
        if let Some(file) = self.comparing.files.get_mut(&node)
            && file.parked
            && !file.waits()
        {
            file.parked = false;
            if let Some(offset) = self.reading.get(&node) {
                self.tasks.push_front(crate::walk::Task::Read { node, offset: *offset });
            }
        }
        self.comparing.settle(node);
    }

    /// A file is about to be read from its beginning.
    pub(crate) fn begin_comparing(&mut self, node: NodeId, size: ByteLen) {
        let may_compare = matches!(self.scope, Scope::ChangedSince(_)) && !self.comparing.at_once;
        if may_compare && self.comparing.sizes.is_some_and(|sizes| size.0 >= sizes.file_bytes_min) {
            self.comparing.begin(node);
        }
    }

    /// Content of the first read, in the form in which this file goes.
    pub(crate) fn show(&mut self, node: NodeId, chunks: Vec<Chunk>, left: &mut usize, out: &mut Vec<Operation>) {
        for chunk in &chunks {
            if let Chunk::Data { data, .. } = chunk {
                self.progress.of(node.volume).bytes += data.len() as u64;
            }
        }
        self.show_chunks(node, chunks, u64::MAX, self.comparing.level(node), left, out);
    }

    /// Reads a range that differs once more.
    pub(crate) fn read_again(
        &mut self,
        again: Again,
        reader: &mut impl SourceReader,
        left: &mut usize,
        out: &mut Vec<Operation>,
    ) -> Result<(), ReadError> {
        let Again { node, offset, len, level } = again;
        let Some(file) = self.comparing.files.get_mut(&node) else { return Ok(()) };
        file.again = file.again.saturating_sub(1);
        self.recent.insert(node);
        let (end, budget) = (offset + len, usize::try_from(len).unwrap_or(usize::MAX).min(*left));
        let Some(content) = reader.read(node, offset, budget)? else {
            self.comparing.settle(node);
            return Ok(());
        };
        self.show_chunks(node, content.chunks, end, level, left, out);
        if !content.end && content.next < end {
            self.comparing.read_again(Again { offset: content.next, len: end - content.next, ..again });
        }
        self.comparing.settle(node);
        Ok(())
    }

    /// Appends what of the chunks lies before `end`.
    fn show_chunks(&mut self, node: NodeId, chunks: Vec<Chunk>, end: u64, level: Level, left: &mut usize, out: &mut Vec<Operation>) {
        let lies_before = |chunk: &Chunk| match chunk {
            Chunk::Data { offset, .. } | Chunk::Hole { offset, .. } | Chunk::Allocated { offset, .. } => *offset < end,
        };
        for chunk in chunks.into_iter().filter(lies_before) {
            match chunk {
                Chunk::Data { offset, mut data } => {
                    data.truncate(usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX));
                    *left = left.saturating_sub(data.len());
                    self.show_data(node, offset, data, level, out);
                }
                Chunk::Hole { offset, len } => {
                    let (offset, len) = (ByteOffset(offset), ByteLen(len.min(end.saturating_sub(offset))));
                    out.push(Operation::MirrorHole { node, offset, len });
                }
                Chunk::Allocated { offset, len } => {
                    let (offset, len) = (ByteOffset(offset), ByteLen(len.min(end.saturating_sub(offset))));
                    out.push(Operation::MirrorHole { node, offset, len });
                    out.push(Operation::Allocate { node, offset, len, keep_size: true });
                }
            }
        }
    }

    fn show_data(&mut self, node: NodeId, offset: u64, data: Vec<u8>, level: Level, out: &mut Vec<Operation>) {
        let block = match (level, self.comparing.sizes) {
            (Level::Coarse, Some(sizes)) => sizes.coarse,
            (Level::Fine, Some(sizes)) => sizes.fine,
            _ => return out.push(Operation::MirrorData { node, offset: ByteOffset(offset), data }),
        };
        let mut at = offset;
        for piece in data.chunks(block as usize * DIGESTS_MAX) {
            let digests = piece.chunks(block as usize).map(Digest::of_content).collect();
            let (offset, len) = (ByteOffset(at), ByteLen(piece.len() as u64));
            out.push(Operation::MirrorDigests { node, offset, len, block, digests });
            at += piece.len() as u64;
            if let Some(file) = self.comparing.files.get_mut(&node) {
                file.fresh += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests;
