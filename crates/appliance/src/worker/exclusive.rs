//! One worker per replica, also while the one before it is still dying.
//!
//! When the appliance or a worker is killed, the old process may live on for a moment, and its mounts a moment longer. A second mount of the same file system
//! through another loop device would damage it, so a worker first takes a lock and then waits until the kernel has let go of every loop device of
//! the disk.

use anyhow::{Context, Result, bail};
use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

/// A worker that lost its appliance finishes the segment that it applies and marks, which takes seconds at most.
const WAIT_MAX: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Held for as long as the worker may touch the disk.
pub struct Exclusive {
    _lock: File,
}

impl Exclusive {
    pub fn take(lock: &Path, disk: &Path) -> Result<Exclusive> {
        let deadline = Instant::now() + WAIT_MAX;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(lock)
            .with_context(|| format!("opening {}", lock.display()))?;
        wait_until(deadline, || match file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("locking {}", lock.display())),
        })
        .context("another worker still has this replica")?;
        wait_until(deadline, || Ok(!is_bound(disk))).context("a loop device of an earlier worker still has the replica's disk")?;
        Ok(Exclusive { _lock: file })
    }
}

fn wait_until(deadline: Instant, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    while !done()? {
        if Instant::now() > deadline {
            bail!("waited {} s", WAIT_MAX.as_secs());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// Whether any loop device is bound to the disk, in whatever namespace it is mounted.
fn is_bound(disk: &Path) -> bool {
    let Ok(disk) = std::fs::canonicalize(disk) else { return false };
    let devices = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    devices
        .filter(|device| device.file_name().to_string_lossy().starts_with("loop"))
        .filter_map(|device| std::fs::read_to_string(device.path().join("loop/backing_file")).ok())
        .any(|backing| Path::new(backing.trim_end()) == disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let (lock, disk) = (dir.path().join("lock"), dir.path().join("disk.raw"));
        let first = Exclusive::take(&lock, &disk).unwrap();
        let (path, other) = (lock.clone(), disk.clone());
        let second = std::thread::spawn(move || Exclusive::take(&path, &other).map(|_| Instant::now()));
        std::thread::sleep(Duration::from_millis(100));
        let released = Instant::now();
        drop(first);
        assert!(second.join().unwrap().unwrap() >= released);
    }
}
