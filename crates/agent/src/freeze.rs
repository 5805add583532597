//! Freezes the protected file systems for a planned failover, and never for longer than agreed.
//!
//! A frozen file system blocks every writer on the server, so a thread of its own thaws after the bound whatever happens to the rest of the
//! agent; if the agent dies while frozen, `standin-agent thaw` (run by the service manager after every end) thaws what the state file names.

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

mod ioctl;

/// Frozen file systems; thaws them when dropped.
pub struct Frozen {
    mounts: Arc<Mutex<Vec<OwnedFd>>>,
    stop: SyncSender<()>,
}

/// Freezes in the given order (the root file system last) and starts the watchdog.
pub fn freeze(mount_points: &[String], bound: Duration) -> Result<Frozen> {
    let mut mounts = Vec::new();
    for mount_point in mount_points {
        let fd = rustix::fs::open(mount_point.as_str(), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .with_context(|| format!("cannot open {mount_point} to freeze it"))?;
        if let Err(error) = ioctl::freeze(fd.as_raw_fd()) {
            thaw_all(&mut mounts);
            return Err(error).with_context(|| format!("cannot freeze {mount_point}"));
        }
        mounts.push(fd);
    }
    let mounts = Arc::new(Mutex::new(mounts));
    let (stop, stopped) = sync_channel(1);
    let watched = Arc::clone(&mounts);
    std::thread::Builder::new().name("thaw-watchdog".to_owned()).spawn(move || {
        if let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(bound) {
            thaw_all(&mut watched.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        }
    })?;
    Ok(Frozen { mounts, stop })
}

impl Frozen {
    /// Whether the watchdog has not thawed them yet.
    pub fn holds(&self) -> bool {
        !self.mounts.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).is_empty()
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = self.stop.try_send(());
        thaw_all(&mut self.mounts.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    }
}

/// In reverse order. A file system that is not frozen any more answers EINVAL, which is what is wanted.
fn thaw_all(mounts: &mut Vec<OwnedFd>) {
    while let Some(fd) = mounts.pop() {
        let _ = ioctl::thaw(fd.as_raw_fd());
    }
}

/// Switches the machine off at once: no shutdown scripts, no sync. Only right after a freeze, when the disks are clean.
pub fn power_off() -> std::io::Result<()> {
    ioctl::power_off()
}
