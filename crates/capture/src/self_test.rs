//! Proves on every volume, before capture counts as started, that what is written is what arrives.
//!
//! A comparison of types cannot see everything: a kernel may declare the same and do something else. So a child process writes a known pattern
//! into a file without a name (O_TMPFILE), which leaves nothing behind; its records must be in the ring with exactly those bytes. It is a process
//! of its own because the agent's own writes are left out of capture. Nothing of it reaches the stream: it runs before anybody drains the
//! ring, and what others did meanwhile is older than the first read of the mirror.
#![allow(unsafe_code)] // fork and what a child may do after it

use crate::{
    CaptureError, CapturedVolume,
    record::{FLAG_UNREAD, Kind, Record},
};
use std::{
    ffi::CString,
    io,
    os::unix::ffi::OsStrExt,
    time::{Duration, Instant},
};

/// More than a page and no multiple of one.
const PATTERN_BYTES: usize = 3 * 4096 + 1234;
/// Begins inside a page, so that offsets within pages count.
const PATTERN_OFFSET: usize = 4096 + 700;
/// A file system that does not take 14 KiB within this long is hung.
const WRITE_MAX: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(2);

pub(crate) fn pattern() -> Vec<u8> {
    // No two pages of it are equal, so that a page in the wrong place is seen.
    (0..PATTERN_BYTES as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// What the writer came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    All,
    /// Read-only or full: nothing can be proved now, and nothing can be written either.
    NotPossible(i32),
}

/// Runs the writer; its thread id is in the records.
pub(crate) fn write(volume: &CapturedVolume) -> Result<(u32, Written), CaptureError> {
    let failed = |reason: String| refuse(volume, reason);
    let path = CString::new(volume.mount_point.as_os_str().as_bytes()).map_err(|_| failed("its name holds a zero byte".into()))?;
    let bytes = pattern();
    // SAFETY: the child calls only `child`, which allocates nothing and never returns.
    let pid = match unsafe { libc::fork() } {
        -1 => return Err(CaptureError::Io { doing: "start the self-test", source: io::Error::last_os_error() }),
        0 => child(&path, &bytes),
        pid => pid,
    };
    let status = match wait(pid) {
        Some(status) => status,
        None => return Err(failed(format!("it was not done after {} s", WRITE_MAX.as_secs()))),
    };
    match libc::WEXITSTATUS(status) {
        _ if !libc::WIFEXITED(status) => Err(failed("the writer was killed".into())),
        0 => Ok((pid as u32, Written::All)),
        errno @ (libc::EROFS | libc::ENOSPC | libc::EDQUOT) => Ok((pid as u32, Written::NotPossible(errno))),
        errno => Err(failed(format!("it failed: {}", io::Error::from_raw_os_error(errno)))),
    }
}

/// Ends with 0 or an error number.
fn child(path: &CString, bytes: &[u8]) -> ! {
    // SAFETY: system calls on memory that the fork has copied; _exit runs nothing of the parent's.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC, 0o600);
        let got = if fd < 0 { -1 } else { libc::pwrite(fd, bytes.as_ptr().cast(), bytes.len(), PATTERN_OFFSET as libc::off_t) };
        libc::_exit(match got {
            -1 => *libc::__errno_location(),
            got if got as usize == bytes.len() => 0,
            _ => libc::ENOSPC,
        })
    }
}

/// `None`, and the child is told to end, when it takes too long.
fn wait(pid: libc::pid_t) -> Option<i32> {
    let begun = Instant::now();
    let mut status = 0;
    loop {
        // SAFETY: our own child and a plain number to write to.
        match unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) } {
            0 if begun.elapsed() < WRITE_MAX => std::thread::sleep(LOOK_EVERY),
            0 => {
                // SAFETY: as above. One that hangs in the kernel ends when the file system answers.
                unsafe { libc::kill(pid, libc::SIGKILL) };
                return None;
            }
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            -1 => return None,
            _ => return Some(status),
        }
    }
}

fn refuse(volume: &CapturedVolume, reason: String) -> CaptureError {
    CaptureError::SelfTest { mount_point: volume.mount_point.display().to_string(), reason }
}

/// Gathers the writer's records and compares them with what it wrote.
pub(crate) struct Check {
    tid: u32,
    device: u32,
    /// Of the file, once it is seen.
    node: Option<(u64, u32)>,
    content: Vec<u8>,
    wrong: Option<String>,
}

impl Check {
    pub(crate) fn new(tid: u32, volume: &CapturedVolume) -> Check {
        Check { tid, device: volume.device, node: None, content: Vec::new(), wrong: None }
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        let Some(record) = Record::decode(bytes).filter(|record| record.tid == self.tid) else { return };
        match record.kind {
            Kind::Unnamed => self.node = Some((record.node.inode, record.node.generation)),
            Kind::Data => self.take(&record),
            _ => {}
        }
    }

    fn take(&mut self, record: &Record<'_>) {
        let expected = (PATTERN_OFFSET + self.content.len()) as u64;
        let wrong = if record.device != self.device {
            format!("it came from device {:#x} instead of {:#x}", record.device, self.device)
        } else if self.node != Some((record.node.inode, record.node.generation)) {
            "its data came from another node than its file".into()
        } else if record.flags & FLAG_UNREAD != 0 {
            "its data could not be read in the kernel".into()
        } else if record.offset != expected {
            format!("data at offset {expected} came as data at {}", record.offset)
        } else {
            return self.content.extend_from_slice(record.payload);
        };
        self.wrong.get_or_insert(wrong);
    }

    pub(crate) fn finish(self, volume: &CapturedVolume) -> Result<(), CaptureError> {
        let reason = match self.wrong {
            Some(wrong) => wrong,
            None if self.node.is_none() => "its file did not appear".into(),
            None if self.content.len() != PATTERN_BYTES => format!("{} of {PATTERN_BYTES} bytes came", self.content.len()),
            None if self.content != pattern() => "other bytes came than were written".into(),
            None => return Ok(()),
        };
        Err(refuse(volume, reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::HEAD_BYTES;
    use standin_model::{FileSystem, VolumeId};

    fn volume(mount_point: &std::path::Path) -> CapturedVolume {
        CapturedVolume { id: VolumeId(0), mount_point: mount_point.to_owned(), device: 7, file_system: FileSystem::Ext4 }
    }

    fn record(kind: Kind, offset: u64, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEAD_BYTES];
        bytes[0..2].copy_from_slice(&(kind as u16).to_le_bytes());
        bytes[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes[8..12].copy_from_slice(&7u32.to_le_bytes());
        bytes[12..16].copy_from_slice(&99u32.to_le_bytes());
        bytes[24..32].copy_from_slice(&12u64.to_le_bytes());
        bytes[112..120].copy_from_slice(&offset.to_le_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    /// The records of a good run, cut as the kernel cuts them: at pages.
    fn good() -> Vec<Vec<u8>> {
        let (pattern, mut records, mut at) = (pattern(), vec![record(Kind::Unnamed, 0, &[])], 0);
        while at < PATTERN_BYTES {
            let len = (4096 - (PATTERN_OFFSET + at) % 4096).min(PATTERN_BYTES - at);
            records.push(record(Kind::Data, (PATTERN_OFFSET + at) as u64, &pattern[at..at + len]));
            at += len;
        }
        records
    }

    fn verdict(records: &[Vec<u8>]) -> Result<(), String> {
        let volume = volume("/".as_ref());
        let mut check = Check::new(99, &volume);
        records.iter().for_each(|record| check.feed(record));
        check.finish(&volume).map_err(|error| format!("{} {error}", error.code()))
    }

    #[test]
    fn what_was_written_passes_and_nothing_else() {
        assert_eq!(verdict(&good()), Ok(()));
        let changed = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
            let mut records = good();
            change(&mut records);
            verdict(&records).unwrap_err()
        };
        assert!(changed(&|r| drop(r.remove(2))).contains("offset"));
        assert!(changed(&|r| drop(r.pop())).contains("bytes came"));
        assert!(changed(&|r| r.clear()).contains("did not appear"));
        assert!(changed(&|r| *r[3].last_mut().unwrap() ^= 1).contains("other bytes"));
        assert!(changed(&|r| r[1][2] = 1).contains("could not be read"));
        assert!(changed(&|r| r[1][8] = 8).contains("device"));
        assert!(changed(&|r| r[1][24] = 13).contains("another node"));
        assert!(changed(&|r| r[1].truncate(20)).starts_with("STANDIN-E6007"));
    }

    #[test]
    fn the_writer_leaves_nothing_behind() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        match write(&volume(directory.path())) {
            Ok((tid, written)) => assert!(tid > 0 && written == Written::All),
            Err(error) => println!("skipped: no O_TMPFILE here: {error}"),
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_writer_that_fails_says_why() {
        let error = write(&volume("/proc".as_ref())).unwrap_err();
        assert_eq!(error.code(), "STANDIN-E6007");
    }
}
