//! A child process that thaws when the agent is gone: killed, out of memory, or stuck.
//!
//! It is a bare fork that only waits on a pipe and makes system calls, because between fork and exec of a process with threads nothing else is
//! allowed. Its end of the pipe ends with the agent. Words on the pipe: `D` dismissed, `F` fence instead of thawing.
#![allow(unsafe_code)] // fork and what a child may do after it

use super::ioctl;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

pub struct Guard {
    child: libc::pid_t,
    words: File,
}

impl Guard {
    pub fn start(mounts: Vec<RawFd>, bound: Duration) -> io::Result<Guard> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let bound_ms = i32::try_from(bound.as_millis()).unwrap_or(i32::MAX);
        // Sorted and with the pipe, so that the child can close all others without memory of its own.
        let mut kept = mounts.clone();
        kept.push(read.as_raw_fd());
        kept.sort_unstable();
        // SAFETY: the child calls only `guard`, which allocates nothing and never returns.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => guard(&mounts, &kept, read.as_raw_fd(), bound_ms),
            child => {
                drop::<OwnedFd>(read);
                Ok(Guard { child, words: File::from(write) })
            }
        }
    }

    /// From now on the source is switched off instead of thawed when the agent dies.
    pub fn turn(&mut self) -> bool {
        self.words.write_all(b"F").is_ok()
    }

    /// It ends without doing anything.
    pub fn dismiss(mut self) {
        let _ = self.words.write_all(b"D");
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // SAFETY: our own child. It ends at once after a word of dismissal; killing it is for the case that it could not be told.
        unsafe {
            libc::kill(self.child, libc::SIGKILL);
            libc::waitpid(self.child, std::ptr::null_mut(), 0);
        }
    }
}

fn guard(mounts: &[RawFd], kept: &[RawFd], pipe: RawFd, bound_ms: i32) -> ! {
    close_others(kept);
    let mut fence = false;
    loop {
        let mut wait = libc::pollfd { fd: pipe, events: libc::POLLIN, revents: 0 };
        let mut word = 0u8;
        // SAFETY: both calls get memory of this frame. An interrupted wait begins anew, which a process without signal handlers never sees.
        let got = unsafe {
            match libc::poll(&mut wait, 1, bound_ms) {
                0 => 0,
                _ => libc::read(pipe, (&raw mut word).cast(), 1),
            }
        };
        match (got, word) {
            (1, b'F') => fence = true,
            (1, _) => break,
            _ => {
                end(mounts, fence);
                break;
            }
        }
    }
    // SAFETY: ends this process without running anything of its parent's.
    unsafe { libc::_exit(0) }
}

fn end(mounts: &[RawFd], fence: bool) {
    if fence {
        let _ = ioctl::power_off();
    }
    for fd in mounts.iter().rev() {
        let _ = ioctl::thaw(*fd);
    }
}

/// Everything that the fork has taken along: sockets, kernel programs, locks of files.
fn close_others(kept: &[RawFd]) {
    let mut from = 3;
    let close = |from: RawFd, to: RawFd| {
        if from <= to {
            // SAFETY: close_range takes plain numbers; nothing in this process uses the descriptors any more.
            unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
        }
    };
    for fd in kept {
        close(from, fd - 1);
        from = fd + 1;
    }
    close(from, RawFd::MAX);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// Thawing what is not frozen changes nothing, so the guard can be watched by its end only.
    #[test]
    fn a_guard_ends_when_its_agent_is_gone_or_silent() {
        let root = File::open("/").unwrap();
        let Guard { child, words } = &Guard::start(vec![root.as_raw_fd()], Duration::from_millis(50)).unwrap();
        let begun = Instant::now();
        while std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap().split(' ').nth(2) != Some("Z") {
            assert!(begun.elapsed() < Duration::from_secs(30), "the guard goes on after its bound");
            std::thread::yield_now();
        }
        let _ = words;
    }

    #[test]
    fn a_dismissed_guard_leaves_no_process() {
        let guard = Guard::start(Vec::new(), Duration::from_secs(60)).unwrap();
        let child = guard.child;
        guard.dismiss();
        assert!(!std::path::Path::new(&format!("/proc/{child}")).exists());
    }
}
