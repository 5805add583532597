//! The source's queue: sealed segments that the appliance has not yet acknowledged, in memory first, then on disk.
//!
//! Invariants: segments are contiguous; those in memory come before those on disk; both parts have a bound in bytes. The queue does not
//! outlive its agent: a restarted agent resynchronises what changed, so spilled files are never synced (the source's disks are not ours to
//! stall) and are removed at start. At the bound a push is refused and gives the segment back; the caller then stops capturing into the
//! stream and notes dirty nodes instead. A disk that fails while spilling counts as full.

use crate::error::JournalError;
use crate::log::{Journal, JournalOptions};
use crate::reader::JournalReader;
use crate::segment::{SEGMENT_BYTES_MAX, Segment};
use crate::{Result, durable};
use standin_model::OpSeq;
use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use thiserror::Error;

#[derive(Clone, Copy, Debug)]
pub struct QueueOptions {
    /// Sealed bytes kept in memory. One segment is taken even where it alone is larger.
    pub memory_bytes_max: u64,
    /// Bytes of spilled files; 0 means no spilling.
    pub disk_bytes_max: u64,
}

impl Default for QueueOptions {
    /// With the ring of 32 MiB, 8 MiB of memory leave an agent well below the 64 MiB that it may take from a small server, and bridge a second at
    /// 70 Mbit/s; 1 GiB of disk bridges two minutes and rarely fills a disk.
    fn default() -> Self {
        QueueOptions { memory_bytes_max: 8 << 20, disk_bytes_max: 1 << 30 }
    }
}

/// The queue did not take the segment; here it is.
#[derive(Debug, Error)]
#[error("queue is full at {bytes} bytes")]
pub struct QueueFull {
    pub segment: Segment,
    pub bytes: u64,
    #[source]
    pub cause: FullCause,
}

#[derive(Debug, Error)]
pub enum FullCause {
    #[error("the bound of {bytes_max} bytes is reached")]
    Bound { bytes_max: u64 },
    #[error("spilling to disk failed")]
    Spill(#[source] JournalError),
}

/// While the disk must not be touched, memory may hold so much more: what a ring of the usual size brings at most.
const HELD_BYTES_MORE: u64 = 32 << 20;

pub struct Queue {
    options: QueueOptions,
    dir: PathBuf,
    memory: VecDeque<Segment>,
    memory_bytes: u64,
    /// Nothing touches the disk.
    held: bool,
    spill: Option<Spill>,
    /// Of the last spill that was begun.
    spill_number: u64,
    last: OpSeq,
    acknowledged: OpSeq,
}

/// The part on disk. It exists from the first segment that did not fit until all of it is acknowledged.
struct Spill {
    journal: Journal,
    /// `None` while a [`SpillRead`] has it.
    reader: Option<JournalReader>,
    number: u64,
}

/// What [`Queue::begin_next`] found.
pub enum Next {
    Nothing,
    Segment(Segment),
    /// It is on disk; the caller reads it without holding the queue.
    Spilled(SpillRead),
}

/// A read of the spilled part. Safe beside pushes and acknowledgements: it looks at nothing behind the item that was last when it began, and
/// [`Queue::finish_next`] tells whether a failure only means that the files were acknowledged away meanwhile.
pub struct SpillRead {
    reader: JournalReader,
    last: OpSeq,
    number: u64,
}

impl SpillRead {
    pub fn read(&mut self) -> Result<Option<Segment>> {
        self.reader.next(self.last)
    }
}

impl Queue {
    /// An empty queue; whatever an earlier agent left in `dir` is removed. `dir` is made only when the first segment spills.
    pub fn open(dir: impl AsRef<Path>, options: QueueOptions) -> Result<Queue> {
        let dir = dir.as_ref().to_owned();
        remove_spilled(&dir)?;
        Ok(Queue {
            options,
            dir,
            memory: VecDeque::new(),
            memory_bytes: 0,
            held: false,
            spill: None,
            spill_number: 0,
            last: OpSeq::ZERO,
            acknowledged: OpSeq::ZERO,
        })
    }

    /// Sealed bytes in memory and on disk.
    pub fn bytes(&self) -> u64 {
        self.memory_bytes.saturating_add(self.spill.as_ref().map_or(0, |spill| spill.journal.bytes()))
    }
    pub fn is_empty(&self) -> bool {
        self.memory.is_empty() && self.spill.is_none()
    }
    /// Last item pushed.
    pub fn last(&self) -> OpSeq {
        self.last
    }
    pub fn acknowledged(&self) -> OpSeq {
        self.acknowledged
    }

    /// Whether a segment of `len` bytes fits now, so that a caller can stop before it gives out numbers.
    pub fn has_room(&self, len: u64) -> bool {
        if self.has_memory_room(len) || self.held {
            return self.has_memory_room(len);
        }
        let on_disk = self.spill.as_ref().map_or(0, |spill| spill.journal.bytes());
        // 4 KiB cover file headers and the record's mark.
        on_disk.saturating_add(len).saturating_add(4096) <= self.options.disk_bytes_max
    }

    /// Whether a segment of `len` bytes fits without the disk: nothing is spilled, and there is room beside what waits.
    pub fn has_memory_room(&self, len: u64) -> bool {
        self.spill.is_none() && self.memory_has_room(len)
    }

    fn memory_has_room(&self, len: u64) -> bool {
        self.memory.is_empty() || self.memory_bytes.saturating_add(len) <= self.memory_bytes_max()
    }

    fn memory_bytes_max(&self) -> u64 {
        self.options.memory_bytes_max.saturating_add(if self.held { HELD_BYTES_MORE } else { 0 })
    }

    /// From now on nothing here touches the disk, which may stand still, until [`Queue::release`]. `false` when segments lie on it, and then
    /// nothing changes.
    pub fn hold_in_memory(&mut self) -> bool {
        self.held = self.spill.is_none();
        self.held
    }

    pub fn release(&mut self) {
        self.held = false;
    }

    /// Takes the next segment, or gives it back.
    ///
    /// # Panics
    /// When the segment does not follow the last one; nothing but the pump may push.
    #[expect(clippy::result_large_err, reason = "the segment has to come back, and a full queue is rare")]
    pub fn push(&mut self, segment: Segment) -> std::result::Result<(), QueueFull> {
        let follows = self.is_empty() || segment.first_seq() == self.last.next();
        assert!(follows, "segment from {} pushed behind {}", segment.first_seq(), self.last);
        let last = segment.last_seq();
        if self.has_memory_room(segment.byte_len() as u64) {
            self.memory_bytes = self.memory_bytes.saturating_add(segment.byte_len() as u64);
            self.memory.push_back(segment);
        } else if let Err(cause) = self.push_to_disk(&segment) {
            return Err(QueueFull { segment, bytes: self.bytes(), cause });
        }
        self.last = last;
        Ok(())
    }

    fn push_to_disk(&mut self, segment: &Segment) -> std::result::Result<(), FullCause> {
        let disk_bytes_max = if self.held { 0 } else { self.options.disk_bytes_max };
        let bytes_max = self.memory_bytes_max().saturating_add(disk_bytes_max);
        let bound = || FullCause::Bound { bytes_max };
        if disk_bytes_max == 0 {
            return Err(bound());
        }
        if self.spill.is_none() {
            self.spill = Some(self.begin_spill(segment).map_err(FullCause::Spill)?);
        }
        let Some(spill) = &mut self.spill else { return Err(bound()) };
        let appended = spill.journal.append(segment).and_then(|()| spill.journal.sync());
        if appended.is_err() && spill.journal.last() < spill.journal.oldest() {
            self.end_spill();
        }
        match appended {
            Ok(_) => Ok(()),
            Err(JournalError::Full { .. }) => Err(bound()),
            Err(error) => Err(FullCause::Spill(error)),
        }
    }

    fn begin_spill(&mut self, segment: &Segment) -> Result<Spill> {
        // Eight files at least, so that acknowledging frees space while the rest is still waiting.
        let file_bytes_max = (self.options.disk_bytes_max / 8).clamp(SEGMENT_BYTES_MAX as u64, 64 << 20);
        let options = JournalOptions { file_bytes_max, bytes_max: self.options.disk_bytes_max };
        remove_spilled(&self.dir)?;
        let mut journal = Journal::open_as(&self.dir, options, true)?;
        journal.restart_after(OpSeq(segment.first_seq().0.saturating_sub(1)), segment.header.epoch)?;
        let reader = JournalReader::open(&self.dir, segment.first_seq())?;
        self.spill_number += 1;
        Ok(Spill { journal, reader: Some(reader), number: self.spill_number })
    }

    fn end_spill(&mut self) {
        self.spill = None;
        // A leftover is removed when spilling begins again, or at the next start.
        let _ = remove_spilled(&self.dir);
    }

    /// The segment that begins behind `seq` (or holds the item behind it); `None` when there is none. Sending, and sending again after a
    /// reconnect, are both this. Reads the disk where it must; who shares the queue with a pump uses the two halves below.
    pub fn next_after(&mut self, seq: OpSeq) -> Result<Option<Segment>> {
        match self.begin_next(seq) {
            Next::Nothing => Ok(None),
            Next::Segment(segment) => Ok(Some(segment)),
            Next::Spilled(mut read) => {
                let result = read.read();
                self.finish_next(read);
                result
            }
        }
    }

    /// The first half: never touches the disk.
    pub fn begin_next(&mut self, seq: OpSeq) -> Next {
        let wanted = seq.next();
        if let Some(newest) = self.memory.back()
            && wanted <= newest.last_seq()
        {
            let at = self.memory.partition_point(|segment| segment.last_seq() < wanted);
            return self.memory.get(at).cloned().map_or(Next::Nothing, Next::Segment);
        }
        let Some(spill) = &mut self.spill else { return Next::Nothing };
        let (wanted, last) = (wanted.max(spill.journal.oldest()), spill.journal.last());
        if wanted > last {
            return Next::Nothing;
        }
        let kept = spill.reader.take().filter(|reader| reader.position() == wanted);
        let reader = kept.map_or_else(|| JournalReader::open(&self.dir, wanted), Ok);
        // Opening looks at nothing yet, so it cannot fail.
        reader.map_or(Next::Nothing, |reader| Next::Spilled(SpillRead { reader, last, number: spill.number }))
    }

    /// Takes the reader back. `false` when what was to be read has been acknowledged meanwhile, so that a failure means nothing.
    pub fn finish_next(&mut self, read: SpillRead) -> bool {
        let Some(spill) = self.spill.as_mut().filter(|spill| spill.number == read.number) else { return false };
        let current = read.reader.position() >= spill.journal.oldest();
        spill.reader = Some(read.reader);
        current
    }

    /// Forgets what the appliance holds durable.
    pub fn acknowledge(&mut self, durable: OpSeq) -> Result<()> {
        self.acknowledged = self.acknowledged.max(durable);
        while let Some(oldest) = self.memory.front().filter(|segment| segment.last_seq() <= durable) {
            self.memory_bytes = self.memory_bytes.saturating_sub(oldest.byte_len() as u64);
            self.memory.pop_front();
        }
        let Some(spill) = &mut self.spill else { return Ok(()) };
        if spill.journal.last() <= durable {
            self.end_spill();
            return Ok(());
        }
        spill.journal.discard_through(durable)
    }

    /// Forgets everything; the next push may begin anywhere. For a new epoch.
    pub fn clear(&mut self) {
        self.memory.clear();
        self.memory_bytes = 0;
        self.end_spill();
        self.last = OpSeq::ZERO;
        self.acknowledged = OpSeq::ZERO;
    }
}

/// Removes the files of a spill and nothing else that may lie there.
fn remove_spilled(dir: &Path) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(JournalError::io("list", dir, error)),
        Ok(entries) => entries,
    };
    for entry in entries {
        let entry = entry.map_err(|e| JournalError::io("list", dir, e))?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| crate::log::record::base_of_name(name.trim_end_matches(".tmp")).is_some()) {
            let path = entry.path();
            durable::remove(&path).map_err(|e| JournalError::io("remove", &path, e))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
