//! The initial mirror: over a local link against rsync and local tar, over slow ones against the best of what an administrator would try.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::disk::Disk;
use super::network::{Link, Network};
use super::ours::Ours;
use super::peers::{self, Peer};
use super::report::{Figure, Goal, Line, Sense, median};
use super::sets::{Kind, Set};
use super::{Bench, Measured, say, settle};
use crate::lab::command;

const MB: f64 = 1e6;
const GB: f64 = 1e9;
/// Of the whole sets, what goes over a slow link: the operating system's 88 MB, the database's 97 MB.
const SLOW_SYSTEM: f64 = 0.086;
const SLOW_DATABASE: f64 = 0.085;

/// One side's runs.
struct Side {
    name: String,
    runs: Vec<Measured>,
}

impl Side {
    fn median(&self) -> Measured {
        median(&self.runs, |run| run.seconds)
    }

    /// What it took, for who wants to know why.
    fn figures(&self, prefix: &str, set: &Set) -> Vec<Figure> {
        let (run, bytes) = (self.median(), set.bytes as f64);
        let mut figures = vec![
            ("speed", "MB/s", bytes / MB / run.seconds),
            ("source's processor", "s/GB", run.source_processor / (bytes / GB)),
            ("target's processor", "s/GB", run.target_processor / (bytes / GB)),
            ("on the wire, of the content", "", run.traffic.sent as f64 / bytes),
            ("came back on the wire", "KB", run.traffic.received as f64 / 1e3),
        ];
        figures.extend(run.synced.map(|synced| ("speed until on disk", "MB/s", bytes / MB / synced)));
        let figure = |(what, unit, value)| Figure { what: format!("{prefix}{}: {what}", self.name), unit, value };
        figures.into_iter().map(figure).collect()
    }
}

pub fn system(bench: &Bench) -> Result<Line> {
    let (disk, set) = bench.set(Kind::System, 1.0)?;
    let archive = bench.folder.join("set.tar");
    peers::pack(disk.root(), &archive)?;
    let mut unpacked = Vec::new();
    let both = [Peer::Rsync(&[]), Peer::RsyncSsh];
    let (ours, theirs) = compare(bench, &disk, Link::Local, &both, || {
        let target = bench.target()?;
        unpacked.push(peers::unpack(&archive, &target)?);
        Ok(())
    })?;
    std::fs::remove_file(&archive)?;
    let (mut goals, mut figures) = local_goals(&ours, &theirs, &set, [1.0, 1.8]);
    let per_gb = ours.median().source_processor / (set.bytes as f64 / GB);
    goals.push(Goal::figure("source's processor time", "s/GB", per_gb, Sense::AtMost, 3.0));
    let tar = median(&unpacked, |seconds| *seconds);
    figures.push(Figure { what: "speed against local tar -x (to reach: 0.65)".into(), unit: "", value: tar / ours.median().seconds });
    figures.push(Figure { what: "local tar -x: speed".into(), unit: "MB/s", value: set.bytes as f64 / MB / tar });
    Ok(Line::new("mirror-os", bench.runs(), goals, figures))
}

pub fn database(bench: &Bench) -> Result<Line> {
    let (disk, set) = bench.set(Kind::Database, 1.0)?;
    let (ours, theirs) = compare(bench, &disk, Link::Local, &[Peer::Rsync(&[]), Peer::RsyncSsh], || Ok(()))?;
    let (goals, figures) = local_goals(&ours, &theirs, &set, [0.9, 2.0]);
    Ok(Line::new("mirror-db", bench.runs(), goals, figures))
}

fn local_goals(ours: &Side, theirs: &[Side], set: &Set, goals: [f64; 2]) -> (Vec<Goal>, Vec<Figure>) {
    let speed = |side: &Side| set.bytes as f64 / MB / side.median().seconds;
    let against = |(peer, goal): (&Side, f64)| {
        Goal::ratio(format!("speed against {}", peer.name), "MB/s", speed(ours), speed(peer), Sense::AtLeast, goal)
    };
    let figures = std::iter::once(ours).chain(theirs).flat_map(|side| side.figures("", set)).collect();
    (theirs.iter().zip(goals).map(against).collect(), figures)
}

pub fn wan10(bench: &Bench) -> Result<Line> {
    slow(bench, "mirror-wan10", 10_000_000, Some([0.95, 0.88]))
}

pub fn wan100(bench: &Bench) -> Result<Line> {
    slow(bench, "mirror-wan100", 100_000_000, None)
}

/// Both sets over a link with a round trip of 50 ms: no peer is faster, and the link is used.
fn slow(bench: &Bench, name: &str, bits: u64, use_goals: Option<[f64; 2]>) -> Result<Line> {
    let link = Link::Slow { bits, delay_ms: 25, loss: 0.0 };
    let (mut walls, mut uses, mut figures) = (Vec::new(), Vec::new(), Vec::new());
    for (index, (kind, part)) in [(Kind::System, SLOW_SYSTEM), (Kind::Database, SLOW_DATABASE)].into_iter().enumerate() {
        let (disk, set) = bench.set(kind, part)?;
        let tried: &[Peer] = match (kind, bits) {
            (Kind::Database, _) => &[Peer::Tar(Some(1)), Peer::Tar(Some(3)), Peer::Rsync(&["-z", "--compress-choice=zstd"])],
            (_, 10_000_000) => &[Peer::Tar(Some(9)), Peer::Rsync(&["-z", "--compress-choice=zstd"])],
            _ => &[Peer::Tar(Some(3)), Peer::Rsync(&["-z", "--compress-choice=zstd"])],
        };
        let (ours, theirs) = compare(bench, &disk, link, tried, || Ok(()))?;
        let best = theirs.iter().min_by(|a, b| a.median().seconds.total_cmp(&b.median().seconds)).expect("there are peers");
        let (ours_took, best_took) = (ours.median().seconds, best.median().seconds);
        let what = format!("{} set, time against {}", kind.name(), best.name);
        walls.push(Goal::ratio(what, "s", ours_took, best_took, Sense::AtMost, 1.0));
        let used = ours.median().traffic.sent as f64 * 8.0 / bits as f64 / ours_took;
        if let Some(goals) = use_goals {
            uses.push(Goal::figure(format!("{} set, use of the link", kind.name()), "", used, Sense::AtLeast, goals[index]));
        }
        let prefix = format!("{} set, ", kind.name());
        figures.extend(std::iter::once(&ours).chain(&theirs).flat_map(|side| side.figures(&prefix, &set)));
    }
    walls.extend(uses);
    Ok(Line::new(name, bench.runs(), walls, figures))
}

/// Ours and each peer in turn, as often as there are runs; `more` runs beside them. The first replica is compared with its source.
fn compare(bench: &Bench, set: &Disk, link: Link, tried: &[Peer], mut more: impl FnMut() -> Result<()>) -> Result<(Side, Vec<Side>)> {
    warm(set)?;
    let mut ours = Side { name: "ours".into(), runs: Vec::new() };
    let mut theirs: Vec<Side> = tried.iter().map(|peer| Side { name: peer.name(), runs: Vec::new() }).collect();
    for run in 0..bench.runs() {
        ours.runs.push(one_of_ours(bench, set, link, run == 0)?);
        tell(&ours);
        for (peer, side) in tried.iter().zip(&mut theirs) {
            let network = Network::new(link)?;
            let target = bench.target()?;
            settle()?;
            side.runs.push(bench.peers.copy(*peer, &network, set.root(), &target)?);
            tell(side);
        }
        settle()?;
        more()?;
    }
    Ok((ours, theirs))
}

fn tell(side: &Side) {
    let Some(run) = side.runs.last() else { return };
    let (sent, seconds) = (run.traffic.sent as f64 / MB, run.seconds);
    say(&format!("{}: {seconds:.2} s, source's processor {:.2} s, {sent:.1} MB sent", side.name, run.source_processor));
}

pub fn one_of_ours(bench: &Bench, set: &Disk, link: Link, check: bool) -> Result<Measured> {
    let network = Network::new(link)?;
    let mut ours = Ours::start(&network, &bench.folder.join("ours"), set)?;
    settle()?;
    let measured = ours.mirror()?;
    let replica = ours.stop()?;
    if check {
        check_replica(&bench.folder, set, &replica)?;
    }
    Ok(measured)
}

/// The replica has to be the set, or its speed says nothing.
pub fn check_replica(folder: &Path, set: &Disk, replica: &Path) -> Result<()> {
    let plan = standin_replica::disk::finished_plan(replica)?.ok_or_else(|| anyhow::anyhow!("{} is not finished", replica.display()))?;
    let (part, _) = plan.volumes().next().ok_or_else(|| anyhow::anyhow!("the replica has no volume"))?;
    let mount = folder.join("replica");
    std::fs::create_dir_all(&mount)?;
    let options = format!("loop,noatime,ro,offset={},sizelimit={}", part.offset, part.size);
    let at = mount.display().to_string();
    command::run(&["mount", "-o", &options, &replica.display().to_string(), &at], Duration::from_secs(60))?;
    let differences = peers::differences(set.root(), &mount);
    command::run(&["umount", &at], Duration::from_secs(60))?;
    let differences = differences?;
    let first: Vec<&String> = differences.iter().take(5).collect();
    ensure!(differences.is_empty(), "the replica is not the set: {} differences, {first:?}", differences.len());
    Ok(())
}

/// The goals are for content in the page cache.
pub fn warm(set: &Disk) -> Result<()> {
    let words = ["sh", "-c", "tar -c -C \"$0\" . | cat >/dev/null", &set.root().display().to_string()];
    command::run(&words, Duration::from_secs(600)).map(drop)
}
