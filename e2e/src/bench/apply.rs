//! Apply alone: a worker's process on a replica disk, with a journal that lies ready. Trees against local tar, pages against writing them in place.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use standin_model::{OpSeq, VolumeId, VolumeSpec};
use standin_replica::disk::{DiskPlan, create};

use super::disk::DISK_BYTES;
use super::report::{Figure, Goal, Line, Sense, median};
use super::sets::Kind;
use super::stream::{self, PAGE, Writes};
use super::{Bench, peers, say, settle, source};
use crate::lab::command;
use crate::product::program;

const LIMIT: Duration = Duration::from_secs(600);

pub fn measure(bench: &Bench) -> Result<Line> {
    let (tree_goal, figures) = trees(bench)?;
    let goals = std::iter::once(tree_goal).chain(pages(bench)?).collect();
    Ok(Line::new("apply", bench.runs(), goals, figures))
}

fn trees(bench: &Bench) -> Result<(Goal, Vec<Figure>)> {
    let (disk, set) = bench.set(Kind::System, 1.0)?;
    let (journal, archive) = (bench.folder.join("apply-journal"), bench.folder.join("set.tar"));
    let last = stream::of_set(disk.root(), &journal)?;
    peers::pack(disk.root(), &archive)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..bench.runs() {
        settle()?;
        let mut worker = Worker::start(bench, &journal)?;
        settle()?;
        ours.push(worker.apply(last)?.seconds);
        drop(worker);
        let target = bench.target()?;
        settle()?;
        theirs.push(peers::unpack(&archive, &target)?);
        say(&format!("apply: {:.2} s, tar -x: {:.2} s", ours[ours.len() - 1], theirs[theirs.len() - 1]));
    }
    std::fs::remove_dir_all(&journal)?;
    std::fs::remove_file(&archive)?;
    let (ours, theirs) = (median(&ours, |s| *s), median(&theirs, |s| *s));
    let speed = |seconds: f64| set.bytes as f64 / 1e6 / seconds;
    let goal = Goal::ratio("trees, speed against local tar -x", "MB/s", speed(ours), speed(theirs), Sense::AtLeast, 0.6);
    let figure =
        |what: &str, seconds: f64| Figure { what: format!("trees, {what}"), unit: "entries/s", value: set.entries as f64 / seconds };
    Ok((goal, vec![figure("ours", ours), figure("local tar -x", theirs)]))
}

fn pages(bench: &Bench) -> Result<Vec<Goal>> {
    let scale = if bench.options.short { 16 } else { 1 };
    let journal = bench.folder.join("pages-journal");
    let writes = Writes::new((512 << 20) / PAGE as u64 / scale, 40_000 / scale, bench.options.seed).record(&journal)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..bench.runs() {
        let mut worker = Worker::start(bench, &journal)?;
        worker.apply(writes.shown)?;
        settle()?;
        ours.push(worker.apply(writes.last)?);
        drop(worker);
        theirs.push(in_place(bench, &writes)?);
        say(&format!("pages: {:.2} s, in place: {:.2} s", ours[ours.len() - 1].seconds, theirs[theirs.len() - 1]));
    }
    std::fs::remove_dir_all(&journal)?;
    let speed = |seconds: f64| writes.count as f64 * PAGE as f64 / 1e6 / seconds;
    let (ours, theirs) = (median(&ours, |run| run.seconds), median(&theirs, |s| *s));
    let what = "8 KB pages at random, speed against in place";
    Ok(vec![
        Goal::ratio(what, "MB/s", speed(ours.seconds), speed(theirs), Sense::AtLeast, 0.5),
        Goal::figure("8 KB pages, applied until durable", "s", ours.durable_after, Sense::AtMost, 1.0),
    ])
}

/// Writes the same pages to a file that has content, as fast as the page cache takes them.
fn in_place(bench: &Bench, writes: &Writes) -> Result<f64> {
    let target = bench.target()?;
    let file = File::create(target.root().join("pages"))?;
    let patterns = stream::patterns(writes.seed);
    for number in 0..writes.pages {
        file.write_all_at(&patterns[number as usize % stream::PATTERNS], number * PAGE as u64)?;
    }
    target.sync()?;
    settle()?;
    let begun = Instant::now();
    for (number, pattern) in writes.order() {
        file.write_all_at(&patterns[pattern], number * PAGE as u64)?;
    }
    Ok(begun.elapsed().as_secs_f64())
}

#[derive(Clone, Copy, Debug)]
struct Applied {
    seconds: f64,
    /// The longest that anything was in the replica and not yet safe from a power cut.
    durable_after: f64,
}

/// A worker as the appliance starts it, on a fresh disk.
struct Worker {
    child: Child,
    stdin: Option<ChildStdin>,
    reports: Receiver<(Instant, Value)>,
    folder: PathBuf,
}

impl Worker {
    fn start(bench: &Bench, journal: &Path) -> Result<Worker> {
        let folder = bench.folder.join("worker");
        std::fs::create_dir_all(&folder)?;
        let disk = folder.join("disk.raw");
        create(&disk, &plan()?)?;
        let log = File::options().create(true).append(true).open(bench.folder.join("worker.log"))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program("standin-appliance")?).arg("worker");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn().context("starting a worker")?;
        let (mut stdin, stdout) = (child.stdin.take().context("stdin is piped")?, child.stdout.take().context("stdout is piped")?);
        let orders = json!({
            "job": "bench", "disk": disk, "journal": journal, "node_table": folder.join("nodes.redb"), "run_directory": folder.join("run"),
            "volumes": [0], "durable": 0, "profile": {"firmware": "bios", "controller": "virtio-scsi", "nic_driver": "virtio_net"},
        });
        writeln!(stdin, "{orders}")?;
        let (sender, reports) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let report = serde_json::from_str(&line).unwrap_or(Value::Null);
                if sender.send((Instant::now(), report)).is_err() {
                    return;
                }
            }
        });
        let worker = Worker { child, stdin: Some(stdin), reports, folder };
        while worker.next()?.1["report"] != "ready" {}
        Ok(worker)
    }

    fn next(&self) -> Result<(Instant, Value)> {
        let (at, report) = self.reports.recv_timeout(LIMIT).context("the worker says nothing any more; see worker.log")?;
        match report["report"].as_str() {
            Some("failed" | "want") => bail!("the worker says {report}"),
            _ => Ok((at, report)),
        }
    }

    /// Has it apply up to `last`, and waits until that is durable.
    fn apply(&mut self, last: OpSeq) -> Result<Applied> {
        let begun = Instant::now();
        let stdin = self.stdin.as_mut().context("the worker is ended")?;
        writeln!(stdin, "{}", json!({"tell": "durable", "seq": last}))?;
        let (mut waiting, mut seconds, mut durable_after) = (Vec::new(), None, 0.0f64);
        loop {
            let (at, report) = self.next()?;
            let (Some(seq), Some(marked)) = (report["seq"].as_u64(), report["marked"].as_u64()) else { continue };
            waiting.push((at, seq));
            for (applied_at, _) in waiting.extract_if(.., |(_, seq)| *seq <= marked) {
                durable_after = durable_after.max((at - applied_at).as_secs_f64());
            }
            if seq >= last.0 && seconds.is_none() {
                seconds = Some((at - begun).as_secs_f64());
            }
            if let Some(seconds) = seconds.filter(|_| marked >= last.0) {
                return Ok(Applied { seconds, durable_after });
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It marks and ends when its stdin closes.
        self.stdin = None;
        if !matches!(command::wait(&mut self.child, Duration::from_secs(60)), Ok(Some(_))) {
            self.child.kill().ok();
            self.child.wait().ok();
        }
        std::fs::remove_dir_all(&self.folder).ok();
    }
}

fn plan() -> Result<DiskPlan> {
    let uuid = crate::lab::disk::random_uuid()?;
    let inventory = source::inventory(&uuid, 0, 0);
    let volume = &inventory.volumes[0];
    let spec = VolumeSpec {
        id: VolumeId(0),
        mount_point: volume.mount_point.clone(),
        file_system: standin_model::FileSystem::Ext4,
        uuid,
        label: String::new(),
        size: volume.size,
    };
    Ok(DiskPlan::make(&inventory, &[spec], 2 * DISK_BYTES)?)
}
