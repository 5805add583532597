//! Which points are due, kept and chosen.

use super::*;
use crate::fence::Waiver;
use crate::plan_failover;
use standin_model::{JobId, MarkName, OpSeq};

const SECOND: i64 = 1_000_000_000;

fn point(kind: PointKind, seq: u64, taken: i64) -> RecoveryPoint {
    RecoveryPoint {
        kind,
        name: None,
        seq: OpSeq(seq),
        captured_at: Some(Timestamp(taken * SECOND)),
        taken_at: Timestamp(taken * SECOND),
        consistent: true,
        bytes_copied: 0,
        held_ms: 1,
    }
}

fn named(kind: PointKind, name: &str, seq: u64) -> RecoveryPoint {
    RecoveryPoint { name: MarkName::parse(name), ..point(kind, seq, seq as i64) }
}

#[test]
fn regular_points_are_off_by_default_where_each_would_be_a_whole_copy() {
    let policy = PointPolicy::default();
    let now = Timestamp(1000 * SECOND);
    assert!(!policy.is_due(now, false, &[]));
    assert!(policy.is_due(now, true, &[]));
    assert!(!policy.is_due(now, true, &[point(PointKind::Regular, 1, 701)]));
    assert!(policy.is_due(now, true, &[point(PointKind::Regular, 1, 700), point(PointKind::Marker, 2, 999)]));
    let asked = PointPolicy { interval_seconds: Some(60), ..policy.clone() };
    assert!(asked.is_due(now, false, &[point(PointKind::Regular, 1, 900)]));
    let never = PointPolicy { interval_seconds: Some(0), ..policy };
    assert!(!never.is_due(now, true, &[]));
}

#[test]
fn a_policy_has_bounds() {
    assert!(PointPolicy::default().check().is_ok());
    for bad in [
        PointPolicy { interval_seconds: Some(1), ..Default::default() },
        PointPolicy { keep_regular: 0, ..Default::default() },
        PointPolicy { keep_markers: 65, ..Default::default() },
    ] {
        assert_eq!(bad.check().unwrap_err().code, "STANDIN-E4065");
    }
}

#[test]
fn each_kind_is_bounded_and_the_operators_own_stay() {
    let policy = PointPolicy { keep_regular: 2, keep_markers: 1, ..Default::default() };
    let mut points: Vec<_> = (1..=4).map(|seq| point(PointKind::Regular, seq, 1)).collect();
    points.extend([point(PointKind::Marker, 5, 1), point(PointKind::Marker, 6, 1)]);
    points.extend([point(PointKind::BeforeResync, 7, 1), point(PointKind::BeforeResync, 8, 1)]);
    points.extend((10..20).map(|seq| point(PointKind::Manual, seq, 1)));
    assert_eq!(policy.surplus(&points, true), ["1-regular", "2-regular", "5-marker", "7-before-resync"]);
}

#[test]
fn in_a_resync_the_last_consistent_point_stays_whatever_the_rule_says() {
    let policy = PointPolicy { keep_regular: 1, ..Default::default() };
    let worthless = |seq| RecoveryPoint { consistent: false, ..point(PointKind::Regular, seq, 1) };
    let points = [point(PointKind::Regular, 1, 1), worthless(2), worthless(3)];
    assert_eq!(policy.surplus(&points, false), ["2-regular"]);
    assert_eq!(policy.surplus(&points, true), ["1-regular", "2-regular"]);
}

#[test]
fn a_resync_right_after_a_point_keeps_that_one() {
    let policy = PointPolicy::default();
    let points = [point(PointKind::Regular, 1, 1000)];
    for (now, shared, wanted) in [(1030, true, false), (1061, true, true), (1061, false, false), (1901, false, true), (990, false, true)] {
        assert_eq!(policy.wants_before_resync(Timestamp(now * SECOND), shared, &points), wanted, "{now} {shared}");
    }
    assert!(policy.wants_before_resync(Timestamp(0), true, &[]));
    let off = PointPolicy { before_resync: false, ..policy };
    assert!(!off.wants_before_resync(Timestamp(0), true, &[]));
}

fn facts(state: JobState, points: Vec<RecoveryPoint>) -> FailoverFacts {
    FailoverFacts {
        job: JobId::from_random([1; 8]),
        job_name: "web1".into(),
        state,
        agent_connected: true,
        stream_stopped: None,
        obstacles: Vec::new(),
        durable: OpSeq(99),
        applied: OpSeq(99),
        loss_seconds: Some(2),
        periodic: false,
        replica_name: "web1".into(),
        boot_prepared: true,
        points,
    }
}

fn protected() -> JobState {
    JobState::Protected { since: Timestamp(0), consistent: OpSeq(90) }
}

fn resyncing() -> JobState {
    JobState::Resyncing { since: Timestamp(0), consistent: OpSeq(90), reason: "the ring was full".into() }
}

fn unplanned() -> FailoverRequest {
    FailoverRequest { waiver: Some(Waiver::new("Ada", "it burnt").unwrap()), ..Default::default() }
}

fn at(request: FailoverRequest, text: &str) -> FailoverRequest {
    FailoverRequest { at: Some(text.into()), ..request }
}

#[track_caller]
fn chosen(state: JobState, points: &[RecoveryPoint], request: &FailoverRequest, expect: Result<Option<&str>, &str>) {
    let planned = plan_failover(Timestamp(200 * SECOND), &facts(state, points.to_vec()), request);
    let found = planned.as_ref().map(|runbook| runbook.point.as_ref().map(RecoveryPoint::id));
    let found = found.map_err(|problems| problems[0].code.replace("STANDIN-", ""));
    assert_eq!(found, expect.map(|id| id.map(str::to_owned)).map_err(str::to_owned));
}

#[test]
fn the_operators_choice_comes_first_and_a_resync_chooses_the_last_consistent_point() {
    let worthless = RecoveryPoint { consistent: false, ..point(PointKind::Regular, 95, 195) };
    let points = [
        point(PointKind::Regular, 50, 50),
        named(PointKind::Marker, "close", 60),
        point(PointKind::BeforeResync, 90, 190),
        named(PointKind::Marker, "close", 70),
        worthless,
    ];
    let planned = FailoverRequest::default();
    // A replica that is in order is the newest state there is.
    chosen(protected(), &points, &planned, Ok(None));
    chosen(protected(), &points, &unplanned(), Ok(None));
    // In a resync it is not a state of the source at all.
    chosen(resyncing(), &points, &unplanned(), Ok(Some("90-before-resync")));
    chosen(resyncing(), &points, &at(unplanned(), "now"), Ok(None));
    chosen(resyncing(), &[], &unplanned(), Ok(None));
    chosen(resyncing(), &points, &planned, Err("E4006"));
    // By id, or by name: the newest of it.
    for (text, id) in [("50-regular", "50-regular"), ("close", "70-marker"), ("60-marker", "60-marker")] {
        for state in [protected(), resyncing()] {
            chosen(state, &points, &at(unplanned(), text), Ok(Some(id)));
        }
        chosen(protected(), &points, &at(planned.clone(), text), Ok(Some(id)));
    }
    chosen(protected(), &points, &at(unplanned(), "gone"), Err("E4060"));
    chosen(protected(), &points, &at(unplanned(), "95-regular"), Err("E4061"));
}

#[test]
fn a_resyncing_job_says_which_point_there_is_and_how_to_take_it() {
    let points = vec![point(PointKind::BeforeResync, 90, 140)];
    let problems = plan_failover(Timestamp(200 * SECOND), &facts(resyncing(), points), &FailoverRequest::default()).unwrap_err();
    assert_eq!(problems[0].code, "STANDIN-E4006");
    assert!(problems[0].cause.contains("90-before-resync (before-resync, 60 s old, at 90)"), "{}", problems[0].cause);
    assert!(problems[0].next.contains("--at 90-before-resync --waive-fence"), "{}", problems[0].next);
}

#[test]
fn a_point_is_booted_from_a_duplicate_and_the_present_is_kept() {
    use crate::StepKind::*;
    let points = vec![point(PointKind::BeforeResync, 90, 140)];
    let now = Timestamp(200 * SECOND);
    let runbook = plan_failover(now, &facts(resyncing(), points.clone()), &unplanned()).unwrap();
    let kinds: Vec<_> = runbook.steps.iter().map(|step| step.kind).collect();
    assert_eq!(kinds, [RequireFence, UsePoint, InjectDrivers, DetachDisks, AttachDisks, PowerOn]);
    assert_eq!(runbook.consistent, OpSeq(90));
    assert!(runbook.warnings.iter().any(|warning| warning.contains("60 s old")), "{:?}", runbook.warnings);
    assert!(!runbook.warnings.iter().any(|warning| warning.contains("different moments")), "{:?}", runbook.warnings);
    let planned = plan_failover(now, &facts(protected(), points), &at(FailoverRequest::default(), "90-before-resync")).unwrap();
    let kinds: Vec<_> = planned.steps.iter().map(|step| step.kind).collect();
    assert_eq!(kinds, [Quiesce, Drain, Fence, UsePoint, InjectDrivers, DetachDisks, AttachDisks, PowerOn]);
}
