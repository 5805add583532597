//! Verification with a real worker and a real replica disk: equal, damaged, mended, interrupted; and how the API shows it.

use super::agent::{FakeAgent, data, file_node, root_node};
use super::failover::protected;
use super::{LIMIT, Lab, can_mount, process, replica_file, wait_applied, wait_state};
use standin_appliance::job::JobShell;
use standin_appliance::verify::{self, VerifyRequest, VerifySchedule};
use standin_model::*;
use standin_protection::{Event, Flag, Verification, VerificationState};
use standin_wire::ToAgent;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

const MTIME: Timestamp = Timestamp(1_700_000_000_000_000_000);

/// What the source is, as the scripted agent has told it.
fn digest_of(node: NodeId, content: &[u8]) -> NodeDigest {
    let (kind, mode) = if node == root_node() { (NodeKind::Directory, 0o755) } else { (NodeKind::File, 0o644) };
    let entry = DirectoryEntry { name: Name::new("hello").unwrap(), node: file_node(), kind: NodeKind::File, device: 0, target: vec![] };
    let content_digest = if kind == NodeKind::File { Digest::of_content(content) } else { Digest::of_names(&mut [entry]) };
    NodeDigest {
        attributes: Digest::of_attributes(kind, &Attributes { mode, owner: 0, group: 0, modified: MTIME }, ByteLen(content.len() as u64)),
        xattrs: Digest::of_xattrs(&mut []),
        content: content_digest,
    }
}

fn push(agent: &mut FakeAgent, run: u64, pass: u8, of: CheckOf) {
    agent.push(Operation::Check(Check { run, pass, of }));
}

/// The first pass, as an agent would send it.
fn first_pass(agent: &mut FakeAgent, run: u64, content: &[u8]) -> OpSeq {
    let nodes = [(root_node(), digest_of(root_node(), &[])), (file_node(), digest_of(file_node(), content))];
    let digest = Digest::of_nodes(nodes.iter().map(|(node, digest)| (*node, digest)));
    let inodes = nodes.iter().map(|(node, _)| node.inode).collect();
    push(agent, run, 1, CheckOf::Nodes { volume: VolumeId(0), subvolume: 0, inodes, digest });
    let end = PassEnd { checks: 1, nodes: 2, bytes: content.len() as u64, ..PassEnd::default() };
    push(agent, run, 1, CheckOf::End(end));
    agent.seal()
}

/// Waits for the order of a later pass and carries it out; returns the nodes that it was about.
fn next_pass(agent: &mut FakeAgent, expected: u8, content: &[u8]) -> Vec<NodeId> {
    let ToAgent::VerifyAgain { run, pass, suspects, .. } = agent.expect(|message| matches!(message, ToAgent::VerifyAgain { .. })) else {
        unreachable!("it was matched")
    };
    assert_eq!(pass, expected);
    for suspect in &suspects {
        push(agent, run, pass, CheckOf::Node { node: suspect.node, digest: digest_of(suspect.node, content) });
    }
    push(agent, run, pass, CheckOf::End(PassEnd { checks: suspects.len() as u64, ..PassEnd::default() }));
    agent.seal();
    suspects.into_iter().map(|suspect| suspect.node).collect()
}

fn begin(lab: &Lab, shell: &Arc<JobShell>, agent: &mut FakeAgent, repair: bool) -> u64 {
    let request = VerifyRequest { repair, ..VerifyRequest::default() };
    verify::begin(&lab.appliance, shell, &request, "test").unwrap();
    assert!(shell.live().job.flags.has(Flag::Verifying));
    match agent.expect(|message| matches!(message, ToAgent::Verify { .. })) {
        ToAgent::Verify { run, .. } => run,
        _ => unreachable!("it was matched"),
    }
}

/// The newest record, once nothing runs any more.
fn result(lab: &Lab, shell: &JobShell) -> Verification {
    let ended = shell.wait(LIMIT, |live| (live.verify.is_none() && !live.job.flags.has(Flag::Verifying)).then_some(()));
    assert!(ended.is_some(), "{:?}", shell.live().verify.as_ref().map(|underway| underway.verifier.record.clone()));
    lab.appliance.store.verifications(&shell.record.id, 1).unwrap().remove(0).record
}

/// The replica's file as its worker has it, to be damaged.
fn replica_path(lab: &Lab, shell: &JobShell) -> PathBuf {
    let pid = shell.wait(LIMIT, |live| live.worker.as_ref().map(|worker| worker.pid)).expect("a worker runs");
    let inside = lab.appliance.layout.run_directory(&shell.record.id).join("0/hello");
    PathBuf::from(format!("/proc/{pid}/root{}", inside.display()))
}

fn flip_a_byte(lab: &Lab, shell: &JobShell) {
    let file = std::fs::File::options().read(true).write(true).open(replica_path(lab, shell)).unwrap();
    let meta = file.metadata().unwrap();
    file.write_all_at(b"#", 700).unwrap();
    file.set_modified(meta.modified().unwrap()).unwrap();
}

#[test]
fn a_replica_is_verified_while_it_is_written_to_and_damage_is_found_and_mended() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (lab, shell, mut agent) = protected(dir.path());
    let mut content = vec![b'c'; 900_000];
    agent.push(Operation::Write { node: file_node(), offset: ByteOffset(0), data: content.clone() });
    let last = agent.seal();
    wait_applied(&shell, last);

    // Equal, with a change right before the check in the same segment; and little is sent for it.
    let before = shell.live().journal_bytes;
    let run = begin(&lab, &shell, &mut agent, false);
    first_pass(&mut agent, run, &content);
    let record = result(&lab, &shell);
    assert_eq!((&record.state, record.nodes, record.differences), (&VerificationState::Equal, 2, 0));
    assert_eq!(record.replica_bytes, 900_000, "the replica is read once");
    let sent = shell.live().journal_bytes - before;
    assert!(sent * 1000 < 900_000, "{sent} bytes for 900000");
    let run = begin(&lab, &shell, &mut agent, false);
    content[..5].copy_from_slice(b"write");
    agent.push(data(file_node(), 0, b"write"));
    first_pass(&mut agent, run, &content);
    agent.push(data(file_node(), 0, b"WRITE"));
    agent.seal();
    assert_eq!(result(&lab, &shell).state, VerificationState::Equal);
    content[..5].copy_from_slice(b"WRITE");

    // Damaged: found in three passes, and named.
    flip_a_byte(&lab, &shell);
    let run = begin(&lab, &shell, &mut agent, false);
    first_pass(&mut agent, run, &content);
    let mut both = next_pass(&mut agent, 2, &content);
    both.sort();
    assert_eq!(both, [root_node(), file_node()], "of a group nobody knows which");
    assert_eq!(next_pass(&mut agent, 3, &content), [file_node()]);
    let record = result(&lab, &shell);
    assert_eq!((&record.state, record.differences), (&VerificationState::Different, 1));
    let mismatch = &record.mismatches[0];
    assert_eq!((mismatch.node.as_str(), mismatch.what.as_str()), (file_node().to_string().as_str(), "content"));
    wait_state(&shell, "protected");

    // Mended: by way of a gap of this node.
    let run = begin(&lab, &shell, &mut agent, true);
    first_pass(&mut agent, run, &content);
    next_pass(&mut agent, 2, &content);
    next_pass(&mut agent, 3, &content);
    let wanted = agent.expect(|message| matches!(message, ToAgent::Want { .. }));
    assert!(matches!(&wanted, ToAgent::Want { nodes, .. } if *nodes == [file_node()]), "{wanted:?}");
    wait_state(&shell, "resyncing");
    assert!(shell.live().job.flags.has(Flag::Verifying));
    agent.push(Operation::Marker(Marker::Gap { reason: "the replica asked for nodes".into() }));
    agent.push(Operation::Marker(Marker::ResyncStarted));
    let attributes = Attributes { mode: 0o644, owner: 0, group: 0, modified: MTIME };
    let size = ByteLen(content.len() as u64);
    agent.push(Operation::MirrorNode {
        node: file_node(),
        kind: NodeKind::File,
        attributes,
        accessed: MTIME,
        flags: 0,
        project: 0,
        size,
        xattrs: vec![],
    });
    agent.push(Operation::MirrorData { node: file_node(), offset: ByteOffset(0), data: content.clone() });
    agent.push(Operation::Marker(Marker::Consistent));
    agent.seal();
    assert_eq!(next_pass(&mut agent, 4, &content), [file_node()]);
    let record = result(&lab, &shell);
    assert_eq!((&record.state, record.differences), (&VerificationState::Repaired, 1));
    assert!(replica_file(&lab, &shell, "hello") == content);
    wait_state(&shell, "protected");
}

#[test]
fn what_makes_a_result_doubtful_ends_a_verification() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (lab, shell, mut agent) = protected(dir.path());
    let interrupted = |lab: &Lab, word: &str| match result(lab, &shell).state {
        VerificationState::Interrupted { reason } => assert!(reason.contains(word), "{reason}"),
        other => panic!("{other:?}"),
    };
    // Two at once.
    begin(&lab, &shell, &mut agent, false);
    assert_eq!(verify::begin(&lab.appliance, &shell, &VerifyRequest::default(), "test").unwrap_err().code, "STANDIN-E4072");
    // A worker that dies.
    let pid = shell.live().worker.as_ref().unwrap().pid;
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid as i32).unwrap(), rustix::process::Signal::KILL).unwrap();
    interrupted(&lab, "worker");
    agent.expect(|message| matches!(message, ToAgent::EndVerify { .. }));
    // Checks that were lost.
    let run = begin(&lab, &shell, &mut agent, false);
    push(&mut agent, run, 1, CheckOf::End(PassEnd { checks: 5, ..PassEnd::default() }));
    agent.seal();
    interrupted(&lab, "5 of 5 checks");
    // A pause, and a job that is paused.
    begin(&lab, &shell, &mut agent, false);
    lab.appliance.event(&shell, Event::Paused);
    interrupted(&lab, "paused");
    assert_eq!(verify::begin(&lab.appliance, &shell, &VerifyRequest::default(), "test").unwrap_err().code, "STANDIN-E4071");
    lab.appliance.event(&shell, Event::Resumed);
    let again = agent.expect_start();
    agent.begin(&again);
    // By schedule, which is due at once here.
    let schedule = VerifySchedule { every_hours: 1, repair: false, rate: 1 << 20, last: Timestamp(0) };
    verify::set_schedule(&lab.appliance, &shell, Some(schedule)).unwrap();
    let order = agent.expect(|message| matches!(message, ToAgent::Verify { .. }));
    let ToAgent::Verify { run, rate, .. } = order else { unreachable!("it was matched") };
    assert_eq!(rate, 1 << 20);
    first_pass(&mut agent, run, b"content");
    let record = result(&lab, &shell);
    assert_eq!((&record.state, record.actor.as_str()), (&VerificationState::Equal, "schedule"));
    assert!(lab.appliance.store.verify_schedule(&shell.record.id).unwrap().unwrap().last.0 > 0, "and then not before an hour is over");
    // While there is a gap there is nothing to compare.
    agent.push(Operation::Marker(Marker::Gap { reason: "test".into() }));
    let gap = agent.seal();
    wait_applied(&shell, gap);
    wait_state(&shell, "resyncing");
    assert_eq!(verify::begin(&lab.appliance, &shell, &VerifyRequest::default(), "test").unwrap_err().code, "STANDIN-E4070");
}

/// A block that was overwritten in place, and synced without its change time, comes back from a power cut with no trace of it.
#[test]
fn after_a_power_cut_of_the_source_everything_is_compared_without_being_asked() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (lab, shell, mut agent) = protected(dir.path());
    let started = |boot, everything| Operation::Marker(Marker::StreamStarted { boot, everything });
    agent.push(started(1, false));
    agent.push(Operation::Marker(Marker::Settled { through: shell.live().target.applied }));
    agent.push(data(file_node(), 0, b"content"));
    agent.push(started(2, false));
    agent.seal();
    let wanted = agent.expect(|message| matches!(message, ToAgent::Want { .. }));
    assert!(matches!(&wanted, ToAgent::Want { nodes, .. } if *nodes == [file_node()]), "{wanted:?}");
    let attributes = Attributes { mode: 0o644, owner: 0, group: 0, modified: MTIME };
    let size = ByteLen(b"content".len() as u64);
    let answer = [
        Operation::Marker(Marker::ResyncStarted),
        Operation::MirrorNode {
            node: file_node(),
            kind: NodeKind::File,
            attributes,
            accessed: MTIME,
            flags: 0,
            project: 0,
            size,
            xattrs: vec![],
        },
        Operation::MirrorData { node: file_node(), offset: ByteOffset(0), data: b"content".to_vec() },
        Operation::Marker(Marker::Consistent),
    ];
    answer.into_iter().for_each(|operation| agent.push(operation));
    agent.seal();
    let order = agent.expect(|message| matches!(message, ToAgent::Verify { .. }));
    let ToAgent::Verify { run, .. } = order else { unreachable!("it was matched") };
    assert!(shell.live().replica.power_cut.is_some());
    first_pass(&mut agent, run, b"content");
    let record = result(&lab, &shell);
    assert_eq!((&record.state, record.actor.as_str()), (&VerificationState::Equal, "the source's power cut"));
    assert!(record.repair);
    agent.push(data(file_node(), 0, b"content"));
    agent.seal();
    assert!(shell.wait(LIMIT, |live| live.replica.power_cut.is_none().then_some(())).is_some(), "once is enough");
}

#[test]
fn the_api_begins_shows_and_schedules_and_an_end_of_the_appliance_interrupts() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut process, mut agent, ..) = process::Process::protecting(dir.path());
    let (status, record) = process.request("POST", "/api/v1/jobs/web1/verify", r#"{"repair": false}"#).unwrap();
    assert_eq!((status, record["state"].as_str(), record["actor"].as_str()), (202, Some("running"), Some("admin")), "{record:#}");
    let view = process.wait_job("web1", "verifying", |view| view["flags"][0]["flag"] == "verifying");
    assert_eq!(view["verification"]["record"]["stage"], "reading");
    let ToAgent::Verify { run, .. } = agent.expect(|message| matches!(message, ToAgent::Verify { .. })) else { unreachable!() };
    first_pass(&mut agent, run, b"content");
    process.wait_job("web1", "verified", |view| view["verification"].is_null());
    let history = || process.request("GET", "/api/v1/jobs/web1/verifications", "").unwrap().1;
    assert_eq!((history()["verifications"][0]["state"].as_str(), history()["schedule"].is_null()), (Some("equal"), true));

    let put = |body: &str| process.request("PUT", "/api/v1/jobs/web1/verify/schedule", body).unwrap();
    assert_eq!(put(r#"{"every_hours": 168, "repair": true}"#).0, 200);
    assert_eq!(history()["schedule"]["every_hours"], 168);
    let (status, refused) = put(r#"{"every_hours": 4000000000}"#);
    assert_eq!((status, refused["code"].as_str()), (400, Some("STANDIN-E5005")));
    assert_eq!(put(r#"{"every_days": 1}"#).0, 400);

    assert_eq!(process.request("POST", "/api/v1/jobs/web1/verify", "{}").unwrap().0, 202);
    assert_eq!(process.request("DELETE", "/api/v1/jobs/web1/verify", "").unwrap().0, 200);
    assert!(history()["verifications"][0]["reason"].as_str().unwrap().contains("stopped by admin"));
    assert_eq!(process.request("POST", "/api/v1/jobs/web1/verify", "{}").unwrap().0, 202);
    process.kill();
    process.start();
    let (_, after) = process.request("GET", "/api/v1/jobs/web1/verifications", "").unwrap();
    assert!(after["verifications"][0]["reason"].as_str().unwrap().contains("restarted"), "{after:#}");
    assert_eq!(after["schedule"]["every_hours"], 168);
    let (_, view) = process.request("GET", "/api/v1/jobs/web1", "").unwrap();
    assert!(!view["flags"].to_string().contains("verifying"), "{}", view["flags"]);
}
