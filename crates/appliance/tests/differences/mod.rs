//! Digests with a real worker and a real replica disk: what differs is answered, and before anybody says that the item is applied.

use super::agent::{data, file_node};
use super::failover::protected;
use super::{can_mount, replica_file, wait_applied};
use standin_model::*;
use standin_wire::ToAgent;

const BLOCK: usize = 4096;

fn digests(content: &[u8]) -> Operation {
    let digests = content.chunks(BLOCK).map(Digest::of_content).collect();
    let (offset, len) = (ByteOffset(0), ByteLen(content.len() as u64));
    Operation::MirrorDigests { node: file_node(), offset, len, block: BLOCK as u32, digests }
}

#[test]
fn what_the_replica_has_otherwise_is_answered_before_the_item_counts_as_applied() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (lab, shell, mut agent) = protected(dir.path());
    let content: Vec<u8> = (0..3 * BLOCK + 100).map(|at| (at % 251) as u8).collect();
    agent.push(data(file_node(), 0, &content));
    let mut other = content.clone();
    other[BLOCK] ^= 1;
    agent.push(digests(&other));
    // At the place of the order: what comes behind it does not count.
    agent.push(data(file_node(), BLOCK as u64, &other[BLOCK..BLOCK + 1]));
    agent.push(digests(&other));
    agent.push(digests(&[&other[..], b"longer"].concat()));
    let last = agent.seal();
    let items = [OpSeq(last.0 - 3), OpSeq(last.0 - 1), last];
    let (mut answers, mut too_early) = (Vec::new(), None);
    while answers.len() < items.len() {
        let message = agent.expect(|message| matches!(message, ToAgent::Differs { .. } | ToAgent::Ack { .. }));
        match message {
            ToAgent::Differs { answers: more, .. } => answers.extend(more),
            ToAgent::Ack { applied, .. } => {
                let told = |item: &OpSeq| answers.iter().any(|answer: &Differs| answer.seq == *item);
                too_early = items.iter().find(|item| **item <= applied && !told(item)).copied().or(too_early);
            }
            _ => {}
        }
    }
    assert_eq!(too_early, None);
    let expected = [vec![1], vec![], vec![3]].map(|blocks: Vec<u8>| blocks.into_iter().collect::<BlockSet>());
    let expected: Vec<Differs> = items.into_iter().zip(expected).map(|(seq, blocks)| Differs { seq, blocks }).collect();
    assert_eq!(answers, expected);
    wait_applied(&shell, last);
    assert!(replica_file(&lab, &shell, "hello") == other, "comparing changes nothing");
}
