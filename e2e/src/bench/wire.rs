//! What a database's writes become in the stream: real recordings, given to the agent's own signatures and sealer, against a delta that knows every old page.
//!
//! Left out are the capture, which sees the same writes, and what TLS adds. A segment is sealed as the pump does it: when it is full, or old enough.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use standin_agent::signature::{SignatureSizes, Signatures};
use standin_journal::Sealer;
use standin_model::{Attributes, ByteLen, ByteOffset, NodeId, NodeKind, OpSeq, Operation, PatchPart, Timestamp, VolumeId, patch};

use super::report::{Figure, Goal, Line, Sense};
use super::stream::{self, PAGE, SEGMENT_BYTES};
use super::trace::{self, Change, Load, OLTP_SCRIPT, Trace};
use super::{Bench, say};
use crate::random::Random;

/// As in the agent's pump.
const SEGMENT_AGE: Duration = Duration::from_millis(15);
const READ_BYTES: usize = 1 << 20;
/// An item holds this much of a larger write.
const ITEM_BYTES: usize = 256 << 10;
const LEVEL: i32 = 3;
const MEMORY: usize = 64 << 20;
/// What perfect knowledge sends of a page: the blocks of this size that differ.
const PERFECT_BLOCK: usize = 64;

const PGBENCH: [Load; 1] = [Load { name: "pgbench", script: None, buffers_mib: 128, seconds: 90, rate: 120 }];
const OLTP: [Load; 3] = [
    Load { name: "OLTP", script: Some(OLTP_SCRIPT), buffers_mib: 128, seconds: 60, rate: 120 },
    Load { name: "OLTP, long", script: Some(OLTP_SCRIPT), buffers_mib: 128, seconds: 240, rate: 120 },
    Load { name: "OLTP, small buffers", script: Some(OLTP_SCRIPT), buffers_mib: 16, seconds: 60, rate: 120 },
];

pub fn pgbench(bench: &Bench) -> Result<Line> {
    measure(bench, "wire-pgbench", &PGBENCH, 0.95)
}

pub fn oltp(bench: &Bench) -> Result<Line> {
    measure(bench, "wire-oltp", &OLTP, 0.80)
}

/// Each load is recorded once: bytes are counted, and every side has the same recording.
fn measure(bench: &Bench, name: &str, loads: &[Load], saved_min: f64) -> Result<Line> {
    let (mut goals, mut figures) = (Vec::new(), Vec::new());
    for load in loads {
        let load = if bench.options.short { Load { seconds: load.seconds.min(15), ..*load } } else { *load };
        let folder = bench.folder.join("database");
        let trace = trace::record(&folder, load).with_context(|| format!("recording {}", load.name))?;
        let written = trace.bytes_written as f64;
        say(&format!("{}: {} transactions wrote {:.1} MB in {} changes", load.name, trace.transactions, written / 1e6, trace.events.len()));
        let begun = Instant::now();
        let ours = sent(&trace, &mut Knowledge::Signatures(Signatures::new(MEMORY, 0x5a5a_1234_0000_0001, SignatureSizes::default())))?;
        let seconds = begun.elapsed().as_secs_f64();
        let perfect = sent(&trace, &mut Knowledge::Everything(HashMap::new()))?;
        let plain = sent(&trace, &mut Knowledge::Nothing)?;
        std::fs::remove_dir_all(&folder)?;
        say(&format!(
            "{}: {:.2} MB sent, {:.2} MB with every old page known, {:.2} MB as plain writes",
            load.name,
            ours / 1e6,
            perfect / 1e6,
            plain / 1e6
        ));
        let of = |what: &str| format!("{}: {what}", load.name);
        goals.push(Goal::ratio(of("sent, against a delta of known pages"), "MB", ours / 1e6, perfect / 1e6, Sense::AtMost, 1.05));
        goals.push(Goal::figure(of("spared of what is written"), "", 1.0 - ours / written, Sense::AtLeast, saved_min));
        let figure = |what: &str, unit, value| Figure { what: of(what), unit, value };
        figures.extend([
            figure("written", "MB", written / 1e6),
            figure("written for a transaction", "KB", written / 1e3 / trace.transactions as f64),
            figure("sent of what is written", "", ours / written),
            figure("sent by perfect knowledge", "", perfect / written),
            figure("sent as plain writes", "", plain / written),
            figure("processor for signatures and sealing", "s/GB", seconds / (written / 1e9)),
        ]);
    }
    Ok(Line::new(name, 1, goals, figures))
}

/// What the sending side knows of the pages that are written over.
enum Knowledge {
    Nothing,
    /// The agent's, filled by the mirror's read.
    Signatures(Signatures),
    /// Every byte of every file.
    Everything(HashMap<usize, Vec<u8>>),
}

fn node(file: usize) -> NodeId {
    NodeId { volume: VolumeId(0), subvolume: 0, inode: 1000 + file as u64, generation: 1 }
}

fn shown(file: usize, size: u64) -> Operation {
    let attributes = Attributes { mode: 0o600, owner: 0, group: 0, modified: Timestamp(0) };
    let (node, accessed, size) = (node(file), Timestamp(0), ByteLen(size));
    Operation::MirrorNode { node, kind: NodeKind::File, attributes, accessed, flags: 0, project: 0, size, xattrs: Vec::new() }
}

impl Knowledge {
    /// The mirror reads the file.
    fn read(&mut self, file: usize, content: Vec<u8>) {
        match self {
            Knowledge::Nothing => {}
            Knowledge::Signatures(signatures) => {
                signatures.shape(shown(file, content.len() as u64));
                for (number, piece) in content.chunks(READ_BYTES).enumerate() {
                    let offset = ByteOffset((number * READ_BYTES) as u64);
                    signatures.shape(Operation::MirrorData { node: node(file), offset, data: piece.to_vec() });
                }
            }
            Knowledge::Everything(contents) => drop(contents.insert(file, content)),
        }
    }

    fn shape(&mut self, file: usize, is_log: bool, operation: Operation) -> Operation {
        match self {
            Knowledge::Nothing => operation,
            Knowledge::Signatures(signatures) => signatures.shape(operation),
            Knowledge::Everything(contents) => known(contents.entry(file).or_default(), is_log, operation),
        }
    }
}

/// The best that can be said of a write by somebody who has what was there. A log's old content is another log's.
fn known(content: &mut Vec<u8>, is_log: bool, operation: Operation) -> Operation {
    match operation {
        Operation::Write { node, offset, data } => {
            let (from, to) = (offset.0 as usize, offset.0 as usize + data.len());
            let had = content.len() >= to;
            content.resize(content.len().max(to), 0);
            let old = content[from..to].to_vec();
            content[from..to].copy_from_slice(&data);
            if is_log || !had {
                return Operation::Write { node, offset, data };
            }
            let mut parts: Vec<PatchPart> = Vec::new();
            for (number, (new, old)) in data.chunks(PERFECT_BLOCK).zip(old.chunks(PERFECT_BLOCK)).enumerate() {
                if new == old {
                    continue;
                }
                let at = (number * PERFECT_BLOCK) as u32;
                match parts.last_mut().filter(|last| last.at as usize + last.data.len() == at as usize) {
                    Some(last) => last.data.extend_from_slice(new),
                    None => parts.push(PatchPart { at, data: new.to_vec() }),
                }
            }
            let sent: usize = parts.iter().map(|part| part.data.len() + 4).sum();
            if sent * 2 > data.len() {
                return Operation::Write { node, offset, data };
            }
            Operation::Patch { node, offset, len: ByteLen(data.len() as u64), parts, checksum: patch::checksum_of(&data) }
        }
        Operation::Truncate { node, size } => {
            content.resize(size.0 as usize, 0);
            Operation::Truncate { node, size }
        }
        other => other,
    }
}

/// Bytes of the segments that a recording becomes.
fn sent(trace: &Trace, knowledge: &mut Knowledge) -> Result<f64> {
    for file in 0..trace.first_files {
        knowledge.read(file, trace.content(file));
    }
    let mut out = Out { sealer: Sealer::new(1, OpSeq(1), LEVEL), opened: None, bytes: 0 };
    for event in &trace.events {
        let node = node(event.file);
        let operations: Vec<Operation> = match &event.change {
            Change::Write { offset, data } => data
                .chunks(ITEM_BYTES)
                .enumerate()
                .map(|(number, piece)| Operation::Write {
                    node,
                    offset: ByteOffset(offset + (number * ITEM_BYTES) as u64),
                    data: piece.to_vec(),
                })
                .collect(),
            Change::Truncate { size } => vec![Operation::Truncate { node, size: ByteLen(*size) }],
            Change::End => vec![Operation::Forget { node }],
        };
        for operation in operations {
            out.push(event.at, knowledge.shape(event.file, trace.is_log(event.file), operation));
        }
    }
    out.seal();
    Ok(out.bytes as f64)
}

struct Out {
    sealer: Sealer,
    opened: Option<Duration>,
    bytes: u64,
}

impl Out {
    fn push(&mut self, at: Duration, operation: Operation) {
        if self.opened.is_some_and(|opened| at >= opened + SEGMENT_AGE) {
            self.seal();
        }
        self.opened.get_or_insert(at);
        self.sealer.push(operation, Timestamp(at.as_nanos() as i64));
        if self.sealer.raw_len() >= SEGMENT_BYTES {
            self.seal();
        }
    }

    fn seal(&mut self) {
        self.opened = None;
        self.bytes += self.sealer.seal().map_or(0, |segment| segment.byte_len() as u64);
    }
}

/// Pages in each of which one byte was changed.
const PAGES: usize = 1000;

pub fn one_byte(bench: &Bench) -> Result<Line> {
    // Rows of a database: some of their bytes are random.
    let patterns = stream::patterns(bench.options.seed);
    let mut content: Vec<u8> = (0..PAGES).flat_map(|page| patterns[page % patterns.len()].clone()).collect();
    let mut random = Random(bench.options.seed);
    // Of few patterns each page would compress to nothing beside the others.
    content.chunks_mut(128).for_each(|row| random.fill(&mut row[12..24]));
    let together = one_byte_each(&content, &mut random, false)?;
    let alone = one_byte_each(&content, &mut random, true)?;
    let goals = vec![Goal::figure("one byte changed in each of 1000 pages", "bytes", together, Sense::AtMost, 64.0)];
    let figures = vec![Figure { what: "each in a segment of its own".into(), unit: "bytes", value: alone }];
    Ok(Line::new("onebyte", 1, goals, figures))
}

fn one_byte_each(content: &[u8], random: &mut Random, alone: bool) -> Result<f64> {
    let mut signatures = Knowledge::Signatures(Signatures::new(MEMORY, random.number(), SignatureSizes::default()));
    signatures.read(0, content.to_vec());
    let mut out = Out { sealer: Sealer::new(1, OpSeq(1), LEVEL), opened: None, bytes: 0 };
    for (number, page) in content.chunks(PAGE).enumerate() {
        let mut data = page.to_vec();
        let at = random.below(PAGE as u64) as usize;
        data[at] = data[at].wrapping_add(1);
        let write = Operation::Write { node: node(0), offset: ByteOffset((number * PAGE) as u64), data };
        let shaped = signatures.shape(0, false, write);
        ensure!(matches!(shaped, Operation::Patch { .. }), "a page went as it is");
        out.push(Duration::ZERO, shaped);
        if alone {
            out.seal();
        }
    }
    out.seal();
    Ok(out.bytes as f64 / PAGES as f64)
}
