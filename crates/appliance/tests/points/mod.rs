//! Markers and recovery points with the real worker: what is in them, what a crash leaves of them, and a failover that boots one.

use super::agent::{FakeAgent, data, file_node, root_node};
use super::failover::protected;
use super::{LIMIT, Lab, can_mount, process, replica_file, wait_applied, wait_state};
use serde_json::{Value, json};
use standin_appliance::job::{JobShell, Live};
use standin_appliance::layout::{Layout, now};
use standin_appliance::store::Store;
use standin_appliance::{execute, points};
use standin_model::*;
use standin_protection::point;
use standin_protection::*;
use standin_replica::disk::{self, Attachment};
use standin_replica::point::{self as files, LaunchFiles};
use standin_wire::ToAgent;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn mark(name: &str) -> Operation {
    Operation::Marker(Marker::Named(name.into()))
}

fn gap() -> [Operation; 2] {
    [Operation::Marker(Marker::Gap { reason: "test".into() }), Operation::Marker(Marker::ResyncStarted)]
}

fn wait_points(shell: &JobShell, what: &str, fits: impl Fn(&[RecoveryPoint]) -> bool) -> Vec<RecoveryPoint> {
    let found = shell.wait(LIMIT, |live| fits(&live.points.there).then(|| live.points.there.clone()));
    found.unwrap_or_else(|| panic!("{what} did not come: {:?}, {:?}", shell.live().points.there, shell.live().points.problem))
}

/// Names and contents in the root of a disk, but for what is never the source's.
fn tree(disk: &Path) -> BTreeMap<String, Vec<u8>> {
    let run = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let read = || {
            disk::enter_private_namespace().unwrap();
            let attachment = Attachment::attach(disk, run.path()).unwrap();
            let entries = std::fs::read_dir(attachment.volume_path(VolumeId(0))).unwrap().map(|entry| entry.unwrap());
            let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
            let tree = files.map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())).collect();
            attachment.detach().map_err(|(_, error)| error).unwrap();
            tree
        };
        scope.spawn(read).join().unwrap()
    })
}

/// A point's tree, read from a duplicate, because nothing may write to the point itself.
fn point_tree(directory: &Path, id: &str) -> BTreeMap<String, Vec<u8>> {
    let launch = tempfile::tempdir_in(directory.parent().unwrap()).unwrap();
    let at = launch.path().join("duplicate");
    files::make_launch(directory, id, &at).unwrap();
    tree(&LaunchFiles::of(&at).disk)
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

/// A source of small files, and the stream of what happens to them.
struct Model {
    files: BTreeMap<String, (NodeId, Vec<u8>)>,
    next: u64,
    random: u64,
}

impl Model {
    fn new() -> Model {
        Model { files: BTreeMap::from([("hello".into(), (file_node(), b"content".to_vec()))]), next: 100, random: 7 }
    }

    fn below(&mut self, bound: u64) -> u64 {
        // Knuth's linear congruential generator; any sequence does.
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % bound
    }

    fn tree(&self) -> BTreeMap<String, Vec<u8>> {
        self.files.iter().map(|(name, (_, content))| (name.clone(), content.clone())).collect()
    }

    /// Creates, writes, renames or removes.
    fn act(&mut self) -> Operation {
        let names: Vec<_> = self.files.keys().cloned().collect();
        let name = |text: &str| Name::new(text).unwrap();
        if names.is_empty() || self.below(4) == 0 {
            self.next += 1;
            let node = NodeId { inode: self.next, ..root_node() };
            let text = format!("file-{}", self.next);
            self.files.insert(text.clone(), (node, Vec::new()));
            let attributes = Attributes { mode: 0o644, owner: 0, group: 0, modified: Timestamp(1) };
            return Operation::Create { parent: root_node(), name: name(&text), node, attributes };
        }
        let index = self.below(names.len() as u64) as usize;
        let old = &names[index];
        let node = self.files[old].0;
        match self.below(5) {
            0 => {
                self.files.remove(old);
                Operation::Unlink { parent: root_node(), name: name(old), node }
            }
            1 => {
                self.next += 1;
                let new = format!("file-{}", self.next);
                let entry = self.files.remove(old).unwrap();
                self.files.insert(new.clone(), entry);
                Operation::Rename {
                    parent: root_node(),
                    name: name(old),
                    node,
                    new_parent: root_node(),
                    new_name: name(&new),
                    mode: RenameMode::Replace,
                    victim: None,
                }
            }
            _ => {
                let (offset, byte) = (self.below(3000) as usize, self.below(255) as u8 + 1);
                let content = &mut self.files.get_mut(old).unwrap().1;
                let end = content.len().max(offset + 50);
                content.resize(end, 0);
                content[offset..offset + 50].fill(byte);
                data(node, offset as u64, &[byte; 50])
            }
        }
    }
}

/// Markers at random places of random segments, some in the middle, with operations right before and right behind them.
#[test]
fn a_point_equals_the_source_at_its_marker() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (lab, shell, mut agent) = protected(dir.path());
    marked_states(&lab, &shell, &mut agent);
}

/// The same on a datastore whose files can share blocks; there regular points come by themselves.
#[test]
fn where_blocks_are_shared_points_cost_nothing_and_come_by_themselves() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(_mounted) = Mounted::btrfs(dir.path()) else { return eprintln!("skipped: no btrfs here") };
    let (lab, shell, mut agent) = protected(dir.path());
    assert!(lab.appliance.shares_blocks());
    let there = wait_points(&shell, "a regular point", |points| points.iter().any(|point| point.kind == PointKind::Regular));
    assert_eq!(there[0].bytes_copied, 0);
    let asked = now();
    assert!(!shell.live().points.policy.is_due(asked, true, &there), "the next one is not due yet");
    marked_states(&lab, &shell, &mut agent);
    assert!(shell.live().points.there.iter().all(|point| point.bytes_copied == 0));
    drop((lab, shell, agent));
}

fn marked_states(lab: &Lab, shell: &Arc<JobShell>, agent: &mut FakeAgent) {
    const MARKS: usize = 6;
    let (mut model, mut states) = (Model::new(), Vec::new());
    let mut last = OpSeq::ZERO;
    for number in 0..MARKS {
        for _ in 0..=model.below(40) {
            agent.push(model.act());
        }
        if model.below(2) == 0 {
            agent.seal();
            // A marker alone in its segment, as the agent sends it.
            agent.push(mark(&format!("mark-{number}")));
            last = agent.seal();
            states.push(model.tree());
            continue;
        }
        agent.push(model.act());
        agent.push(mark(&format!("mark-{number}")));
        states.push(model.tree());
        for _ in 0..3 {
            agent.push(model.act());
        }
        last = agent.seal();
    }
    wait_applied(shell, last);
    let marked = |points: &[RecoveryPoint]| points.iter().filter(|point| point.kind == PointKind::Marker).count() == MARKS;
    let there = wait_points(shell, "all markers", marked);
    let directory = lab.appliance.layout.points("web1");
    for (number, state) in states.iter().enumerate() {
        let point = point::find(&there, &format!("mark-{number}")).unwrap();
        assert!(point.consistent);
        assert_eq!(&point_tree(&directory, &point.id()), state, "mark-{number} at {}", point.seq);
    }
    // The history has each marker once, at its item; and the replica is further.
    let history = lab.appliance.store.history(&shell.record.id, 1000).unwrap();
    let rows: Vec<_> = history.iter().filter(|row| row.kind == "marker").collect();
    assert_eq!(rows.len(), MARKS);
    for row in rows {
        let point = point::find(&there, row.name.as_ref().unwrap().as_str()).unwrap();
        assert_eq!((row.seq, row.captured_at), (point.seq, point.captured_at));
    }
    assert_eq!(lab.appliance.store.points(&shell.record.id).unwrap().len(), there.len());
}

/// A btrfs of its own below the appliance's directory, unmounted at the end.
struct Mounted(PathBuf);

impl Mounted {
    fn btrfs(dir: &Path) -> Option<Mounted> {
        let (image, at) = (dir.join("btrfs.img"), dir.join("datastore"));
        std::fs::create_dir_all(&at).unwrap();
        std::fs::File::create(&image).and_then(|file| file.set_len(600 << 20)).unwrap();
        let run = |program: &str, arguments: &[&str]| Command::new(program).args(arguments).output().is_ok_and(|out| out.status.success());
        let (image, text) = (image.to_str()?, at.to_str()?.to_owned());
        (run("mkfs.btrfs", &["-q", image]) && run("mount", &["-o", "loop", image, &text])).then_some(Mounted(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // The last worker may hold it for a moment.
        for _ in 0..100 {
            if Command::new("umount").arg(&self.0).output().is_ok_and(|out| out.status.success()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn points_are_made_listed_refused_and_removed() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (lab, shell, mut agent) = protected(dir.path());
    let appliance = &lab.appliance;
    let named = |name: &str| MarkName::parse(name);
    let refused = |result: Result<RecoveryPoint, Problem>| result.unwrap_err().code.replace("STANDIN-", "");
    for number in 0..point::MANUAL_MAX {
        agent.push(data(file_node(), 0, &[number as u8 + 1; 7]));
        let last = agent.seal();
        wait_applied(&shell, last);
        points::create(appliance, &shell, named(&format!("p{number}")), "test").unwrap();
    }
    assert_eq!(refused(points::create(appliance, &shell, named("one-more"), "test")), "E4066");
    assert_eq!(refused(points::remove(appliance, &shell, "nothing", "test")), "E4060");
    let removed = points::remove(appliance, &shell, "p3", "test").unwrap();
    assert!(!names(&appliance.layout.points("web1")).contains(&removed.id()));
    assert_eq!(appliance.store.points(&shell.record.id).unwrap().len(), point::MANUAL_MAX - 1);
    // A copy is refused by the job's rule before anything of it is there.
    let never = PointPolicy { copy_bytes_max: ByteLen(0), ..Default::default() };
    points::set_policy(appliance, &shell, never, "test").unwrap();
    if !appliance.shares_blocks() {
        assert_eq!(refused(points::create(appliance, &shell, named("copied"), "test")), "E3021");
        assert_eq!(shell.live().points.problem.as_ref().unwrap().code, "STANDIN-E3021");
    }
    points::set_policy(appliance, &shell, PointPolicy::default(), "test").unwrap();
    // In a resync there is no state to keep, and the last one that there is does not go.
    gap().into_iter().for_each(|operation| agent.push(operation));
    let last = agent.seal();
    wait_applied(&shell, last);
    wait_state(&shell, "resyncing");
    assert_eq!(refused(points::create(appliance, &shell, named("torn"), "test")), "E4062");
    let last = point::last_consistent(&shell.live().points.there).unwrap().id();
    assert_eq!(refused(points::remove(appliance, &shell, &last, "test")), "E4068");
    assert!(!names(&appliance.layout.points("web1")).iter().any(|name| name == "draft" || name.starts_with("gone")));
}

/// The step at which a worker is killed, by what it has made so far.
const STEPS: [&str; 6] = ["draft", "draft/request.json", "draft/disk.raw", "draft/nodes.redb", "draft/point.json", "-manual-"];

/// A worker that dies in the middle leaves a whole point or none, nothing else, and a replica that goes on.
#[test]
fn a_worker_killed_at_any_step_leaves_a_whole_point_or_none() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (lab, shell, mut agent) = protected(dir.path());
    let directory = lab.appliance.layout.points("web1");
    let mut whole = 0;
    for (round, step) in STEPS.into_iter().enumerate() {
        let content = format!("round {round}").into_bytes();
        agent.push(data(file_node(), 0, &content));
        let last = agent.seal();
        wait_applied(&shell, last);
        let name = format!("r{round}");
        let pid = shell.wait(LIMIT, |live| live.worker.as_ref().map(|worker| worker.pid)).unwrap();
        let asking = std::thread::spawn({
            let (appliance, shell, name) = (lab.appliance.clone(), shell.clone(), MarkName::parse(&name));
            move || points::create(&appliance, &shell, name, "test")
        });
        kill_at(&directory, step, &name, pid);
        let answered = asking.join().unwrap();
        // The next worker thaws, goes on, and leaves no draft. `Degraded` falls when it has begun.
        let other = |live: &mut Live| live.worker.as_ref().is_some_and(|worker| worker.pid != pid).then_some(());
        shell.wait(LIMIT, other).expect("another worker");
        agent.push(data(file_node(), 0, b"BEHIND!"));
        let behind = agent.seal();
        wait_applied(&shell, behind);
        assert!(replica_file(&lab, &shell, "hello").starts_with(b"BEHIND!"));
        let listed = files::list(&directory).unwrap();
        assert_eq!(names(&directory).len(), listed.len(), "leftovers: {:?}", names(&directory));
        assert_eq!(shell.live().points.there, listed);
        let found = point::find(&listed, &name);
        assert!(found.is_some() || answered.is_err(), "an answer without a point");
        if let Some(found) = found {
            whole += 1;
            assert_eq!(found.seq, last);
            assert!(point_tree(&directory, &found.id())["hello"].starts_with(&content), "round {round}");
            points::remove(&lab.appliance, &shell, &name, "test").unwrap();
        }
    }
    assert!(whole > 0, "no point survived: a draft is taken up by the next worker");
}

/// Kills the worker as soon as it has come to a step, or, where it was faster than we look, right behind it.
fn kill_at(directory: &Path, step: &str, name: &str, pid: u32) {
    let deadline = Instant::now() + LIMIT;
    let reached = |step: &str| match step {
        "-manual-" => names(directory).iter().any(|found| found.ends_with(&format!("-manual-{name}"))),
        step => directory.join(step).exists(),
    };
    while !reached(step) && !reached("-manual-") {
        assert!(Instant::now() < deadline, "the worker does not come to {step}");
    }
    kill(pid);
}

/// The same with the appliance: what its worker had finished is taken in, and what it had not is gone or taken again.
#[test]
fn an_appliance_killed_while_a_point_is_taken_knows_it_afterwards_or_has_none() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut process, mut agent, job, _) = process::Process::protecting(dir.path());
    let directory = dir.path().join("datastore/web1/points");
    for (round, step) in ["draft", "draft/disk.raw", "-manual-"].into_iter().enumerate() {
        let name = format!("r{round}");
        let reached = || match step {
            "-manual-" => names(&directory).iter().any(|found| found.ends_with(&name)),
            step => directory.join(step).exists() || names(&directory).iter().any(|found| found.ends_with(&name)),
        };
        std::thread::scope(|scope| {
            let body = json!({"name": name}).to_string();
            let asking = &process;
            let asked = scope.spawn(move || asking.request("POST", "/api/v1/jobs/web1/points", &body));
            let deadline = Instant::now() + LIMIT;
            while !reached() {
                assert!(Instant::now() < deadline, "the worker does not come to {step}");
            }
            kill(process.pid());
            let _ = asked.join();
        });
        process.kill();
        process.start();
        agent.connect(Some(1));
        let resumed = agent.expect_start();
        agent.begin(&resumed);
        agent.push(data(file_node(), 0, b"BEHIND!"));
        let behind = agent.seal();
        agent.expect(|message| matches!(message, ToAgent::Ack { applied, .. } if *applied >= behind));
        let (_, all) = process.request("GET", "/api/v1/jobs/web1/points", "").unwrap();
        let told: Vec<String> = all["points"].as_array().unwrap().iter().map(|point| point["id"].as_str().unwrap().to_owned()).collect();
        assert_eq!(told, files::list(&directory).unwrap().iter().map(RecoveryPoint::id).collect::<Vec<_>>());
        assert_eq!(names(&directory).len(), told.len(), "leftovers: {:?}", names(&directory));
        if round == 2 {
            assert!(told.iter().any(|id| id.ends_with(&name)), "it was there before the end");
        }
    }
    process.kill();
    let store = Store::open(&Layout::store(dir.path())).unwrap();
    assert_eq!(store.points(&job).unwrap().len(), files::list(&directory).unwrap().len());
}

/// A resync begins, the last consistent state is kept, and a failover without further words boots it.
#[test]
fn a_resync_keeps_the_last_consistent_state_and_a_failover_boots_it() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (lab, shell, mut agent) = protected(dir.path());
    agent.push(data(file_node(), 0, b"CONSISTENT"));
    let consistent = agent.seal();
    wait_applied(&shell, consistent);
    // The resync begins in the middle of a segment, whose beginning may lack something already.
    agent.push(data(file_node(), 0, b"TEARING"));
    gap().into_iter().for_each(|operation| agent.push(operation));
    agent.push(data(file_node(), 0, b"TORN"));
    let torn = agent.seal();
    wait_applied(&shell, torn);
    wait_state(&shell, "resyncing");
    let kept = wait_points(&shell, "a point before the resync", |points| points.len() == 1);
    assert_eq!((kept[0].kind, kept[0].seq, kept[0].consistent), (PointKind::BeforeResync, consistent, true));
    let id = kept[0].id();
    assert_eq!(replica_file(&lab, &shell, "hello"), b"TORNINGENT");

    // Without a word about the source, the point is named and nothing happens.
    let refused = execute::plan(&lab.appliance, &shell, &FailoverRequest::default()).unwrap_err();
    assert_eq!(refused[0].code, "STANDIN-E4006");
    assert!(refused[0].cause.contains(&id) && refused[0].next.contains(&format!("--at {id}")), "{refused:?}");

    let waiver = Some(Waiver::new("Ada", "unplugged").unwrap());
    let request = FailoverRequest { waiver, ..Default::default() };
    execute::begin(&lab.appliance, &shell, &request, "test").unwrap();
    let failed = |live: &mut Live| match &live.run.as_ref()?.1.state {
        RunState::Failed { problem, .. } => Some(problem.code.clone()),
        _ => None,
    };
    // The tree has no kernel, so that boot repair refuses; all before it is done.
    assert_eq!(shell.wait(LIMIT, failed).as_deref(), Some("STANDIN-E3101"));
    assert_eq!(points::remove(&lab.appliance, &shell, &id, "test").unwrap_err().code, "STANDIN-E4067");
    let state = |kind: StepKind| {
        let run = shell.live().run.as_ref().unwrap().1.clone();
        run.steps[run.runbook.steps.iter().position(|step| step.kind == kind).unwrap()].clone()
    };
    assert!(matches!(state(StepKind::UsePoint), StepState::Done { .. }));

    // Behind what this tree cannot give, the failover goes on to its end.
    let skip = |live: &mut Live| {
        let run = &mut live.run.as_mut().unwrap().1;
        let index = run.runbook.steps.iter().position(|step| step.kind == StepKind::InjectDrivers).unwrap();
        run.steps[index] = StepState::Done { started: Timestamp(1), ended: Timestamp(2), note: "not in this test".into() };
    };
    shell.update(skip);
    execute::begin(&lab.appliance, &shell, &FailoverRequest::default(), "test").unwrap();
    wait_state(&shell, "failed-over");
    let StepState::Done { note, .. } = state(StepKind::AttachDisks) else { panic!("{:?}", state(StepKind::AttachDisks)) };
    let launch = LaunchFiles::of(&lab.appliance.layout.launch("web1")).disk;
    assert!(note.contains(launch.to_str().unwrap()), "{note}");
    // The machine's disk is the point, ready to boot: no limbo. The point is there, and the replica is as the resync left it.
    let hello = |tree: BTreeMap<String, Vec<u8>>| tree["hello"].clone();
    assert_eq!(hello(tree(&launch)), b"CONSISTENT");
    assert_eq!(hello(point_tree(&lab.appliance.layout.points("web1"), &id)), b"CONSISTENT");
    assert_eq!(hello(tree(&lab.appliance.layout.disk("web1"))), b"TORNINGENT");
}

/// Everything that can be asked about points through the API.
#[test]
fn the_api_knows_points_rules_and_history() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (process, mut agent, ..) = process::Process::protecting(dir.path());
    agent.push(mark("close"));
    let marked = agent.seal();
    agent.expect(|message| matches!(message, ToAgent::Ack { applied, .. } if *applied >= marked));
    let ask = |method: &str, path: &str, body: Value| {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        process.request(method, &format!("/api/v1/jobs/web1/{path}"), &text).unwrap()
    };
    let id = format!("{marked}-marker");
    let deadline = Instant::now() + LIMIT;
    while ask("GET", "points", Value::Null).1["points"][0]["id"] != id {
        assert!(Instant::now() < deadline, "the marker's point does not come");
        std::thread::sleep(Duration::from_millis(50));
    }
    let (_, history) = ask("GET", "history", Value::Null);
    let row = history.as_array().unwrap().iter().find(|row| row["kind"] == "marker").unwrap();
    assert_eq!((row["name"].as_str(), row["seq"].as_u64()), (Some("close"), Some(marked.0)));
    assert!(row["captured_at"].as_i64().unwrap() > 0);
    let (status, point) = ask("POST", "points", json!({"name": "before-upgrade"}));
    assert_eq!((status, point["kind"].as_str()), (201, Some("manual")), "{point:#}");
    for (method, path, body, status, code) in [
        ("POST", "points", json!({"name": "a/b"}), 400, "STANDIN-E5005"),
        ("POST", "points", json!({"nam": "x"}), 400, "STANDIN-E5005"),
        ("DELETE", "points/nothing", Value::Null, 409, "STANDIN-E4060"),
        ("PUT", "point-policy", json!({"keep_regular": 0}), 409, "STANDIN-E4065"),
        ("PUT", "point-policy", json!({"keep": 1}), 400, "STANDIN-E5005"),
        ("POST", "failover/plan", json!({"at": "nothing"}), 409, "STANDIN-E4060"),
    ] {
        let (got, answer) = ask(method, path, body);
        assert_eq!((got, answer["code"].as_str()), (status, Some(code)), "{method} {path}: {answer:#}");
    }
    let (_, runbook) = ask("POST", "failover/plan", json!({"at": "close"}));
    assert_eq!(runbook["point"]["seq"].as_u64(), Some(marked.0), "{runbook:#}");
    assert_eq!(ask("DELETE", "points/before-upgrade", Value::Null).0, 200);
    assert_eq!(ask("PUT", "point-policy", json!({"keep_markers": 1, "interval_seconds": 10})).0, 200);
    let (_, all) = ask("GET", "points", Value::Null);
    assert_eq!(all["interval_seconds"], 10);
}
