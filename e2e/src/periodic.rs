//! A source that tells only which nodes changed, under churn: the fanotify driver, the agent's own runner with its freezes, and a real replica.
//!
//! No machine and no appliance: both file systems are loop devices here, and the test stands where the appliance does, between the agent's queue and an applier. Needs
//! root, loop devices and mkfs; where they lack, the tests say so and pass.

use crate::churn::{self, ChurnArgs};
use anyhow::{Context, Result};
use clap::Parser;
use standin_agent::host::Host;
use standin_agent::runner::{Notice, Order, Runner, Start};
use standin_agent::settings::{Bounds, Driver};
use standin_capture::{CaptureConfig, CaptureSource, FanotifyCapture};
use standin_model::*;
use standin_replica::apply::{Applier, ApplyConfig, LIMBO_NAME, VolumeConfig};
use standin_replica::diff::{Difference, Manifest, differences, read_tree};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

const KINDS: [FileSystem; 3] = [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs];
/// Long enough for a machine that builds beside it.
const PATIENCE: Duration = Duration::from_secs(120);
const CHILD: &str = "STANDIN_PERIODIC_CHILD";
const CHILD_FOLDER: &str = "STANDIN_PERIODIC_FOLDER";

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    let told = || format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    output.status.success().then_some(()).ok_or_else(told)
}

/// A fresh file system, mounted until it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn make(directory: &Path, name: &str, kind: FileSystem) -> Result<Mounted, String> {
        let (image, mount_point) = (directory.join(format!("{name}.image")), directory.join(name));
        File::create(&image).and_then(|file| file.set_len(1 << 30)).map_err(|error| error.to_string())?;
        fs::create_dir(&mount_point).map_err(|error| error.to_string())?;
        run(&format!("mkfs.{}", kind.as_str()), &["-q", &image.display().to_string()])?;
        run("mount", &["-o", "loop", &image.display().to_string(), &mount_point.display().to_string()])?;
        Ok(Mounted(mount_point))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = run("umount", &["-l", &self.0.display().to_string()]);
    }
}

/// The tests' own processes count as the server's.
struct Fanotify;

impl Host for Fanotify {
    fn inventory(&self) -> Result<Inventory> {
        standin_agent::inventory::read()
    }
    fn capture(&self, config: &CaptureConfig, _: Driver) -> Result<Box<dyn CaptureSource + Send>> {
        let config = CaptureConfig { exclude_tgid: 0, ..config.clone() };
        Ok(Box::new(FanotifyCapture::start(&config, "a test wants it")?))
    }
}

struct Lab {
    kind: FileSystem,
    source: Mounted,
    replica: Mounted,
    runner: Option<Runner>,
    applier: Option<Applier>,
    taken: OpSeq,
    epoch: u64,
    /// Capture time of the last segment that was applied while the replica was consistent, as the appliance keeps it.
    known: Option<Timestamp>,
    gaps: u64,
    consistencies: u64,
    directory: tempfile::TempDir,
}

fn spec(lab: &Path, kind: FileSystem, exclusions: &[&str]) -> JobSpec {
    let volume = VolumeSpec {
        id: VolumeId(0),
        mount_point: lab.join("source").display().to_string(),
        file_system: kind,
        uuid: String::new(),
        label: String::new(),
        size: ByteLen(1 << 30),
    };
    let exclusions = exclusions.iter().map(|pattern| format!("{}{pattern}", volume.mount_point)).collect();
    JobSpec { job: JobId::from_random([7; 8]), volumes: vec![volume], exclusions }
}

impl Lab {
    fn new(kind: FileSystem) -> Option<Lab> {
        let directory = tempfile::tempdir().unwrap();
        let make = |name: &str| Mounted::make(directory.path(), name, kind);
        let (source, replica) = match (make("source"), make("replica")) {
            (Ok(source), Ok(replica)) => (source, replica),
            (Err(reason), _) | (_, Err(reason)) => {
                eprintln!("SKIPPED: no {}: {reason}", kind.as_str());
                return None;
            }
        };
        Some(Lab {
            kind,
            source,
            replica,
            runner: None,
            applier: None,
            taken: OpSeq::ZERO,
            epoch: 0,
            known: None,
            gaps: 0,
            consistencies: 0,
            directory,
        })
    }

    /// An agent of its own life, as the appliance would start it.
    fn start(&mut self, bounds: Bounds, exclusions: &[&str]) {
        self.runner = None;
        self.epoch += 1;
        let spec = spec(self.directory.path(), self.kind, exclusions);
        let state = self.directory.path().join("state");
        fs::create_dir_all(&state).unwrap();
        let start = Start { next: self.taken.next(), epoch: self.epoch, since: self.known, compares: true };
        self.runner = Some(Runner::start(&Fanotify, spec, start, &state, &bounds).unwrap());
        if self.applier.is_none() {
            let root = standin_capture::handles::node_id_of(File::open(&self.source.0).unwrap(), VolumeId(0)).unwrap();
            let volume = VolumeConfig { id: VolumeId(0), mount: self.replica.0.clone(), root };
            let mut applier = Applier::open(ApplyConfig { volumes: vec![volume], table: self.directory.path().join("table") }).unwrap();
            applier.redo_through(OpSeq::ZERO).unwrap();
            self.applier = Some(applier);
        }
    }

    fn runner(&self) -> &Runner {
        self.runner.as_ref().unwrap()
    }

    /// What the appliance does with one segment; calls `at` behind each `Consistent`.
    fn take(&mut self, wait: Duration, at: &mut dyn FnMut(&Path)) -> bool {
        let runner = self.runner.as_ref().unwrap();
        assert!(runner.is_alive(), "the pump has ended");
        let Some(segment) = runner.queue.next_after(self.taken, wait).unwrap() else { return false };
        let applier = self.applier.as_mut().unwrap();
        for item in segment.items().unwrap() {
            applier.apply(&item).unwrap_or_else(|error| panic!("{item:?}: {error}"));
            match item.operation {
                Operation::Marker(Marker::Consistent) => {
                    applier.mark().unwrap();
                    self.consistencies += 1;
                    at(&self.replica.0);
                }
                Operation::Marker(Marker::Gap { .. }) => self.gaps += 1,
                _ => {}
            }
        }
        applier.mark().unwrap();
        if applier.state().is_consistent() {
            self.known = Some(segment.header.last_captured_at);
        }
        self.taken = segment.last_seq();
        let wants = applier.take_wants();
        runner.answers.tell(applier.take_differs());
        runner.answers.applied(self.taken);
        runner.queue.acknowledge(self.taken).unwrap();
        if !wants.is_empty() {
            assert!(runner.order(Order::Want(wants)));
        }
        true
    }

    fn take_until(&mut self, what: &str, mut is_over: impl FnMut(&Lab) -> bool) {
        let begun = Instant::now();
        while !is_over(self) {
            self.take(Duration::from_millis(20), &mut |_| {});
            assert!(begun.elapsed() < PATIENCE, "{what} does not come; {:?}", self.runner().snapshot.lock().unwrap());
        }
    }

    fn take_until_consistent(&mut self) {
        let before = self.consistencies;
        self.take_until("a consistent state", |lab| lab.consistencies > before);
    }

    fn manifests(&self) -> (Manifest, Manifest) {
        (read_tree(&self.source.0, &[]).unwrap(), read_tree(&self.replica.0, &[LIMBO_NAME]).unwrap())
    }

    #[track_caller]
    fn compare(&self, what: &str) {
        let (source, replica) = self.manifests();
        // Of a mounted ext4 nobody can tell where reserved blocks are holes: a cached page of them counts as data. Their zeros are compared all the same.
        let found: Vec<Difference> = differences(&source, &replica).into_iter().filter(|found| found.what != "holes").collect();
        assert!(found.is_empty(), "{what} on {}: {found:#?}", self.kind.as_str());
    }

    /// Stands still for a planned failover, takes everything, and compares what stands still. `false` where the agent could not.
    fn compare_at_a_standstill(&mut self, what: &str) -> bool {
        assert!(self.runner().order(Order::Quiesce { bound: Duration::from_secs(60) }));
        let begun = Instant::now();
        let seq = loop {
            self.take(Duration::from_millis(5), &mut |_| {});
            match self.runner().notices.lock().unwrap().try_recv() {
                Ok(Notice::Quiesced { seq }) => break seq,
                Ok(other) => {
                    eprintln!("{what}: {other:?}");
                    return false;
                }
                Err(_) => assert!(begun.elapsed() < PATIENCE, "no standstill"),
            }
        };
        self.take_until("the cut", |lab| lab.taken >= seq);
        assert!(self.runner().is_frozen(), "it stood still for too short");
        self.compare(what);
        assert!(self.runner().is_frozen(), "it stood still for too short to be compared");
        assert!(self.runner().order(Order::Thaw));
        self.take_until("the thaw", |lab| {
            let notices = lab.runner().notices.lock().unwrap();
            std::iter::from_fn(|| notices.try_recv().ok()).any(|notice| matches!(notice, Notice::Thawed { .. }))
        });
        assert!(!self.runner().is_frozen());
        true
    }

    fn mark(&mut self, name: &str) -> Option<OpSeq> {
        let (answer, answered) = sync_channel(1);
        assert!(self.runner().order(Order::Mark { name: MarkName::parse(name).unwrap(), answer }));
        let begun = Instant::now();
        loop {
            self.take(Duration::from_millis(5), &mut |_| {});
            if let Ok(seq) = answered.try_recv() {
                return seq;
            }
            assert!(begun.elapsed() < PATIENCE, "no answer");
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Before its file systems.
        self.runner = None;
        self.applier = None;
    }
}

/// Another process than the agent's, because a sweep does not look at its own.
struct Server(Child);

impl Server {
    fn start(test: &str, what: &str, folder: &Path) -> Server {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", &format!("periodic::{test}"), "--nocapture"]).env(CHILD, what).env(CHILD_FOLDER, folder);
        Server(again.stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[derive(Parser)]
struct ChurnProgram {
    #[command(flatten)]
    arguments: ChurnArgs,
}

/// True in the process that plays the server; it comes back only when it is done.
fn is_server() -> bool {
    let (Ok(what), Ok(folder)) = (std::env::var(CHILD), std::env::var(CHILD_FOLDER)) else { return false };
    match what.split_once(' ') {
        Some(("churn", options)) => {
            let words = ["churn", folder.as_str()].into_iter().chain(options.split(' '));
            churn::run(&ChurnProgram::parse_from(words).arguments).unwrap();
        }
        _ => witness(Path::new(&folder)),
    }
    true
}

/// Two counters, the second written only when the first is: no state of this server has the second ahead, or the first ahead by more than one. The second
/// goes through a mapping, of which fanotify tells nothing.
#[allow(unsafe_code)] // a mapping to store through
fn witness(folder: &Path) {
    let (first, second) = (folder.join("first"), folder.join("second"));
    let first = File::options().write(true).open(first).unwrap();
    let second = File::options().read(true).write(true).open(second).unwrap();
    let flags = (rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE, rustix::mm::MapFlags::SHARED);
    // SAFETY: the file has a page, and nobody shortens it.
    let mapping = unsafe { rustix::mm::mmap(std::ptr::null_mut(), 4096, flags.0, flags.1, &second, 0).unwrap().cast::<u64>() };
    for number in 1u64.. {
        first.write_all_at(&number.to_le_bytes(), 0).unwrap();
        // SAFETY: within the mapping.
        unsafe { mapping.write_volatile(number) };
        std::thread::sleep(Duration::from_micros(500));
    }
}

fn counter(replica: &Path, name: &str) -> u64 {
    let mut bytes = [0; 8];
    File::open(replica.join(name)).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    u64::from_le_bytes(bytes)
}

fn quick() -> Bounds {
    Bounds { driver: Driver::Fanotify, period_seconds: 5, still_ms: 5000, ..Bounds::default() }
}

/// Churn of every kind goes on all the time; at each standstill the replica is exactly what stands still.
#[test]
fn under_churn_a_standstill_is_exact() {
    if is_server() {
        return;
    }
    for kind in KINDS {
        let Some(mut lab) = Lab::new(kind) else { continue };
        fs::create_dir(lab.source.0.join("churn")).unwrap();
        let options = "churn --seed 11 --rate 400 --threads 4";
        let _server = Server::start("under_churn_a_standstill_is_exact", options, &lab.source.0.join("churn"));
        lab.start(quick(), &[]);
        let mut stood = 0;
        for round in 0..6 {
            let until = Instant::now() + Duration::from_secs(2);
            while Instant::now() < until {
                lab.take(Duration::from_millis(20), &mut |_| {});
            }
            stood += u32::from(lab.compare_at_a_standstill(&format!("standstill {round}")));
        }
        assert!(stood >= 5, "{stood} of 6 on {}", kind.as_str());
    }
}

/// No consistent state has the second counter ahead of the first, although nobody tells of the second.
#[test]
fn every_consistent_state_is_one_of_the_source() {
    if is_server() {
        return;
    }
    for kind in KINDS {
        let Some(mut lab) = Lab::new(kind) else { continue };
        fs::write(lab.source.0.join("first"), [0; 4096]).unwrap();
        fs::write(lab.source.0.join("second"), [0; 4096]).unwrap();
        let _server = Server::start("every_consistent_state_is_one_of_the_source", "witness", &lab.source.0);
        lab.start(quick(), &[]);
        let mut seen = Vec::new();
        let begun = Instant::now();
        while seen.len() < 3 {
            lab.take(Duration::from_millis(20), &mut |replica| seen.push((counter(replica, "first"), counter(replica, "second"))));
            assert!(begun.elapsed() < PATIENCE, "{seen:?} {:?}", lab.runner().snapshot.lock().unwrap());
        }
        assert!(seen.iter().all(|(first, second)| first == second || *first == second + 1), "{seen:?} on {}", kind.as_str());
        assert!(seen.windows(2).all(|pair| pair[0].0 < pair[1].0), "it stands: {seen:?}");
        // A source that is never quiet has no marker without a standstill, and one with it.
        assert!(lab.mark("now").is_some());
        let stills = lab.runner().snapshot.lock().unwrap().stills.clone();
        assert!(stills.tries > 0 && stills.longest < Duration::from_secs(6), "{stills:?}");
    }
}

#[test]
fn a_source_that_may_not_stand_still_is_never_called_consistent_while_it_changes() {
    if is_server() {
        return;
    }
    let Some(mut lab) = Lab::new(FileSystem::Ext4) else { return };
    fs::write(lab.source.0.join("first"), [0; 4096]).unwrap();
    fs::write(lab.source.0.join("second"), [0; 4096]).unwrap();
    let server = Server::start("a_source_that_may_not_stand_still_is_never_called_consistent_while_it_changes", "witness", &lab.source.0);
    lab.start(Bounds { still_ms: 0, ..quick() }, &[]);
    lab.take_until("the reason", |lab| lab.runner().snapshot.lock().unwrap().stills.trouble.is_some());
    assert_eq!(lab.consistencies, 0);
    drop(server);
    lab.take_until_consistent();
    lab.compare("quiet again");
    assert!(lab.runner().snapshot.lock().unwrap().stills.trouble.is_some(), "nothing stood still");
    assert!(lab.mark("quiet").is_some());
}

/// Quiet, changed, quiet: the replica stays as it was until the round is due, and is right after it. Another agent goes on from what the last one knew.
#[test]
fn rounds_bring_what_changed_and_an_agent_after_this_one_what_it_left() {
    for kind in KINDS {
        let Some(mut lab) = Lab::new(kind) else { continue };
        let path = |name: &str| lab.source.0.join(name);
        let [a, b, file, moved] = ["a", "b", "a/file", "b/moved"].map(path);
        fs::create_dir_all(a.join("deep/er")).unwrap();
        fs::create_dir(&b).unwrap();
        fs::write(a.join("deep/er/kept"), vec![3; 300_000]).unwrap();
        lab.start(quick(), &[]);
        lab.take_until_consistent();
        lab.compare("the first mirror");
        fs::write(&file, vec![1; 200_000]).unwrap();
        fs::rename(a.join("deep"), &moved).unwrap();
        fs::hard_link(&file, b.join("linked")).unwrap();
        let gaps = lab.gaps;
        lab.take(Duration::from_millis(500), &mut |_| {});
        assert_eq!(
            (lab.gaps, read_tree(&lab.replica.0, &[LIMBO_NAME]).unwrap().contains_key("a/file")),
            (gaps, false),
            "not before it is due"
        );
        lab.take_until_consistent();
        lab.compare("a round");
        fs::remove_file(&file).unwrap();
        fs::remove_file(moved.join("er/kept")).unwrap();
        lab.take_until_consistent();
        lab.compare("what went");
        // The next agent knows only when the replica was consistent last.
        fs::write(&file, b"while it ends").unwrap();
        lab.runner = None;
        fs::write(moved.join("er/new"), b"while there is none").unwrap();
        lab.start(quick(), &[]);
        lab.take_until_consistent();
        lab.compare("another agent");
    }
}

/// What is excluded changes all the time, and costs neither a gap nor the consistency.
#[test]
fn changes_of_what_is_excluded_open_no_gap() {
    let Some(mut lab) = Lab::new(FileSystem::Ext4) else { return };
    let path = |name: &str| lab.source.0.join(name);
    let (cache, kept) = (path("cache"), path("kept"));
    fs::create_dir_all(cache.join("sub")).unwrap();
    fs::create_dir(&kept).unwrap();
    fs::write(cache.join("old"), b"x").unwrap();
    lab.start(quick(), &["/cache"]);
    lab.take_until_consistent();
    let gaps = lab.gaps;
    for number in 0..60 {
        fs::write(cache.join("old"), number.to_string()).unwrap();
        fs::write(cache.join(format!("sub/{number}")), b"new").unwrap();
        lab.take(Duration::from_millis(200), &mut |_| {});
    }
    assert_eq!(lab.gaps, gaps);
    // What comes out of it is there, what goes into it is gone.
    fs::rename(cache.join("sub/7"), kept.join("out")).unwrap();
    fs::create_dir_all(kept.join("tree/below")).unwrap();
    fs::write(kept.join("tree/below/file"), b"y").unwrap();
    lab.take_until_consistent();
    fs::rename(kept.join("tree"), cache.join("tree")).unwrap();
    lab.take_until_consistent();
    fs::write(cache.join("tree/below/file"), b"nobody's").unwrap();
    fs::rename(cache.join("tree/below"), kept.join("back")).unwrap();
    lab.take_until_consistent();
    let (source, replica) = lab.manifests();
    let is_there = |path: &str| !path.starts_with("cache/") && path != "cache";
    let only = |manifest: Manifest| manifest.into_iter().filter(|(path, _)| is_there(path)).collect::<Manifest>();
    let found = differences(&only(source), &only(replica.clone()));
    assert!(found.is_empty(), "{found:#?}");
    assert!(!replica.keys().any(|path| path.starts_with("cache/")), "{replica:?}");
}

/// Inode flags have no event and no sweep; the hour's walk is what the next agent's look back covers.
#[test]
fn flags_that_nobody_told_of_come_with_the_next_agent() -> Result<()> {
    let Some(mut lab) = Lab::new(FileSystem::Ext4) else { return Ok(()) };
    fs::write(lab.source.0.join("x"), b"x").context("writing")?;
    lab.start(quick(), &[]);
    lab.take_until_consistent();
    let flags = |root: &Path| rustix::fs::ioctl_getflags(&File::open(root.join("x")).unwrap()).unwrap();
    rustix::fs::ioctl_setflags(&File::open(lab.source.0.join("x"))?, flags(&lab.source.0) | rustix::fs::IFlags::NODUMP)?;
    lab.runner = None;
    lab.start(quick(), &[]);
    lab.take_until_consistent();
    assert!(flags(&lab.replica.0).contains(rustix::fs::IFlags::NODUMP));
    Ok(())
}
