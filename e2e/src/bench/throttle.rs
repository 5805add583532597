//! The bandwidth limit: what leaves the source in any second and in any ten, under one limit after another, each changed while the mirror runs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::meter::{Meter, Sample, rates, worst};
use super::network::{Link, Network};
use super::ours::Ours;
use super::report::{Figure, Goal, Line, Sense};
use super::sets::Kind;
use super::{Bench, say, settle};
use crate::lab::command;

/// Limits in turn, in Mbit/s.
const LIMITS: [u64; 3] = [8, 40, 2];
const PHASE: Duration = Duration::from_secs(40);
/// From the order until it holds: it goes by the appliance to the agent, which may be in the middle of a write.
const SETTLING: Duration = Duration::from_secs(1);
/// 250 MB that no compression makes smaller: more than all phases let through.
const SHARE: f64 = 0.5;

/// Of one limit: the largest deviation in any ten seconds and in any one.
struct Held {
    mbits: u64,
    ten: f64,
    one: f64,
}

pub fn measure(bench: &Bench) -> Result<Line> {
    let (disk, _) = bench.set(Kind::Random, SHARE)?;
    let mut held: Vec<Held> = Vec::new();
    // Every run counts: a limit holds always or not at all.
    for _ in 0..bench.runs().min(2) {
        let network = Network::new(Link::Local)?;
        let mut ours = Ours::start(&network, &bench.folder.join("ours"), &disk)?;
        settle()?;
        held.extend(run(bench, &network, &mut ours)?);
        ours.stop()?;
    }
    let largest = |of: fn(&Held) -> f64| held.iter().map(of).fold(f64::NAN, f64::max);
    let goals = vec![
        Goal::figure("deviation from the limit in any 10 s", "%", largest(|held| held.ten) * 100.0, Sense::AtMost, 2.0),
        Goal::figure("deviation from the limit in any 1 s", "%", largest(|held| held.one) * 100.0, Sense::AtMost, 5.0),
    ];
    let figure =
        |held: &Held, what: &str, value: f64| Figure { what: format!("{} Mbit/s: {what}", held.mbits), unit: "%", value: value * 100.0 };
    let figures = held.iter().flat_map(|held| [figure(held, "any 10 s", held.ten), figure(held, "any 1 s", held.one)]).collect();
    Ok(Line::new("throttle", bench.runs().min(2), goals, figures))
}

fn run(bench: &Bench, network: &Network, ours: &mut Ours) -> Result<Vec<Held>> {
    let phase = if bench.options.short { PHASE / 8 } else { PHASE };
    let meter = Meter::start(network)?;
    let mut phases = Vec::new();
    for mbits in LIMITS {
        limit(ours, &format!("{mbits}Mbit/s"))?;
        if phases.is_empty() {
            ours.protect()?;
            await_first_bytes(ours)?;
        }
        let from = Instant::now() + SETTLING;
        command::pause(SETTLING + phase)?;
        phases.push((mbits, from, Instant::now()));
    }
    let samples = meter.samples()?;
    limit(ours, "none")?;
    phases.into_iter().map(|(mbits, from, to)| judge(&samples, mbits, from, to, phase)).collect()
}

fn limit(ours: &Ours, limit: &str) -> Result<()> {
    ours.standin(&["network", "set", "--limit", limit]).map(drop)
}

fn judge(samples: &[Sample], mbits: u64, from: Instant, to: Instant, phase: Duration) -> Result<Held> {
    let worst_in = |window: Duration| {
        let all = rates(samples, from, to, window);
        worst(&all, mbits * 1_000_000).with_context(|| format!("nothing was measured at {mbits} Mbit/s"))
    };
    let held = Held { mbits, ten: worst_in(Duration::from_secs(10).min(phase / 2))?, one: worst_in(Duration::from_secs(1))? };
    say(&format!("{mbits} Mbit/s: deviates by {:.2} % in any 10 s, {:.2} % in any 1 s", held.ten * 100.0, held.one * 100.0));
    Ok(held)
}

/// The replica's disk is made first.
fn await_first_bytes(ours: &mut Ours) -> Result<()> {
    ours.stream_starts()?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while ours.job()?["bytes_sent"].as_u64().unwrap_or_default() == 0 {
        anyhow::ensure!(Instant::now() < deadline, "nothing is sent");
        command::pause(Duration::from_millis(100))?;
    }
    Ok(())
}
