//! Room on the datastore: nothing is applied to a replica when its disk's file may not find a block any more.
//!
//! A write that the disk's file cannot take becomes an error of the replica's disk, long after the item that caused it. So apply stops before the
//! datastore is full, and close to that it writes down what it has applied after every segment, so that no more than one segment is ever on its way.
//! What was received stays in the journal, which stops by itself, and then in the source's queue. A failover takes what is left.

use anyhow::{Context, Result};
use standin_protection::Problem;
use std::path::{Path, PathBuf};

/// Free bytes below which nothing is applied, unless that is more than a fiftieth of the datastore.
const RESERVE_BYTES: u64 = 512 << 20;
/// As long as this much more is free, marks once a second are enough: no disk writes more in a second.
const NEAR_BYTES: u64 = 4 << 30;
/// Before apply goes on, so that it does not stop and go with every segment.
const MORE_BYTES: u64 = 64 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Enough,
    /// What was applied is to be written down at once.
    Near,
    Full,
}

pub struct Room {
    directory: PathBuf,
    pub is_full: bool,
}

impl Room {
    /// Of the file system that holds the replica's disk.
    pub fn of(disk: &Path) -> Room {
        let directory = disk.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
        Room { directory, is_full: false }
    }

    /// Looks now; remembers whether it was full.
    pub fn look(&mut self) -> Result<Space> {
        let stat = rustix::fs::statvfs(&self.directory).with_context(|| format!("measuring {}", self.directory.display()))?;
        let (free, size) = (stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize));
        let space = judge(free, size, self.is_full);
        self.is_full = space == Space::Full;
        Ok(space)
    }

    pub fn problem(&self) -> Problem {
        let cause =
            format!("the datastore at {} is almost full, so nothing is applied to the replica; nothing is lost", self.directory.display());
        Problem::new("E4076", cause, "free space there, or remove recovery points: standin point list JOB; it goes on by itself")
    }
}

fn judge(free: u64, size: u64, was_full: bool) -> Space {
    let reserve = RESERVE_BYTES.min(size / 50);
    let wanted = if was_full { reserve + MORE_BYTES.min(reserve / 2) } else { reserve };
    match free {
        free if free < wanted => Space::Full,
        free if free < reserve + NEAR_BYTES => Space::Near,
        _ => Space::Enough,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_full_datastore_is_full_until_some_more_is_free() {
        assert_eq!(judge(100 * GIB, 1000 * GIB, false), Space::Enough);
        assert_eq!(judge(2 * GIB, 1000 * GIB, false), Space::Near);
        assert_eq!(judge(RESERVE_BYTES - 1, 1000 * GIB, false), Space::Full);
        assert_eq!(judge(RESERVE_BYTES, 1000 * GIB, false), Space::Near);
        assert_eq!(judge(RESERVE_BYTES, 1000 * GIB, true), Space::Full);
        assert_eq!(judge(RESERVE_BYTES + MORE_BYTES, 1000 * GIB, true), Space::Near);
        // A small datastore keeps little.
        assert_eq!(judge(GIB / 50, GIB, false), Space::Near);
        assert_eq!(judge(GIB / 50 - 1, GIB, false), Space::Full);
    }

    #[test]
    fn this_file_system_is_measured() {
        let dir = tempfile::tempdir().unwrap();
        let mut room = Room::of(&dir.path().join("disk.raw"));
        assert_ne!(room.look().unwrap(), Space::Full);
        assert!(Room::of(Path::new("/nowhere/disk.raw")).look().is_err());
    }
}
