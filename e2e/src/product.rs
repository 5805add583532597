//! The product as its users have it: an appliance's process, and the `standin` command that speaks to it.
//!
//! Everything goes through the public programs and the REST API; nothing here links the product's crates. The appliance ends with its
//! owner; a machine that it has launched outlives it by design, so the owner ends that too, unless it is to be kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::lab::vm::{GUEST_VIEW_OF_HOST, free_port};
use crate::lab::{Guest, Run, cache, command};

/// The appliance answers within a second; a busy emulated neighbour makes it slower.
const START_LIMIT: Duration = Duration::from_secs(60);
/// What an ordinary command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// Where the product's programs lie: beside this one.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(path.exists(), "{} is missing: cargo build -p standin-agent -p standin-appliance -p standin-cli", path.display());
    Ok(path)
}

/// An appliance on this machine, with the plain-QEMU driver.
pub struct Appliance {
    folder: PathBuf,
    log: PathBuf,
    api_port: u16,
    agent_port: u16,
    process: Option<Child>,
    keep: bool,
}

impl Appliance {
    /// Makes an appliance in `folder` and starts it. Guests of the lab reach it by [`GUEST_VIEW_OF_HOST`] at `agent_port`.
    pub fn start(run: &Run, folder: &Path, agent_port: u16) -> Result<Appliance> {
        fs::create_dir_all(folder)?;
        let address = format!("{GUEST_VIEW_OF_HOST}:{agent_port}");
        let mut init = Command::new(program("standin-appliance")?);
        init.args(["init", "--address", &address, "--san", "127.0.0.1", "--dir"]).arg(folder);
        command::checked(&mut init, COMMAND_LIMIT).context("making the appliance")?;
        let log = run.artifacts().join("appliance.log");
        let mut appliance = Appliance { folder: folder.to_owned(), log, api_port: free_port()?, agent_port, process: None, keep: false };
        appliance.serve()?;
        Ok(appliance)
    }

    /// Starts the process; also after [`Appliance::kill`].
    pub fn serve(&mut self) -> Result<()> {
        let log = fs::File::options().create(true).append(true).open(&self.log)?;
        let mut serve = if self.keep { Command::new("setsid") } else { Command::new("setpriv") };
        if !self.keep {
            serve.args(["--pdeathsig", "TERM", "--"]);
        }
        serve.arg(program("standin-appliance")?).arg("serve").arg("--dir").arg(&self.folder).arg("--datastore").arg(self.datastore());
        serve.args(["--listen-agents", &format!("127.0.0.1:{}", self.agent_port)]);
        serve.args(["--listen-api", &format!("127.0.0.1:{}", self.api_port)]);
        if std::env::var_os("STANDIN_ACCEL").is_some_and(|accelerator| accelerator == "tcg") {
            serve.arg("--emulate");
        }
        serve.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.process = Some(serve.spawn().context("starting the appliance")?);
        self.wait_until_it_answers()
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if self.json(&["jobs"]).is_ok() {
                return Ok(());
            }
            let ended = self.process.as_mut().map(Child::try_wait).transpose()?.flatten();
            if let Some(status) = ended {
                bail!("the appliance ended with {status}; see {}", self.log.display());
            }
            ensure!(Instant::now() < deadline, "the appliance does not answer; see {}", self.log.display());
            command::pause(Duration::from_millis(200))?;
        }
    }

    /// Ends the process at once, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().ok();
            process.wait().ok();
        }
    }

    /// The appliance and what it has launched outlive this process.
    pub fn keep(&mut self) -> Result<()> {
        self.keep = true;
        // A process that was tied to this one cannot be untied; it is ended and started anew, which it is made for.
        self.kill();
        self.serve()
    }

    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn datastore(&self) -> PathBuf {
        self.folder.join("datastore")
    }

    /// The replica's disk as it was at the cut, boot repair included; a launched machine writes beside it.
    pub fn replica_disk(&self, job: &str) -> PathBuf {
        self.datastore().join(job).join("disk.raw")
    }

    /// The files of a launched machine.
    pub fn machine(&self, job: &str) -> PathBuf {
        self.datastore().join("machines").join(job)
    }

    /// What a person exports to use `standin` with this appliance.
    pub fn environment(&self) -> [(&'static str, String); 3] {
        [
            ("STANDIN_URL", format!("https://127.0.0.1:{}", self.api_port)),
            ("STANDIN_TOKEN_FILE", self.folder.join("admin.token").display().to_string()),
            ("STANDIN_CA_FILE", self.folder.join("ca.pem").display().to_string()),
        ]
    }

    /// `standin` with these words, ready to start.
    pub fn standin(&self, words: &[&str]) -> Result<Command> {
        let mut command = Command::new(program("standin")?);
        command.args(words).envs(self.environment());
        Ok(command)
    }

    /// What `standin` answers as JSON.
    pub fn json(&self, words: &[&str]) -> Result<Value> {
        let mut command = self.standin(words)?;
        let said = command::checked(command.args(["--output", "json"]), COMMAND_LIMIT)?;
        serde_json::from_str(&said).with_context(|| format!("`standin {}` printed no JSON", words.join(" ")))
    }

    /// Runs `standin` on this terminal, so that its user sees what a user would see.
    pub fn show(&self, words: &[&str], limit: Duration) -> Result<()> {
        println!("\n$ standin {}", words.join(" "));
        let mut child = self.standin(words)?.stdin(Stdio::inherit()).spawn().context("starting standin")?;
        let status = command::wait(&mut child, limit)?;
        if status.is_none() {
            child.kill().ok();
            child.wait().ok();
        }
        match status {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("`standin {}` ended with {status}", words.join(" ")),
            None => bail!("`standin {}` did not end within {} s", words.join(" "), limit.as_secs()),
        }
    }

    /// Shows `standin` for a while, for commands that do not end by themselves.
    pub fn show_for(&self, words: &[&str], time: Duration) -> Result<()> {
        println!("\n$ standin {}", words.join(" "));
        let mut child = self.standin(words)?.stdin(Stdio::null()).spawn().context("starting standin")?;
        let ended = command::wait(&mut child, time)?;
        child.kill().ok();
        child.wait().ok();
        println!();
        ensure!(ended.is_none_or(|status| status.success()), "`standin {}` failed", words.join(" "));
        Ok(())
    }

    /// The words that install the agent on a guest over ssh.
    pub fn source_add(&self, guest: &Guest) -> Result<Vec<String>> {
        let key = cache::ssh_key()?.display().to_string();
        let (destination, port) = (format!("root@127.0.0.1:{}", guest.ssh_port()), self.agent_port);
        let mut words: Vec<String> = ["source", "add", &destination, "-i", &key].map(str::to_owned).into();
        for option in ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "IdentitiesOnly=yes", "LogLevel=ERROR"] {
            words.extend(["-o".to_owned(), option.to_owned()]);
        }
        words.extend(["--appliance".to_owned(), format!("{GUEST_VIEW_OF_HOST}:{port}")]);
        words.extend(["--timeout".to_owned(), "180".to_owned()]);
        Ok(words)
    }

    /// The job as the API shows it.
    pub fn job(&self, job: &str) -> Result<Value> {
        self.json(&["job", "show", job])
    }

    /// Waits until the job is in `state`; a job that cannot come there any more is an error as soon as it shows.
    pub fn wait_for_state(&self, job: &str, state: &str, limit: Duration) -> Result<Value> {
        let deadline = Instant::now() + limit;
        loop {
            let view = self.job(job);
            if let Ok(view) = &view
                && view["state"] == state
            {
                return Ok(view.clone());
            }
            if Instant::now() > deadline {
                let shown = view.map_or_else(|error| format!("{error:#}"), |view| format!("{} {}", view["state"], view["reason"]));
                bail!("{job} is not {state} after {} s but {shown}", limit.as_secs());
            }
            command::pause(Duration::from_millis(500))?;
        }
    }

    /// Ends a machine that this appliance has launched, like pulling its plug.
    pub fn end_machine(&self, job: &str) {
        let folder = self.machine(job);
        let Ok(text) = fs::read_to_string(folder.join("qemu.pid")) else { return };
        let Ok(pid) = text.trim().parse::<i32>() else { return };
        // The number may belong to another process by now; ours names its folder on its command line.
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let ours = String::from_utf8_lossy(&words).contains(&*folder.to_string_lossy());
        let Some(pid) = rustix::process::Pid::from_raw(pid).filter(|_| ours) else { return };
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
        let deadline = Instant::now() + Duration::from_secs(10);
        while rustix::process::test_kill_process(pid).is_ok() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        self.kill();
        for machine in fs::read_dir(self.datastore().join("machines")).into_iter().flatten().flatten() {
            self.end_machine(&machine.file_name().to_string_lossy());
        }
    }
}
