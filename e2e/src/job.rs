//! One job from end to end on real parts: a source under load, an appliance, a failover, and the examination of what came up.
//!
//! `demo` shows it to a person, `main_job` runs it on every kind of source. Each function is one stage and returns its figures.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::datastore::Datastore;
use crate::lab::vm::{BOOT_LIMIT, DiskBus, free_port};
use crate::lab::{Combo, Disk, Guest, Image, Run, Vm, VmOptions, command};
use crate::product::Appliance;
use crate::specials;
use crate::workload::{self, Committed, Load, Workload};

/// Where the source's special files lie.
pub const SPECIALS: &str = "/srv/specials";
/// A mirror of the lab's server takes a few minutes under emulation; a busy machine makes it slower.
pub const MIRROR_LIMIT: Duration = Duration::from_secs(30 * 60);
const FAILOVER_LIMIT: Duration = Duration::from_secs(15 * 60);
const INSTALL_LIMIT: Duration = Duration::from_secs(300);
const PROTECT_LIMIT: Duration = Duration::from_secs(300);
const VERIFY_LIMIT: Duration = Duration::from_secs(20 * 60);
const DATABASE_CHECK_LIMIT: Duration = Duration::from_secs(600);
/// What systemd's getty writes when a machine has come up.
const LOGIN_PROMPT: &str = "login:";

/// Figures of a verification under load.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Verified {
    pub seconds: f64,
    pub nodes: u64,
    pub bytes: u64,
    pub busy_nodes: u64,
    /// By the agent meanwhile, the load's changes among it.
    pub bytes_sent: u64,
}

/// A live source with its load, an appliance, and the names and ports that join them.
pub struct Site {
    pub combo: Combo,
    pub source: Vm,
    options: VmOptions,
    /// Confirmed before a power cut ended the load.
    earlier: Vec<Committed>,
    load_options: Load,
    starts: u32,
    pub source_disk: Disk,
    pub load: Workload,
    pub appliance: Appliance,
    pub job: String,
    pub replica_port: u16,
    /// Where the appliance's directory is a file system of its own. It goes last, because the appliance works in it.
    pub datastore: Option<Datastore>,
}

impl Site {
    /// Boots the source and puts it under load. The appliance runs when this returns, and knows nothing of the source yet.
    pub fn open(run: &Run, combo: Combo, job: &str, load: Load) -> Result<Site> {
        // A source has what physical servers and other hypervisors have, so that boot repair has something to repair.
        Site::open_on(run, &Image::build(combo)?, DiskBus::Ahci, job, load)
    }

    /// Like [`Site::open`], from another image and with its disk on another bus.
    pub fn open_on(run: &Run, built: &Image, bus: DiskBus, job: &str, load: Load) -> Result<Site> {
        let combo = built.combo;
        let agent_port = free_port()?;
        let disk = built.disk.overlay(run.artifacts().join("source.qcow2"))?;
        let mut options = VmOptions::new("source", combo.firmware, vec![disk.clone()]);
        options.bus = bus;
        options.host_ports = vec![agent_port];
        let mut source = Vm::start(run, options.clone())?;
        let appliance = Appliance::start(run, &run.artifacts().join("appliance"), agent_port)?;
        source.wait_for_ssh(BOOT_LIMIT)?;
        specials::make(&mut source, SPECIALS)?;
        let (load_options, load) = (load, workload::start(&mut source, load)?);
        let (job, replica_port) = (job.to_owned(), free_port()?);
        Ok(Site {
            combo,
            source,
            options,
            earlier: Vec::new(),
            load_options,
            starts: 1,
            source_disk: disk,
            load,
            appliance,
            job,
            replica_port,
            datastore: None,
        })
    }

    /// Pulls the source's plug and starts it again, with its load. What it had not written to its disk is lost.
    pub fn cut_power(&mut self, run: &Run) -> Result<()> {
        self.source.pull_plug();
        self.earlier.extend(self.load.end());
        self.starts += 1;
        // Each start has a log of its own.
        let options = VmOptions { name: format!("source-{}", self.starts), ..self.options.clone() };
        self.source = Vm::start(run, options)?;
        self.source.wait_for_ssh(BOOT_LIMIT)?;
        self.load = workload::start(&mut self.source, self.load_options)?;
        Ok(())
    }

    /// Restarts the source's operating system as an administrator does, with its load.
    pub fn reboot(&mut self) -> Result<()> {
        let boot = "cat /proc/sys/kernel/random/boot_id";
        let before = self.source.ssh(boot)?;
        self.earlier.extend(self.load.end());
        // The connection may end before the command does.
        self.source.ssh_collect("systemctl reboot", Duration::from_secs(60)).ok();
        let deadline = Instant::now() + BOOT_LIMIT;
        while self.source.ssh_collect(boot, Duration::from_secs(20)).map_or(true, |said| !said.status.success() || said.stdout == before) {
            ensure!(Instant::now() < deadline, "the source did not come back within {} s", BOOT_LIMIT.as_secs());
            command::pause(Duration::from_secs(1))?;
        }
        self.load = workload::start(&mut self.source, self.load_options)?;
        Ok(())
    }

    /// Ends everything and removes its disks, which take gigabytes; logs stay.
    pub fn discard(self, run: &Run) {
        drop(self);
        std::fs::remove_dir_all(run.artifacts().join("appliance")).ok();
        std::fs::remove_dir_all(run.artifacts().join("plain")).ok();
        std::fs::remove_file(run.artifacts().join("source.qcow2")).ok();
    }

    /// Installs the agent on the source over ssh and enrols it.
    pub fn add_source(&self) -> Result<()> {
        let words = self.appliance.source_add(&self.source)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.appliance.show(&words, INSTALL_LIMIT)
    }

    /// Has the source protected with `standin protect` on this terminal; the mirror begins.
    pub fn protect(&self, ask: bool) -> Result<()> {
        let network = format!("user:{}", self.replica_port);
        let words = ["protect", "lab-source", "--name", &self.job, "--network", &network, "--cpus", "2", "--memory", "1GiB", "--yes"];
        // A person reads the summary before the answer.
        if ask { self.appliance.show(&words[..words.len() - 1], 2 * PROTECT_LIMIT) } else { self.appliance.show(&words, PROTECT_LIMIT) }
    }

    /// Waits until something has been committed that was not there before, so that a stage has really seen the load.
    pub fn see_load(&mut self, transactions: u64) -> Result<()> {
        self.load.wait_for(transactions, Duration::from_secs(300))
    }

    /// Waits until the job is protected and nothing is far behind.
    pub fn wait_until_protected(&self) -> Result<Value> {
        self.appliance.wait_for_state(&self.job, "protected", MIRROR_LIMIT)
    }

    /// Compares replica and live source with `standin verify`, under the load; nothing may differ.
    pub fn verify(&self) -> Result<Verified> {
        let sent = self.appliance.job(&self.job)?["bytes_sent"].as_u64().unwrap_or(0);
        let began = Instant::now();
        self.appliance.show(&["verify", &self.job], VERIFY_LIMIT)?;
        let seconds = began.elapsed().as_secs_f64();
        let history = self.appliance.json(&["job", "verifications", &self.job])?;
        let record = &history["verifications"][0];
        ensure!(record["state"] == "equal", "the verification ended with {record:#}");
        let count = |name: &str| record[name].as_u64().unwrap_or(0);
        let bytes_sent = self.appliance.job(&self.job)?["bytes_sent"].as_u64().unwrap_or(0).saturating_sub(sent);
        Ok(Verified { seconds, nodes: count("nodes"), bytes: count("bytes"), busy_nodes: count("busy_nodes"), bytes_sent })
    }

    /// Fails over with `standin failover` on this terminal; returns when its login prompt is there.
    pub fn fail_over(&mut self, ask: bool) -> Result<(Failover, Vec<Committed>)> {
        let began = SystemTime::now();
        let words = ["failover", &self.job, "--yes"];
        self.appliance.show(&words[..if ask { 2 } else { 3 }], FAILOVER_LIMIT)?;
        let console = self.appliance.machine(&self.job).join("console.log");
        wait_for_prompt(&console, BOOT_LIMIT).context("the replica's console")?;
        let to_prompt = began.elapsed()?.as_secs_f64();
        // The source is off by now, and with it the last connection of the witness.
        let mut committed = std::mem::take(&mut self.earlier);
        committed.extend(self.load.end());
        self.source.wait_for_end(Duration::from_secs(60)).context("the source was fenced but runs")?;
        let run = self.appliance.json(&["job", "runbook", &self.job])?;
        Ok((Failover::of(&run, began, to_prompt)?, committed))
    }

    /// The launched replica, reachable over ssh.
    pub fn replica(&self, run: &Run) -> Result<Guest> {
        let folder = run.scratch().join("replica");
        std::fs::create_dir_all(&folder)?;
        let mut guest = Guest::at("replica", self.replica_port, &folder)?;
        guest.wait(BOOT_LIMIT, || Ok(()))?;
        Ok(guest)
    }

    /// Boots the replica's disk once more on the same machine, after the replica was switched off; seconds to the login prompt.
    pub fn plain_boot(&self, run: &Run) -> Result<f64> {
        let machine = self.appliance.machine(&self.job);
        let words = command_line_of(&machine)?;
        self.appliance.end_machine(&self.job);
        let again = run.artifacts().join("plain");
        std::fs::create_dir_all(&again)?;
        for entry in std::fs::read_dir(&machine)?.flatten() {
            if entry.file_name() == "uefi-variables.fd" {
                std::fs::copy(entry.path(), again.join(entry.file_name()))?;
            }
        }
        Disk::raw(self.appliance.replica_disk(&self.job)).overlay(again.join("overlay.qcow2"))?;
        let (from, to) = (machine.to_string_lossy().into_owned(), again.to_string_lossy().into_owned());
        let words: Vec<String> = words.iter().map(|word| word.replace(&from, &to)).filter(|word| word != "-daemonize").collect();
        let began = Instant::now();
        let mut tied = vec!["setpriv".to_owned(), "--pdeathsig".into(), "KILL".into(), "--".into()];
        tied.extend(words);
        let mut qemu = command::command(&tied).stdin(std::process::Stdio::null()).spawn().context("starting QEMU")?;
        let waited = wait_for_prompt(&again.join("console.log"), BOOT_LIMIT).context("the plain boot's console");
        let seconds = began.elapsed().as_secs_f64();
        qemu.kill().ok();
        qemu.wait().ok();
        waited.map(|()| seconds)
    }
}

/// The words with which a running machine was started.
fn command_line_of(machine: &std::path::Path) -> Result<Vec<String>> {
    let pid = std::fs::read_to_string(machine.join("qemu.pid")).context("the replica's process id")?;
    let words = std::fs::read(format!("/proc/{}/cmdline", pid.trim())).context("the replica does not run")?;
    let words = words.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    Ok(words.map(|word| String::from_utf8_lossy(word).into_owned()).collect())
}

fn wait_for_prompt(console: &PathBuf, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let text = std::fs::read(console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        if text.contains(LOGIN_PROMPT) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let end: Vec<&str> = text.lines().rev().take(4).collect();
            bail!("no login prompt after {} s; {} ends with: {end:?}", limit.as_secs(), console.display());
        }
        command::pause(Duration::from_millis(50))?;
    }
}

/// How long a failover took, by the appliance's own record; seconds.
#[derive(Clone, Debug, Serialize)]
pub struct Failover {
    /// Each step and how long it took.
    pub steps: Vec<(String, f64)>,
    pub drain: f64,
    /// From the command to the replica's power-on, without the draining.
    pub to_power_on: f64,
    pub to_login_prompt: f64,
    /// To the login prompt of a plain boot of the same disk; set when that was measured.
    pub plain_boot: Option<f64>,
}

impl Failover {
    fn of(run: &Value, began: SystemTime, to_prompt: f64) -> Result<Failover> {
        let began = began.duration_since(UNIX_EPOCH)?.as_nanos() as i64;
        let titles = run["runbook"]["steps"].as_array().context("a run without steps")?;
        let states = run["steps"].as_array().context("a run without states")?;
        let mut failover = Failover { steps: Vec::new(), drain: 0.0, to_power_on: 0.0, to_login_prompt: to_prompt, plain_boot: None };
        for (step, state) in titles.iter().zip(states) {
            let at = |name: &str| state[name].as_i64().context("a step that did not end");
            let (started, ended) = (at("started")?, at("ended")?);
            let seconds = (ended - started) as f64 / 1e9;
            failover.steps.push((step["title"].as_str().unwrap_or_default().to_owned(), seconds));
            match step["kind"].as_str() {
                Some("drain") => failover.drain = seconds,
                Some("power-on") => failover.to_power_on = (ended - began) as f64 / 1e9,
                _ => {}
            }
        }
        failover.to_power_on -= failover.drain;
        Ok(failover)
    }

    /// The whole failover against a plain boot.
    pub fn ratio(&self) -> Option<f64> {
        self.plain_boot.map(|plain| self.to_login_prompt / plain)
    }
}

/// What the database in the replica says.
#[derive(Clone, Debug, Serialize)]
pub struct DatabaseVerdict {
    pub confirmed: u64,
    pub missing: u64,
    pub highest: u64,
}

/// Every confirmed transaction must be there, and the indexes and heaps must be sound.
pub fn examine_database(guest: &mut Guest, committed: &[Committed]) -> Result<DatabaseVerdict> {
    let verdict = workload::verify(guest, committed)?;
    ensure!(verdict.missing.is_empty(), "{} confirmed transactions are missing: {:?}", verdict.missing.len(), verdict.missing);
    let confirmed_last = committed.last().map_or(0, |last| last.id);
    ensure!(
        verdict.highest <= confirmed_last + 1,
        "the replica has transaction {}, but only {confirmed_last} were confirmed and one more can have been under way",
        verdict.highest
    );
    let check = "cd / && runuser -u postgres -- /usr/lib/postgresql/15/bin/pg_amcheck --all --install-missing --heapallindexed 2>&1";
    let checked = guest.ssh_collect(check, DATABASE_CHECK_LIMIT)?;
    ensure!(checked.status.success(), "pg_amcheck found: {}", checked.stdout.trim());
    Ok(DatabaseVerdict { confirmed: verdict.confirmed, missing: 0, highest: verdict.highest })
}
