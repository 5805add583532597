//! The product in a benchmark: an appliance's process beside the target, an agent's beside the source, and one job, from order to protected.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::disk::Disk;
use super::network::{Network, TARGET_ADDRESS, Traffic};
use super::source::{NAME, STATE};
use super::{Measured, processor_seconds};
use crate::lab::command;
use crate::product::program;

const LIMIT: Duration = Duration::from_secs(60);
/// The slowest mirror that is waited for.
const MIRROR_LIMIT: Duration = Duration::from_secs(1200);
const END_LIMIT: Duration = Duration::from_secs(20);
const AGENT_PORT: u16 = 7410;
const API_PORT: u16 = 7411;

/// Everything ends with its owner.
pub struct Ours<'a> {
    network: &'a Network,
    folder: PathBuf,
    appliance: Option<Child>,
    agent: Option<Child>,
    started: u64,
}

impl<'a> Ours<'a> {
    /// An appliance that answers, and an agent that is enrolled and connected.
    pub fn start(network: &'a Network, folder: &Path, set: &Disk) -> Result<Ours<'a>> {
        fs::remove_dir_all(folder).ok();
        fs::create_dir_all(folder)?;
        let mut ours = Ours { network, folder: folder.to_owned(), appliance: None, agent: None, started: 0 };
        let appliance = folder.join("appliance");
        let address = format!("{TARGET_ADDRESS}:{AGENT_PORT}");
        let mut init = Command::new(program("standin-appliance")?);
        command::checked(init.args(["init", "--address", &address, "--san", "127.0.0.1", "--dir"]).arg(&appliance), LIMIT)?;
        ours.serve()?;
        ours.enrol()?;
        ours.connect(set)?;
        Ok(ours)
    }

    fn log(&self, name: &str) -> Result<File> {
        let path = self.folder.join(name);
        File::options().create(true).append(true).open(&path).with_context(|| format!("opening {}", path.display()))
    }

    fn serve(&mut self) -> Result<()> {
        let appliance = self.folder.join("appliance");
        let words = [
            program("standin-appliance")?.display().to_string(),
            "serve".into(),
            "--emulate".into(),
            format!("--dir={}", appliance.display()),
            format!("--datastore={}", self.folder.join("datastore").display()),
            format!("--listen-agents={TARGET_ADDRESS}:{AGENT_PORT}"),
            format!("--listen-api=127.0.0.1:{API_PORT}"),
        ];
        let log = self.log("appliance.log")?;
        let child = self.network.target(&words).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        self.appliance = Some(child.context("starting the appliance")?);
        let deadline = Instant::now() + LIMIT;
        while self.standin(&["jobs"]).is_err() {
            ensure!(Instant::now() < deadline, "the appliance does not answer; see {}", self.folder.join("appliance.log").display());
            command::pause(Duration::from_millis(100))?;
        }
        Ok(())
    }

    fn enrol(&self) -> Result<()> {
        let mut token = Command::new(program("standin-appliance")?);
        let token = command::checked(token.args(["token", "--dir"]).arg(self.folder.join("appliance")).arg("enrolment"), LIMIT)?;
        let (agent, state) = (program("standin-agent")?.display().to_string(), self.folder.join("agent").display().to_string());
        let address = format!("{TARGET_ADDRESS}:{AGENT_PORT}");
        let words = [&agent, "enrol", "--state-dir", &state, "--appliance", &address, "--token", token.trim()];
        command::checked(&mut self.network.source(&words), LIMIT).context("enrolling the agent").map(drop)
    }

    /// Starts the agent's process.
    fn connect(&mut self, set: &Disk) -> Result<()> {
        let own = std::env::current_exe()?.display().to_string();
        let root = set.root().display().to_string();
        let script = "mount -t proc proc \"$1/proc\" && mount --bind \"$2\" \"$1$3\" && exec \"$0\" bench-source \"$1\" \"$4\"";
        let state = self.folder.join("agent").display().to_string();
        let words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, &own, &root, &state, STATE, &set.uuid()?];
        let log = self.log("agent.log")?;
        let child = self.network.source(&words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn();
        self.agent = Some(child.context("starting the agent")?);
        let deadline = Instant::now() + LIMIT;
        let connected = |view: &Value| view.as_array().is_some_and(|all| all.iter().any(|agent| agent["connected"] == true));
        while !self.standin(&["agent", "list"]).is_ok_and(|agents| connected(&agents)) {
            ensure!(Instant::now() < deadline, "the agent does not connect; see {}", self.folder.join("agent.log").display());
            command::pause(Duration::from_millis(100))?;
        }
        Ok(())
    }

    /// What `standin` answers as JSON.
    pub fn standin(&self, words: &[&str]) -> Result<Value> {
        let own = program("standin")?.display().to_string();
        let words: Vec<&str> = [own.as_str()].into_iter().chain(words.iter().copied()).chain(["--output", "json"]).collect();
        let mut command = self.network.target(&words);
        let appliance = self.folder.join("appliance");
        command.env("STANDIN_URL", format!("https://127.0.0.1:{API_PORT}"));
        command.env("STANDIN_TOKEN_FILE", appliance.join("admin.token")).env("STANDIN_CA_FILE", appliance.join("ca.pem"));
        let said = command::checked(&mut command, LIMIT)?;
        serde_json::from_str(&said).with_context(|| format!("`standin {}` printed no JSON", words[1..].join(" ")))
    }

    /// Protects the source and waits until its replica equals it.
    pub fn mirror(&mut self) -> Result<Measured> {
        let before = self.network.bytes()?;
        self.protect()?;
        self.until_consistent(before, 0)
    }

    pub fn protect(&self) -> Result<()> {
        self.standin(&["protect", NAME, "--yes", "--no-default-exclusions"]).map(drop)
    }

    pub fn job(&self) -> Result<Value> {
        self.standin(&["job", "show", NAME])
    }

    /// Waits for the start of the agent's next stream.
    pub fn stream_starts(&mut self) -> Result<()> {
        let line = super::first_line(self.agent.as_mut().context("the agent does not run")?).context("the stream did not start")?;
        self.started = line.parse().with_context(|| format!("the agent said {line:?}"))?;
        Ok(())
    }

    /// The agent's next stream, from its start until the replica equals the source once more. `consistent_before` is how often it did.
    fn until_consistent(&mut self, before: Traffic, consistent_before: usize) -> Result<Measured> {
        let pid = self.agent.as_ref().context("the agent does not run")?.id();
        self.stream_starts()?;
        let deadline = Instant::now() + MIRROR_LIMIT;
        let ended = loop {
            if let Some(ended) = self.consistent_at(consistent_before)? {
                break ended;
            }
            ensure!(Instant::now() < deadline, "the mirror did not end in {} s; see {}", MIRROR_LIMIT.as_secs(), self.folder.display());
            command::pause(Duration::from_millis(250))?;
        };
        let traffic = self.network.bytes()?.since(before);
        let job = self.job()?;
        let trouble = &job["worker"]["operations_failed"];
        ensure!(trouble == 0, "{trouble} operations failed on the replica; see {}", self.folder.join("appliance.log").display());
        let restarts = &job["worker"]["restarts"];
        ensure!(restarts == 0, "the worker was restarted {restarts} times; see {}", self.folder.join("appliance.log").display());
        let target = self.appliance.as_ref().map(|child| processor_seconds(child.id())).transpose()?;
        let worker = job["worker"]["pid"].as_u64().map(|pid| processor_seconds(pid as u32)).transpose()?;
        Ok(Measured {
            seconds: (ended - self.started) as f64 / 1e9,
            source_processor: processor_seconds(pid)?,
            target_processor: target.unwrap_or_default() + worker.unwrap_or_default(),
            traffic,
            stream_bytes: job["bytes_sent"].as_u64(),
            synced: None,
        })
    }

    /// Ends the agent in good order, once everything of it has arrived. Says how often the replica has been equal.
    pub fn leave(&mut self) -> Result<usize> {
        end(&mut self.agent);
        Ok(self.consistent_rows()?.len())
    }

    /// Starts the agent again and waits until the replica is equal once more. With the bytes that the agent has read by then.
    pub fn come_back(&mut self, set: &Disk, consistent_before: usize) -> Result<(Measured, u64)> {
        let before = self.network.bytes()?;
        self.connect(set)?;
        let measured = self.until_consistent(before, consistent_before)?;
        let pid = self.agent.as_ref().context("the agent does not run")?.id();
        let said = fs::read_to_string(format!("/proc/{pid}/io"))?;
        let read = said.lines().find_map(|line| line.strip_prefix("rchar: ")).and_then(|count| count.parse().ok());
        Ok((measured, read.context("the kernel does not count what a process reads")?))
    }

    fn consistent_rows(&self) -> Result<Vec<u64>> {
        let history = self.standin(&["job", "history", NAME])?;
        let all: Vec<&Value> = history.as_array().or(history["history"].as_array()).into_iter().flatten().collect();
        let mut consistent: Vec<u64> = all.iter().filter(|row| row["kind"] == "consistent").filter_map(|row| row["at"].as_u64()).collect();
        consistent.sort_unstable();
        Ok(consistent)
    }

    /// When the replica last became equal to the source, in nanoseconds since 1970, if it did so more than `times` times.
    fn consistent_at(&self, times: usize) -> Result<Option<u64>> {
        let job = self.job()?;
        if job["state"] != "protected" {
            let flags = job["flags"].as_array().into_iter().flatten();
            if let Some(problem) = flags.map(|flag| &flag["problem"]).find(|problem| !problem.is_null()) {
                bail!("the job has a problem: {problem}");
            }
            return Ok(None);
        }
        Ok(self.consistent_rows()?.get(times..).and_then(|more| more.last()).copied())
    }

    /// The replica's disk, once nobody writes to it any more.
    pub fn stop(mut self) -> Result<PathBuf> {
        end(&mut self.agent);
        end(&mut self.appliance);
        let disk = self.folder.join("datastore").join(NAME).join("disk.raw");
        let deadline = Instant::now() + LIMIT;
        while is_bound(&disk) {
            ensure!(Instant::now() < deadline, "the worker does not let go of {}", disk.display());
            command::pause(Duration::from_millis(20))?;
        }
        Ok(disk)
    }
}

/// Whether a loop device has the disk, which a worker's mounts keep for a moment longer than it lives.
fn is_bound(disk: &Path) -> bool {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let mut backing = devices.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
    backing.any(|backing| Path::new(backing.trim_end()) == disk)
}

/// An appliance ends its workers by closing their pipes, and each leaves its replica marked.
fn end(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        command::end(&mut child, END_LIMIT);
    }
}

impl Drop for Ours<'_> {
    fn drop(&mut self) {
        end(&mut self.agent);
        end(&mut self.appliance);
    }
}
