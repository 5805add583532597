//! A journal that lost what was acknowledged, and one that is full.

use super::agent::{data, file_node};
use super::{LIMIT, can_mount, process, replica_file, wait_applied};
use standin_appliance::layout::Layout;
use standin_appliance::store::Store;
use standin_model::*;
use standin_protection::Flag;
use standin_wire::ToAgent;
use std::path::Path;
use std::time::Duration;

/// Damages the last record of the journal's newest file.
fn damage_journal(dir: &Path, job: &JobId) {
    let journal = dir.join("jobs").join(job.as_str()).join("journal");
    let files = std::fs::read_dir(journal).unwrap().flatten().map(|entry| entry.path());
    let file = files.filter(|path| path.file_name().unwrap() != "lock").max().unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let tail = bytes.len() - 20;
    bytes[tail..].fill(0xaa);
    std::fs::write(&file, &bytes).unwrap();
}

#[test]
fn a_journal_that_lost_its_last_record_makes_a_resync() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut process, mut agent, job, consistent) = process::Process::protecting(dir.path());
    agent.push(data(file_node(), 0, b"ACKNOWLEDGED"));
    let last = agent.seal();
    agent.expect(|message| matches!(message, ToAgent::Ack { applied, .. } if *applied >= last));
    // The mark of the replica is at most a second behind, and so is what the store knows of the acknowledgement.
    let (_, events) = process.request("GET", "/api/v1/jobs/web1/events", "").unwrap();
    assert!(!events.to_string().contains("E2013"));
    std::thread::sleep(std::time::Duration::from_millis(1500));
    process.kill();
    damage_journal(dir.path(), &job);
    let looked = standin_journal::verify(dir.path().join("jobs").join(job.as_str()).join("journal")).unwrap();
    assert!(looked.is_sound() && looked.problem_count == 1, "by itself it looks like a torn write: {:?}", looked.problems);

    process.start();
    let view = process.wait_job("web1", "resyncing", |view| view["state"] == "resyncing");
    assert!(view["reason"].as_str().unwrap().contains("acknowledged"), "{view:#}");
    let (_, events) = process.request("GET", "/api/v1/jobs/web1/events", "").unwrap();
    assert!(events.to_string().contains("STANDIN-E2013"), "{events:#}");
    let (status, refused) = process.request("POST", "/api/v1/jobs/web1/failover/plan", "{}").unwrap();
    assert!(status != 200 && refused.to_string().contains("STANDIN-E4003"), "{refused:#}");

    // The worker's answer and the agent's call may come in either order; in the end the stream begins behind the replica, in an epoch of its own.
    process.wait_job("web1", "behind the replica", |view| view["watermarks"]["durable"].as_u64() >= Some(last.0));
    agent.connect(Some(1));
    let resync = agent.expect_start();
    assert!(resync.epoch > 1 && resync.next > consistent && resync.since.is_some(), "epoch {} from {}", resync.epoch, resync.next);
    agent.begin(&resync);
    agent.push(Operation::Marker(Marker::ResyncStarted));
    agent.mirror(b"mirrored again");
    agent.seal();
    process.wait_job("web1", "protected", |view| view["state"] == "protected");
    let store = Store::open(&Layout::store(dir.path())).unwrap();
    let (_, _, stream) = store.jobs().unwrap().remove(0);
    assert_eq!(stream.lost_after, None);
}

/// An intake that waits for room outlives its session. What it holds must not take the numbers that the next epoch was given.
#[test]
fn what_an_earlier_epoch_left_waiting_takes_no_numbers_of_the_next() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (lab, shell, mut agent) = super::failover::protected(dir.path());
    let options = shell.journal().options();
    shell.journal().set_options(standin_journal::JournalOptions { bytes_max: 1, ..options });
    agent.push(data(file_node(), 0, b"waiting"));
    agent.push(data(file_node(), 0, b"WAITING"));
    agent.seal();
    let refused = shell.wait(LIMIT, |live| live.job.flags.has(Flag::Degraded).then_some(()));
    assert!(refused.is_some(), "a full journal is told");

    agent.connect(None);
    let order = agent.expect_start();
    let durable = shell.journal().durable();
    assert_eq!((order.epoch, order.next), (2, durable.next()));
    shell.journal().set_options(options);
    // Longer than the pause after which a full journal is tried again.
    assert!(shell.wait(Duration::from_secs(3), |live| (live.target.received > durable).then_some(())).is_none());
    agent.begin(&order);
    agent.push(Operation::Marker(Marker::Gap { reason: "agent restarted".into() }));
    agent.push(Operation::Marker(Marker::ResyncStarted));
    agent.mirror(b"second life");
    let last = agent.seal();
    wait_applied(&shell, last);
    assert_eq!(replica_file(&lab, &shell, "hello"), b"second life");
}
