//! The main job on every kind of source, and the kill test.
//!
//! One run per combination: first copy under load, failover, boot, examination, comparison. In the kill test the agent and then the worker are
//! killed with SIGKILL at random moments of mirror and replication, and the replica must be the same all the same. Moments come from a
//! seed, which is printed.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::evidence;
use crate::faults::{self, Fault};
use crate::job::{self, DatabaseVerdict, Failover, Site, Verified};
use crate::lab::{Combo, FileSystem, Firmware, Run, command};
use crate::marker::{self, Marked};
use crate::random::Random;
use crate::workload::Load;

#[derive(clap::Args)]
pub struct MainJobArgs {
    /// One combination with one kill of each kind instead of all six with five; what continuous integration runs.
    #[arg(long)]
    short: bool,
    /// Verify the replica under load, as the long form does, in the short form too.
    #[arg(long)]
    verify: bool,
    /// Only combinations whose name begins so, such as `uefi` or `bios-xfs`.
    #[arg(long)]
    only: Option<String>,
    /// Decides at which moments the kill test kills.
    #[arg(long)]
    seed: Option<u64>,
    /// Write the figures here.
    #[arg(long)]
    json: Option<PathBuf>,
}

const JOB: &str = "stand-in";
const LOAD: Load = Load { scale: 1, rate: 5, pause_ms: 100 };
/// Kills of each kind in the full kill test.
const KILLS: u32 = 5;
/// The longest random wait before a kill. Mirrors take minutes here, so some hit the mirror and some what follows it.
const KILL_WAIT_MAX: Duration = Duration::from_secs(40);
const MIRROR_BEGINS_LIMIT: Duration = Duration::from_secs(300);
/// The kernel writes its last pages within half a minute.
const SILENCE: Duration = Duration::from_secs(35);
/// How long the idle agent is watched.
const IDLE_WATCHED: Duration = Duration::from_secs(30);

/// All combinations; the one with the kill test is the first.
const COMBINATIONS: [Combo; 6] = [
    Combo { firmware: Firmware::Bios, root: FileSystem::Ext4, data: Some(FileSystem::Xfs) },
    Combo { firmware: Firmware::Uefi, root: FileSystem::Ext4, data: None },
    Combo { firmware: Firmware::Bios, root: FileSystem::Xfs, data: Some(FileSystem::Ext4) },
    Combo { firmware: Firmware::Uefi, root: FileSystem::Xfs, data: None },
    Combo { firmware: Firmware::Bios, root: FileSystem::Btrfs, data: None },
    Combo { firmware: Firmware::Uefi, root: FileSystem::Btrfs, data: Some(FileSystem::Btrfs) },
];

/// Figures of one combination.
#[derive(Serialize)]
struct Outcome {
    combination: String,
    mirror_seconds: f64,
    kills: Vec<Kill>,
    idle: Option<Idle>,
    verified: Option<Verified>,
    marked: Marked,
    transactions: DatabaseVerdict,
    failover: Failover,
    boot_ratio: Option<f64>,
    entries: usize,
    unexplained: usize,
    gaps: u64,
    records_dropped: u64,
}

/// What is done with a combination beside the job itself.
struct Plan {
    /// One kill of each kind instead of five, close to the mirror's start; no idle watch, no verification and no plain boot, which take minutes.
    short: bool,
    verify: bool,
    random: Random,
}

impl Plan {
    /// Kills of each kind: the agent's in the mirror and behind it, the worker's behind them. One combination has them.
    fn kills(&self, combo: Combo) -> u32 {
        match (combo == COMBINATIONS[0], self.short) {
            (false, _) => 0,
            (true, false) => KILLS,
            (true, true) => 1,
        }
    }

    fn kill_wait(&mut self) -> Duration {
        self.random.time(if self.short { KILL_WAIT_MAX / 4 } else { KILL_WAIT_MAX })
    }
}

/// Who was killed, and what the job was doing.
#[derive(Clone, Debug, Serialize)]
struct Kill {
    victim: &'static str,
    state: String,
    applied: u64,
}

/// The agent on a source where nothing happens.
#[derive(Clone, Copy, Debug, Serialize)]
struct Idle {
    resident_mib: f64,
    /// Of one processor.
    cpu_percent: f64,
}

pub fn run(arguments: &MainJobArgs) -> Result<ExitCode> {
    command::heed_interrupts()?;
    let run = Run::new("main-job")?;
    let mut outcomes = Vec::new();
    let done = all(&run, arguments, &mut outcomes);
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_vec_pretty(&outcomes)?).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(run.finish(done))
}

fn all(run: &Run, arguments: &MainJobArgs, outcomes: &mut Vec<Outcome>) -> Result<String> {
    let seed = arguments.seed.map_or_else(command::fresh_seed, Ok)?;
    run.say(&format!("kill moments from seed {seed}"));
    let mut plan = Plan { short: arguments.short, verify: arguments.verify || !arguments.short, random: Random(seed) };
    for combo in Combo::chosen(&COMBINATIONS, arguments.only.as_deref(), arguments.short)? {
        let outcome = one(run, combo, &mut plan).with_context(|| combo.name())?;
        run.say(&format!(
            "{}: {} entries equal, {} transactions, marker at {} bytes between {} and {}, power-on after {:.1} s, boot ratio {}",
            outcome.combination,
            outcome.entries,
            outcome.transactions.confirmed,
            outcome.marked.bytes_at_marker,
            outcome.marked.bytes_before,
            outcome.marked.bytes_after,
            outcome.failover.to_power_on,
            outcome.boot_ratio.map_or("not measured".into(), |ratio| format!("{ratio:.2}"))
        ));
        outcomes.push(outcome);
    }
    summary(outcomes)
}

fn summary(outcomes: &[Outcome]) -> Result<String> {
    let kills: usize = outcomes.iter().map(|outcome| outcome.kills.len()).sum();
    let transactions: u64 = outcomes.iter().map(|outcome| outcome.transactions.confirmed).sum();
    let slowest = outcomes.iter().map(|outcome| outcome.failover.to_power_on).fold(0.0, f64::max);
    let mut ratios: Vec<f64> = outcomes.iter().filter_map(|outcome| outcome.boot_ratio).collect();
    ratios.sort_by(f64::total_cmp);
    let median = ratios.get(ratios.len() / 2).map_or("not measured".into(), |ratio| format!("{ratio:.2}"));
    let most = |of: fn(&Idle) -> f64| outcomes.iter().filter_map(|outcome| outcome.idle.as_ref().map(of)).fold(0.0, f64::max);
    let (resident, cpu) = (most(|idle| idle.resident_mib), most(|idle| idle.cpu_percent));
    let idle = if resident > 0.0 { format!(", idle agent at most {resident:.1} MiB and {cpu:.2} % of a core") } else { String::new() };
    Ok(format!(
        "{} combinations booted and equal, {kills} kills, {transactions} transactions kept, power-on at most {slowest:.1} s after the command, \
         median boot ratio {median}{idle}",
        outcomes.len()
    ))
}

fn one(run: &Run, combo: Combo, plan: &mut Plan) -> Result<Outcome> {
    let mut site = Site::open(run, combo, JOB, LOAD)?;
    run.say(&format!("{}: the source works", combo.name()));
    site.add_source()?;
    site.protect(false)?;
    let began = Instant::now();
    let (kills, mut killed) = (plan.kills(combo), Vec::new());
    if kills > 0 {
        kill_agent(run, &mut site, plan, &mut killed)?;
    }
    site.wait_until_protected()?;
    let mirror_seconds = began.elapsed().as_secs_f64();
    run.say(&format!("{}: protected after {mirror_seconds:.0} s", combo.name()));
    if kills > 0 {
        kill_worker(run, &mut site, plan, &mut killed)?;
    }
    let idle = (!plan.short).then(|| watch_idle(&mut site)).transpose()?;
    let verified = plan.verify.then(|| site.verify()).transpose()?;
    if let Some(verified) = &verified {
        run.say(&format!("{}: verified: {verified:?}", combo.name()));
    }
    site.see_load(10)?;
    let view = site.wait_until_protected()?;
    let count = |name: &str| view[name].as_u64().unwrap_or(0);
    let (gaps, records_dropped) = (count("gaps"), count("records_dropped"));
    if kills == 0 {
        ensure!(gaps == 0 && records_dropped == 0, "{gaps} gaps, {records_dropped} records dropped without a fault");
    }
    let named = marker::name(run, &mut site)?;
    site.wait_until_protected()?;
    let (mut failover, committed) = site.fail_over(false)?;
    let mut replica = site.replica(run)?;
    let transactions = job::examine_database(&mut replica, &committed)?;
    drop(replica);
    failover.plain_boot = (!plan.short).then(|| site.plain_boot(run)).transpose()?;
    let marked = marker::examine(&site, &named)?;
    let evidence = evidence::gather(run, &site)?;
    ensure!(
        evidence.unexplained.is_empty(),
        "{} differences that boot repair does not account for; the first: {:?}",
        evidence.unexplained.len(),
        evidence.unexplained.first()
    );
    let boot_ratio = failover.ratio();
    let entries = evidence.entries;
    site.discard(run);
    let combination = combo.name();
    Ok(Outcome {
        combination,
        mirror_seconds,
        kills: killed,
        idle,
        verified,
        marked,
        transactions,
        failover,
        boot_ratio,
        entries,
        unexplained: 0,
        gaps,
        records_dropped,
    })
}

/// Kills the agent at random moments. systemd starts it again; the source must not notice.
fn kill_agent(run: &Run, site: &mut Site, plan: &mut Plan, killed: &mut Vec<Kill>) -> Result<()> {
    for _ in 0..plan.kills(site.combo) {
        if plan.short {
            // The full form also kills an agent that is still attaching its probes.
            faults::wait_for(MIRROR_BEGINS_LIMIT, "the mirror did not begin", || Ok(faults::applied(&site.appliance.job(JOB)?) > 0))?;
        }
        command::pause(plan.kill_wait())?;
        note(run, site, "agent", killed)?;
        faults::inject(run, site, Fault::AgentKilled)?;
        site.see_load(3)?;
    }
    Ok(())
}

/// Kills the worker that applies, at random moments. The appliance starts another one.
fn kill_worker(run: &Run, site: &mut Site, plan: &mut Plan, killed: &mut Vec<Kill>) -> Result<()> {
    for _ in 0..plan.kills(site.combo) {
        command::pause(plan.kill_wait() / 4)?;
        note(run, site, "worker", killed)?;
        faults::inject(run, site, Fault::WorkerKilled)?;
    }
    Ok(())
}

fn note(run: &Run, site: &Site, victim: &'static str, killed: &mut Vec<Kill>) -> Result<()> {
    let view = site.appliance.job(JOB)?;
    let state = view["state"].as_str().unwrap_or_default().to_owned();
    let applied = faults::applied(&view);
    run.say(&format!("killing the {victim} while {state}, applied through {applied}"));
    killed.push(Kill { victim, state, applied });
    Ok(())
}

/// Stops the load's clients, waits for silence, and reads what the agent uses.
fn watch_idle(site: &mut Site) -> Result<Idle> {
    site.wait_until_protected()?;
    // The pattern must not match the shell that carries it. A checkpoint spreads its writes over minutes, which is work and not idleness; this one is over when the command returns.
    let checkpoint = "cd / && runuser -u postgres -- psql -X -q -c checkpoint";
    site.source.ssh(&format!("pkill -STOP pgbench; pkill -STOP -f 'insert into witnes[s]'; {checkpoint}; pkill -STOP psql; true"))?;
    command::pause(SILENCE)?;
    let pid = faults::agent_pid(site)?;
    let read = format!(
        "awk '{{print $14 + $15}}' /proc/{pid}/stat; awk '/VmRSS/ {{print $2}}' /proc/{pid}/status; getconf CLK_TCK; cut -d' ' -f1 /proc/uptime"
    );
    let mut sample = || -> Result<Vec<f64>> {
        let said = site.source.ssh(&read)?;
        let numbers: Vec<f64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        ensure!(numbers.len() == 4, "the source said {said:?}");
        Ok(numbers)
    };
    let before = sample()?;
    command::pause(IDLE_WATCHED)?;
    let after = sample()?;
    site.source.ssh("pkill -CONT psql; pkill -CONT -f 'insert into witnes[s]'; pkill -CONT pgbench; true")?;
    let seconds = after[3] - before[3];
    Ok(Idle { resident_mib: after[1] / 1024.0, cpu_percent: (after[0] - before[0]) / after[2] / seconds * 100.0 })
}
