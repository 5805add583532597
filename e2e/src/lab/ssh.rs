//! Talking to a guest over ssh: one master connection per VM, because a key exchange under emulation costs a second or more.
//!
//! Every call has a time limit. The master is a child of this process and is started by itself, never inside a pipeline, since a
//! master keeps the pipeline's output open.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::cache;
use super::command::{self, Output};

/// A guest's ssh server as seen from this machine.
pub struct Ssh {
    key: PathBuf,
    port: u16,
    socket: PathBuf,
    master: Option<Child>,
}

impl Ssh {
    /// `folder` holds the control socket; its path must be short (a socket's name has at most 107 bytes).
    pub fn new(port: u16, folder: &Path) -> Result<Self> {
        Ok(Ssh { key: cache::ssh_key()?, port, socket: folder.join("ssh"), master: None })
    }

    fn options(&self) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        for option in [
            "BatchMode=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "ConnectTimeout=20",
            "ServerAliveInterval=15",
            "ServerAliveCountMax=8",
            "IdentitiesOnly=yes",
        ] {
            words.extend(["-o".into(), option.into()]);
        }
        words.extend(["-i".into(), self.key.display().to_string()]);
        words
    }

    /// The command that a person types to get into the guest.
    pub fn shown(&self) -> String {
        format!("ssh -i {} -p {} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null root@127.0.0.1", self.key.display(), self.port)
    }

    fn client(&self) -> Command {
        let mut command = Command::new("ssh");
        command.args(self.options()).arg("-S").arg(&self.socket);
        command.args(["-p", &self.port.to_string(), "root@127.0.0.1"]);
        command
    }

    /// Waits until the guest answers, and leaves the master connection open.
    pub fn wait(&mut self, limit: Duration, mut alive: impl FnMut() -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            alive()?;
            if self.connect(Duration::from_secs(40)).is_ok() {
                return Ok(());
            }
            command::pause(Duration::from_millis(250))?;
        }
        bail!("the guest did not answer ssh within {} s", limit.as_secs())
    }

    /// Makes sure that there is a live master connection.
    fn connect(&mut self, limit: Duration) -> Result<()> {
        if let Some(master) = &mut self.master {
            if master.try_wait()?.is_none() && self.socket.exists() {
                return Ok(());
            }
            master.kill().ok();
            master.wait().ok();
            self.master = None;
        }
        std::fs::remove_file(&self.socket).ok();
        let mut command = Command::new("ssh");
        command.args(self.options()).args(["-M", "-N", "-S"]).arg(&self.socket);
        command.args(["-p", &self.port.to_string(), "root@127.0.0.1"]);
        let mut master = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("starting ssh")?;
        let deadline = Instant::now() + limit;
        while !self.socket.exists() {
            if master.try_wait()?.is_some() || Instant::now() > deadline {
                master.kill().ok();
                master.wait().ok();
                bail!("no ssh connection to the guest");
            }
            command::pause(Duration::from_millis(20))?;
        }
        self.master = Some(master);
        Ok(())
    }

    /// Runs a shell command in the guest, whatever its status.
    pub fn collect(&mut self, script: &str, limit: Duration) -> Result<Output> {
        self.connect(Duration::from_secs(40))?;
        command::collect(self.client().arg("--").arg(script), limit)
    }

    /// Starts a shell command in the guest with its output as a pipe; it ends with the guest or when the child is killed.
    pub fn stream(&mut self, script: &str) -> Result<Child> {
        self.open(script, Stdio::null())
    }

    /// The same with its input as a pipe, too.
    pub fn talk(&mut self, script: &str) -> Result<Child> {
        self.open(script, Stdio::piped())
    }

    fn open(&mut self, script: &str, input: Stdio) -> Result<Child> {
        self.connect(Duration::from_secs(40))?;
        let mut command = self.client();
        command.arg("--").arg(script).stdin(input).stdout(Stdio::piped()).stderr(Stdio::null());
        command.spawn().context("starting ssh")
    }

    /// Copies a file or folder into the guest.
    pub fn copy_in(&mut self, from: &Path, to: &str, limit: Duration) -> Result<()> {
        self.copy(from.as_os_str(), format!("root@127.0.0.1:{to}").as_ref(), limit)
    }

    /// Copies a file or folder out of the guest.
    pub fn copy_out(&mut self, from: &str, to: &Path, limit: Duration) -> Result<()> {
        self.copy(format!("root@127.0.0.1:{from}").as_ref(), to.as_os_str(), limit)
    }

    fn copy(&mut self, from: &std::ffi::OsStr, to: &std::ffi::OsStr, limit: Duration) -> Result<()> {
        self.connect(Duration::from_secs(40))?;
        let mut command = Command::new("scp");
        // -O: the old protocol needs no sftp server in the guest.
        command.args(["-O", "-q", "-p", "-r", "-P", &self.port.to_string()]).args(self.options());
        command.arg("-o").arg(format!("ControlPath={}", self.socket.display()));
        command::checked(command.arg(from).arg(to), limit)?;
        Ok(())
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        if let Some(master) = &mut self.master {
            master.kill().ok();
            master.wait().ok();
        }
        std::fs::remove_file(&self.socket).ok();
    }
}
