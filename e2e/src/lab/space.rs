//! A private mount namespace in which the lab mounts disk images.
//!
//! A holder process owns the namespace; commands enter it with `nsenter`, and this process reads the mounted trees through
//! `/proc/<holder>/root`. The holder ends when its standard input closes, so even a killed run leaves no mount and no loop device
//! behind: the kernel unmounts with the last user of the namespace, and the loop devices clear themselves (autoclear).

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::command;
use super::disk::ByteRange;
use super::image::FileSystem;

/// Enough for a mount that replays a log on a slow machine.
const LIMIT: Duration = Duration::from_secs(60);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Runs this program once more, with the same words, in a mount namespace of its own, so that whatever ends it, nothing stays mounted. Returns how
/// that ended; nothing when this is that run already.
pub fn run_inside() -> Result<Option<ExitCode>> {
    const INSIDE: &str = "STANDIN_LAB_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        return Ok(None);
    }
    ensure!(rustix::process::geteuid().is_root(), "mounting disk images needs root: run this command as root (sudo)");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--"]).arg(std::env::current_exe()?).args(std::env::args_os().skip(1));
    let status = command.env(INSIDE, "1").status().context("starting `unshare` (package util-linux)")?;
    Ok(Some(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }))
}

/// What a mount may do to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    ReadWrite,
    /// Nothing is written, and a log is not replayed: the tree is what the last clean unmount or freeze left.
    ReadOnly,
}

/// The namespace; dropping it unmounts everything in it.
pub struct Space {
    holder: Child,
    folder: PathBuf,
}

impl Space {
    pub fn new() -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "mounting disk images needs root: run this command as root (sudo)");
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("standin-space-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let script = "mount -t tmpfs -o mode=0755 standin \"$0\" && echo ready && exec cat >/dev/null";
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting `unshare` (package util-linux)")?;
        let mut said = String::new();
        let stdout = holder.stdout.take().expect("the holder's output is a pipe");
        BufReader::new(stdout).read_line(&mut said)?;
        let space = Space { holder, folder };
        ensure!(said.trim() == "ready", "a private mount namespace could not be made");
        Ok(space)
    }

    /// A folder of that name inside the namespace, made if it is missing. The path is valid inside only.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let inside = self.folder.join(name);
        fs::create_dir_all(self.seen(&inside)).with_context(|| format!("creating {}", inside.display()))?;
        Ok(inside)
    }

    /// How this process sees a path of the namespace.
    pub fn seen(&self, inside: &Path) -> PathBuf {
        let below = inside.strip_prefix("/").unwrap_or(inside);
        PathBuf::from(format!("/proc/{}/root", self.holder.id())).join(below)
    }

    /// A command that runs inside.
    pub fn command<S: AsRef<OsStr>>(&self, words: &[S]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id())).arg("--").args(words);
        command
    }

    /// Runs a command inside and returns its output.
    pub fn run<S: AsRef<OsStr>>(&self, words: &[S], limit: Duration) -> Result<String> {
        command::checked(&mut self.command(words), limit)
    }

    /// Mounts a range of a raw disk image on a folder of the namespace.
    pub fn mount(&self, disk: &Path, range: ByteRange, kind: FileSystem, on: &Path, access: Access) -> Result<()> {
        let mut options = format!("loop,offset={},sizelimit={}", range.start, range.len);
        options.push_str(match (access, kind) {
            (Access::ReadWrite, _) => "",
            (Access::ReadOnly, FileSystem::Ext4) => ",ro,noload",
            (Access::ReadOnly, FileSystem::Xfs) => ",ro,norecovery",
            // A btrfs has no log to replay except after fsync; `rescue=nologreplay` keeps even that from being read.
            (Access::ReadOnly, FileSystem::Btrfs) => ",ro,rescue=nologreplay",
        });
        if kind == FileSystem::Xfs {
            // Source and replica have the same UUID, and xfs refuses to mount one twice.
            options.push_str(",nouuid");
        }
        let mut command = self.command(&["mount", "-t", kind.name(), "-o", &options]);
        command.arg(disk).arg(on);
        command::checked(&mut command, LIMIT).with_context(|| format!("mounting {} of {}", kind.name(), disk.display()))?;
        Ok(())
    }

    /// Unmounts and waits until the disk is written.
    pub fn unmount(&self, on: &Path) -> Result<()> {
        command::checked(self.command(&["umount"]).arg(on), LIMIT)?;
        Ok(())
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        self.holder.kill().ok();
        self.holder.wait().ok();
        fs::remove_dir(&self.folder).ok();
    }
}
