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
/// The agent refuses while the replica is resynced, when it has too much to do, and until it captures again after its start.
const RESYNC: [&str; 3] = ["STANDIN-E6021", "STANDIN-E6022", "STANDIN-E6025"];
const LAST_CONSISTENT: &str = "STANDIN-E4068";
/// A marker that the replica meets while it misses something gives no point; the history says so.
const TRIES_MAX: u32 = 30;
const POINT_LIMIT: Duration = Duration::from_secs(300);

/// A point that was found sound.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    pub name: String,
    /// Markers that it took: some met a resync.
    pub tries: u32,
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
    let mut tries = 0;
    let (name, cut, taken) = loop {
        let (name, cut) = mark(site, clients.generation(), name, &mut tries)?;
        if let Some(taken) = wait_for(site, &name)? {
            break (name, cut, taken);
        }
        ensure!(tries < TRIES_MAX, "no recovery point for any of {tries} markers");
    };
    ensure!(taken["consistent"] == true && taken["kind"] == "marker", "{taken:#}");
    clients.hear_beyond(cut.after)?;
    let id = taken["id"].as_str().context("a point without an id")?;
    let disk = site.appliance.replica_disk(&site.job).with_file_name("points").join(id).join("disk.raw");
    let began = Instant::now();
    let found = databases::disk(&disk, run.artifacts())?;
    let kept = clients.record().judge(&found, Some(&cut)).with_context(|| format!("cut {cut:?}; found {found:?}"))?;
    let examined_seconds = began.elapsed().as_secs_f64();
    remove(site, id)?;
    let (marked, held_ms) = (cut.after - cut.before, taken["held_ms"].as_u64().unwrap_or(0));
    Ok(Point { name, tries, marked_seconds: marked as f64 / 100.0, held_ms, examined_seconds, kept })
}

/// Names a marker between two looks at the source's clock; again while there is a resync, which no state of the source can be named in. Returns the name
/// that was taken in the end: a refused one may come all the same.
fn mark(site: &mut Site, generation: u64, name: &str, tries: &mut u32) -> Result<(String, Cut)> {
    let deadline = Instant::now() + MARK_LIMIT;
    loop {
        *tries += 1;
        let name = format!("{name}-{tries}");
        match mark_once(site, generation, &name) {
            Ok(cut) => return Ok((name, cut)),
            Err(refusal) if Instant::now() > deadline || !RESYNC.iter().any(|code| format!("{refusal:#}").contains(code)) => {
                return Err(refusal);
            }
            Err(_) => command::pause(Duration::from_secs(2))?,
        }
    }
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

/// While the job is resynced the appliance keeps the last consistent state that there is.
fn remove(site: &Site, id: &str) -> Result<()> {
    let deadline = Instant::now() + MARK_LIMIT;
    loop {
        match site.appliance.json(&["point", "remove", &site.job, id]) {
            Err(refusal) if Instant::now() < deadline && format!("{refusal:#}").contains(LAST_CONSISTENT) => {
                command::pause(Duration::from_secs(2))?;
            }
            removed => return removed.map(drop),
        }
    }
}

/// The marker's point, or nothing if the replica was worth none there.
fn wait_for(site: &Site, name: &str) -> Result<Option<Value>> {
    let deadline = Instant::now() + POINT_LIMIT;
    loop {
        let all = site.appliance.json(&["point", "list", &site.job])?;
        let mut points = all["points"].as_array().into_iter().flatten();
        if let Some(point) = points.find(|point| point["name"] == name) {
            return Ok(Some(point.clone()));
        }
        let history = site.appliance.json(&["job", "history", &site.job])?;
        let mut rows = history.as_array().or(history["history"].as_array()).into_iter().flatten();
        if rows.any(|row| row["kind"] == "point-failed" && row["name"] == name) {
            return Ok(None);
        }
        ensure!(Instant::now() < deadline, "no recovery point for the marker: {all:#}");
        command::pause(Duration::from_millis(500))?;
    }
}
