//! Freezes the protected file systems for a planned failover, and never for longer than agreed.
//!
//! A frozen file system blocks every writer on the server, so what is dirty is written back first, and three things thaw, each for the case that
//! the one before it is dead: a thread after the bound, which also ends a freeze that is still under way then; a *guard* process (see `guard`)
//! when this process ends in whatever way, or hangs; and the next agent or `standin-agent thaw`, which read a small file that was written before
//! the freeze. A fence turns the guard around: from [`Frozen::keep`] on the source must not run again, so then the guard switches it off.

use crate::nodes::Root;
use anyhow::{Context, Result};
use guard::Guard;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

mod guard;
mod ioctl;

/// What the guard waits longer than the thread, and how long a fence may take once it is kept.
const GUARD_SLACK: Duration = Duration::from_secs(15);
/// Names the mount points that may be frozen, one per line.
const LEFTOVER_FILE: &str = "frozen";

/// Writing back what is dirty, before anything is frozen, may take this long: the appliance waits a minute for the source to stand still.
const WRITE_BACK_MAX: Duration = Duration::from_secs(35);
/// When writing back took longer than this, so much was written meanwhile that it is worth doing once more.
const WRITE_BACK_LONG: Duration = Duration::from_secs(1);

type Call = Box<dyn Fn(RawFd) -> io::Result<()> + Send + Sync>;

/// The two calls to the kernel; tests take their own.
struct Calls {
    freeze: Call,
    thaw: Call,
}

struct Held {
    calls: Arc<Calls>,
    /// Those that are frozen for certain; empty when thawed.
    mounts: Vec<OwnedFd>,
    /// A freeze is under way, and what comes of it is not known yet.
    freezing: bool,
    /// Thawed, for good: what freezes after this is thawed at once.
    over: bool,
    guard: Option<Guard>,
    kept: bool,
    leftover: Option<PathBuf>,
}

/// File systems that are frozen or about to be; thaws them when dropped, also in the middle of the freezing.
pub struct Frozen {
    held: Arc<Mutex<Held>>,
    stop: SyncSender<()>,
}

/// The half that freezes, on a thread of its own, because that takes as long as the disks want.
pub struct Freezing {
    held: Arc<Mutex<Held>>,
    stopped: Receiver<()>,
}

/// A freeze blocks writers first and writes back afterwards, so what is dirty is written while they still run.
fn write_back(mounts: &[OwnedFd]) -> Result<()> {
    let begun = Instant::now();
    let all = || mounts.iter().try_for_each(rustix::fs::syncfs).context("cannot write back what is dirty");
    all()?;
    if begun.elapsed() > WRITE_BACK_LONG {
        all()?;
    }
    let took = begun.elapsed();
    anyhow::ensure!(took < WRITE_BACK_MAX, "writing back what was dirty took {} s; it will take less the next time", took.as_secs());
    Ok(())
}

impl Freezing {
    /// Freezes in the given order (the root file system last) and starts those that thaw. The bound counts from the first freeze.
    pub fn freeze(self, roots: &[Root], bound: Duration, state_directory: &Path) -> Result<()> {
        let mounts = roots.iter().map(|root| root.directory.try_clone()).collect::<io::Result<Vec<_>>>()?;
        let mount_points: Vec<&str> = roots.iter().map(|root| root.mount_point.as_str()).collect();
        write_back(&mounts)?;
        let leftover = state_directory.join(LEFTOVER_FILE);
        standin_journal::durable::write_atomically(&leftover, mount_points.join("\n").as_bytes()).context("cannot note what is frozen")?;
        let held = Arc::clone(&self.held);
        lock(&held).leftover = Some(leftover);
        let result = self.freeze_guarded(&mount_points, mounts, bound);
        let mut held = lock(&held);
        held.freezing = false;
        if result.is_err() {
            held.thaw();
        }
        result
    }

    fn freeze_guarded(self, mount_points: &[&str], mounts: Vec<OwnedFd>, bound: Duration) -> Result<()> {
        // Before the first freeze, because starting a process may need memory that only a write would free.
        let guard =
            Guard::start(mounts.iter().map(AsRawFd::as_raw_fd).collect(), bound + GUARD_SLACK).context("cannot start the thaw guard")?;
        let calls = {
            let mut held = lock(&self.held);
            (held.guard, held.freezing) = (Some(guard), true);
            Arc::clone(&held.calls)
        };
        let (watched, stopped) = (Arc::clone(&self.held), self.stopped);
        std::thread::Builder::new().name("thaw-watchdog".to_owned()).spawn(move || {
            if let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(bound) {
                let mut held = lock(&watched);
                if !held.kept {
                    held.thaw();
                }
            }
        })?;
        for (mount_point, fd) in mount_points.iter().zip(mounts) {
            anyhow::ensure!(!lock(&self.held).over, "thawed before {mount_point} was to be frozen");
            (calls.freeze)(fd.as_raw_fd()).with_context(|| format!("cannot freeze {mount_point}"))?;
            let mut held = lock(&self.held);
            held.mounts.push(fd);
            anyhow::ensure!(!held.over, "the agreed time was over before {mount_point} stood still");
        }
        Ok(())
    }
}

fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Held {
    /// In reverse order. A file system that is not frozen any more answers EINVAL, which is what is wanted.
    fn thaw(&mut self) {
        self.over = true;
        while let Some(fd) = self.mounts.pop() {
            let _ = (self.calls.thaw)(fd.as_raw_fd());
        }
        // A freeze that is still under way ends here, too; until then its thread may die, and then only the guard or the next agent thaws.
        if self.freezing {
            return;
        }
        if let Some(guard) = self.guard.take() {
            guard.dismiss();
        }
        if let Some(leftover) = self.leftover.take() {
            let _ = std::fs::remove_file(leftover);
        }
    }

    fn stands_still(&self) -> bool {
        !self.freezing && !self.mounts.is_empty()
    }
}

impl Frozen {
    /// Nothing is frozen yet; the other half does that.
    pub fn prepare() -> (Frozen, Freezing) {
        Frozen::prepare_with(Calls { freeze: Box::new(ioctl::freeze), thaw: Box::new(ioctl::thaw) })
    }

    fn prepare_with(calls: Calls) -> (Frozen, Freezing) {
        let (calls, mounts) = (Arc::new(calls), Vec::new());
        let held = Held { calls, mounts, freezing: false, over: false, guard: None, kept: false, leftover: None };
        let held = Arc::new(Mutex::new(held));
        let (stop, stopped) = sync_channel(1);
        (Frozen { held: Arc::clone(&held), stop }, Freezing { held, stopped })
    }

    /// Whether all of them stand still: frozen, and not thawed by the watchdog yet.
    pub fn holds(&self) -> bool {
        lock(&self.held).stands_still()
    }

    /// From now on they stay frozen until the power goes, even if this process dies. `false` when they run again already.
    pub fn keep(&self) -> bool {
        let mut held = lock(&self.held);
        let told = held.stands_still() && held.guard.as_mut().is_some_and(Guard::turn);
        held.kept = told;
        told
    }

    /// Whether the power is about to go.
    pub fn is_kept(&self) -> bool {
        lock(&self.held).kept
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
        match Root::open(mount_point).map(|root| ioctl::thaw(root.directory.as_raw_fd())) {
            Ok(Ok(())) => tracing::warn!(mount_point, "thawed what an earlier agent had left frozen"),
            Ok(Err(_)) => {}
            Err(error) => tracing::error!(mount_point, %error, "cannot look whether it is frozen"),
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
    use std::sync::OnceLock;

    const MOUNT: &str = "STANDIN_FREEZE_MOUNT";
    const VICTIM: &str = "STANDIN_FREEZE_VICTIM";

    /// Two directories that count as file systems, and what was asked of the kernel.
    struct Lab {
        state: tempfile::TempDir,
        mount_points: Vec<String>,
        asked: Arc<Mutex<Vec<&'static str>>>,
    }

    impl Lab {
        fn new() -> Lab {
            // In memory, where a sync costs nothing.
            let state = tempfile::tempdir_in("/dev/shm").unwrap();
            let mount_points = ["data", "root"].map(|name| state.path().join(name));
            mount_points.iter().for_each(|path| std::fs::create_dir(path).unwrap());
            Lab { state, mount_points: mount_points.map(|path| path.display().to_string()).to_vec(), asked: Arc::default() }
        }

        /// `freezing` is called in the middle of each freeze, with its number.
        fn prepare(&self, freezing: impl Fn(usize) + Send + Sync + 'static) -> (Frozen, Freezing) {
            let (asked, of_thaw) = (Arc::clone(&self.asked), Arc::clone(&self.asked));
            let freeze = Box::new(move |_: RawFd| {
                let number = asked.lock().unwrap().iter().filter(|call| **call == "freeze").count();
                freezing(number);
                asked.lock().unwrap().push("freeze");
                Ok(())
            });
            let thaw = Box::new(move |_: RawFd| {
                of_thaw.lock().unwrap().push("thaw");
                Ok(())
            });
            Frozen::prepare_with(Calls { freeze, thaw })
        }

        fn freeze(&self, freezing: Freezing, bound: Duration) -> Result<()> {
            let roots: Vec<Root> = self.mount_points.iter().map(|mount_point| Root::open(mount_point).unwrap()).collect();
            freezing.freeze(&roots, bound, self.state.path())
        }

        fn is_noted(&self) -> bool {
            self.state.path().join(LEFTOVER_FILE).exists()
        }
    }

    fn wait_until(what: impl Fn() -> bool) {
        let begun = Instant::now();
        while !what() {
            assert!(begun.elapsed() < Duration::from_secs(30), "it does not happen");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The root's freeze goes on until the watchdog has thawed what was frozen before it.
    #[test]
    fn a_freeze_that_outlives_the_bound_is_undone_and_guarded_until_then() {
        let lab = Lab::new();
        let (asked, guarded) = (Arc::clone(&lab.asked), Arc::new(Mutex::new(None)));
        let seen = Arc::new(OnceLock::<Arc<Mutex<Held>>>::new());
        let (held, noted, leftover) = (Arc::clone(&seen), Arc::clone(&guarded), lab.state.path().join(LEFTOVER_FILE));
        let (frozen, freezing) = lab.prepare(move |number| {
            if number == 1 {
                wait_until(|| asked.lock().unwrap().contains(&"thaw"));
                *noted.lock().unwrap() = Some(lock(held.get().unwrap()).guard.is_some() && leftover.exists());
            }
        });
        assert!(seen.set(Arc::clone(&frozen.held)).is_ok());
        let error = lab.freeze(freezing, Duration::from_millis(500)).unwrap_err();
        assert!(error.to_string().contains("agreed time"), "{error}");
        assert_eq!(*lab.asked.lock().unwrap(), ["freeze", "thaw", "freeze", "thaw"]);
        assert_eq!(*guarded.lock().unwrap(), Some(true), "nobody would have thawed if the agent had died");
        assert!(!frozen.holds() && !frozen.keep() && lock(&frozen.held).guard.is_none() && !lab.is_noted());
    }

    #[test]
    fn thawing_in_the_middle_of_a_freeze_ends_it() {
        let lab = Lab::new();
        let frozen = Arc::new(Mutex::new(None::<Frozen>));
        let of_freeze = Arc::clone(&frozen);
        let (half, freezing) = lab.prepare(move |number| {
            let frozen = of_freeze.lock().unwrap().take().expect("only the first is begun");
            assert!(number == 0 && !frozen.holds() && !frozen.keep());
            drop(frozen);
        });
        *frozen.lock().unwrap() = Some(half);
        assert!(lab.freeze(freezing, Duration::from_secs(60)).is_err());
        assert_eq!(*lab.asked.lock().unwrap(), ["freeze", "thaw"]);
        assert!(!lab.is_noted());
    }

    #[test]
    fn frozen_ones_stand_still_until_they_are_dropped_or_the_bound_is_over() {
        let lab = Lab::new();
        let (frozen, freezing) = lab.prepare(|_| {});
        lab.freeze(freezing, Duration::from_secs(60)).unwrap();
        assert!(frozen.holds() && lab.is_noted());
        drop(frozen);
        assert!(!lab.is_noted());
        let (frozen, freezing) = lab.prepare(|_| {});
        lab.freeze(freezing, Duration::from_millis(500)).unwrap();
        wait_until(|| !frozen.holds());
        assert!(!frozen.keep());
        assert_eq!(lab.asked.lock().unwrap().len(), 8);
    }

    /// The test runs itself once more; that process freezes and dies without a word.
    #[test]
    #[ignore = "needs a file system that may be frozen; its mount point in STANDIN_FREEZE_MOUNT"]
    fn a_killed_agent_leaves_nothing_frozen() {
        let mount = std::env::var(MOUNT).expect("a mount point");
        if let Ok(state) = std::env::var(VICTIM) {
            let (frozen, freezing) = Frozen::prepare();
            freezing.freeze(&[Root::open(&mount).unwrap()], Duration::from_secs(300), Path::new(&state)).unwrap();
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
