//! From parts of comparisons to results.

use super::*;
use standin_model::{ByteLen, ByteOffset, VolumeId};

fn node(inode: u64) -> NodeId {
    NodeId { volume: VolumeId(0), subvolume: 0, inode, generation: 1 }
}

fn suspect(inode: u64) -> Suspect {
    Suspect { node: node(inode), range: None }
}

fn verifier(repair: bool) -> Verifier {
    Verifier::new(7, Timestamp(1), "ada", repair, 0)
}

/// A whole pass in one part.
fn pass(verifier: &mut Verifier, pass: u8, differing: &[u64]) -> Option<VerifyAction> {
    let end = Some(PassEnd { checks: 3, nodes: 10, bytes: 1000, ..PassEnd::default() });
    let differences = differing.iter().map(|inode| (suspect(*inode), "content".to_owned())).collect();
    verifier.compared(Timestamp(2), Compared { run: 7, pass, checks: 3, bytes: 50, differences, end, ..Compared::default() })
}

fn again(pass: u8, inodes: &[u64]) -> Option<VerifyAction> {
    Some(VerifyAction::Again { pass, suspects: inodes.iter().map(|inode| suspect(*inode)).collect() })
}

#[test]
fn equal_at_once() {
    let mut verifier = verifier(false);
    assert_eq!(pass(&mut verifier, 1, &[]), Some(VerifyAction::Ended));
    let record = &verifier.record;
    assert_eq!((&record.state, record.nodes, record.bytes, record.replica_bytes), (&VerificationState::Equal, 10, 1000, 50));
    assert_eq!(pass(&mut verifier, 1, &[5]), None, "what comes late changes nothing");
}

#[test]
fn only_what_every_pass_has_seen_is_a_difference() {
    let mut verifier = verifier(false);
    assert_eq!(pass(&mut verifier, 1, &[5, 6, 7, 5]), again(2, &[5, 6, 7]));
    assert_eq!(verifier.stage(), Some(Stage::Confirming));
    assert_eq!(pass(&mut verifier, 1, &[9]), None, "an old pass counts no more");
    assert_eq!(pass(&mut verifier, 2, &[6]), again(3, &[6]));
    let mut all_right = Verifier::new(7, Timestamp(1), "ada", false, 0);
    (all_right.pass, all_right.record.state) = (3, VerificationState::Running { stage: Stage::Confirming });
    assert_eq!(pass(&mut all_right, 3, &[]), Some(VerifyAction::Ended));
    assert_eq!(all_right.record.state, VerificationState::Equal);
    assert_eq!(pass(&mut verifier, 3, &[6]), Some(VerifyAction::Ended));
    assert_eq!((verifier.record.differences, &verifier.record.state), (1, &VerificationState::Different));
    assert_eq!(verifier.record.mismatches[0].what, "content");
    assert_eq!(verifier.record.ended, Some(Timestamp(2)));
}

fn differing(repair: bool) -> Verifier {
    let mut verifier = verifier(repair);
    (1..3).for_each(|number| drop(pass(&mut verifier, number, &[6])));
    verifier
}

#[test]
fn a_repair_is_checked() {
    let mut verifier = differing(true);
    assert_eq!(pass(&mut verifier, 3, &[6]), Some(VerifyAction::Repair { nodes: vec![node(6)] }));
    assert_eq!(verifier.is_repaired(), again(4, &[6]));
    assert_eq!(verifier.is_repaired(), None);
    assert_eq!(pass(&mut verifier, 4, &[]), Some(VerifyAction::Ended));
    assert_eq!((verifier.record.differences, &verifier.record.state), (1, &VerificationState::Repaired));
    let mut verifier = differing(true);
    pass(&mut verifier, 3, &[6]);
    verifier.is_repaired();
    assert_eq!(pass(&mut verifier, 4, &[6]), Some(VerifyAction::Ended));
    assert_eq!(verifier.record.state, VerificationState::Different);
}

#[test]
fn lost_checks_and_redo_are_no_result() {
    let mut verifier = verifier(false);
    let end = Some(PassEnd { checks: 3, ..PassEnd::default() });
    let part = Compared { run: 7, pass: 1, checks: 2, end, ..Compared::default() };
    assert_eq!(verifier.compared(Timestamp(2), part), Some(VerifyAction::Ended));
    assert!(matches!(verifier.record.state, VerificationState::Interrupted { .. }));
    // What was not compared is looked at in the next pass; the last one is repeated a few times.
    let mut verifier = Verifier::new(7, Timestamp(1), "ada", false, 0);
    let redone = |pass| Compared { run: 7, pass, not_compared: vec![suspect(4)], end: Some(PassEnd::default()), ..Compared::default() };
    assert_eq!(verifier.compared(Timestamp(2), redone(1)), again(2, &[4]));
    assert_eq!(verifier.compared(Timestamp(2), redone(2)), again(3, &[4]));
    for _ in 0..REPEATS_MAX {
        assert_eq!(verifier.compared(Timestamp(2), redone(3)), again(3, &[4]));
    }
    assert_eq!(verifier.compared(Timestamp(2), redone(3)), Some(VerifyAction::Ended));
    assert!(matches!(verifier.record.state, VerificationState::Interrupted { .. }));
}

#[test]
fn many_suspects_are_ordered_in_pieces() {
    let mut verifier = verifier(false);
    let many: Vec<u64> = (0..SUSPECTS_PER_ORDER as u64 + 10).collect();
    let count = |action: Option<VerifyAction>| match action {
        Some(VerifyAction::Again { suspects, .. }) => suspects.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!(count(pass(&mut verifier, 1, &many)), SUSPECTS_PER_ORDER);
    assert_eq!(count(pass(&mut verifier, 2, &[3])), 10);
    assert_eq!(pass(&mut verifier, 2, &[SUSPECTS_PER_ORDER as u64]), again(3, &[3, SUSPECTS_PER_ORDER as u64]));
}

#[test]
fn records_survive_their_written_form() {
    let mut verifier = differing(false);
    let range = Some((ByteOffset(4096), ByteLen(10)));
    let part = |end| Compared {
        run: 7,
        pass: 3,
        checks: 3,
        differences: vec![(Suspect { node: node(6), range }, "content".to_owned())],
        end,
        ..Compared::default()
    };
    verifier.compared(
        Timestamp(2),
        part(Some(PassEnd { busy_nodes: 1, busy_bytes: 9, busy: vec![(node(3), ByteLen(9))], ..PassEnd::default() })),
    );
    let text = serde_json::to_string(&verifier.record).unwrap();
    assert!(text.contains(r#""state":"different""#) && text.contains(r#""offset":4096"#), "{text}");
    assert_eq!(serde_json::from_str::<Verification>(&text).unwrap(), verifier.record);
    assert!(verifier.record.summary().contains("1 busy nodes with 9 bytes"));
    let running = serde_json::to_string(&Verifier::new(7, Timestamp(1), "ada", false, 0).record).unwrap();
    assert!(running.contains(r#""state":"running","stage":"reading""#), "{running}");
}
