//! Recovery points at random moments under load: each must be a state that the databases start from, with everything that was confirmed before the marker and
//! nothing that began after it.
//!
//! A marker is asked for on the source between two looks at its clock. When its point has been taken, the databases' clients must have been heard beyond the marker;
//! then the point's disk is examined and removed, while the load and the replication go on.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::databases::{self, Clients, Cut, Kept};
use crate::job::Site;
use crate::lab::{Run, command};
use crate::random::Random;

/// The longest random wait before a marker.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// For one call of `standin-agent mark`, and for all of them until one is not refused.
const CALL_LIMIT: Duration = Duration::from_secs(120);
const MARK_LIMIT: Duration = Duration::from_secs(300);
/// The agent refuses while the replica is resynced, and when it has too much to do.
const RESYNC: [&str; 2] = ["STANDIN-E6022", "STANDIN-E6025"];
const POINT_LIMIT: Duration = Duration::from_secs(300);

/// A point that was found sound.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    pub name: String,
    /// The time between the two looks at the source's clock.
    pub marked_seconds: f64,
    /// How long replication waited.
    pub held_ms: u64,
    pub examined_seconds: f64,
    pub kept: Vec<Kept>,
}

/// The points of one source, which have names of their own.
#[derive(Default)]
pub struct Points {
    pub sound: Vec<Point>,
}

impl Points {
    /// Points are copied where the datastore cannot share blocks, and the lab's disks are small.
    pub fn allow(&self, site: &Site) -> Result<()> {
        site.appliance.json(&["point", "policy", &site.job, "--copy-up-to", "30G"])?;
        Ok(())
    }

    /// Takes and examines `count` points, each after a random wait. One that is not taken, or not sound, is an error; its disk stays.
    pub fn take(&mut self, run: &Run, site: &mut Site, clients: &mut Clients, random: &mut Random, count: u32) -> Result<()> {
        for _ in 0..count {
            command::pause(random.time(WAIT_MAX))?;
            let name = format!("cut-{}", self.sound.len() + 1);
            let point = one(run, site, clients, &name).with_context(|| format!("recovery point {name}"))?;
            run.say(&format!("{name} is sound: {} after {:.0} s", shown(&point.kept), point.examined_seconds));
            self.sound.push(point);
        }
        Ok(())
    }
}

/// How much each database has kept.
pub fn shown(kept: &[Kept]) -> String {
    kept.iter().map(|kept| format!("{} {}", kept.engine.name(), kept.transactions)).collect::<Vec<_>>().join(", ")
}

fn one(run: &Run, site: &mut Site, clients: &mut Clients, name: &str) -> Result<Point> {
    let (name, cut) = mark(site, clients.generation(), name)?;
    let taken = wait_for(site, &name)?;
    ensure!(taken["consistent"] == true && taken["kind"] == "marker", "{taken:#}");
    clients.hear_beyond(cut.after)?;
    let id = taken["id"].as_str().context("a point without an id")?;
    let disk = site.appliance.replica_disk(&site.job).with_file_name("points").join(id).join("disk.raw");
    let began = Instant::now();
    let found = databases::disk(&disk, run.artifacts())?;
    let kept = clients.record().judge(&found, Some(&cut)).with_context(|| format!("cut {cut:?}; found {found:?}"))?;
    let examined_seconds = began.elapsed().as_secs_f64();
    site.appliance.json(&["point", "remove", &site.job, id])?;
    let (marked, held_ms) = (cut.after - cut.before, taken["held_ms"].as_u64().unwrap_or(0));
    Ok(Point { name, marked_seconds: marked as f64 / 100.0, held_ms, examined_seconds, kept })
}

/// Names a marker between two looks at the source's clock; again while there is a resync, which no state of the source can be named in. Returns the name
/// that was taken in the end: a refused one may come all the same.
fn mark(site: &mut Site, generation: u64, name: &str) -> Result<(String, Cut)> {
    let deadline = Instant::now() + MARK_LIMIT;
    for number in 1.. {
        let name = format!("{name}-{number}");
        match mark_once(site, generation, &name) {
            Ok(cut) => return Ok((name, cut)),
            Err(refusal) if Instant::now() > deadline || !RESYNC.iter().any(|code| format!("{refusal:#}").contains(code)) => {
                return Err(refusal);
            }
            Err(_) => command::pause(Duration::from_secs(2))?,
        }
    }
    unreachable!("the numbers do not end")
}

fn mark_once(site: &mut Site, generation: u64, name: &str) -> Result<Cut> {
    let script = format!(
        "read before rest < /proc/uptime; /usr/local/sbin/standin-agent mark {name} >&2; status=$?; read after rest < /proc/uptime; echo $status $before $after"
    );
    let output = site.source.ssh_collect(&script, CALL_LIMIT).context("marking on the source")?;
    let words: Vec<String> = output.stdout.split_whitespace().map(|word| word.replace('.', "")).collect();
    let numbers: Vec<u64> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let [0, before, after] = numbers[..] else { bail!("the source said {:?}: {}", output.stdout, output.stderr.trim()) };
    Ok(Cut { generation, before, after })
}

fn wait_for(site: &Site, name: &str) -> Result<Value> {
    let deadline = Instant::now() + POINT_LIMIT;
    loop {
        let all = site.appliance.json(&["point", "list", &site.job])?;
        let mut points = all["points"].as_array().into_iter().flatten();
        if let Some(point) = points.find(|point| point["name"] == name) {
            return Ok(point.clone());
        }
        ensure!(Instant::now() < deadline, "no recovery point for the marker: {all:#}");
        command::pause(Duration::from_millis(500))?;
    }
}
