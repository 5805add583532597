//! Writes that are queued and done by somebody else: Linux AIO, and io_uring with registered buffers and files. By their system calls, because no library of
//! the workspace has them.
#![allow(unsafe_code)] // test program: raw system calls and rings in shared memory

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, RawFd},
    path::Path,
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

fn call(what: &str, number: i64, arguments: [u64; 6]) -> i64 {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the callers pass live memory of the sizes that the call expects.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    assert!(result >= 0, "{what}: {}", io::Error::last_os_error());
    result
}

/// `struct iocb` of linux/aio_abi.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct Request {
    data: u64,
    key: u32,
    flags: u32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    more_flags: u32,
    event_file: u32,
}

const AIO_PWRITE: u16 = 1;

/// Writes pieces of `data`, each `bytes` long, at these offsets, all of them in flight at once.
pub fn aio(file: &File, data: &[u8], bytes: usize, offsets: &[i64]) {
    let mut context = 0u64;
    call("io_setup", libc::SYS_io_setup, [offsets.len() as u64, &raw mut context as u64, 0, 0, 0, 0]);
    let request = |(number, offset): (usize, &i64)| Request {
        data: number as u64,
        key: 0,
        flags: 0,
        opcode: AIO_PWRITE,
        priority: 0,
        file: file.as_raw_fd() as u32,
        buffer: data[number * bytes..][..bytes].as_ptr() as u64,
        bytes: bytes as u64,
        offset: *offset,
        reserved: 0,
        more_flags: 0,
        event_file: 0,
    };
    let requests: Vec<Request> = offsets.iter().enumerate().map(request).collect();
    let pointers: Vec<*const Request> = requests.iter().map(|request| request as *const Request).collect();
    let count = offsets.len() as u64;
    assert_eq!(call("io_submit", libc::SYS_io_submit, [context, count, pointers.as_ptr() as u64, 0, 0, 0]) as u64, count);
    // data, request, result, result 2
    let mut events = vec![[0i64; 4]; offsets.len()];
    call("io_getevents", libc::SYS_io_getevents, [context, count, count, events.as_mut_ptr() as u64, 0, 0]);
    assert!(events.iter().all(|event| event[2] == bytes as i64), "AIO wrote {events:?}");
    call("io_destroy", libc::SYS_io_destroy, [context, 0, 0, 0, 0, 0]);
}

const ENTRIES: u32 = 8;
const WRITE_FIXED: u8 = 5;
const FIXED_FILE: u8 = 1;
const ENTER_GETEVENTS: u64 = 1;
const REGISTER_BUFFERS: u64 = 0;
const REGISTER_FILES: u64 = 2;
const SUBMISSIONS_AT: i64 = 0x1000_0000;

/// A ring with one file and one buffer registered.
pub struct Uring {
    ring: RawFd,
    rings: *mut u8,
    submissions: *mut [u8; 64],
    parameters: [u32; 30],
}

impl Uring {
    pub fn new(file: &File, buffer: &[u8]) -> Uring {
        // struct io_uring_params: 10 words, then the offsets of both rings, 40 bytes each.
        let mut parameters = [0u32; 30];
        let ring =
            call("io_uring_setup", libc::SYS_io_uring_setup, [u64::from(ENTRIES), parameters.as_mut_ptr() as u64, 0, 0, 0, 0]) as RawFd;
        let map = |bytes: usize, at: i64| {
            // SAFETY: a shared mapping of the ring's memory, as io_uring(7) has it; the program ends with it.
            let memory = unsafe {
                libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE, ring, at)
            };
            assert_ne!(memory, libc::MAP_FAILED, "mapping a ring: {}", io::Error::last_os_error());
            memory.cast::<u8>()
        };
        // Both rings in one mapping since 5.4; the larger end decides.
        let bytes = (parameters[16] + parameters[0] * 4).max(parameters[25] + parameters[1] * 16) as usize;
        let (rings, submissions) = (map(bytes, 0), map(64 * parameters[0] as usize, SUBMISSIONS_AT).cast());
        let vector = libc::iovec { iov_base: buffer.as_ptr() as *mut _, iov_len: buffer.len() };
        let fd = file.as_raw_fd();
        let register = |what: &str, which: u64, argument: u64| {
            call(what, libc::SYS_io_uring_register, [ring as u64, which, argument, 1, 0, 0]);
        };
        register("registering a buffer", REGISTER_BUFFERS, &raw const vector as u64);
        register("registering a file", REGISTER_FILES, &raw const fd as u64);
        Uring { ring, rings, submissions, parameters }
    }

    fn word(&self, at: u32) -> &AtomicU32 {
        // SAFETY: offsets that the kernel told, in the mapping that it gave.
        unsafe { AtomicU32::from_ptr(self.rings.add(at as usize).cast()) }
    }

    /// Writes these pieces of the registered buffer at these offsets, all at once.
    pub fn write(&self, pieces: &[(&[u8], u64)]) {
        let [sq_head, sq_tail, sq_mask] = [self.parameters[10], self.parameters[11], self.parameters[12]];
        let sq_array = self.parameters[16];
        let [cq_head, cq_tail, cq_mask] = [self.parameters[20], self.parameters[21], self.parameters[22]];
        let cqes = self.parameters[25];
        let tail = self.word(sq_tail).load(Ordering::Acquire);
        assert_eq!(tail, self.word(sq_head).load(Ordering::Acquire));
        for (number, (piece, offset)) in pieces.iter().enumerate() {
            let index = tail.wrapping_add(number as u32) & self.word(sq_mask).load(Ordering::Relaxed);
            let mut entry = [0u8; 64];
            (entry[0], entry[1]) = (WRITE_FIXED, FIXED_FILE);
            entry[8..16].copy_from_slice(&offset.to_le_bytes());
            entry[16..24].copy_from_slice(&(piece.as_ptr() as u64).to_le_bytes());
            entry[24..28].copy_from_slice(&(piece.len() as u32).to_le_bytes());
            entry[32..40].copy_from_slice(&(number as u64).to_le_bytes());
            // SAFETY: the index is below the number of entries that were mapped.
            unsafe { self.submissions.add(index as usize).write(entry) };
            self.word(sq_array + index * 4).store(index, Ordering::Relaxed);
        }
        let count = pieces.len() as u32;
        self.word(sq_tail).store(tail.wrapping_add(count), Ordering::Release);
        let count = u64::from(count);
        call("io_uring_enter", libc::SYS_io_uring_enter, [self.ring as u64, count, count, ENTER_GETEVENTS, 0, 0]);
        let (mut head, end) = (self.word(cq_head).load(Ordering::Acquire), self.word(cq_tail).load(Ordering::Acquire));
        assert_eq!(u64::from(end.wrapping_sub(head)), count, "completions");
        while head != end {
            let at = cqes + (head & self.word(cq_mask).load(Ordering::Relaxed)) * 16;
            let (number, result) = (self.word(at).load(Ordering::Relaxed), self.word(at + 8).load(Ordering::Relaxed) as i32);
            assert_eq!(result, pieces[number as usize].0.len() as i32, "io_uring write");
            head = head.wrapping_add(1);
        }
        self.word(cq_head).store(head, Ordering::Release);
    }
}

/// Appends `count` lines of this process's own; many of them run at once.
pub fn append(path: &Path, count: usize) {
    use std::io::Write;
    let mut file = File::options().append(true).create(true).open(path).expect("open");
    let who = std::process::id();
    (0..count).for_each(|number| file.write_all(format!("{who} {number} {}\n", "x".repeat(number % 300)).as_bytes()).expect("append"));
}
