//! The consumer side of the kernel's ring buffer, and the shared counters: the only memory that is shared with the kernel.
//!
//! The ring's position is the order of the stream. Layout (kernel/bpf/ringbuf.c): one page with our position, one page with the kernel's,
//! then the data, which may be mapped twice in a row so that no record is split. We map it once: the kernel's mmap inserts every page at once,
//! so each mapped byte counts as memory of the agent, used or not. A record that wraps is put together in a small buffer instead. A record
//! head is 8 bytes, length with two flag bits, and padding; records and the ring's size are multiples of 8, so a head never wraps.
#![allow(unsafe_code)] // mmap of BPF maps, and volatile access to what the kernel writes meanwhile

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::{Duration, Instant},
};

const PAGE: usize = 4096;
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
const HEAD: u64 = 8;
/// A program fills a record in microseconds once it runs. Its processor may be a virtual one, though, which a crowded host lets wait for
/// hundreds of milliseconds, and for seconds while it moves the machine. Only beyond this is something badly wrong.
const BUSY_MAX: Duration = Duration::from_secs(10);
/// Waiting for a record begins by yielding, and goes on by sleeping when it is not a matter of microseconds.
const BUSY_YIELDING: Duration = Duration::from_millis(1);
const BUSY_SLEEP: Duration = Duration::from_micros(500);

struct Mapping {
    start: *mut libc::c_void,
    bytes: usize,
}

impl Mapping {
    fn new(fd: BorrowedFd<'_>, bytes: usize, writable: bool, offset: usize) -> io::Result<Mapping> {
        let protection = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        // SAFETY: a fresh shared mapping of a map's descriptor; the kernel checks size and protection.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, libc::MAP_SHARED, fd.as_raw_fd(), offset as i64) };
        if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Mapping { start, bytes }) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped, and nobody holds a reference into it: they borrow from the owner.
        unsafe { libc::munmap(self.start, self.bytes) };
    }
}

/// SAFETY: plain shared memory; all access goes through atomics or through `&mut Ring`.
unsafe impl Send for Mapping {}

pub struct Ring {
    own: Mapping,
    kernel: Mapping,
    data_bytes: u64,
    /// Bytes consumed since the start.
    position: u64,
    /// For records that wrap; as long as the longest of them was, 66 KiB at most.
    wrapped: Vec<u8>,
    /// Most that ever waited when `consume` was called.
    pub waiting_peak: u64,
    pub stuck: u64,
    busy_max: Duration,
}

impl Ring {
    pub fn new(fd: BorrowedFd<'_>, data_bytes: u32) -> io::Result<Ring> {
        let own = Mapping::new(fd, PAGE, true, 0)?;
        let kernel = Mapping::new(fd, PAGE + data_bytes as usize, false, PAGE)?;
        let mut ring = Ring {
            own,
            kernel,
            data_bytes: data_bytes.into(),
            position: 0,
            wrapped: Vec::new(),
            waiting_peak: 0,
            stuck: 0,
            busy_max: BUSY_MAX,
        };
        ring.position = ring.own_position().load(Ordering::Acquire);
        Ok(ring)
    }

    fn data(&self) -> *const u8 {
        // SAFETY: the mapping is longer than a page.
        unsafe { (self.kernel.start as *const u8).add(PAGE) }
    }

    /// Shows the record of `bytes` bytes that begins at `start`, which is at most `data_bytes`. The kernel does not reuse its room before
    /// our position moves.
    fn show(&mut self, start: usize, bytes: usize, take: &mut impl FnMut(&[u8])) {
        let (size, data) = (self.data_bytes as usize, self.data());
        let start = start % size;
        let first = bytes.min(size - start);
        // SAFETY: start + first is at most the ring's size.
        let head = unsafe { std::slice::from_raw_parts(data.add(start), first) };
        if first == bytes {
            return take(head);
        }
        // SAFETY: the caller has checked that the whole record is shorter than the ring, so this is its other end and does not meet `head`.
        let tail = unsafe { std::slice::from_raw_parts(data, bytes - first) };
        self.wrapped.clear();
        self.wrapped.extend_from_slice(head);
        self.wrapped.extend_from_slice(tail);
        take(&self.wrapped);
    }

    fn own_position(&self) -> &AtomicU64 {
        // SAFETY: the first word of a mapped, aligned page that lives as long as self.
        unsafe { &*(self.own.start as *const AtomicU64) }
    }

    /// Where the kernel's next record will begin.
    pub fn produced(&self) -> u64 {
        // SAFETY: as above.
        unsafe { &*(self.kernel.start as *const AtomicU64) }.load(Ordering::Acquire)
    }

    /// Feeds every record that begins before `end` to `take`, in order; waits for those that are being filled.
    pub fn consume(&mut self, end: u64, mut take: impl FnMut(&[u8])) {
        let mut busy_since: Option<Instant> = None;
        self.waiting_peak = self.waiting_peak.max(end.saturating_sub(self.position));
        while self.position < end {
            let at = (self.position % self.data_bytes) as usize;
            // SAFETY: `at` is below data_bytes and 8-aligned (the kernel rounds records up to 8), so the head lies inside the mapping.
            let word = unsafe { &*(self.data().add(at) as *const AtomicU32) }.load(Ordering::Acquire);
            if word & BUSY != 0 {
                let waited = busy_since.get_or_insert_with(Instant::now).elapsed();
                if waited > self.busy_max {
                    self.stuck += 1;
                    return;
                }
                // The filling task may have been interrupted on this very processor, so it is given up at once.
                if waited < BUSY_YIELDING {
                    std::thread::yield_now()
                } else {
                    std::thread::sleep(BUSY_SLEEP)
                }
                continue;
            }
            busy_since = None;
            let bytes = u64::from(word & !(BUSY | DISCARDED));
            if word & DISCARDED == 0 && bytes + HEAD <= self.data_bytes {
                self.show(at + HEAD as usize, bytes as usize, &mut take);
            }
            self.position += (bytes + HEAD).next_multiple_of(8);
            self.own_position().store(self.position, Ordering::Release);
        }
    }
}

/// The array of counters that programs and user space share (see `bpf/emit.h`).
pub struct Counters(Mapping);

#[derive(Clone, Copy, Debug)]
pub enum Counter {
    Lost = 0,
    LostEverything = 1,
    Marks = 3,
    Epoch = 5,
}

impl Counters {
    pub fn new(fd: BorrowedFd<'_>) -> io::Result<Counters> {
        Mapping::new(fd, PAGE, true, 0).map(Counters)
    }

    fn cell(&self, which: Counter) -> &AtomicU64 {
        // SAFETY: the page holds eight words and `which` is below eight.
        unsafe { &*(self.0.start as *const AtomicU64).add(which as usize) }
    }

    pub fn get(&self, which: Counter) -> u64 {
        self.cell(which).load(Ordering::Acquire)
    }

    /// Starts a new epoch: from now on each node's next mark is told of again.
    pub fn next_epoch(&self) {
        self.cell(Counter::Epoch).fetch_add(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::fs::MemfdFlags;
    use std::{fs::File, os::fd::AsFd, os::unix::fs::FileExt};

    const DATA: u64 = 4096;

    /// Writes as the kernel does: the head, then the content, both modulo the ring.
    struct Kernel {
        file: File,
        produced: u64,
    }

    impl Kernel {
        fn new() -> (Kernel, Ring) {
            let file = File::from(rustix::fs::memfd_create("ring", MemfdFlags::CLOEXEC).unwrap());
            file.set_len(2 * PAGE as u64 + DATA).unwrap();
            let ring = Ring::new(file.as_fd(), DATA as u32).unwrap();
            (Kernel { file, produced: 0 }, ring)
        }

        fn put(&mut self, bytes: &[u8], at: u64) {
            for (byte, at) in bytes.iter().zip(at..) {
                self.file.write_all_at(&[*byte], 2 * PAGE as u64 + at % DATA).unwrap();
            }
        }

        fn record(&mut self, content: &[u8], flags: u32) {
            self.put(&(content.len() as u32 | flags).to_le_bytes(), self.produced);
            self.put(content, self.produced + HEAD);
            self.produced += (content.len() as u64 + HEAD).next_multiple_of(8);
            self.file.write_all_at(&self.produced.to_le_bytes(), PAGE as u64).unwrap();
        }
    }

    proptest! {
        #[test]
        fn records_come_back_whole_wherever_they_lie(lengths in proptest::collection::vec((0usize..2000, any::<bool>()), 1..60)) {
            let (mut kernel, mut ring) = Kernel::new();
            for (number, (length, discarded)) in lengths.into_iter().enumerate() {
                let content: Vec<u8> = (0..length).map(|i| (i + number) as u8).collect();
                kernel.record(&content, if discarded { DISCARDED } else { 0 });
                let (mut seen, end) = (Vec::new(), ring.produced());
                ring.consume(end, |record| seen.push(record.to_vec()));
                prop_assert_eq!(seen, if discarded { vec![] } else { vec![content] });
                prop_assert_eq!(ring.own_position().load(Ordering::Acquire), kernel.produced);
            }
        }
    }

    /// Whatever stands in the ring: each record is one piece of it, the position only grows, and reading ends.
    #[test]
    fn any_content() {
        standin_fuzz::check!(name = "ring").with_test_time(standin_fuzz::TIME / 2).for_each(|bytes| {
            let (mut kernel, mut ring) = Kernel::new();
            ring.busy_max = Duration::ZERO;
            let mut script = standin_fuzz::Script::new(bytes);
            let end = script.below(3 * DATA as usize) as u64;
            let content = script.rest();
            for at in (0..DATA as usize).step_by(content.len().max(1)).take(if content.is_empty() { 0 } else { DATA as usize }) {
                let len = content.len().min(DATA as usize - at);
                kernel.file.write_all_at(&content[..len], 2 * PAGE as u64 + at as u64).unwrap();
            }
            kernel.produced = end;
            let mut shown = 0;
            ring.consume(end, |record| {
                assert!(record.len() as u64 + HEAD <= DATA, "no record is longer than the ring");
                shown += 1;
            });
            assert!(ring.stuck == 1 || ring.position >= end);
            assert!(shown <= end / HEAD + 1);
        });
    }

    #[test]
    fn an_unfinished_record_is_given_up_after_a_while() {
        let (mut kernel, mut ring) = Kernel::new();
        kernel.record(b"whole", 0);
        kernel.record(b"unfinished", BUSY);
        ring.busy_max = Duration::from_millis(50);
        let mut seen = 0;
        ring.consume(ring.produced(), |_| seen += 1);
        assert_eq!((seen, ring.stuck), (1, 1));
    }
}
