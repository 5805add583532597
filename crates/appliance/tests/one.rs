//! A whole appliance over loopback, with a scripted agent that speaks the wire, a real worker process, and a real replica disk.
//!
//! Needs root and loop devices for the replica; without them the test says so and ends.

mod agent;
mod bad_input;
mod differences;
mod failover;
mod growth;
mod journal_loss;
mod network;
mod periodic;
mod points;
mod process;
mod verify;

use agent::{FakeAgent, data, file_node, root_node};
use standin_appliance::appliance::{Appliance, Parts};
use standin_appliance::job::JobShell;
use standin_appliance::layout::Layout;
use standin_appliance::session::Port;
use standin_appliance::store::Store;
use standin_appliance::{execute, init, protect};
use standin_hypervisor::fake::FakeHypervisor;
use standin_model::*;
use standin_protection::{FailoverRequest, Flag, ProtectRequest, RunState};
use standin_wire::{Authority, Listening, ServeOptions, ToAgent};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

struct Lab {
    appliance: Arc<Appliance>,
    listening: Listening,
}

fn start(dir: &Path) -> Lab {
    start_with(dir, env!("CARGO_BIN_EXE_standin-appliance").into())
}

/// With another program in the place of the worker.
fn start_with(dir: &Path, program: std::path::PathBuf) -> Lab {
    let authority = Arc::new(Authority::open_or_create(Layout::authority(dir)).unwrap());
    let datastore = dir.join("datastore");
    std::fs::create_dir_all(&datastore).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let appliance = Appliance::start(Parts {
        layout: Layout { dir: dir.to_owned(), datastore },
        store: Store::open(&Layout::store(dir)).unwrap(),
        hypervisor: Box::new(FakeHypervisor::new(16 << 30)),
        agent_address: listener.local_addr().unwrap().to_string(),
        authority: authority.clone(),
        program,
    })
    .unwrap();
    let port = Arc::new(Port(appliance.clone()));
    let listening = standin_wire::serve(listener, authority, ServeOptions::default(), port).unwrap();
    Lab { appliance, listening }
}

fn wait_state(shell: &JobShell, state: &str) {
    let reached = shell.wait(LIMIT, |live| (live.job.state.name() == state).then_some(()));
    let live = shell.live();
    assert!(reached.is_some(), "state is {}, not {state}; flags {:?}", live.job.state.name(), live.job.flags);
}

fn wait_applied(shell: &JobShell, seq: OpSeq) {
    let reached = shell.wait(LIMIT, |live| (live.target.applied >= seq).then_some(()));
    let live = shell.live();
    assert!(reached.is_some(), "applied {:?} of {seq}; {:?}", live.target, live.job);
}

/// A file of the replica, as its worker sees it.
fn replica_file(lab: &Lab, shell: &JobShell, name: &str) -> Vec<u8> {
    let pid = shell.wait(LIMIT, |live| live.worker.as_ref().map(|worker| worker.pid)).expect("a worker runs");
    let inside = lab.appliance.layout.run_directory(&shell.record.id).join("0").join(name);
    std::fs::read(format!("/proc/{pid}/root{}", inside.display())).unwrap_or_default()
}

fn can_mount() -> bool {
    let root = rustix::process::geteuid().is_root();
    let able = root && Path::new("/dev/loop-control").exists();
    if !able {
        eprintln!("skipped: needs root and loop devices");
    }
    able
}

#[test]
fn a_job_from_enrolment_to_failover() {
    if !can_mount() {
        return;
    }
    let _ = tracing_subscriber::fmt().with_env_filter("info").with_test_writer().try_init();
    let dir = tempfile::tempdir().unwrap();
    init::init(dir.path(), "127.0.0.1:1", &[]).unwrap();
    let lab = start(dir.path());
    let address = lab.listening.address().to_string();

    // Enrolment: a token works once.
    let token = lab.appliance.new_enrolment_token(Timestamp(i64::MAX)).unwrap();
    let mut agent = FakeAgent::enrol(&address, &token).unwrap();
    assert!(FakeAgent::enrol(&address, &token).is_err(), "a used token is refused");
    agent.connect(None);

    // Protection: plan, accept, provision, and the order for a full mirror.
    let request = ProtectRequest { source: "web1".into(), ..Default::default() };
    wait_connected(&lab, &agent);
    assert_eq!(protect::plan(&lab.appliance, &request).unwrap().name, "web1");
    let shell = protect::accept(&lab.appliance, &request, "test").unwrap();
    assert_eq!(protect::plan(&lab.appliance, &request).unwrap_err()[0].code, "STANDIN-E4021");
    let start = agent.expect_start();
    assert_eq!((start.epoch, start.next, start.since), (1, OpSeq(1), None));

    // The mirror of a small tree, until the replica is consistent.
    agent.begin(&start);
    agent.mirror(b"firstcontent");
    let last = agent.seal();
    wait_applied(&shell, last);
    wait_state(&shell, "protected");
    assert_eq!(replica_file(&lab, &shell, "hello"), b"firstcontent");

    // The worker is killed; another redoes and goes on.
    let pid = shell.live().worker.as_ref().unwrap().pid;
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid as i32).unwrap(), rustix::process::Signal::KILL).unwrap();
    agent.push(data(file_node(), 0, b"SECOND"));
    let last = agent.seal();
    wait_applied(&shell, last);
    assert_eq!(replica_file(&lab, &shell, "hello"), b"SECONDontent");
    assert!(shell.wait(LIMIT, |live| (!live.job.flags.has(Flag::Degraded)).then_some(())).is_some());
    assert_eq!(shell.live().worker_restarts, 1);

    // A link that breaks: the same epoch is resumed behind what is durable.
    agent.connect(Some(1));
    let resumed = agent.expect_start();
    assert_eq!((resumed.epoch, resumed.next), (1, last.next()));
    agent.begin(&resumed);
    agent.push(data(file_node(), 0, b"third!"));
    let last = agent.seal();
    wait_applied(&shell, last);

    // An agent that was restarted: a new epoch, and only what changed since.
    agent.connect(None);
    let resync = agent.expect_start();
    assert_eq!((resync.epoch, resync.next), (2, last.next()));
    assert!(resync.since.is_some());
    agent.begin(&resync);
    agent.push(Operation::Marker(Marker::Gap { reason: "agent restarted".into() }));
    let gap = agent.seal();
    wait_applied(&shell, gap);
    wait_state(&shell, "resyncing");
    let refused = execute::plan(&lab.appliance, &shell, &FailoverRequest::default()).unwrap_err();
    assert_eq!(refused[0].code, "STANDIN-E4006");

    // Restarted once more before that resync has ended: what it owed is still owed.
    let owed = resync.since;
    agent.connect(None);
    let resync = agent.expect_start();
    assert_eq!((resync.epoch, resync.since), (3, owed));
    agent.begin(&resync);
    agent.push(Operation::Marker(Marker::ResyncStarted));
    agent.mirror(b"after the resync");
    let last = agent.seal();
    wait_applied(&shell, last);
    wait_state(&shell, "protected");

    failovers(&lab, &shell, &mut agent);
}

fn wait_connected(lab: &Lab, agent: &FakeAgent) {
    let deadline = std::time::Instant::now() + LIMIT;
    while lab.appliance.session(agent.id()).is_none() {
        assert!(std::time::Instant::now() < deadline, "the agent did not connect");
        std::thread::yield_now();
    }
}

/// First one that the source refuses, then one that goes through to what a replica without a kernel allows.
fn failovers(lab: &Lab, shell: &Arc<JobShell>, agent: &mut FakeAgent) {
    let request = FailoverRequest::default();
    execute::begin(&lab.appliance, shell, &request, "test").unwrap();
    agent.expect(|message| matches!(message, ToAgent::Quiesce { .. }));
    agent.refuse("STANDIN-E6001", "the file system does not freeze");
    agent.expect(|message| matches!(message, ToAgent::Thaw { .. }));
    wait_state(shell, "protected");
    assert!(matches!(shell.live().run.as_ref().unwrap().1.state, RunState::Aborted { .. }));

    let began = shell.wait(LIMIT, |live| (!live.worker_held).then_some(()));
    assert!(began.is_some());
    execute::begin(&lab.appliance, shell, &request, "test").unwrap();
    let second = execute::begin(&lab.appliance, shell, &request, "test").unwrap_err();
    assert_eq!(second[0].code, "STANDIN-E4005");
    agent.expect(|message| matches!(message, ToAgent::Quiesce { .. }));
    agent.push(Operation::Marker(Marker::Quiesced));
    let cut = agent.seal();
    agent.quiesced(cut);
    agent.expect(|message| matches!(message, ToAgent::Fence { .. }));
    agent.fenced();
    // The tree has no kernel, so that boot repair refuses; the source is off by now, so the run can only be taken up again.
    let failed = shell.wait(LIMIT, |live| match &live.run.as_ref()?.1.state {
        RunState::Failed { problem, .. } => Some(problem.clone()),
        _ => None,
    });
    assert_eq!(failed.expect("the run ends").code, "STANDIN-E3101");
    assert_eq!(shell.live().job.state.name(), "failing-over");
    let run = shell.live().run.as_ref().unwrap().1.clone();
    assert_eq!(run.cut, Some(cut));
    assert!(run.is_fenced());
    assert_eq!(replica_file(lab, shell, "hello"), b"after the resync");
    assert_eq!(root_node().volume, VolumeId(0));
}

/// Killed in the middle: the journal keeps what was acknowledged, the replica is redone, the API knows the job, and the agent is taken up where it was.
#[test]
fn a_killed_appliance_goes_on_where_it_was() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut process = process::Process::init(dir.path());
    process.start();
    let mut agent = FakeAgent::enrol(&process.agents, &process.enrolment_token()).unwrap();
    agent.connect(None);
    process.wait_source(&agent);
    let (status, refused) = process.request("POST", "/api/v1/jobs", r#"{"source": "web1", "cpus": 0}"#).unwrap();
    assert_eq!((status, refused["code"].as_str()), (409, Some("STANDIN-E4031")));
    let (status, unreadable) = process.request("POST", "/api/v1/jobs", r#"{"sauce": 1}"#).unwrap();
    assert_eq!((status, unreadable["code"].as_str()), (400, Some("STANDIN-E5005")));
    let (status, job) = process.request("POST", "/api/v1/jobs", r#"{"source": "web1"}"#).unwrap();
    assert_eq!((status, job["name"].as_str()), (201, Some("web1")), "{job:#}");
    let start = agent.expect_start();
    agent.begin(&start);
    agent.mirror(b"before the kill");
    let last = agent.seal();
    agent.expect(|message| matches!(message, ToAgent::Ack { durable, .. } if *durable >= last));
    process.kill();

    process.start();
    let applied = |view: &serde_json::Value| view["watermarks"]["applied"].as_u64() == Some(last.0) && view["state"] == "protected";
    let view = process.wait_job("web1", "protected from its journal", applied);
    assert_eq!(view["connected"], false);
    agent.connect(Some(1));
    let resumed = agent.expect_start();
    assert_eq!((resumed.epoch, resumed.next), (1, last.next()));
    agent.begin(&resumed);
    agent.push(data(file_node(), 0, b"BEHIND"));
    let last = agent.seal();
    agent.expect(|message| matches!(message, ToAgent::Ack { applied, .. } if *applied >= last));
    let (_, events) = process.request("GET", "/api/v1/jobs/web1/events", "").unwrap();
    let texts: Vec<_> = events.as_array().unwrap().iter().filter_map(|event| event["text"].as_str()).collect();
    assert!(texts.iter().any(|text| text.contains("resumed")), "{texts:?}");
}
