//! Runbooks for all states and modes.

use super::*;
use crate::StepKind::*;

fn facts(state: JobState) -> FailoverFacts {
    FailoverFacts {
        job: JobId::from_random([1; 8]),
        job_name: "web1".into(),
        state,
        agent_connected: true,
        stream_stopped: None,
        obstacles: Vec::new(),
        durable: OpSeq(9),
        applied: OpSeq(9),
        loss_seconds: Some(2),
        periodic: false,
        replica_name: "web1".into(),
        boot_prepared: true,
        points: Vec::new(),
    }
}

fn protected() -> JobState {
    JobState::Protected { since: Timestamp(0), consistent: OpSeq(5) }
}

fn waiver() -> Option<Waiver> {
    Some(Waiver::new("Ada", "it burnt").unwrap())
}

fn codes(facts: &FailoverFacts, request: &FailoverRequest) -> Vec<String> {
    let problems = plan_failover(Timestamp(1), facts, request).err().unwrap_or_default();
    problems.iter().map(|problem| problem.code.replace("STANDIN-", "")).collect()
}

fn kinds(runbook: &Runbook) -> Vec<StepKind> {
    runbook.steps.iter().map(|step| step.kind).collect()
}

#[test]
fn planned_is_the_classic_order_behind_quiesce_drain_fence() {
    let runbook = plan_failover(Timestamp(1), &facts(protected()), &FailoverRequest::default()).unwrap();
    assert_eq!(kinds(&runbook), [Quiesce, Drain, Fence, InjectDrivers, DetachDisks, AttachDisks, PowerOn]);
    assert_eq!((runbook.mode, runbook.consistent), (FailoverMode::Planned, OpSeq(5)));
    assert!(runbook.warnings.is_empty());
}

#[test]
fn unplanned_needs_a_waiver_and_says_what_may_be_lost() {
    let mut facts = facts(protected());
    facts.agent_connected = false;
    assert_eq!(codes(&facts, &FailoverRequest::default()), ["E4003"]);
    let bare = FailoverRequest { mode: Some(FailoverMode::Unplanned), ..Default::default() };
    assert_eq!(codes(&facts, &bare), ["E4004"]);
    let request = FailoverRequest { waiver: waiver(), ..Default::default() };
    let runbook = plan_failover(Timestamp(1), &facts, &request).unwrap();
    assert_eq!(kinds(&runbook), [RequireFence, Drain, InjectDrivers, DetachDisks, AttachDisks, PowerOn]);
    assert!(runbook.warnings[0].contains("2 s"));
    facts.agent_connected = true;
    let runbook = plan_failover(Timestamp(1), &facts, &request).unwrap();
    assert!(runbook.warnings.iter().any(|warning| warning.contains("IS connected")));
}

#[test]
fn a_stopped_stream_cannot_be_drained() {
    let facts = FailoverFacts { stream_stopped: Some("paused".into()), ..facts(protected()) };
    assert_eq!(codes(&facts, &FailoverRequest::default()), ["E4016"]);
    assert!(codes(&facts, &FailoverRequest { waiver: waiver(), ..Default::default() }).is_empty());
}

#[test]
fn states_in_which_nothing_can_fail_over() {
    let planned = FailoverRequest::default();
    for state in [JobState::Created, JobState::Provisioning, JobState::Mirroring { since: Timestamp(0) }] {
        assert_eq!(codes(&facts(state), &planned), ["E4001"]);
    }
    let resyncing = JobState::Resyncing { since: Timestamp(0), consistent: OpSeq(5), reason: "gap".into() };
    assert_eq!(codes(&facts(resyncing.clone()), &planned), ["E4006"]);
    let periodic = FailoverFacts { periodic: true, ..facts(resyncing.clone()) };
    let runbook = plan_failover(Timestamp(1), &periodic, &planned).unwrap();
    assert!(runbook.warnings.is_empty() && runbook.point.is_none(), "it stands still for it: {:?}", runbook.warnings);
    let unplanned = FailoverRequest { waiver: waiver(), ..Default::default() };
    let runbook = plan_failover(Timestamp(1), &facts(resyncing), &unplanned).unwrap();
    assert!(runbook.warnings.iter().any(|warning| warning.contains("different moments")));
    assert_eq!(codes(&facts(JobState::FailedOver { since: Timestamp(0) }), &planned), ["E4002"]);
    let before = Box::new(protected());
    let running = JobState::FailingOver { since: Timestamp(0), mode: FailoverMode::Planned, before };
    assert_eq!(codes(&facts(running), &planned), ["E4005"]);
}
