//! What may go wrong in the middle of a failover: sources that run on, agents that come back, workers and appliances that are killed.

use super::agent::{FakeAgent, data, file_node};
use super::{LIMIT, Lab, can_mount, process, replica_file, start, start_with, wait_applied, wait_connected, wait_state};
use standin_appliance::job::JobShell;
use standin_appliance::layout::Layout;
use standin_appliance::store::Store;
use standin_appliance::{execute, init, protect};
use standin_hypervisor::{DiskAttachment, VmState};
use standin_model::*;
use standin_protection::point;
use standin_protection::*;
use standin_wire::ToAgent;
use std::sync::Arc;

/// A protected job whose agent is connected in epoch 1.
pub fn protected(dir: &std::path::Path) -> (Lab, Arc<JobShell>, FakeAgent) {
    protected_with(dir, process::PROGRAM.into())
}

fn protected_with(dir: &std::path::Path, program: std::path::PathBuf) -> (Lab, Arc<JobShell>, FakeAgent) {
    init::init(dir, "127.0.0.1:1", &[]).unwrap();
    let lab = start_with(dir, program);
    let token = lab.appliance.new_enrolment_token(Timestamp(i64::MAX)).unwrap();
    let mut agent = FakeAgent::enrol(&lab.listening.address().to_string(), &token).unwrap();
    agent.connect(None);
    wait_connected(&lab, &agent);
    let request = ProtectRequest { source: "web1".into(), ..Default::default() };
    let shell = protect::accept(&lab.appliance, &request, "test").unwrap();
    let order = agent.expect_start();
    agent.begin(&order);
    agent.mirror(b"content");
    let last = agent.seal();
    wait_applied(&shell, last);
    wait_state(&shell, "protected");
    (lab, shell, agent)
}

fn wait_run(shell: &JobShell) -> RunState {
    let ended = shell.wait(LIMIT, |live| live.run.as_ref().map(|(_, run)| run.state.clone()).filter(|state| *state != RunState::Running));
    ended.expect("the run ends")
}

#[track_caller]
fn aborted(shell: &JobShell, code: &str) {
    match wait_run(shell) {
        RunState::Aborted { problem, .. } => assert_eq!(problem.code, code, "{problem}"),
        state => panic!("{state:?}"),
    }
    wait_state(shell, "protected");
}

/// Everything up to the thaw that an abort orders; a fence must not be among it.
fn expect_thaw_without_fence(agent: &mut FakeAgent) {
    let message = agent.expect(|message| matches!(message, ToAgent::Thaw { .. } | ToAgent::Fence { .. }));
    assert!(matches!(message, ToAgent::Thaw { .. }), "a source that ran on was to be switched off");
}

#[test]
fn a_source_that_ran_on_is_not_switched_off() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (lab, shell, mut agent) = protected(dir.path());
    execute::begin(&lab.appliance, &shell, &FailoverRequest::default(), "test").unwrap();
    agent.expect(|message| matches!(message, ToAgent::Quiesce { .. }));
    agent.push(Operation::Marker(Marker::Quiesced));
    // The last segment is still on its way when the watchdog thaws.
    let cut = shell.live().target.durable.next();
    agent.quiesced(cut);
    shell.wait(LIMIT, |live| live.run.as_ref()?.1.cut).expect("quiesced");
    agent.thawed("nobody fenced within the agreed time");
    agent.seal();
    expect_thaw_without_fence(&mut agent);
    aborted(&shell, "STANDIN-E4015");
    // Replication goes on, also past what was the cut.
    agent.push(data(file_node(), 0, b"CONTENT"));
    let last = agent.seal();
    wait_applied(&shell, last);
    assert_eq!(replica_file(&lab, &shell, "hello"), b"CONTENT");
}

#[test]
fn an_agent_that_connected_again_since_the_quiesce_is_not_fenced() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (lab, shell, mut agent) = protected(dir.path());
    execute::begin(&lab.appliance, &shell, &FailoverRequest::default(), "test").unwrap();
    agent.expect(|message| matches!(message, ToAgent::Quiesce { .. }));
    let cut = shell.live().target.durable.next();
    agent.quiesced(cut);
    shell.wait(LIMIT, |live| live.run.as_ref()?.1.cut).expect("quiesced");
    agent.connect(Some(1));
    let resumed = agent.expect_start();
    agent.begin(&resumed);
    agent.push(Operation::Marker(Marker::Quiesced));
    agent.seal();
    expect_thaw_without_fence(&mut agent);
    aborted(&shell, "STANDIN-E4015");
}

#[test]
fn behind_the_fence_workers_may_die_and_agents_hear_that_it_is_over() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (lab, shell, mut agent) = protected(dir.path());
    execute::begin(&lab.appliance, &shell, &FailoverRequest::default(), "test").unwrap();
    agent.expect(|message| matches!(message, ToAgent::Quiesce { .. }));
    agent.push(Operation::Marker(Marker::Quiesced));
    let cut = agent.seal();
    agent.quiesced(cut);
    agent.expect(|message| matches!(message, ToAgent::Fence { .. }));
    // The worker is stopped before the injection asks it something, and killed while the question waits.
    let pid = shell.live().worker.as_ref().unwrap().pid;
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    agent.fenced();
    let injecting = |live: &mut standin_appliance::job::Live| {
        let run = &live.run.as_ref()?.1;
        let index = run.runbook.steps.iter().position(|step| step.kind == StepKind::InjectDrivers)?;
        matches!(run.steps[index], StepState::Running { .. }).then_some(())
    };
    shell.wait(LIMIT, injecting).expect("the injection begins");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    // The next worker says what is really wrong: the tree has no kernel.
    match wait_run(&shell) {
        RunState::Failed { problem, .. } => assert_eq!(problem.code, "STANDIN-E3101", "{problem}"),
        state => panic!("{state:?}"),
    }
    // Whoever calls under the source's name now is told that it is over, and what it sends all the same is not taken.
    let durable = shell.live().target.durable;
    agent.connect(Some(1));
    agent.expect(|message| matches!(message, ToAgent::JobFailedOver { .. }));
    agent.push(data(file_node(), 0, b"from the grave"));
    agent.seal();
    assert!(agent.is_cut_off(), "the session ends");
    assert_eq!(shell.journal().last(), durable);
}

#[test]
fn after_a_failover_a_returning_agent_is_told_and_sends_nothing() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (lab, shell, mut agent) = protected(dir.path());
    // Where a launch has ended, by the job's machine.
    lab.appliance.event(&shell, Event::FailoverStarted { mode: FailoverMode::Unplanned });
    lab.appliance.event(&shell, Event::FailoverFinished);
    agent.expect(|message| matches!(message, ToAgent::JobFailedOver { .. }));
    agent.push(data(file_node(), 0, b"from the grave"));
    let durable = shell.journal().last();
    agent.seal();
    assert!(agent.is_cut_off(), "the session ends");
    for epoch in [None, Some(1)] {
        agent.connect(epoch);
        agent.expect(|message| matches!(message, ToAgent::JobFailedOver { .. }));
    }
    assert_eq!(shell.journal().last(), durable);
}

/// Unplanned, of the replica as it is while resyncing, and with the source alive after all: it is dismissed, and nothing behind the cut reaches the replica.
#[test]
fn an_unplanned_failover_takes_nothing_behind_its_cut() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (lab, shell, mut agent) = protected(dir.path());
    agent.push(Operation::Marker(Marker::Gap { reason: "test".into() }));
    let last = agent.seal();
    wait_applied(&shell, last);
    wait_state(&shell, "resyncing");
    let waiver = Some(Waiver::new("Ada", "unplugged").unwrap());
    let request = FailoverRequest { waiver, at: Some(point::NOW.into()), ..Default::default() };
    execute::begin(&lab.appliance, &shell, &request, "test").unwrap();
    assert_eq!(execute::begin(&lab.appliance, &shell, &request, "test").unwrap_err()[0].code, "STANDIN-E4005");
    agent.expect(|message| matches!(message, ToAgent::JobFailedOver { .. }));
    agent.push(data(file_node(), 0, b"too late"));
    agent.seal();
    assert!(agent.is_cut_off(), "the session ends");
    assert!(matches!(wait_run(&shell), RunState::Failed { problem, .. } if problem.code == "STANDIN-E3101"));
    assert_eq!(shell.live().run.as_ref().unwrap().1.cut, Some(last));
    assert_eq!(shell.live().target.applied, last);
}

/// A crash between storing the run and storing the job leaves the two apart; the next start brings them together again.
#[test]
fn a_crash_between_run_and_job_is_taken_up() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut process, _agent, ..) = process::Process::protecting(dir.path());

    let mut crash = |change: &dyn Fn(&mut Job, &mut Run)| {
        process.kill();
        let store = Store::open(&Layout::store(dir.path())).unwrap();
        let (record, mut job, _) = store.jobs().unwrap().remove(0);
        let mut run = Run::new(runbook(&record.id), Timestamp(1));
        change(&mut job, &mut run);
        store.add_run(&record.id, &run).unwrap();
        store.save_machine(&record.id, &job).unwrap();
        drop(store);
        process.start();
        let (_, view) = process.request("GET", "/api/v1/jobs/web1", "").unwrap();
        let (_, run) = process.request("GET", "/api/v1/jobs/web1/runbook", "").unwrap();
        (view["state"].as_str().unwrap().to_owned(), run["state"]["state"].as_str().unwrap().to_owned())
    };
    let problem = || Problem::new("E4008", "cause", "next");
    let failing = |job: &mut Job| {
        let before = Box::new(JobState::Protected { since: Timestamp(1), consistent: OpSeq(5) });
        job.state = JobState::FailingOver { since: Timestamp(1), mode: FailoverMode::Planned, before };
    };
    assert_eq!(crash(&|_, _| {}), ("protected".into(), "aborted".into()));
    let cut_off = |job: &mut Job, run: &mut Run| {
        failing(job);
        run.state = RunState::Aborted { ended: Timestamp(2), problem: problem() };
    };
    assert_eq!(crash(&cut_off), ("protected".into(), "aborted".into()));
    let launched = |job: &mut Job, run: &mut Run| {
        failing(job);
        run.state = RunState::Succeeded { ended: Timestamp(2) };
    };
    assert_eq!(crash(&launched), ("failed-over".into(), "succeeded".into()));
}

fn runbook(job: &JobId) -> Runbook {
    let facts = FailoverFacts {
        job: job.clone(),
        job_name: "web1".into(),
        state: JobState::Protected { since: Timestamp(0), consistent: OpSeq(5) },
        agent_connected: true,
        stream_stopped: None,
        obstacles: Vec::new(),
        durable: OpSeq(5),
        applied: OpSeq(5),
        loss_seconds: None,
        periodic: false,
        replica_name: "web1".into(),
        boot_prepared: true,
        points: Vec::new(),
    };
    plan_failover(Timestamp(1), &facts, &FailoverRequest::default()).unwrap()
}

/// A job whose failover a crash interrupted right behind the fence, in an appliance that was started since.
fn fenced_before_the_crash(dir: &std::path::Path) -> (Lab, Arc<JobShell>, FakeAgent) {
    let (mut process, mut agent, ..) = process::Process::protecting(dir);
    process.kill();
    let store = Store::open(&Layout::store(dir)).unwrap();
    let (record, mut job, _) = store.jobs().unwrap().remove(0);
    let now = standin_appliance::layout::now();
    let mut run = Run::new(runbook(&record.id), now);
    while let Some((index, kind)) = run.next().filter(|(_, kind)| *kind != StepKind::AttachDisks) {
        run.start(index, now);
        if kind == StepKind::Fence {
            run.record_fenced(SourceFenced::confirmed_by_agent(record.id.clone(), now));
        }
        run.done(index, now, String::new());
    }
    let before = Box::new(job.state.clone());
    job.state = JobState::FailingOver { since: now, mode: FailoverMode::Planned, before };
    store.add_run(&record.id, &run).unwrap();
    store.save_machine(&record.id, &job).unwrap();
    drop(store);
    let lab = start(dir);
    agent.address = lab.listening.address().to_string();
    let shell = lab.appliance.find_job("web1").unwrap();
    (lab, shell, agent)
}

#[test]
fn a_source_that_comes_back_behind_its_fence_keeps_the_replica_off_until_somebody_answers_for_it() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (lab, shell, mut agent) = fenced_before_the_crash(dir.path());
    agent.connect(Some(1));
    agent.expect(|message| matches!(message, ToAgent::JobFailedOver { .. }));
    let doubted = || matches!(wait_run(&shell), RunState::Failed { problem, .. } if problem.code == "STANDIN-E4018");
    assert!(doubted(), "{:?}", wait_run(&shell));
    let runs = || lab.appliance.hypervisor.state("web1").is_ok_and(|state| state == VmState::Running);
    assert!(!runs());
    execute::begin(&lab.appliance, &shell, &FailoverRequest::default(), "test").unwrap();
    assert!(doubted(), "{:?}", wait_run(&shell));
    assert!(!runs());

    let waiver = Some(Waiver::new("Ada", "unplugged by hand").unwrap());
    execute::begin(&lab.appliance, &shell, &FailoverRequest { waiver, ..Default::default() }, "test").unwrap();
    wait_state(&shell, "failed-over");
    assert!(runs());
    let events = lab.appliance.store.events(Some(&shell.record.id), 0, 1000).unwrap();
    assert!(events.iter().any(|event| event.text.contains("waived by Ada: unplugged by hand")));

    // The host was rebooted: the machine is started on demand, but beside a source that runs only on somebody's word.
    lab.appliance.hypervisor.power_off("web1", None).unwrap();
    let start = |waiver: Option<&Waiver>| standin_appliance::launch::start_again(&lab.appliance, &shell, waiver, "test");
    wait_connected(&lab, &agent);
    assert_eq!(start(None).unwrap_err().code, "STANDIN-E4059");
    assert!(!runs());
    start(Some(&Waiver::new("Ada", "isolated").unwrap())).unwrap();
    assert!(runs());
    lab.appliance.hypervisor.power_off("web1", None).unwrap();
    drop(agent);
    let gone = || lab.appliance.session(&shell.record.agent).is_none();
    shell.wait(LIMIT, |_| gone().then_some(())).expect("the agent is gone");
    start(None).unwrap();
    assert!(runs());
}

#[test]
fn a_source_that_thaws_behind_its_fence_launches_nothing() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (lab, shell, mut agent) = protected(dir.path());
    execute::begin(&lab.appliance, &shell, &FailoverRequest::default(), "test").unwrap();
    agent.expect(|message| matches!(message, ToAgent::Quiesce { .. }));
    agent.push(Operation::Marker(Marker::Quiesced));
    let cut = agent.seal();
    agent.quiesced(cut);
    agent.expect(|message| matches!(message, ToAgent::Fence { .. }));
    agent.fenced();
    // The tree has no kernel, so that the run fails in any case; what counts is what it knows of its source then.
    wait_run(&shell);
    agent.thawed("the power-off failed");
    let doubt = shell.wait(LIMIT, |live| live.run.as_ref()?.1.doubt.clone());
    assert!(doubt.is_some_and(|sign| sign.contains("the power-off failed")));
    execute::begin(&lab.appliance, &shell, &FailoverRequest::default(), "test").unwrap();
    assert!(matches!(wait_run(&shell), RunState::Failed { problem, .. } if problem.code == "STANDIN-E4018"));
}

/// Whatever the store says: a disk that a machine has is nobody else's.
#[test]
fn no_worker_opens_the_disk_of_a_machine_that_runs() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (lab, shell, mut agent) = protected(dir.path());
    let early = standin_appliance::launch::start_again(&lab.appliance, &shell, None, "test");
    assert_eq!(early.unwrap_err().code, "STANDIN-E4058");
    let record = &shell.record;
    let hypervisor = &lab.appliance.hypervisor;
    hypervisor.define(&standin_appliance::launch::definition(record.id.as_str(), &record.summary, &record.inventory).unwrap()).unwrap();
    let disk = DiskAttachment { base: lab.appliance.layout.disk("web1"), overlay: None };
    hypervisor.attach_disk("web1", &disk).unwrap();
    hypervisor.power_on("web1").unwrap();
    let pid = shell.live().worker.as_ref().unwrap().pid;
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid as i32).unwrap(), rustix::process::Signal::KILL).unwrap();
    let refused = |live: &mut standin_appliance::job::Live| {
        let mut problems = live.job.flags.iter().filter_map(|(_, problem)| problem);
        problems.any(|problem| problem.code == "STANDIN-E4057").then_some(live.worker.is_none())
    };
    assert_eq!(shell.wait(LIMIT, refused), Some(true));
    execute::begin(&lab.appliance, &shell, &FailoverRequest::default(), "test").unwrap();
    aborted(&shell, "STANDIN-E4057");
    hypervisor.power_off("web1", None).unwrap();
    agent.push(data(file_node(), 0, b"CONTENT"));
    let last = agent.seal();
    wait_applied(&shell, last);
}

/// Lets the store refuse updates of `table` that `condition` is true of, until it is called again with none.
fn refuse_updates(dir: &std::path::Path, table: &str, condition: Option<&str>) {
    let store = rusqlite::Connection::open(Layout::store(dir)).unwrap();
    store.busy_timeout(LIMIT).unwrap();
    let sql = match condition {
        Some(condition) => {
            format!("CREATE TRIGGER full BEFORE UPDATE ON {table} WHEN {condition} BEGIN SELECT RAISE(ABORT, 'disk full'); END")
        }
        None => "DROP TRIGGER full".into(),
    };
    store.execute_batch(&sql).unwrap();
}

#[test]
fn what_the_store_does_not_take_is_not_done() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (lab, shell, mut agent) = protected(dir.path());
    let quiesce = |agent: &mut FakeAgent| {
        execute::begin(&lab.appliance, &shell, &FailoverRequest::default(), "test").unwrap();
        agent.expect(|message| matches!(message, ToAgent::Quiesce { .. }));
        agent.push(Operation::Marker(Marker::Quiesced));
        let cut = agent.seal();
        agent.quiesced(cut);
    };
    // A crash would let a job replicate on that has failed over: the source is not switched off.
    refuse_updates(dir.path(), "job", Some("NEW.machine LIKE '%failing-over%'"));
    quiesce(&mut agent);
    expect_thaw_without_fence(&mut agent);
    aborted(&shell, "STANDIN-E5001");
    refuse_updates(dir.path(), "job", None);
    shell.wait(LIMIT, |live| (!live.worker_held).then_some(())).expect("the executor ends");

    // A crash would forget that the replica may be launched: nothing is launched before it is stored.
    refuse_updates(dir.path(), "run", Some("NEW.body LIKE '%\"fenced\"%'"));
    quiesce(&mut agent);
    agent.expect(|message| matches!(message, ToAgent::Fence { .. }));
    agent.fenced();
    assert!(matches!(wait_run(&shell), RunState::Failed { problem, .. } if problem.code == "STANDIN-E5001"));
    refuse_updates(dir.path(), "run", None);
    execute::begin(&lab.appliance, &shell, &FailoverRequest::default(), "test").unwrap();
    assert!(matches!(wait_run(&shell), RunState::Failed { problem, .. } if problem.code == "STANDIN-E3101"));
    let (_, stored) = lab.appliance.store.last_run(&shell.record.id).unwrap().unwrap();
    assert!(stored.is_fenced());
}

/// The second answer to one question comes while the next one is waited for.
#[test]
fn a_late_answer_of_a_worker_answers_no_other_question() {
    use std::os::unix::fs::PermissionsExt;
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("answers-twice");
    std::fs::write(&program, format!("#!/bin/sh\n{} \"$@\" | sed -u '/\"finished\"/p'\n", process::PROGRAM)).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
    let (lab, shell, mut agent) = protected_with(dir.path(), program);
    execute::begin(&lab.appliance, &shell, &FailoverRequest::default(), "test").unwrap();
    agent.expect(|message| matches!(message, ToAgent::Quiesce { .. }));
    agent.push(Operation::Marker(Marker::Quiesced));
    let cut = agent.seal();
    agent.quiesced(cut);
    agent.expect(|message| matches!(message, ToAgent::Fence { .. }));
    agent.fenced();
    // Nothing could be injected into a tree without a kernel, and nothing else may stand for it.
    assert!(matches!(wait_run(&shell), RunState::Failed { problem, .. } if problem.code == "STANDIN-E3101"));
}

/// Memory that is free when a failover is planned may be gone when the source stands still; switching it off then would leave nobody.
#[test]
fn a_source_whose_replica_the_host_cannot_run_is_not_switched_off() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (lab, shell, mut agent) = protected(dir.path());
    let hypervisor = &lab.appliance.hypervisor;
    let record = &shell.record;
    let own = standin_appliance::launch::definition(record.id.as_str(), &record.summary, &record.inventory).unwrap();
    let memory_bytes = hypervisor.host().unwrap().memory_available_bytes - own.memory_bytes / 2;
    hypervisor.define(&standin_hypervisor::VmDefinition { name: "greedy".into(), owner: "other".into(), memory_bytes, ..own }).unwrap();
    hypervisor.attach_disk("greedy", &DiskAttachment { base: "/nowhere".into(), overlay: None }).unwrap();
    hypervisor.power_on("greedy").unwrap();
    let refused = execute::plan(&lab.appliance, &shell, &FailoverRequest::default()).unwrap_err();
    assert_eq!(refused[0].code, "STANDIN-E3204");
    hypervisor.power_off("greedy", None).unwrap();

    execute::begin(&lab.appliance, &shell, &FailoverRequest::default(), "test").unwrap();
    agent.expect(|message| matches!(message, ToAgent::Quiesce { .. }));
    hypervisor.power_on("greedy").unwrap();
    agent.push(Operation::Marker(Marker::Quiesced));
    let cut = agent.seal();
    agent.quiesced(cut);
    expect_thaw_without_fence(&mut agent);
    aborted(&shell, "STANDIN-E3204");
}
