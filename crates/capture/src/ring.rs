//! The consumer side of the kernel's ring buffer, and the shared counters: the only memory that is shared with the kernel.
//!
//! The ring's position is the order of the stream. Layout (kernel/bpf/ringbuf.c): one page with our position, one page with the kernel's,
//! then the data mapped twice in a row, so that no record is ever split. A record head is 8 bytes: length with two flag bits, and padding.
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
/// A program fills a record in microseconds; a record that stays unfinished this long means that something is badly wrong.
const BUSY_MAX: Duration = Duration::from_millis(200);

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
    pub stuck: u64,
}

impl Ring {
    pub fn new(fd: BorrowedFd<'_>, data_bytes: u32) -> io::Result<Ring> {
        let own = Mapping::new(fd, PAGE, true, 0)?;
        let kernel = Mapping::new(fd, PAGE + 2 * data_bytes as usize, false, PAGE)?;
        let mut ring = Ring { own, kernel, data_bytes: data_bytes.into(), position: 0, stuck: 0 };
        ring.position = ring.own_position().load(Ordering::Acquire);
        Ok(ring)
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
        while self.position < end {
            let at = (self.position % self.data_bytes) as usize;
            // SAFETY: `at` is below data_bytes and 8-aligned (the kernel rounds records up to 8); the double mapping reaches beyond it.
            let head = unsafe { (self.kernel.start as *const u8).add(PAGE + at) };
            // SAFETY: aligned word inside the mapping.
            let word = unsafe { &*(head as *const AtomicU32) }.load(Ordering::Acquire);
            if word & BUSY != 0 {
                // The filling task may have been interrupted on its processor: give it up at once.
                if busy_since.get_or_insert_with(Instant::now).elapsed() > BUSY_MAX {
                    self.stuck += 1;
                    return;
                }
                std::thread::yield_now();
                continue;
            }
            busy_since = None;
            let bytes = u64::from(word & !(BUSY | DISCARDED));
            if word & DISCARDED == 0 && bytes + HEAD <= self.data_bytes {
                // SAFETY: the record lies inside the double mapping, and the kernel does not reuse it before our position moves.
                take(unsafe { std::slice::from_raw_parts(head.add(HEAD as usize), bytes as usize) });
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
