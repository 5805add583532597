//! One worker per replica, also while the one before it is still dying.
//!
//! When the appliance or a worker is killed, the old process may live on for a moment, and its mounts a moment longer. A second mount of the same file system
//! through another loop device would damage it, so a worker first takes a lock and then waits until the kernel has let go of every loop device of
//! the disk. A worker that was killed while it held the replica still has left it frozen, which keeps the loop devices for ever; that is looked at
//! when they are slow to go.

use anyhow::{Context, Result, bail};
use standin_replica::disk;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

/// A worker that lost its appliance finishes the segment that it applies and marks, which takes seconds at most.
const WAIT_MAX: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What a killed worker normally leaves is gone by then.
const THAW_AFTER: Duration = Duration::from_millis(500);

/// Held for as long as the worker may touch the disk.
pub struct Exclusive {
    _lock: File,
}

impl Exclusive {
    pub fn take(lock: &Path, disk: &Path, run_directory: &Path) -> Result<Exclusive> {
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
        let mut thaw_at = Instant::now() + THAW_AFTER;
        let unbound = wait_until(deadline, || {
            let free = !is_bound(disk);
            if !free && Instant::now() >= thaw_at {
                thaw(disk, run_directory);
                thaw_at = Instant::now() + THAW_AFTER;
            }
            Ok(free)
        });
        unbound.context("a loop device of an earlier worker still has the replica's disk")?;
        Ok(Exclusive { _lock: file })
    }
}

/// Tried again until the deadline, so that its failures are only told.
fn thaw(disk: &Path, run_directory: &Path) {
    let result = disk::finished_plan(disk).and_then(|plan| match plan {
        Some(plan) => disk::thaw_leftover(disk, &plan, &disk::scratch_of(run_directory)),
        None => Ok(0),
    });
    match result {
        Ok(0) => {}
        Ok(count) => tracing::warn!(disk = %disk.display(), count, "thawed what an earlier worker had left frozen"),
        Err(error) => tracing::warn!(disk = %disk.display(), error = crate::errors::chain(&error), "cannot thaw"),
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
        let first = Exclusive::take(&lock, &disk, dir.path()).unwrap();
        let (path, other) = (lock.clone(), disk.clone());
        let second = std::thread::spawn(move || Exclusive::take(&path, &other, other.parent().unwrap()).map(|_| Instant::now()));
        std::thread::sleep(Duration::from_millis(100));
        let released = Instant::now();
        drop(first);
        assert!(second.join().unwrap().unwrap() >= released);
    }
}
