//! A source that outgrows its replica, and a datastore without room for a growth.

use super::agent::file_node;
use super::failover::protected;
use super::{LIMIT, can_mount, replica_file, wait_applied};
use standin_appliance::worker::message::ToWorker;
use standin_model::*;
use standin_protection::Flag;

const MIB: u64 = 1 << 20;

/// The replica is full before anybody says that the source has grown; nothing is lost, and it grows as soon as that is said.
#[test]
fn a_replica_grows_with_its_source() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (lab, shell, mut agent) = protected(dir.path());
    let disk = lab.appliance.layout.disk(&shell.record.name);
    let size = |of: &std::path::Path| standin_replica::disk::finished_plan(of).unwrap().unwrap().volume(VolumeId(0)).unwrap().size;
    assert_eq!(size(&disk), 128 * MIB);
    // A worker that leaves marks its replica; what was applied since the last mark is on the disk twice for a while.
    let pid = |live: &mut standin_appliance::job::Live| live.worker.as_ref().map(|worker| worker.pid);
    let before = shell.wait(LIMIT, pid);
    assert!(shell.tell_worker(&ToWorker::Restart));
    assert!(shell.wait(LIMIT, |live| pid(live).filter(|now| Some(*now) != before)).is_some());
    // More than the volume has room for.
    agent.push(Operation::Allocate { node: file_node(), offset: ByteOffset(0), len: ByteLen(160 * MIB), keep_size: true });
    let last = agent.seal();
    let full = shell.wait(LIMIT, |live| live.job.flags.problem(Flag::Degraded).cloned()).expect("the job says that it is full");
    assert_eq!(full.code, "STANDIN-E4075", "{full}");
    assert!(shell.live().target.applied < last);
    // The greeting of the next connection tells the new size.
    agent.inventory.volumes[0].size = ByteLen(256 * MIB);
    agent.connect(Some(1));
    let resumed = agent.expect_start();
    agent.begin(&resumed);
    wait_applied(&shell, last);
    assert_eq!(size(&disk), 256 * MIB);
    assert!(shell.wait(LIMIT, |live| (!live.job.flags.has(Flag::Degraded)).then_some(())).is_some());
    assert_eq!(replica_file(&lab, &shell, "hello"), b"content");
    // A size that no datastore can hold is refused with its reason, and replication goes on.
    agent.inventory.volumes[0].size = ByteLen(1 << 49);
    agent.connect(Some(1));
    let resumed = agent.expect_start();
    agent.begin(&resumed);
    agent.push(super::data(file_node(), 0, b"CONTENT"));
    let last = agent.seal();
    wait_applied(&shell, last);
    let told = |code: &str| {
        let events = lab.appliance.store.events(Some(&shell.record.id), 0, 1000).unwrap();
        events.iter().any(|event| event.code.as_deref() == Some(code))
    };
    let deadline = std::time::Instant::now() + LIMIT;
    while !told("STANDIN-E4074") {
        assert!(std::time::Instant::now() < deadline, "nobody was told why the volume does not grow");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    wait_applied(&shell, last);
    assert_eq!((size(&disk), replica_file(&lab, &shell, "hello")), (256 * MIB, b"CONTENT".to_vec()));
}
