//! The main job, shown to a person: a live database server gets a stand-in, fails over to it, and nothing is lost.
//!
//! Every command that a user would type runs on this terminal as the user would see it. What is claimed at the end was measured in this
//! run; the closing line is `demo: PASS` only if every check held.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::evidence::{self, Evidence};
use crate::job::{self, DatabaseVerdict, Failover, Site};
use crate::lab::{Combo, FileSystem, Firmware, Run, command};
use crate::workload::Load;

#[derive(clap::Args)]
pub struct DemoArgs {
    /// Accept the protection summary and the failover summary without asking.
    #[arg(long)]
    yes: bool,
    /// Leave the appliance and the replica running, and print what to try next.
    #[arg(long)]
    keep: bool,
    /// Write the figures here.
    #[arg(long)]
    json: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = Firmware::Bios)]
    firmware: Firmware,
    #[arg(long, value_enum, default_value_t = FileSystem::Ext4)]
    fs: FileSystem,
    /// The file system of the volume that holds the database.
    #[arg(long, value_enum, default_value_t = FileSystem::Xfs)]
    data: FileSystem,
}

const JOB: &str = "stand-in";
const FAILOVER_STAGE: &str = "Planned failover";
const WATCHED: Duration = Duration::from_secs(15);
/// Two clients that write as fast as an emulated server can, beside the rest of its work.
const LOAD: Load = Load { scale: 3, rate: 10, pause_ms: 50 };

/// What the run measured, as `--json` writes it.
#[derive(Default, Serialize)]
struct Figures {
    /// Stage and seconds.
    stages: Vec<(String, f64)>,
    mirror: Option<Mirror>,
    transactions: Option<DatabaseVerdict>,
    failover: Option<Failover>,
    /// The failover by a plain boot of the same disk.
    boot_ratio: Option<f64>,
    entries_compared: usize,
    differences_by_boot_repair: usize,
    differences_unexplained: usize,
}

#[derive(Serialize)]
struct Mirror {
    seconds: f64,
    /// Content that the replica took, changes meanwhile included.
    bytes_applied: u64,
    transactions_meanwhile: u64,
}

pub fn run(arguments: &DemoArgs) -> Result<ExitCode> {
    command::heed_interrupts()?;
    let run = Run::new("demo")?;
    let mut demo = Demo { run: &run, arguments, figures: Figures::default(), stage: None };
    let done = demo.all();
    demo.end_stage();
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_vec_pretty(&demo.figures)?).with_context(|| format!("writing {}", path.display()))?;
    }
    if arguments.keep && done.is_ok() {
        run.leave();
        println!("demo: PASS {}", done?);
        return Ok(ExitCode::SUCCESS);
    }
    Ok(run.finish(done))
}

struct Demo<'a> {
    run: &'a Run,
    arguments: &'a DemoArgs,
    figures: Figures,
    stage: Option<(String, Instant)>,
}

impl Demo<'_> {
    fn stage(&mut self, title: &str) {
        self.end_stage();
        println!("\n── {}. {title} ", self.figures.stages.len() + 1);
        self.stage = Some((title.to_owned(), Instant::now()));
    }

    fn end_stage(&mut self) {
        if let Some((title, begun)) = self.stage.take() {
            self.figures.stages.push((title, begun.elapsed().as_secs_f64()));
        }
    }

    /// Questions are asked where somebody can answer them.
    fn asks(&self) -> bool {
        !self.arguments.yes && std::io::stdin().is_terminal()
    }

    fn all(&mut self) -> Result<String> {
        let combo = Combo { firmware: self.arguments.firmware, root: self.arguments.fs, data: Some(self.arguments.data) };
        self.stage("A live server: Debian 12 with PostgreSQL under load");
        let mut site = Site::open(self.run, combo, JOB, LOAD)?;
        site.see_load(20)?;
        println!("{}: pgbench runs, {} transactions of a witness confirmed so far", combo.name(), site.load.last());

        self.stage("The agent is installed: no reboot, nothing is stopped");
        let uptime = "cut -d' ' -f1 /proc/uptime";
        let up_before: f64 = site.source.ssh(uptime)?.trim().parse()?;
        site.add_source()?;
        let up_after: f64 = site.source.ssh(uptime)?.trim().parse()?;
        ensure!(up_after > up_before && site.load.is_running(), "the source was disturbed by the installation");

        self.stage("The server is protected: first copy while it works");
        site.protect(self.asks())?;
        self.mirror(&mut site)?;

        self.stage("Replication, live");
        site.appliance.show_for(&["watch", JOB], WATCHED)?;
        site.see_load(20)?;
        ensure!(site.load.is_running(), "the workload ended while it was replicated");

        self.stage(FAILOVER_STAGE);
        let (mut failover, committed) = site.fail_over(self.asks())?;
        println!("the replica shows its login prompt {:.1} s after the command", failover.to_login_prompt);

        self.stage("The replica, examined");
        let mut replica = site.replica(self.run)?;
        let verdict = job::examine_database(&mut replica, &committed)?;
        println!(
            "PostgreSQL in the replica has all {} transactions that were confirmed before the cut; pg_amcheck is clean",
            verdict.confirmed
        );
        self.figures.transactions = Some(verdict);
        if self.arguments.keep {
            println!("the plain boot is not measured, since the replica goes on running");
        } else {
            failover.plain_boot = Some(site.plain_boot(self.run)?);
        }
        self.figures.boot_ratio = failover.ratio();
        self.figures.failover = Some(failover.clone());
        let evidence = evidence::gather(self.run, &site)?;
        self.judge(&evidence)?;
        self.end_stage();
        self.print_times(&failover);
        if self.arguments.keep {
            self.leave(&mut site, &replica.ssh_command())?;
        }
        Ok(format!(
            "{} transactions, {} files and folders, none lost; power-on {:.1} s after the command",
            committed.len(),
            evidence.entries,
            failover.to_power_on
        ))
    }

    fn mirror(&mut self, site: &mut Site) -> Result<()> {
        let (began, before) = (Instant::now(), site.load.last());
        let limit = job::MIRROR_LIMIT.as_secs().to_string();
        site.appliance.show(&["watch", JOB, "--until", "protected", "--timeout", &limit], job::MIRROR_LIMIT)?;
        let view = site.appliance.job(JOB)?;
        let number = |pointer: &str| view.pointer(pointer).and_then(serde_json::Value::as_u64).unwrap_or(0);
        let seconds = began.elapsed().as_secs_f64();
        let transactions_meanwhile = site.load.last() - before;
        ensure!(transactions_meanwhile > 0, "the workload stood still during the mirror");
        println!("protected after {seconds:.0} s; {transactions_meanwhile} transactions were confirmed meanwhile");
        let bytes_applied = number("/worker/content_bytes");
        self.figures.mirror = Some(Mirror { seconds, bytes_applied, transactions_meanwhile });
        Ok(())
    }

    fn judge(&mut self, evidence: &Evidence) -> Result<()> {
        println!(
            "\n{} files and folders compared with the source's disk: content, owner, mode, times, attributes, links, holes",
            evidence.entries
        );
        println!("what boot repair changed, and nothing else:");
        for (path, what) in &evidence.repaired {
            println!("  {path}: {what}");
        }
        self.figures.entries_compared = evidence.entries;
        self.figures.differences_by_boot_repair = evidence.accounted.len();
        self.figures.differences_unexplained = evidence.unexplained.len();
        for one in evidence.unexplained.iter().take(20) {
            println!("  UNEXPLAINED {} {}: {} | {}", one.path, one.what, one.left, one.right);
        }
        ensure!(evidence.unexplained.is_empty(), "{} differences that boot repair does not account for", evidence.unexplained.len());
        Ok(())
    }

    fn print_times(&self, failover: &Failover) {
        println!("\nTimes");
        for (title, seconds) in &self.figures.stages {
            println!("  {title:<60} {seconds:>7.1} s");
            let steps = if title == FAILOVER_STAGE { failover.steps.as_slice() } else { &[] };
            for (title, seconds) in steps {
                println!("    {title:<58} {seconds:>7.2} s");
            }
        }
        println!("  {:<60} {:>7.1} s", "command → power-on, without the draining", failover.to_power_on);
        println!("  {:<60} {:>7.1} s", "command → the replica's login prompt", failover.to_login_prompt);
        if let (Some(plain), Some(ratio)) = (failover.plain_boot, failover.ratio()) {
            println!("  {:<60} {plain:>7.1} s", "a plain boot of the same disk");
            println!("  {:<60} {ratio:>7.2} ×", "failover by plain boot");
        }
        println!();
    }

    /// For a person who wants to look around.
    fn leave(&self, site: &mut Site, ssh: &str) -> Result<()> {
        site.appliance.keep()?;
        println!("The appliance and the replica go on running. Try:\n");
        for (name, value) in site.appliance.environment() {
            println!("  export {name}={value}");
        }
        println!("  export PATH={}:$PATH", crate::product::program("standin")?.parent().unwrap_or(std::path::Path::new(".")).display());
        println!("  standin jobs\n  standin job show {JOB}\n  standin job events {JOB}\n  standin job runbook {JOB}");
        println!(
            "  {ssh}\n\nEnd them with:\n  kill {} $(cat {}/qemu.pid)",
            site.appliance.pid().unwrap_or(0),
            site.appliance.machine(JOB).display()
        );
        println!("  rm -r {}\n", self.run.artifacts().display());
        Ok(())
    }
}
