//! Data that no compression makes smaller: it must cost neither bytes nor, for finding that out, much of the processor.

use std::time::Instant;

use anyhow::Result;
use standin_journal::Sealer;
use standin_model::{ByteOffset, NodeId, OpSeq, Operation, Timestamp, VolumeId};

use super::mirror::one_of_ours;
use super::network::Link;
use super::report::{Figure, Goal, Line, Sense, median};
use super::sets::Kind;
use super::{Bench, say};
use crate::random::Random;

/// What the finding costs is measured on so much.
const SEALED_BYTES: usize = 256 << 20;
const PIECE_BYTES: usize = 1 << 20;

pub fn measure(bench: &Bench) -> Result<Line> {
    let (disk, set) = bench.set(Kind::Random, 1.0)?;
    let (mut runs, mut costs) = (Vec::new(), Vec::new());
    for run in 0..bench.runs() {
        let measured = one_of_ours(bench, &disk, Link::Local, run == 0)?;
        say(&format!("incompressible: {:.2} s, source's processor {:.2} s", measured.seconds, measured.source_processor));
        runs.push(measured);
        // In turn, so that a busy moment of the machine meets both.
        costs.push((seal_seconds(standin_agent::pump::LEVEL_FIRST)? - seal_seconds(0)?).max(0.0));
    }
    let run = median(&runs, |run| run.seconds);
    let bytes = set.bytes as f64;
    let expansion = run.stream_bytes.unwrap_or(u64::MAX) as f64 / bytes - 1.0;
    let cost = median(&costs, |cost| *cost) / SEALED_BYTES as f64 * bytes / run.source_processor;
    let goals = vec![
        Goal::figure("more than the content", "%", expansion * 100.0, Sense::AtMost, 0.5),
        Goal::figure("finding out, of the agent's processor time", "%", cost * 100.0, Sense::AtMost, 5.0),
    ];
    let figures = vec![
        Figure { what: "speed".into(), unit: "MB/s", value: bytes / 1e6 / run.seconds },
        Figure { what: "source's processor".into(), unit: "s/GB", value: run.source_processor / (bytes / 1e9) },
        Figure { what: "on the wire, of the content".into(), unit: "", value: run.traffic.sent as f64 / bytes },
    ];
    Ok(Line::new("incompressible", bench.runs(), goals, figures))
}

/// Seconds to seal random bytes in pieces of the mirror's size, at a level.
fn seal_seconds(level: i32) -> Result<f64> {
    let mut piece = vec![0; PIECE_BYTES];
    Random(7).fill(&mut piece);
    let mut sealer = Sealer::new(1, OpSeq(1), level);
    let node = NodeId { volume: VolumeId(0), subvolume: 0, inode: 12, generation: 1 };
    let begun = Instant::now();
    for number in 0..(SEALED_BYTES / PIECE_BYTES) as u64 {
        // Each piece differs, as a file's do.
        piece[..8].copy_from_slice(&number.to_le_bytes());
        sealer.push(Operation::MirrorData { node, offset: ByteOffset(number * PIECE_BYTES as u64), data: piece.clone() }, Timestamp(1));
        anyhow::ensure!(sealer.seal().is_some(), "nothing was sealed");
    }
    Ok(begun.elapsed().as_secs_f64())
}
