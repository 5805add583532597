//! Freezes the protected file systems for a planned failover, and never for longer than agreed.
//!
//! A frozen file system blocks every writer on the server, so three things thaw, each for the case that the one before it is dead: a thread
//! after the bound; a *guard* process (see `guard`) when this process ends in whatever way, or hangs; and the next agent or
//! `standin-agent thaw`, which read a small file that was written before the freeze. A fence turns the guard around: from
//! [`Frozen::keep`] on the source must not run again, so then the guard switches it off.

use anyhow::{Context, Result};
use guard::Guard;
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

mod guard;
mod ioctl;

/// What the guard waits longer than the thread, and how long a fence may take once it is kept.
const GUARD_SLACK: Duration = Duration::from_secs(15);
/// Names the mount points that may be frozen, one per line.
const LEFTOVER_FILE: &str = "frozen";

struct Held {
    /// Empty when thawed.
    mounts: Vec<OwnedFd>,
    guard: Option<Guard>,
    kept: bool,
    leftover: PathBuf,
}

/// Frozen file systems; thaws them when dropped.
pub struct Frozen {
    held: Arc<Mutex<Held>>,
    stop: SyncSender<()>,
}

fn open(mount_point: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(mount_point, flags, Mode::empty()).with_context(|| format!("cannot open {mount_point} to freeze it"))
}

/// Freezes in the given order (the root file system last) and starts those that thaw.
pub fn freeze(mount_points: &[String], bound: Duration, state_directory: &Path) -> Result<Frozen> {
    let mounts = mount_points.iter().map(|mount_point| open(mount_point)).collect::<Result<Vec<_>>>()?;
    let leftover = state_directory.join(LEFTOVER_FILE);
    standin_journal::durable::write_atomically(&leftover, mount_points.join("\n").as_bytes()).context("cannot note what is frozen")?;
    // Before the first freeze, because starting a process may need memory that only a write would free.
    let guard =
        Guard::start(mounts.iter().map(AsRawFd::as_raw_fd).collect(), bound + GUARD_SLACK).context("cannot start the thaw guard")?;
    let held = Arc::new(Mutex::new(Held { mounts: Vec::new(), guard: Some(guard), kept: false, leftover }));
    let (stop, stopped) = sync_channel(1);
    let watched = Arc::clone(&held);
    std::thread::Builder::new().name("thaw-watchdog".to_owned()).spawn(move || {
        if let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(bound) {
            let mut held = lock(&watched);
            if !held.kept {
                held.thaw();
            }
        }
    })?;
    let frozen = Frozen { held, stop };
    for (mount_point, fd) in mount_points.iter().zip(mounts) {
        ioctl::freeze(fd.as_raw_fd()).with_context(|| format!("cannot freeze {mount_point}"))?;
        lock(&frozen.held).mounts.push(fd);
    }
    Ok(frozen)
}

fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Held {
    /// In reverse order. A file system that is not frozen any more answers EINVAL, which is what is wanted.
    fn thaw(&mut self) {
        while let Some(fd) = self.mounts.pop() {
            let _ = ioctl::thaw(fd.as_raw_fd());
        }
        if let Some(guard) = self.guard.take() {
            guard.dismiss();
        }
        let _ = std::fs::remove_file(&self.leftover);
    }
}

impl Frozen {
    /// Whether the watchdog has not thawed them yet.
    pub fn holds(&self) -> bool {
        !lock(&self.held).mounts.is_empty()
    }

    /// From now on they stay frozen until the power goes, even if this process dies. `false` when they run again already.
    pub fn keep(&self) -> bool {
        let mut held = lock(&self.held);
        let told = !held.mounts.is_empty() && held.guard.as_mut().is_some_and(Guard::turn);
        held.kept = told;
        told
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = self.stop.try_send(());
        lock(&self.held).thaw();
    }
}

/// Thaws what an earlier agent may have left frozen; nothing happens where nothing is.
pub fn thaw_leftover(state_directory: &Path) {
    let path = state_directory.join(LEFTOVER_FILE);
    let Ok(text) = std::fs::read_to_string(&path) else { return };
    for mount_point in text.lines().rev() {
        match open(mount_point).map(|fd| ioctl::thaw(fd.as_raw_fd())) {
            Ok(Ok(())) => tracing::warn!(mount_point, "thawed what an earlier agent had left frozen"),
            Ok(Err(_)) => {}
            Err(error) => tracing::error!(mount_point, error = format!("{error:#}"), "cannot look whether it is frozen"),
        }
    }
    let _ = std::fs::remove_file(&path);
}

/// Switches the machine off at once: no shutdown scripts, no sync. Only right after a freeze, when the disks are clean.
pub fn power_off() -> std::io::Result<()> {
    ioctl::power_off()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    const MOUNT: &str = "STANDIN_FREEZE_MOUNT";
    const VICTIM: &str = "STANDIN_FREEZE_VICTIM";

    /// The test runs itself once more; that process freezes and dies without a word.
    #[test]
    #[ignore = "needs a file system that may be frozen; its mount point in STANDIN_FREEZE_MOUNT"]
    fn a_killed_agent_leaves_nothing_frozen() {
        let mount = std::env::var(MOUNT).expect("a mount point");
        if let Ok(state) = std::env::var(VICTIM) {
            let frozen = freeze(&[mount], Duration::from_secs(300), Path::new(&state)).unwrap();
            assert!(frozen.holds());
            std::process::abort();
        }
        let state = tempfile::tempdir().unwrap();
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--ignored", "--exact", "freeze::tests::a_killed_agent_leaves_nothing_frozen"]);
        let status = again.env(VICTIM, state.path()).status().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGABRT), "it could not freeze");
        assert!(state.path().join(LEFTOVER_FILE).exists());
        let (done, written) = sync_channel(1);
        std::thread::spawn(move || done.send(std::fs::write(Path::new(&mount).join("written"), b"after")));
        written.recv_timeout(Duration::from_secs(30)).expect("writers are blocked").unwrap();
        thaw_leftover(state.path());
        assert!(!state.path().join(LEFTOVER_FILE).exists());
    }
}
