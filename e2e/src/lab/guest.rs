//! A running Linux guest, whoever started its VM: what can be said to it over ssh.
//!
//! A source is started by the lab's `Vm`, which is spoken to through this; a replica is started by the appliance, and reached with
//! `Guest::at` and the port that its network forwards.

use std::path::Path;
use std::process::Child;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::command::Output;
use super::ssh::Ssh;

/// A guest at a port of this machine's loopback.
pub struct Guest {
    name: String,
    port: u16,
    ssh: Ssh,
}

impl Guest {
    /// Nothing is connected yet. `scratch` takes the control socket and must have a short path.
    pub fn at(name: &str, port: u16, scratch: &Path) -> Result<Guest> {
        Ok(Guest { name: name.to_owned(), port, ssh: Ssh::new(port, scratch)? })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The port of this machine's loopback that is the guest's ssh server.
    pub fn ssh_port(&self) -> u16 {
        self.port
    }

    /// The command that a person types to get into the guest.
    pub fn ssh_command(&self) -> String {
        self.ssh.shown()
    }

    /// Waits until the guest takes commands; `alive` is asked in between and ends the waiting with its error.
    pub fn wait(&mut self, limit: Duration, alive: impl FnMut() -> Result<()>) -> Result<()> {
        self.ssh.wait(limit, alive)
    }

    /// Runs a shell command within a minute; failure is an error. Returns its output.
    pub fn ssh(&mut self, script: &str) -> Result<String> {
        self.ssh_within(script, Duration::from_secs(60))
    }

    /// Runs a shell command; failure is an error. Returns its output.
    pub fn ssh_within(&mut self, script: &str, limit: Duration) -> Result<String> {
        let output = self.ssh.collect(script, limit)?;
        ensure!(
            output.status.success(),
            "{}: `{}` ended with {}: {}{}",
            self.name,
            script.chars().take(200).collect::<String>(),
            output.status,
            output.stdout.trim_end(),
            output.stderr.trim_end()
        );
        Ok(output.stdout)
    }

    /// Runs a shell command, whatever its status.
    pub fn ssh_collect(&mut self, script: &str, limit: Duration) -> Result<Output> {
        self.ssh.collect(script, limit)
    }

    /// Starts a shell command with its output as a pipe.
    pub fn ssh_stream(&mut self, script: &str) -> Result<Child> {
        self.ssh.stream(script)
    }

    /// Starts a shell command with its input and its output as pipes.
    pub fn ssh_talk(&mut self, script: &str) -> Result<Child> {
        self.ssh.talk(script)
    }

    /// Copies a file or folder of this machine into the guest.
    pub fn copy_in(&mut self, from: &Path, to: &str) -> Result<()> {
        self.ssh.copy_in(from, to, Duration::from_secs(180))
    }

    /// Copies a file or folder out of the guest.
    pub fn copy_out(&mut self, from: &str, to: &Path) -> Result<()> {
        self.ssh.copy_out(from, to, Duration::from_secs(180))
    }
}
