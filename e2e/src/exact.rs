//! Exact replication under faults: file system churn, three databases, containers' layers and package work on a source whose parts fail at random
//! moments, and a replica that must be the same all the same.
//!
//! One run per kind of file system. Each fault is followed by the job's return to *protected*; before, between and behind them lie recovery points at random moments,
//! which databases must start from. At the end comes a planned failover, so that source and replica stand at the same point of the order, and
//! everything is compared. Faults and moments come from a seed, which is printed.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::chores;
use crate::databases::{self, Clients, Kept};
use crate::datastore::Datastore;
use crate::evidence;
use crate::faults::{self, Fault};
use crate::history::History;
use crate::job::{self, DatabaseVerdict, Site};
use crate::lab::vm::DiskBus;
use crate::lab::{Combo, Content, FileSystem, Firmware, Image, Run, command, space};
use crate::points::{self, Point, Points};
use crate::product;
use crate::random::Random;
use crate::workload::Load;

#[derive(clap::Args)]
pub struct ExactArgs {
    /// One kind of source, and few recovery points.
    #[arg(long)]
    short: bool,
    /// Only sources whose name begins so, such as `bios-ext4`.
    #[arg(long)]
    only: Option<String>,
    /// Faults for each source; each kind once in 12.
    #[arg(long, default_value_t = Fault::KINDS)]
    faults: usize,
    /// Recovery points for each source [default: 17, which makes 51 of three sources; 4 in the short form].
    #[arg(long)]
    points: Option<u32>,
    /// Decides about faults, moments, and churn.
    #[arg(long)]
    seed: Option<u64>,
    /// Write the figures here.
    #[arg(long)]
    json: Option<PathBuf>,
}

const POINTS: u32 = 17;
const POINTS_SHORT: u32 = 4;
/// Linux does not see a SATA disk grow while it is used.
const GROWS: DiskBus = DiskBus::VirtioScsi;
const JOB: &str = "stand-in";
const LOAD: Load = Load { scale: 1, rate: 5, pause_ms: 100 };
/// Churn operations a second for each volume: what an emulated machine does beside a database.
const CHURN_RATE: u32 = 40;
/// The longest random wait before a fault.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// A link is cut for this long at most; an agent gives up a silent connection earlier.
const CUT_SECONDS_MAX: u64 = 60;
const FOLLOW_LIMIT: Duration = Duration::from_secs(1800);
const CONNECT_LIMIT: Duration = Duration::from_secs(120);
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
    points: Vec<Point>,
    transactions: DatabaseVerdict,
    kept: Vec<Kept>,
    package_rounds: u64,
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
        let faults = plan(arguments.faults, &mut random);
        let points = arguments.points.unwrap_or(if arguments.short { POINTS_SHORT } else { POINTS });
        let outcome = one(run, combo, &faults, points, &mut random).with_context(|| combo.name())?;
        run.say(&format!(
            "{}: {} entries equal after {} faults, {} points sound, kept {}, {} rounds of packages",
            outcome.source,
            outcome.entries,
            outcome.faults.len(),
            outcome.points.len(),
            points::shown(&outcome.kept),
            outcome.package_rounds
        ));
        outcomes.push(outcome);
    }
    let faults: usize = outcomes.iter().map(|outcome| outcome.faults.len()).sum();
    let entries: usize = outcomes.iter().map(|outcome| outcome.entries).sum();
    let kept = |outcome: &Outcome| outcome.transactions.confirmed + outcome.kept.iter().map(|kept| kept.transactions).sum::<u64>();
    let transactions: u64 = outcomes.iter().map(kept).sum();
    let points: usize = outcomes.iter().map(|outcome| outcome.points.len()).sum();
    Ok(format!(
        "{} sources, {faults} faults, {points} recovery points sound, {entries} entries equal, {transactions} transactions kept, 0 differences",
        outcomes.len()
    ))
}

/// Protected, by what was captured since then: for a moment after an agent's start the job is what it was when the agent ended.
fn wait_until_followed(site: &Site, since: Instant) -> Result<()> {
    loop {
        site.wait_until_protected()?;
        let lag = site.appliance.job(JOB)?["lag_seconds"].as_u64();
        if lag.is_some_and(|lag| Duration::from_secs(lag + 1) < since.elapsed()) {
            return Ok(());
        }
        ensure!(since.elapsed() < FOLLOW_LIMIT, "the replica stands still: it is {lag:?} s behind");
        command::pause(Duration::from_secs(1))?;
    }
}

/// What a power cut of the source left without a trace only the verification behind it finds, which begins by itself; until its end the job says so.
fn await_verified(run: &Run, site: &Site) -> Result<()> {
    let begun = Instant::now();
    while site.appliance.job(JOB)?["worker"]["power_cut_unverified"] == true {
        ensure!(begun.elapsed() < FOLLOW_LIMIT, "the verification after the source's power cut does not end");
        command::pause(Duration::from_secs(2))?;
    }
    if begun.elapsed() > Duration::from_secs(2) {
        run.say(&format!("the power cut is verified after {:.0} s", begun.elapsed().as_secs_f64()));
    }
    Ok(())
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

/// How many of `count` recovery points come in each stage: before the first fault, and behind each one.
fn shares(count: u32, stages: u32) -> Vec<u32> {
    (0..stages).map(|stage| count * (stage + 1) / stages - count * stage / stages).collect()
}

fn one(run: &Run, combo: Combo, faults: &[Fault], count: u32, random: &mut Random) -> Result<Outcome> {
    let datastore = Datastore::make(&run.artifacts().join("appliance"))?;
    let mut site = Site::open_on(run, &Image::build_with(combo, Content::Databases)?, GROWS, JOB, LOAD)?;
    site.datastore = Some(datastore);
    let history = History::keep(site.appliance.folder())?;
    site.source.copy_in(&product::program("standin-e2e")?, CHURN_PROGRAM)?;
    let mut clients = Clients::new(CHURN_PROGRAM);
    start_churn(&mut site, random)?;
    clients.start(&mut site.source)?;
    run.say(&format!("{}: the source works", combo.name()));
    site.add_source()?;
    bound_queue(&mut site)?;
    site.protect(false)?;
    site.wait_until_protected()?;
    run.say(&format!("{}: protected", combo.name()));
    // Beside the mirror they would make an emulated machine take an hour for it.
    chores::start(&mut site.source, CHURN_PROGRAM, random.number())?;
    let (mut happened, mut points) = (Vec::new(), Points::default());
    let mut shares = shares(count, faults.len() as u32 + 1).into_iter();
    points.allow(&site)?;
    points.take(run, &mut site, &mut clients, random, shares.next().unwrap_or(0))?;
    for fault in faults {
        command::pause(random.time(WAIT_MAX))?;
        let view = site.appliance.job(JOB)?;
        let state = view["state"].as_str().unwrap_or_default().to_owned();
        let began = Instant::now();
        run.say(&format!("{fault:?} while {state}, applied through {}", faults::applied(&view)));
        faults::inject(run, &mut site, *fault)?;
        if fault.ends_the_source() {
            start_work(&mut site, &mut clients, random)?;
        }
        let injected = Instant::now();
        faults::wait_for_connection(&site)?;
        wait_until_followed(&site, injected)?;
        let protected_after = began.elapsed().as_secs_f64();
        run.say(&format!("protected again after {protected_after:.0} s"));
        happened.push(Happened { fault: *fault, state, protected_after });
        ensure_churn(&mut site)?;
        chores::ensure(&mut site.source)?;
        site.see_load(3)?;
        clients.see_progress()?;
        points.take(run, &mut site, &mut clients, random, shares.next().unwrap_or(0))?;
    }
    let package_rounds = chores::rounds(&mut site.source)?;
    await_verified(run, &site)?;
    let gaps = site.wait_until_protected()?["gaps"].as_u64().unwrap_or(0);
    let (_, committed) = site.fail_over(false)?;
    let mut replica = site.replica(run)?;
    clients.end();
    let transactions = job::examine_database(&mut replica, &committed)?;
    let kept = clients.record().judge(&databases::booted(&mut replica)?, None)?;
    drop(replica);
    site.appliance.end_machine(JOB);
    let evidence = evidence::gather(run, &site)?;
    let (differences, first) = (evidence.unexplained.len(), evidence.unexplained.first());
    if differences > 0 {
        history.save(&site.appliance.replica_disk(&site.job), run.artifacts())?;
    }
    drop(history);
    ensure!(differences == 0, "{differences} differences that boot repair does not account for; the first: {first:?}");
    let entries = evidence.entries;
    site.discard(run);
    let points = points.sound;
    Ok(Outcome { source: combo.name(), faults: happened, points, transactions, kept, package_rounds, entries, gaps })
}

/// A queue of the usual size would take longer to overflow than the suite lasts.
fn bound_queue(site: &mut Site) -> Result<()> {
    let settings = "/var/lib/standin-agent/settings.json";
    let edit =
        format!("sed -i -E 's/(\"queue_disk_mib\": *)[0-9]+/\\1{QUEUE_DISK_MIB}/' {settings} && grep -q {QUEUE_DISK_MIB} {settings}");
    let connected = |wanted: bool| {
        faults::wait_for(CONNECT_LIMIT, "the agent's connection did not change", || {
            Ok(site
                .appliance
                .json(&["agent", "list"])?
                .as_array()
                .is_some_and(|agents| agents.iter().any(|agent| agent["connected"] == wanted)))
        })
    };
    site.source.ssh(&format!("systemctl stop standin-agent && {edit}"))?;
    connected(false)?;
    site.source.ssh("systemctl start standin-agent")?;
    connected(true)
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

/// Everything that works on the source; again after a power cut.
fn start_work(site: &mut Site, clients: &mut Clients, random: &mut Random) -> Result<()> {
    start_churn(site, random)?;
    chores::start(&mut site.source, CHURN_PROGRAM, random.number())?;
    clients.start(&mut site.source)
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
    fn points_are_spread_over_the_stages() {
        assert_eq!(shares(4, 6), [0, 1, 1, 0, 1, 1]);
        assert_eq!(shares(50, 13).iter().sum::<u32>(), 50);
    }

    #[test]
    fn every_kind_of_fault_is_planned() {
        let faults = plan(2 * Fault::KINDS, &mut Random(7));
        let count = |wanted: fn(&Fault) -> bool| faults.iter().filter(|fault| wanted(fault)).count();
        assert_eq!(count(|fault| *fault == Fault::PowerCut), 2);
        assert_eq!(count(|fault| matches!(fault, Fault::LinkCut { seconds: 5..CUT_SECONDS_MAX })), 2);
        assert_ne!(faults, plan(2 * Fault::KINDS, &mut Random(8)));
    }
}
