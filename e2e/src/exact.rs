//! Exact replication under faults: file system churn and a database on a source whose parts fail at random moments, and a replica that must
//! be the same all the same.
//!
//! One run per kind of file system. Each fault is followed by the job's return to *protected*; then comes a planned failover, so that source and
//! replica stand at the same point of the order, and everything is compared. Faults and moments come from a seed, which is printed.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::datastore::Datastore;
use crate::evidence;
use crate::faults::{self, Fault};
use crate::job::{self, DatabaseVerdict, Site};
use crate::lab::{Combo, FileSystem, Firmware, Run, command, space};
use crate::product;
use crate::random::Random;
use crate::workload::Load;

#[derive(clap::Args)]
pub struct ExactArgs {
    /// One kind of source, each fault once.
    #[arg(long)]
    short: bool,
    /// Only sources whose name begins so, such as `bios-ext4`.
    #[arg(long)]
    only: Option<String>,
    /// Faults for each source in the full form; each kind once in 11.
    #[arg(long, default_value_t = 22)]
    faults: usize,
    /// Decides about faults, moments, and churn.
    #[arg(long)]
    seed: Option<u64>,
    /// Write the figures here.
    #[arg(long)]
    json: Option<PathBuf>,
}

const JOB: &str = "stand-in";
const LOAD: Load = Load { scale: 1, rate: 5, pause_ms: 100 };
/// Churn operations a second for each volume: what an emulated machine does beside a database.
const CHURN_RATE: u32 = 40;
/// The longest random wait before a fault.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// A link is cut for this long at most; an agent gives up a silent connection earlier.
const CUT_SECONDS_MAX: u64 = 60;
/// So that a queue can overflow within seconds.
const QUEUE_DISK_MIB: u32 = 48;

/// Each file system as a root and, where two fit, as a second volume.
const SOURCES: [Combo; 3] = [
    Combo { firmware: Firmware::Bios, root: FileSystem::Ext4, data: Some(FileSystem::Xfs) },
    Combo { firmware: Firmware::Uefi, root: FileSystem::Btrfs, data: Some(FileSystem::Btrfs) },
    Combo { firmware: Firmware::Bios, root: FileSystem::Xfs, data: Some(FileSystem::Ext4) },
];

#[derive(Serialize)]
struct Outcome {
    source: String,
    faults: Vec<Happened>,
    transactions: DatabaseVerdict,
    entries: usize,
    gaps: u64,
}

/// A fault, what the job was doing, and how long until it was protected again.
#[derive(Serialize)]
struct Happened {
    fault: Fault,
    state: String,
    protected_after: f64,
}

pub fn run(arguments: &ExactArgs) -> Result<ExitCode> {
    if let Some(code) = space::run_inside()? {
        return Ok(code);
    }
    command::heed_interrupts()?;
    let run = Run::new("exact")?;
    let mut outcomes = Vec::new();
    let done = all(&run, arguments, &mut outcomes);
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_vec_pretty(&outcomes)?).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(run.finish(done))
}

fn all(run: &Run, arguments: &ExactArgs, outcomes: &mut Vec<Outcome>) -> Result<String> {
    let seed = arguments.seed.map_or_else(command::fresh_seed, Ok)?;
    run.say(&format!("faults and churn from seed {seed}"));
    let mut random = Random(seed);
    for combo in Combo::chosen(&SOURCES, arguments.only.as_deref(), arguments.short)? {
        let faults = plan(if arguments.short { Fault::KINDS } else { arguments.faults }, &mut random);
        let outcome = one(run, combo, &faults, &mut random).with_context(|| combo.name())?;
        run.say(&format!("{}: {} entries equal after {} faults", outcome.source, outcome.entries, outcome.faults.len()));
        outcomes.push(outcome);
    }
    let faults: usize = outcomes.iter().map(|outcome| outcome.faults.len()).sum();
    let entries: usize = outcomes.iter().map(|outcome| outcome.entries).sum();
    let transactions: u64 = outcomes.iter().map(|outcome| outcome.transactions.confirmed).sum();
    Ok(format!("{} sources, {faults} faults, {entries} entries equal, {transactions} transactions kept, 0 differences", outcomes.len()))
}

/// Each kind of fault as often as the others, in random order.
fn plan(count: usize, random: &mut Random) -> Vec<Fault> {
    let kinds = |random: &mut Random| Fault::every_kind(5 + random.below(CUT_SECONDS_MAX - 5));
    let mut faults: Vec<Fault> = std::iter::repeat_with(|| kinds(random)).flatten().take(count).collect();
    for last in (1..faults.len()).rev() {
        faults.swap(last, random.below(last as u64 + 1) as usize);
    }
    faults
}

fn one(run: &Run, combo: Combo, faults: &[Fault], random: &mut Random) -> Result<Outcome> {
    let datastore = Datastore::make(&run.artifacts().join("appliance"))?;
    let mut site = Site::open(run, combo, JOB, LOAD)?;
    site.datastore = Some(datastore);
    site.source.copy_in(&product::program("standin-e2e")?, CHURN_PROGRAM)?;
    start_churn(&mut site, random)?;
    run.say(&format!("{}: the source works", combo.name()));
    site.add_source()?;
    bound_queue(&mut site)?;
    let mut words = site.protect_words();
    words.push("--yes".into());
    site.appliance.show(&words.iter().map(String::as_str).collect::<Vec<_>>(), Duration::from_secs(300))?;
    site.wait_until_protected()?;
    run.say(&format!("{}: protected", combo.name()));
    let mut happened = Vec::new();
    for fault in faults {
        command::pause(random.time(WAIT_MAX))?;
        let view = site.appliance.job(JOB)?;
        let state = view["state"].as_str().unwrap_or_default().to_owned();
        let began = Instant::now();
        run.say(&format!("{fault:?} while {state}, applied through {}", faults::applied(&view)));
        faults::inject(run, &mut site, *fault)?;
        if fault.ends_the_source() {
            start_churn(&mut site, random)?;
        }
        faults::wait_for_connection(&site)?;
        site.wait_until_protected()?;
        let protected_after = began.elapsed().as_secs_f64();
        run.say(&format!("protected again after {protected_after:.0} s"));
        happened.push(Happened { fault: *fault, state, protected_after });
        ensure_churn(&mut site)?;
        site.see_load(3)?;
    }
    let gaps = site.wait_until_protected()?["gaps"].as_u64().unwrap_or(0);
    let (_, committed) = site.fail_over(false)?;
    let mut replica = site.replica(run)?;
    let transactions = job::examine_database(&mut replica, &committed)?;
    drop(replica);
    site.appliance.end_machine(JOB);
    let evidence = evidence::gather(run, &site)?;
    let (differences, first) = (evidence.unexplained.len(), evidence.unexplained.first());
    ensure!(differences == 0, "{differences} differences that boot repair does not account for; the first: {first:?}");
    let entries = evidence.entries;
    site.discard(run);
    Ok(Outcome { source: combo.name(), faults: happened, transactions, entries, gaps })
}

/// A queue of the usual size would take longer to overflow than the suite lasts.
fn bound_queue(site: &mut Site) -> Result<()> {
    let settings = "/var/lib/standin-agent/settings.json";
    let edit =
        format!("sed -i -E 's/(\"queue_disk_mib\": *)[0-9]+/\\1{QUEUE_DISK_MIB}/' {settings} && grep -q {QUEUE_DISK_MIB} {settings}");
    site.source.ssh(&format!("{edit} && systemctl restart standin-agent"))?;
    Ok(())
}

const CHURN_PROGRAM: &str = "/usr/local/bin/standin-e2e";

/// A folder for churn on each volume.
fn churned(combo: Combo) -> Vec<(&'static str, &'static str)> {
    let mut folders = vec![("churn-root", "/srv/churn")];
    if combo.data.is_some() {
        folders.push(("churn-data", "/var/lib/postgresql/churn"));
    }
    folders
}

fn start_churn(site: &mut Site, random: &mut Random) -> Result<()> {
    for (unit, folder) in churned(site.combo) {
        let seed = random.number();
        let churn = format!("{CHURN_PROGRAM} churn {folder} --seed {seed} --rate {CHURN_RATE}");
        site.source.ssh(&format!("systemctl reset-failed {unit} 2>/dev/null; systemd-run --quiet --unit {unit} {churn}"))?;
    }
    Ok(())
}

/// A churn that has ended tests nothing any more.
fn ensure_churn(site: &mut Site) -> Result<()> {
    for (unit, _) in churned(site.combo) {
        site.source.ssh(&format!("systemctl is-active --quiet {unit} || {{ journalctl -n 5 --no-pager -u {unit} >&2; exit 1; }}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_fault_is_planned() {
        let faults = plan(2 * Fault::KINDS, &mut Random(7));
        let count = |wanted: fn(&Fault) -> bool| faults.iter().filter(|fault| wanted(fault)).count();
        assert_eq!(count(|fault| *fault == Fault::PowerCut), 2);
        assert_eq!(count(|fault| matches!(fault, Fault::LinkCut { seconds: 5..CUT_SECONDS_MAX })), 2);
        assert_ne!(faults, plan(2 * Fault::KINDS, &mut Random(8)));
    }
}
