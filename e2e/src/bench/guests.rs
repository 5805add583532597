//! What only a kernel's own capture shows: how far the replica is behind a server's writes, and what the agent costs the server.
//!
//! One server in a guest, protected by an appliance on this machine, its database at work. Without KVM everything in the guest is emulated: PostgreSQL, hooks and agent alike.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::report::{Figure, Goal, Line, Sense, median};
use super::{Bench, say};
use crate::job::Site;
use crate::lab::{Combo, FileSystem, Firmware, Guest, Run, command};
use crate::product;
use crate::random::Random;
use crate::workload::Load;

const SOURCE: Combo = Combo { firmware: Firmware::Bios, root: FileSystem::Ext4, data: Some(FileSystem::Xfs) };
const JOB: &str = "bench";
const PROGRAM: &str = "/usr/local/sbin/standin-e2e";
const BEAT: &str = "/srv/beat";
/// Where the replica has it: the root is volume 0 of the job.
const BEAT_ON_REPLICA: &str = "run/0/srv/beat";
const BEATS: usize = 400;
const BEAT_LIMIT: Duration = Duration::from_secs(60);
const BEAT_PAUSE_MAX: Duration = Duration::from_millis(300);
const LOOK_PAUSE: Duration = Duration::from_micros(500);

/// A server at work and protected.
struct Guests {
    run: Run,
    site: Site,
}

impl Guests {
    fn open(load: Load) -> Result<Guests> {
        let run = Run::new("bench")?;
        let mut site = Site::open(&run, SOURCE, JOB, load)?;
        site.source.copy_in(&product::program("standin-e2e")?, PROGRAM)?;
        site.add_source()?;
        site.protect(false)?;
        site.wait_until_protected()?;
        say("the guest is protected");
        Ok(Guests { run, site })
    }

    fn close(self) {
        let artifacts = self.run.artifacts().to_owned();
        self.site.discard(&self.run);
        std::fs::remove_dir_all(artifacts).ok();
    }
}

/// The file that beats, as the worker has it on the replica.
fn beat_on_replica(site: &Site) -> Result<File> {
    let job = site.appliance.job(JOB)?;
    let pid = job["worker"]["pid"].as_u64().context("the job has no worker")?;
    let id = job["id"].as_str().context("the job has no id")?;
    // The replica is mounted where only the worker sees it.
    let inside = site.appliance.folder().join("jobs").join(id).join(BEAT_ON_REPLICA);
    let path: PathBuf = format!("/proc/{pid}/root{}", inside.display()).into();
    File::open(&path).with_context(|| format!("opening {}", path.display()))
}

/// Milliseconds from one beat's order, and from the answer that its write has returned, until the replica had it.
#[derive(Clone, Copy)]
struct Lag {
    ordered: f64,
    returned: f64,
}

pub fn lag(bench: &Bench) -> Result<Line> {
    let mut guests = Guests::open(Load { scale: 1, rate: 10, pause_ms: 100 })?;
    let beats = if bench.options.short { BEATS / 10 } else { BEATS };
    let all = beat(&mut guests.site, beats, bench.options.seed)?;
    guests.close();
    let at = |part: f64, of: fn(&Lag) -> f64| {
        let mut sorted: Vec<f64> = all.iter().map(of).collect();
        sorted.sort_by(f64::total_cmp);
        sorted[((sorted.len() - 1) as f64 * part) as usize]
    };
    let goals = vec![
        Goal::figure("order to write until applied, p50", "ms", at(0.5, |lag| lag.ordered), Sense::AtMost, 50.0),
        Goal::figure("order to write until applied, p99", "ms", at(0.99, |lag| lag.ordered), Sense::AtMost, 1000.0),
    ];
    let figure = |what: &str, value| Figure { what: what.into(), unit: "ms", value };
    let figures = vec![
        figure("order to write until applied, longest", at(1.0, |lag| lag.ordered)),
        figure("answer that the write returned until applied, p50", at(0.5, |lag| lag.returned)),
        figure("answer that the write returned until applied, p99", at(0.99, |lag| lag.returned)),
    ];
    Ok(Line::new("lag", 1, goals, figures))
}

/// The order to write leaves this machine before the write, so that what is measured from it is longer than the lag by the order's way; the answer arrives
/// behind the write's return, so that what is measured from that is shorter by the answer's way.
fn beat(site: &mut Site, beats: usize, seed: u64) -> Result<Vec<Lag>> {
    let mut child = site.source.ssh_talk(&format!("exec {PROGRAM} bench-beat {BEAT}"))?;
    let mut orders = child.stdin.take().context("the beat takes no orders")?;
    let lines = BufReader::new(child.stdout.take().context("the beat says nothing")?).lines();
    let (sender, answers) = channel();
    let listener = std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            if sender.send((Instant::now(), line)).is_err() {
                return;
            }
        }
    });
    let done = beat_all(site, &mut orders, &answers, beats, seed);
    drop(orders);
    command::end(&mut child, BEAT_LIMIT);
    listener.join().ok();
    done
}

fn beat_all(site: &Site, orders: &mut impl Write, answers: &Receiver<(Instant, String)>, beats: usize, seed: u64) -> Result<Vec<Lag>> {
    let (mut random, mut all, mut replica) = (Random(seed), Vec::new(), None);
    for number in 0..=beats as u64 {
        let begun = Instant::now();
        writeln!(orders, "{number}")?;
        orders.flush()?;
        let applied = loop {
            // The first one makes the file.
            if replica.is_none() {
                replica = beat_on_replica(site).ok();
            }
            let mut content = [0; 8];
            let is_there = replica.as_ref().is_some_and(|file: &File| file.read_exact_at(&mut content, 0).is_ok());
            if is_there && u64::from_le_bytes(content) == number {
                break Instant::now();
            }
            ensure!(begun.elapsed() < BEAT_LIMIT, "beat {number} does not reach the replica");
            std::thread::sleep(LOOK_PAUSE);
        };
        let (returned, said) = answers.recv_timeout(BEAT_LIMIT).context("the beat has ended")?;
        ensure!(said.trim() == number.to_string(), "the beat said {said}");
        let ms = |since: Instant| applied.saturating_duration_since(since).as_secs_f64() * 1e3;
        if number > 0 {
            all.push(Lag { ordered: ms(begun), returned: ms(returned) });
        }
        command::pause(random.time(BEAT_PAUSE_MAX))?;
    }
    Ok(all)
}

/// Writes each number that comes in to the file's beginning, and says so.
pub fn serve_beats(path: &std::path::Path) -> Result<()> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    for line in std::io::stdin().lines() {
        let number: u64 = line?.trim().parse()?;
        file.write_all_at(&number.to_le_bytes(), 0)?;
        println!("{number}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

const WORK_SECONDS: u64 = 60;
const CLIENTS: u32 = 2;

/// What one run of pgbench came to.
#[derive(Clone, Copy)]
struct Work {
    rate: f64,
    transactions: f64,
    /// Processor seconds.
    database: f64,
    agent: f64,
}

pub fn overhead(bench: &Bench) -> Result<Line> {
    let mut guests = Guests::open(Load { scale: 5, rate: 5, pause_ms: 500 })?;
    let site = &mut guests.site;
    site.load.end();
    // Its client goes on when the connection ends.
    site.source.ssh("pkill pgbench; true")?;
    let seconds = if bench.options.short { WORK_SECONDS / 6 } else { WORK_SECONDS };
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..bench.runs() {
        site.wait_until_protected()?;
        with.push(work(&mut site.source, seconds)?);
        site.source.ssh_within("systemctl stop standin-agent", Duration::from_secs(120))?;
        without.push(work(&mut site.source, seconds)?);
        site.source.ssh_within("systemctl start standin-agent", Duration::from_secs(120))?;
        let (with, without) = (with[with.len() - 1].rate, without[without.len() - 1].rate);
        say(&format!("pgbench: {with:.1} transactions a second with the agent, {without:.1} without it"));
        // The state is the one of before until the new stream has begun.
        command::pause(Duration::from_secs(20))?;
    }
    guests.close();
    let (ours, theirs) = (median(&with, |work| work.rate), median(&without, |work| work.rate));
    let share = |work: &Work| work.agent / work.database;
    let agent = median(&with, share);
    let goals = vec![
        Goal::ratio("pgbench with the agent, against without it", "tps", ours.rate, theirs.rate, Sense::AtLeast, 0.95),
        Goal::figure("agent's processor, of PostgreSQL's", "", share(&agent), Sense::AtMost, 0.20),
    ];
    let figure = |what: &str, value| Figure { what: what.into(), unit: "ms", value };
    let figures = vec![
        figure("PostgreSQL's processor for a transaction, with the agent", ours.database / ours.transactions * 1e3),
        figure("PostgreSQL's processor for a transaction, without it", theirs.database / theirs.transactions * 1e3),
        figure("agent's processor for a transaction", ours.agent / ours.transactions * 1e3),
    ];
    Ok(Line::new("overhead", bench.runs(), goals, figures))
}

fn work(guest: &mut Guest, seconds: u64) -> Result<Work> {
    // Each begins behind a checkpoint, or pages that are written whole would be many in one and few in the next.
    guest.ssh_within("cd / && runuser -u postgres -- psql -q -c checkpoint && sync", Duration::from_secs(120))?;
    let used = |guest: &mut Guest, unit: &str| -> Result<f64> {
        let said = guest.ssh(&format!("systemctl show -P CPUUsageNSec {unit}"))?;
        // A unit that does not run has used nothing.
        Ok(said.trim().parse::<u64>().ok().filter(|used| *used != u64::MAX).unwrap_or_default() as f64 / 1e9)
    };
    let units = ["postgresql@15-main", "standin-agent"];
    let before = [used(guest, units[0])?, used(guest, units[1])?];
    let bench = format!("cd / && runuser -u postgres -- pgbench -n -c {CLIENTS} -T {seconds} postgres");
    let said = guest.ssh_within(&bench, Duration::from_secs(seconds + 120))?;
    let after = [used(guest, units[0])?, used(guest, units[1])?];
    let number = |start: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(start));
        line.and_then(|rest| rest.split_whitespace().next())
            .and_then(|word| word.parse::<f64>().ok())
            .with_context(|| format!("pgbench said {said}"))
    };
    let transactions = number("number of transactions actually processed: ")?;
    Ok(Work { rate: number("tps = ")?, transactions, database: after[0] - before[0], agent: after[1] - before[1] })
}
