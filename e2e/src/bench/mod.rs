//! `cargo xtask bench`: each line of the goals, ours and its peer in one run, interleaved, medians.
//!
//! A run makes its own sets, disks and networks, and takes them down at its end. Ours is the product's programs, from order to protected replica;
//! only the kernel's capture is left out, but for what is measured in guests. Ratios hold on any machine, speeds inside one run only.

mod apply;
mod disk;
mod facts;
mod forward;
mod guests;
mod incompressible;
mod meter;
mod mirror;
mod network;
mod ours;
mod peers;
mod report;
mod resync;
mod sets;
mod source;
mod stream;
mod throttle;
mod trace;
mod verify;
mod wan;
mod wire;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

pub use forward::{ForwardArgs, run as forward};
pub use guests::serve_beats;
pub use source::{SourceArgs, run as source};
pub use wan::{WanArgs, run as wan};

use crate::lab::{command, space};
use disk::Disk;
use facts::Facts;
use network::Traffic;
use peers::Peers;
use report::{Line, Report};
use sets::{Kind, Set};

#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// Names to measure; all that this machine can measure if none.
    pub names: Vec<String>,
    /// Where the results go as JSON.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Sets of a sixteenth of the size and one run of each: tells whether the bench works, not how fast anything is.
    #[arg(long)]
    pub short: bool,
    /// Runs of each side.
    #[arg(long, default_value_t = 5)]
    pub runs: usize,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Where disks and sets lie: a disk, not a tmpfs, with 12 GB of room, and 45 GB for `resync`.
    #[arg(long)]
    pub folder: Option<PathBuf>,
    /// Leave logs and journals behind.
    #[arg(long)]
    pub keep: bool,
}

type Measure = fn(&Bench) -> Result<Line>;

/// Every name of the goals table, and how it is measured.
const NAMES: &[(&str, Measure)] = &[
    ("mirror-os", mirror::system),
    ("mirror-db", mirror::database),
    ("mirror-wan10", mirror::wan10),
    ("mirror-wan100", mirror::wan100),
    ("resync", resync::measure),
    ("verify", verify::measure),
    ("lag", guests::lag),
    ("overhead", guests::overhead),
    ("wire-oltp", wire::oltp),
    ("wire-pgbench", wire::pgbench),
    ("onebyte", wire::one_byte),
    ("apply", apply::measure),
    ("incompressible", incompressible::measure),
    ("throttle", throttle::measure),
];

/// What one copy took.
#[derive(Clone, Debug)]
pub struct Measured {
    pub seconds: f64,
    /// Seconds of the processors on the source's side.
    pub source_processor: f64,
    pub target_processor: f64,
    pub traffic: Traffic,
    /// Segments as the agent counts them.
    pub stream_bytes: Option<u64>,
    /// Seconds until everything was on the disk, where that was measured.
    pub synced: Option<f64>,
}

pub struct Bench {
    folder: PathBuf,
    options: BenchArgs,
    peers: Peers,
}

impl Bench {
    fn runs(&self) -> usize {
        if self.options.short { 1 } else { self.options.runs.max(1) }
    }

    /// A set on a disk of its own. `part` is how much of the whole set.
    fn set(&self, kind: Kind, part: f64) -> Result<(Disk, Set)> {
        let disk = Disk::make(&self.folder, &format!("set-{}", kind.name()))?;
        let share = if self.options.short { part / 16.0 } else { part };
        let set = Set::make(kind, disk.root(), self.options.seed, share)?;
        disk.sync()?;
        say(&format!("set {}: {} entries, {:.1} MB", kind.name(), set.entries, set.bytes as f64 / 1e6));
        Ok((disk, set))
    }

    fn target(&self) -> Result<Disk> {
        let disk = Disk::make(&self.folder, "target")?;
        disk.sync()?;
        Ok(disk)
    }
}

fn say(text: &str) {
    eprintln!("bench: {text}");
}

/// Runs the bench in a mount namespace of its own, so that whatever ends it, nothing stays mounted.
pub fn run(args: &BenchArgs) -> Result<ExitCode> {
    if let Some(code) = space::run_inside()? {
        return Ok(code);
    }
    command::heed_interrupts()?;
    match measure_all(args) {
        Ok(closing) => {
            println!("bench: PASS {closing}");
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            println!("bench: FAIL {error:#}");
            Ok(ExitCode::FAILURE)
        }
    }
}

fn measure_all(args: &BenchArgs) -> Result<String> {
    ensure!(rustix::process::geteuid().is_root(), "disks and networks need root: run this command as root (sudo)");
    for name in &args.names {
        let known: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
        ensure!(known.contains(&name.as_str()), "there is no benchmark {name:?}; there are {}", known.join(" "));
    }
    let base = args.folder.clone().unwrap_or_else(std::env::temp_dir);
    let folder = std::path::absolute(base)?.join(format!("standin-bench-{}", std::process::id()));
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let facts = Facts::read(&folder);
    let peers = Peers::prepare(&folder.join("peers"))?;
    let bench = Bench { folder, options: args.clone(), peers };
    let done = measure_names(&bench, &facts);
    if args.keep {
        say(&format!("logs are in {}", bench.folder.display()));
    } else {
        fs::remove_dir_all(&bench.folder).ok();
    }
    done
}

fn measure_names(bench: &Bench, facts: &Facts) -> Result<String> {
    let args = &bench.options;
    let asked = |name: &str| args.names.is_empty() || args.names.iter().any(|asked| asked == name);
    let (mut lines, mut failed) = (Vec::new(), Vec::new());
    for (name, measure) in NAMES.iter().filter(|(name, _)| asked(name)) {
        match measure(bench) {
            Ok(line) => {
                report::print_head();
                line.print();
                line.print_figures();
                lines.push(line);
            }
            Err(error) => {
                println!("{name:<15} could not be measured: {error:#}");
                failed.push(format!("{name} could not be measured: {error:#}"));
            }
        }
    }
    let report = Report { machine: facts, short: args.short, seed: args.seed, results: &lines };
    if let Some(path) = &args.json {
        let text = serde_json::to_vec_pretty(&report)?;
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    conclude(args, &lines, failed)
}

/// The table once more, and the verdict.
fn conclude(args: &BenchArgs, lines: &[Line], mut failed: Vec<String>) -> Result<String> {
    println!();
    report::print_head();
    lines.iter().for_each(Line::print);
    let goals = || lines.iter().flat_map(|line| &line.goals);
    let held = goals().filter(|goal| goal.pass).count();
    for line in lines {
        failed.extend(
            line.goals
                .iter()
                .filter(|goal| !goal.pass)
                .map(|goal| format!("{} {}: {:.3}, goal {}", line.name, goal.what, goal.ratio, goal.goal)),
        );
    }
    // Small sets tell whether the bench works; what they take says nothing about a goal.
    if args.short {
        failed.retain(|why| why.contains("measured"));
    }
    if !failed.is_empty() {
        bail!("{held} of {} goals hold; {}", goals().count(), failed.join("; "));
    }
    Ok(if args.short { format!("{} names work, in the short form", lines.len()) } else { format!("{held} goals hold") })
}

/// The next line that a child prints.
fn first_line(child: &mut Child) -> Result<String> {
    let out = child.stdout.take().context("the child's output is not piped")?;
    let mut reader = BufReader::with_capacity(1, out);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    child.stdout = Some(reader.into_inner());
    ensure!(!line.is_empty(), "it ended without a word");
    Ok(line.trim().to_owned())
}

/// Clock ticks a second: what Linux shows to programs, on every architecture.
const TICKS: f64 = 100.0;

fn times(path: &Path, fields: [usize; 2]) -> Result<f64> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    // The name in brackets may have spaces.
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let all: Vec<&str> = rest.split_whitespace().collect();
    let ticks = fields.iter().map(|field| all.get(*field).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or_default()).sum::<f64>();
    Ok(ticks / TICKS)
}

/// Processor seconds that a process has used; proc(5) counts these fields as 14 and 15.
fn processor_seconds(pid: u32) -> Result<f64> {
    times(Path::new(&format!("/proc/{pid}/stat")), [11, 12])
}

/// Processor seconds of this process's children that have ended, and of theirs.
fn children_seconds() -> Result<f64> {
    times(Path::new("/proc/self/stat"), [13, 14])
}

/// Lets what earlier measurements wrote reach the disk, so that it does not slow the next one down.
fn settle() -> Result<()> {
    command::run(&["sync"], Duration::from_secs(300)).map(drop)
}
