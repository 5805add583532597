//! Runs that succeed, abort, fail and resume.

use super::*;
use crate::fence::Waiver;
use crate::{FailoverFacts, FailoverRequest, JobState, plan_failover};
use standin_model::JobId;

const NOW: Timestamp = Timestamp(3);

fn new_run(waiver: Option<Waiver>) -> Run {
    let facts = FailoverFacts {
        job: JobId::from_random([1; 8]),
        job_name: "web1".into(),
        state: JobState::Protected { since: Timestamp(0), consistent: OpSeq(5) },
        agent_connected: true,
        stream_stopped: None,
        obstacles: Vec::new(),
        durable: OpSeq(9),
        applied: OpSeq(9),
        loss_seconds: None,
        periodic: false,
        replica_name: "web1".into(),
        boot_prepared: true,
        points: Vec::new(),
    };
    let request = FailoverRequest { waiver, ..Default::default() };
    Run::new(plan_failover(NOW, &facts, &request).unwrap(), NOW)
}

fn go(run: &mut Run, count: usize) {
    for _ in 0..count {
        let (index, kind) = run.next().unwrap();
        run.start(index, NOW);
        if kind == StepKind::Fence {
            run.record_fenced(SourceFenced::confirmed_by_agent(run.runbook.job.clone(), NOW));
        }
        run.done(index, NOW, String::new());
    }
}

fn fail(run: &mut Run) {
    let (index, _) = run.next().unwrap();
    run.start(index, NOW);
    run.failed(index, NOW, Problem::new("E4099", "cause", "next"));
}

#[test]
fn all_steps_in_order() {
    let mut run = new_run(None);
    go(&mut run, 7);
    assert_eq!(run.state, RunState::Succeeded { ended: NOW });
    assert_eq!(run.next(), None);
}

#[test]
fn before_the_fence_a_failure_aborts_and_behind_it_can_be_resumed() {
    for before in 0..3 {
        let mut run = new_run(None);
        go(&mut run, before);
        fail(&mut run);
        assert!(matches!(run.state, RunState::Aborted { .. }), "{before}");
        run.resume();
        assert_eq!(run.next(), None, "an aborted run stays so");
    }
    for before in 3..7 {
        let mut run = new_run(None);
        go(&mut run, before);
        fail(&mut run);
        assert!(matches!(run.state, RunState::Failed { .. }), "{before}");
        run.resume();
        assert_eq!(run.next().unwrap().0, before);
        go(&mut run, 7 - before);
        assert_eq!(run.state, RunState::Succeeded { ended: NOW });
    }
}

#[test]
fn a_crash_before_the_fence_begins_anew_because_the_source_has_thawed() {
    let mut run = new_run(None);
    go(&mut run, 2);
    run.cut = Some(OpSeq(9));
    let before = run.clone();
    run.resume();
    assert_eq!(run.next(), Some((0, StepKind::Quiesce)));
    assert_eq!((run.cut, run.fence_ordered), (None, None));
    // The fence may have been obeyed and its answer lost, which must not be forgotten by a second crash.
    let mut run = before;
    run.start(2, NOW);
    run.resume();
    run.start(0, NOW);
    run.resume();
    assert_eq!((run.next(), run.fence_ordered), (Some((0, StepKind::Quiesce)), Some(NOW)));
}

#[test]
fn a_crash_behind_the_fence_resumes_at_its_step() {
    let mut run = new_run(None);
    go(&mut run, 4);
    run.start(4, NOW);
    let mut run: Run = serde_json::from_str(&serde_json::to_string(&run).unwrap()).unwrap();
    run.resume();
    assert_eq!(run.next(), Some((4, StepKind::DetachDisks)));
}

#[test]
fn a_waiver_is_authority_only_where_the_runbook_has_one() {
    let mut run = new_run(Some(Waiver::new("Ada", "it burnt").unwrap()));
    assert!(run.record_waiver());
    assert!(!run.is_fenced());
    assert!(!new_run(None).record_waiver());
}

#[test]
fn a_source_that_gives_a_sign_behind_its_fence_launches_nothing_without_a_waiver() {
    let mut run = new_run(None);
    run.doubt_fence("too early to mean anything".into());
    assert_eq!(run.launch_authority().unwrap_err().code, "STANDIN-E4011");
    go(&mut run, 6);
    assert!(run.launch_authority().is_ok());
    run.doubt_fence("its agent connected again".into());
    run.doubt_fence("a later sign".into());
    let problem = run.launch_authority().unwrap_err();
    assert!(problem.code == "STANDIN-E4018" && problem.cause.contains("connected again"), "{problem}");
    fail(&mut run);
    run.resume();
    assert_eq!(run.launch_authority().unwrap_err().code, "STANDIN-E4018", "trying again proves nothing");
    run.waive(Waiver::new("Ada", "unplugged").unwrap());
    assert!(matches!(run.launch_authority(), Ok(LaunchAuthority::Waived(_))));
    assert_eq!(run.next().unwrap().1, StepKind::PowerOn, "the run goes on where it was");
}

#[test]
#[should_panic(expected = "steps run in their order")]
fn steps_cannot_be_skipped() {
    new_run(None).start(3, NOW);
}
