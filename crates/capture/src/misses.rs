//! How often the kernel skipped a program without running it.
//!
//! Since 6.7 the kernel counts this for kprobe programs, before only for those on trampolines; there a skipped kprobe cannot be seen at all, and
//! none was ever observed. A skipped program means that anything may have been missed, and nobody knows where.
#![allow(unsafe_code)] // the bpf system call has no safe wrapper that shows this field

use std::os::fd::RawFd;

const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
/// Where `recursion_misses` is in `struct bpf_prog_info` (include/uapi/linux/bpf.h; fields are only ever added behind).
const MISSES_AT: usize = 208 / 8;

#[repr(C)]
struct Request {
    fd: u32,
    length: u32,
    info: u64,
}

/// The sum over these programs; a program that cannot be asked counts as never skipped.
pub fn count(programs: &[RawFd]) -> u64 {
    programs.iter().filter_map(|fd| misses_of(*fd)).sum()
}

fn misses_of(fd: RawFd) -> Option<u64> {
    let mut info = [0u64; 32];
    let mut request = Request { fd: u32::try_from(fd).ok()?, length: size_of_val(&info) as u32, info: info.as_mut_ptr() as u64 };
    // SAFETY: the request names a buffer of the length it says, which outlives the call.
    let failed = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw mut request, size_of::<Request>()) };
    (failed == 0).then_some(info[MISSES_AT])
}
