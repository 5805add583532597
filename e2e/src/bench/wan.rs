//! `cargo xtask e2e wan`: a mirror over a link of 10 Mbit/s with a round trip of 300 ms that loses 2 % of its packets and goes away at random, under a
//! limit that the calendar changes in the middle.
//!
//! The replica has to be the source, the limit has to hold in every ten seconds, and what is sent twice may be no more than what a cut caught on its
//! way. The source's kernel is not captured here (see `source`); every other part is the product's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use jiff::{Timestamp, ToSpan, tz::TimeZone};
use serde::Serialize;

use super::disk::Disk;
use super::meter::{Meter, Sample, rates};
use super::mirror::{check_replica, warm};
use super::network::{Link, Network};
use super::ours::Ours;
use super::sets::{Kind, Set};
use crate::lab::{Run, command, space};
use crate::product::program;
use crate::random::Random;

const LINK_BITS: u64 = 10_000_000;
const DELAY_MS: u64 = 150;
const LOSS: f64 = 0.02;
const LINK: Link = Link::Slow { bits: LINK_BITS, delay_ms: DELAY_MS, loss: LOSS };
/// Outside of the calendar's window, and inside.
const LIMIT_MBITS: u64 = 4;
const WINDOW_MBITS: u64 = 1;
const WINDOW_MINUTES: i64 = 1;
/// Of the whole operating system's set: some 40 MB on the wire.
const SHARE: f64 = 0.12;
const SHARE_SHORT: f64 = 0.05;
const CUT_SECONDS: (u64, u64) = (3, 20);
const BETWEEN_CUTS_SECONDS: (u64, u64) = (20, 45);
/// In any ten seconds, without what the kernel sends again.
const TOLERANCE: f64 = 0.02;
const TEN: Duration = Duration::from_secs(10);
/// When the link comes back, what the kernel holds leaves at the link's own speed. For so long a cut is not over.
const AFTER_CUT: Duration = Duration::from_secs(5);
/// Around a change of the limit: what was let through before it was known.
const SETTLING: Duration = Duration::from_secs(3);
/// What the kernel may hold when the link comes back: two round trips of the limit before, and what it takes ahead.
const HELD_BYTES: u64 = LIMIT_MBITS * 1_000_000 / 8 * 4 * DELAY_MS / 1000 + (64 << 10);
/// What may be on its way when the link goes: that, and two segments, one of which is half sent and one not yet acknowledged.
const IN_FLIGHT_BYTES: u64 = HELD_BYTES + 2 * (1 << 20);
const LIMIT: Duration = Duration::from_secs(1800);

#[derive(Args, Clone, Debug)]
pub struct WanArgs {
    /// Less to mirror.
    #[arg(long)]
    short: bool,
    /// Where what was measured goes as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    #[arg(long)]
    seed: Option<u64>,
}

/// What the run came to.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    seed: u64,
    entries: u64,
    seconds: f64,
    cuts: Vec<Cut>,
    /// Bytes of segments that were sent, each time, and those that the journal has, once.
    sent: u64,
    needed: u64,
    /// What the kernel sent again, because it was lost.
    resent: u64,
    /// The most that left the source in ten seconds without a cut in them, of the limit that held outside of the window, and of the window's.
    most_outside: f64,
    most_inside: f64,
    /// With one.
    most_at_cuts: f64,
}

#[derive(Debug, Serialize)]
struct Cut {
    /// Since the mirror's start.
    after: f64,
    seconds: f64,
}

impl Cut {
    fn span(&self, begun: Instant) -> (Instant, Instant) {
        let from = begun + Duration::from_secs_f64(self.after);
        (from, from + Duration::from_secs_f64(self.seconds) + AFTER_CUT)
    }
}

pub fn run(args: &WanArgs) -> Result<ExitCode> {
    if let Some(code) = space::run_inside()? {
        return Ok(code);
    }
    command::heed_interrupts()?;
    let run = Run::new("wan")?;
    let done = mirror(&run, args);
    Ok(run.finish(done))
}

fn mirror(run: &Run, args: &WanArgs) -> Result<String> {
    let mut outcome = Outcome { seed: args.seed.map_or_else(command::fresh_seed, Ok)?, ..Outcome::default() };
    run.say(&format!("cuts from seed {}", outcome.seed));
    let mut random = Random(outcome.seed);
    let disk = Disk::make(run.artifacts(), "set")?;
    let set = Set::make(Kind::System, disk.root(), 1, if args.short { SHARE_SHORT } else { SHARE })?;
    outcome.entries = set.entries;
    warm(&disk)?;
    let network = Network::new(LINK)?;
    let folder = run.artifacts().join("ours");
    let mut ours = Ours::start(&network, &folder, &disk)?;
    run.say(&format!("connected; {} entries, {:.1} MB", set.entries, set.bytes as f64 / 1e6));
    let (opens, closes) = calendar(&ours)?;
    let meter = Meter::start(&network)?;
    ours.protect()?;
    ours.standin(&["job", "network", super::source::NAME, "--congestion", "bbr"])?;
    ours.stream_starts()?;
    let begun = Instant::now();
    interrupt(run, &network, &ours, &mut random, begun, &mut outcome)?;
    outcome.seconds = begun.elapsed().as_secs_f64();
    let samples = meter.samples()?;
    outcome.sent = ours.job()?["bytes_sent"].as_u64().context("the job tells no sent bytes")?;
    outcome.needed = journal_bytes(&folder)?;
    let replica = ours.stop()?;
    check_replica(run.artifacts(), &disk, &replica)?;
    let ends = samples.first().zip(samples.last());
    outcome.resent = ends.map_or(0, |(first, last)| last.resent - first.resent);
    judge_limits(&samples, begun, (opens, closes), &mut outcome)?;
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_vec_pretty(&outcome)?).with_context(|| format!("writing {}", path.display()))?;
    }
    verdict(&outcome)
}

/// A window that begins with the next minute but one. Returns when it opens and closes.
fn calendar(ours: &Ours) -> Result<(Instant, Instant)> {
    let (now, at) = (Timestamp::now(), Instant::now());
    let minute = |minutes: i64| now.to_zoned(TimeZone::UTC).checked_add(minutes.minutes());
    let (from, to) = (minute(1)?, minute(1 + WINDOW_MINUTES)?);
    let clock = |time: &jiff::Zoned| time.strftime("%H:%M").to_string();
    let window = format!("mon-sun {}-{} {WINDOW_MBITS}Mbit/s", clock(&from), clock(&to));
    ours.standin(&["network", "set", "--limit", &format!("{LIMIT_MBITS}Mbit/s"), "--zone", "UTC", "--window", &window])?;
    let into_minute = Duration::from_secs(u64::try_from(now.as_second())? % 60);
    let opens = at + Duration::from_secs(60) - into_minute;
    Ok((opens, opens + Duration::from_secs(60 * WINDOW_MINUTES.unsigned_abs())))
}

/// Cuts the link again and again until the job is protected.
fn interrupt(run: &Run, network: &Network, ours: &Ours, random: &mut Random, begun: Instant, outcome: &mut Outcome) -> Result<()> {
    let mut next = Instant::now() + between(random, BETWEEN_CUTS_SECONDS);
    loop {
        let job = ours.job()?;
        if job["state"] == "protected" {
            return Ok(());
        }
        ensure!(begun.elapsed() < LIMIT, "not protected after {} s: {}", LIMIT.as_secs(), job["state"]);
        if Instant::now() > next {
            let lasts = between(random, CUT_SECONDS);
            let after = begun.elapsed().as_secs_f64();
            network.cut(lasts)?;
            run.say(&format!("the link was away for {} s, {after:.0} s after the start", lasts.as_secs()));
            outcome.cuts.push(Cut { after, seconds: lasts.as_secs_f64() });
            next = Instant::now() + between(random, BETWEEN_CUTS_SECONDS);
        }
        command::pause(Duration::from_millis(500))?;
    }
}

fn between(random: &mut Random, (least, most): (u64, u64)) -> Duration {
    Duration::from_secs(least + random.below(most - least))
}

/// Bytes of all segments of the job, each once.
fn journal_bytes(folder: &Path) -> Result<u64> {
    let jobs = folder.join("appliance/jobs");
    let job = fs::read_dir(&jobs)?.next().context("the appliance has no job")??.path();
    let journal = job.join("journal").display().to_string();
    let dump = [program("standin")?.display().to_string(), "debug".into(), "journal".into(), "dump".into(), journal];
    let words: Vec<&str> = dump.iter().map(String::as_str).chain(["--output", "json"]).collect();
    let said = command::run(&words, Duration::from_secs(60))?;
    let rows: Vec<serde_json::Value> = said.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("reading the dump")?;
    ensure!(rows.iter().any(|row| row["behind"] == 0), "the journal does not begin with the first item");
    let segments = rows.iter().filter(|row| !row["segment"].is_null());
    Ok(segments.filter_map(|row| row["segment"]["body_bytes"].as_u64()).sum())
}

fn judge_limits(samples: &[Sample], begun: Instant, (opens, closes): (Instant, Instant), outcome: &mut Outcome) -> Result<()> {
    let ended = samples.last().context("nothing was measured")?.at;
    let most =
        |from: Instant, to: Instant, mbits: u64| rates(samples, from, to, TEN).into_iter().fold(0.0, f64::max) / (mbits as f64 * 1e6);
    let phases = [(begun, opens, LIMIT_MBITS), (opens + SETTLING, closes, WINDOW_MBITS), (closes + SETTLING, ended, LIMIT_MBITS)];
    for (from, to, mbits) in phases {
        let to = to.min(ended);
        let without = quiet(from, to, begun, &outcome.cuts).into_iter().map(|(from, to)| most(from, to, mbits)).fold(0.0, f64::max);
        let of = if mbits == WINDOW_MBITS { &mut outcome.most_inside } else { &mut outcome.most_outside };
        *of = of.max(without);
        outcome.most_at_cuts = outcome.most_at_cuts.max(most(from, to, mbits));
    }
    ensure!(outcome.most_inside > 0.0, "the window had no ten seconds without a cut");
    Ok(())
}

/// What of a span no cut touches.
fn quiet(from: Instant, to: Instant, begun: Instant, cuts: &[Cut]) -> Vec<(Instant, Instant)> {
    let mut spans = Vec::new();
    let mut at = from;
    for (cut_from, cut_to) in cuts.iter().map(|cut| cut.span(begun)) {
        if cut_to > at && cut_from < to {
            spans.push((at, cut_from));
            at = cut_to;
        }
    }
    spans.push((at, to));
    spans.retain(|(from, to)| from < to);
    spans
}

fn verdict(outcome: &Outcome) -> Result<String> {
    let Outcome { entries, seconds, sent, needed, most_outside, most_inside, .. } = outcome;
    let cuts = outcome.cuts.len();
    let twice = sent.saturating_sub(*needed);
    let mut wrong = Vec::new();
    let mut demand = |holds: bool, what: String| {
        if !holds {
            wrong.push(what)
        }
    };
    demand(cuts > 0, "the link was never cut".into());
    demand(*most_outside <= 1.0 + TOLERANCE, format!("{most_outside:.3} of the limit was used in ten seconds"));
    demand(*most_inside <= 1.0 + TOLERANCE, format!("{most_inside:.3} of the window's limit was used in ten seconds"));
    // What may lie in the kernel when the link comes back is more of a small limit.
    let at_cuts = 1.0 + TOLERANCE + HELD_BYTES as f64 * 8.0 / TEN.as_secs_f64() / (WINDOW_MBITS as f64 * 1e6);
    demand(outcome.most_at_cuts <= at_cuts, format!("{:.3} of the limit was used in ten seconds with a cut", outcome.most_at_cuts));
    demand(twice <= cuts as u64 * IN_FLIGHT_BYTES, format!("{twice} bytes were sent twice after {cuts} cuts"));
    if !wrong.is_empty() {
        bail!("{}", wrong.join("; "));
    }
    Ok(format!(
        "{entries} entries equal after {cuts} cuts in {seconds:.0} s, {:.2} of {:.1} MB sent twice and {:.2} MB resent by TCP, at most {most_outside:.3} and {most_inside:.3} of the limits in any 10 s",
        twice as f64 / 1e6,
        *sent as f64 / 1e6,
        outcome.resent as f64 / 1e6
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_takes_its_time_and_some_more_out_of_a_span() {
        let begun = Instant::now();
        let at = |seconds: u64| begun + Duration::from_secs(seconds);
        let cuts = [Cut { after: 10.0, seconds: 5.0 }, Cut { after: 40.0, seconds: 10.0 }];
        assert_eq!(quiet(at(0), at(60), begun, &cuts), [(at(0), at(10)), (at(20), at(40)), (at(55), at(60))]);
        assert_eq!(quiet(at(12), at(45), begun, &cuts), [(at(20), at(40))]);
        assert_eq!(quiet(at(21), at(30), begun, &cuts), [(at(21), at(30))]);
    }
}
