//! A source that says that it tells only which nodes changed: the job shows it as a flag with its reason, and counts its RPO from the last consistent state.

use super::{can_mount, process};
use serde_json::{Value, json};
use standin_model::Timestamp;
use standin_wire::{CaptureStatus, Status, ToAppliance};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn flag(view: &Value) -> Option<&Value> {
    view["flags"].as_array()?.iter().find(|flag| flag["flag"] == "periodic")
}

#[test]
fn a_weaker_promise_is_shown_with_its_reason_and_age() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (process, agent, job, _) = process::Process::protecting(dir.path());
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() - Duration::from_secs(100);
    let periodic = CaptureStatus {
        driver: "fanotify".into(),
        periodic: true,
        because: "STANDIN-E6005: no BTF".into(),
        changed_nodes: 3,
        consistent_at: Some(Timestamp(before.as_nanos() as i64)),
        trouble: Some("too much changes".into()),
        ..CaptureStatus::default()
    };
    let say = |capture: &CaptureStatus| {
        agent.say(&ToAppliance::Status(Status { job: Some(job.clone()), capture: Some(capture.clone()), ..Status::default() }));
    };
    say(&periodic);
    let view = process.wait_job("web1", "flagged", |view| flag(view).is_some());
    let problem = &flag(&view).unwrap()["problem"];
    assert_eq!(problem["code"], "STANDIN-E6008");
    assert!(problem["cause"].as_str().unwrap().contains("no BTF"), "{problem:#}");
    assert!(problem["next"].as_str().unwrap().contains("standin-agent capture --driver ebpf"), "{problem:#}");
    assert_eq!((&view["capture"]["driver"], &view["capture"]["promise"]), (&json!("fanotify"), &json!("periodic consistency")));
    assert_eq!(view["capture"]["trouble"], "too much changes");
    assert!((100..200).contains(&view["lag_seconds"].as_u64().unwrap()), "{}", view["lag_seconds"]);
    // Nothing has changed since: the replica is the source.
    say(&CaptureStatus { changed_nodes: 0, ..periodic.clone() });
    process.wait_job("web1", "current", |view| view["lag_seconds"].as_u64().is_some_and(|lag| lag < 50) && flag(view).is_some());
    say(&CaptureStatus { driver: "ebpf".into(), ..CaptureStatus::default() });
    let view = process.wait_job("web1", "unflagged", |view| flag(view).is_none());
    assert_eq!(view["capture"]["promise"], "every operation in its order");
}
