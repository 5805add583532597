//! Verification of a replica to which nothing has happened, against `rsync -c`, which also reads both sides and sends next to nothing.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::mirror::warm;
use super::network::{Link, Network, Traffic};
use super::ours::Ours;
use super::peers::Peer;
use super::report::{Figure, Goal, Line, Sense, median};
use super::sets::Kind;
use super::{Bench, Measured, say, settle};

/// Faster than any disk of this kind of machine: the goal is what comparing takes, not what a limit makes of it.
const RATE: &str = "8G";
const CHECKSUMS: Peer = Peer::Rsync(&["-c"]);

#[derive(Clone)]
struct Verified {
    seconds: f64,
    traffic: Traffic,
    /// Read on either side, by the verification's own count.
    bytes: u64,
    replica_bytes: u64,
    nodes: u64,
}

pub fn measure(bench: &Bench) -> Result<Line> {
    let (disk, set) = bench.set(Kind::System, 1.0)?;
    warm(&disk)?;
    let network = Network::new(Link::Local)?;
    let mut ours = Ours::start(&network, &bench.folder.join("ours"), &disk)?;
    ours.mirror()?;
    let beside = Network::new(Link::Local)?;
    let target = bench.target()?;
    bench.peers.copy(Peer::Rsync(&[]), &beside, disk.root(), &target)?;
    let (mut runs, mut theirs): (Vec<Verified>, Vec<Measured>) = (Vec::new(), Vec::new());
    for _ in 0..bench.runs() {
        settle()?;
        runs.push(one(&network, &ours)?);
        settle()?;
        theirs.push(bench.peers.copy(CHECKSUMS, &beside, disk.root(), &target)?);
        let (ours, peer) = (runs.last().map_or(0.0, |run| run.seconds), theirs.last().map_or(0.0, |run| run.seconds));
        say(&format!("verify: ours {ours:.2} s, {} {peer:.2} s", CHECKSUMS.name()));
    }
    ours.stop()?;
    let (run, peer) = (median(&runs, |run| run.seconds), median(&theirs, |run| run.seconds));
    let both = run.traffic.sent + run.traffic.received;
    let read = run.bytes.max(run.replica_bytes) as f64 / set.bytes as f64;
    let goals = vec![
        Goal::figure("bytes on the wire, of the content", "%", both as f64 * 100.0 / set.bytes as f64, Sense::AtMost, 0.1),
        Goal::figure("bytes on the wire", "KB", both as f64 / 1e3, Sense::AtMost, 100.0),
        Goal::figure("content read on a side, of all", "", read, Sense::AtMost, 1.05),
        Goal::ratio(format!("time against {}", CHECKSUMS.name()), "s", run.seconds, peer.seconds, Sense::AtMost, 1.0),
    ];
    let figures = vec![
        Figure { what: "nodes".into(), unit: "", value: run.nodes as f64 },
        Figure { what: "speed".into(), unit: "MB/s", value: set.bytes as f64 / 1e6 / run.seconds },
        Figure { what: "sent".into(), unit: "KB", value: run.traffic.sent as f64 / 1e3 },
        Figure { what: "came back".into(), unit: "KB", value: run.traffic.received as f64 / 1e3 },
        Figure {
            what: format!("{}: on the wire", CHECKSUMS.name()),
            unit: "KB",
            value: (peer.traffic.sent + peer.traffic.received) as f64 / 1e3,
        },
    ];
    Ok(Line::new("verify", bench.runs(), goals, figures))
}

/// One verification to its end. What goes over the wire besides, a status a second, counts as its own.
fn one(network: &Network, ours: &Ours) -> Result<Verified> {
    let before = network.bytes()?;
    ours.standin(&["verify", super::source::NAME, "--rate", RATE])?;
    let traffic = network.bytes()?.since(before);
    let history = ours.standin(&["job", "verifications", super::source::NAME])?;
    let record: &Value = &history["verifications"][0];
    ensure!(record["state"] == "equal", "the verification ended with {record:#}");
    let count = |name: &str| record[name].as_u64().with_context(|| format!("the verification tells no {name}"));
    // The command looks twice a second only.
    let seconds = count("ended")?.saturating_sub(count("started")?) as f64 / 1e9;
    Ok(Verified { seconds, traffic, bytes: count("bytes")?, replica_bytes: count("replica_bytes")?, nodes: count("nodes")? })
}
