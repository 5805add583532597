//! The queue against a dumb oracle: a list of segments that is never shorter than what was not acknowledged.

use super::*;
use crate::segment::Sealer;
use crate::testing::{segment, write};
use proptest::prelude::*;
use standin_model::Timestamp;
use tempfile::TempDir;

fn open(dir: &TempDir, memory: u64, disk: u64) -> Queue {
    Queue::open(dir.path().join("queue"), QueueOptions { memory_bytes_max: memory, disk_bytes_max: disk }).unwrap()
}

fn spilled(dir: &TempDir) -> usize {
    let names = fs::read_dir(dir.path().join("queue")).into_iter().flatten();
    names.filter(|e| e.as_ref().unwrap().file_name().to_str().unwrap().ends_with(".journal")).count()
}

#[test]
fn memory_first_then_disk_then_memory_again() {
    let dir = TempDir::new().unwrap();
    let mut queue = open(&dir, 400, 1 << 20);
    let segments: Vec<_> = (0..10).map(|i| segment(1, 50 + i, 1, 60)).collect();
    for segment in &segments {
        queue.push(segment.clone()).unwrap();
    }
    assert_eq!((queue.memory.len(), spilled(&dir)), (2, 1));
    let mut seq = OpSeq(49);
    for segment in &segments {
        assert_eq!(queue.next_after(seq).unwrap().as_ref(), Some(segment));
        seq = segment.last_seq();
    }
    assert_eq!(queue.next_after(seq).unwrap(), None);
    assert_eq!(queue.next_after(OpSeq(55)).unwrap().as_ref(), segments.get(6), "a reconnect goes back");
    queue.acknowledge(OpSeq(58)).unwrap();
    assert!(!queue.is_empty());
    queue.acknowledge(OpSeq(59)).unwrap();
    assert_eq!((queue.is_empty(), queue.bytes(), spilled(&dir)), (true, 0, 0));
    queue.push(segment(1, 60, 1, 1)).unwrap();
    assert_eq!((queue.memory.len(), spilled(&dir)), (1, 0));
}

#[test]
fn at_the_bound_the_segment_comes_back() {
    let dir = TempDir::new().unwrap();
    for disk in [0, 1500] {
        let mut queue = open(&dir, 400, disk);
        let mut first = 1;
        let refused = loop {
            match queue.push(segment(1, first, 1, 60)) {
                Ok(()) => first += 1,
                Err(full) => break full,
            }
        };
        assert!(matches!(refused.cause, FullCause::Bound { .. }));
        assert!(!queue.has_room(5000));
        assert_eq!(queue.last(), OpSeq(first - 1));
        // All of it goes out, and the refused one fits afterwards.
        queue.acknowledge(OpSeq(first - 1)).unwrap();
        queue.push(refused.segment).unwrap();
    }
}

#[test]
fn a_held_queue_leaves_the_disk_alone() {
    let dir = TempDir::new().unwrap();
    let mut queue = open(&dir, 400, 1 << 40);
    let mut first = 1;
    let mut noise = 1u64;
    let mut push = |queue: &mut Queue, len| {
        let next = || {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (noise >> 56) as u8
        };
        let data: Vec<u8> = std::iter::repeat_with(next).take(len).collect();
        let mut sealer = Sealer::new(1, OpSeq(first), 0);
        sealer.push(write(1, &data), Timestamp(1));
        let pushed = queue.push(sealer.seal().unwrap()).is_ok();
        first += u64::from(pushed);
        pushed
    };
    assert!(push(&mut queue, 300) && push(&mut queue, 300));
    assert_eq!(spilled(&dir), 1);
    assert!(!queue.hold_in_memory(), "the second one lies on the disk");
    assert!(push(&mut queue, 300), "it is no other queue than before");
    queue.acknowledge(OpSeq(3)).unwrap();
    assert!(queue.hold_in_memory());
    while push(&mut queue, 1 << 20) {
        assert_eq!(spilled(&dir), 0);
    }
    assert!(queue.memory_bytes > 30 << 20 && queue.memory_bytes <= 400 + HELD_BYTES_MORE && !queue.has_room(1 << 20));
    queue.release();
    assert!(push(&mut queue, 300));
    assert_eq!(spilled(&dir), 1);
}

#[test]
fn what_an_earlier_agent_left_is_removed() {
    let dir = TempDir::new().unwrap();
    let mut queue = open(&dir, 0, 1 << 20);
    queue.push(segment(1, 1, 1, 60)).unwrap();
    queue.push(segment(1, 2, 1, 60)).unwrap();
    assert_eq!(spilled(&dir), 1);
    drop(queue);
    let queue = open(&dir, 0, 1 << 20);
    assert_eq!((queue.is_empty(), spilled(&dir)), (true, 0));
}

#[test]
fn a_disk_that_fails_counts_as_full() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("file"), b"").unwrap();
    let options = QueueOptions { memory_bytes_max: 0, disk_bytes_max: 1 << 20 };
    let mut queue = Queue { dir: dir.path().join("file/queue"), ..Queue::open(dir.path().join("queue"), options).unwrap() };
    queue.push(segment(1, 1, 1, 60)).unwrap();
    let full = queue.push(segment(1, 2, 1, 60)).unwrap_err();
    assert!(matches!(full.cause, FullCause::Spill(_)), "{full:?}");
    assert_eq!(queue.last(), OpSeq(1));
}

#[test]
#[should_panic(expected = "pushed behind")]
fn a_hole_is_our_own_bug() {
    let dir = TempDir::new().unwrap();
    let mut queue = open(&dir, 1000, 0);
    queue.push(segment(1, 1, 1, 1)).unwrap();
    let _ = queue.push(segment(1, 3, 1, 1));
}

#[derive(Clone, Debug)]
enum Step {
    Push { count: u64, len: usize },
    Send,
    Acknowledge(u64),
    Reconnect,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let one = prop_oneof![
        4 => (1..4u64, 0..300usize).prop_map(|(count, len)| Step::Push { count, len }),
        4 => Just(Step::Send),
        2 => (0..=100u64).prop_map(Step::Acknowledge),
        1 => Just(Step::Reconnect),
    ];
    prop::collection::vec(one, 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn behaves_like_a_list(steps in steps(), memory in 0..2000u64, disk in 0..8000u64) {
        let dir = TempDir::new().unwrap();
        let mut queue = open(&dir, memory, disk);
        let mut oracle: Vec<Segment> = Vec::new();
        let (mut last, mut sent, mut acknowledged) = (OpSeq(0), OpSeq(0), OpSeq(0));
        for step in steps {
            match step {
                Step::Push { count, len } => {
                    let segment = segment(1, last.0 + 1, count, len);
                    if queue.push(segment.clone()).is_ok() {
                        last = segment.last_seq();
                        oracle.push(segment);
                    }
                    prop_assert_eq!(queue.last(), last);
                }
                Step::Send => {
                    let got = queue.next_after(sent).unwrap();
                    prop_assert_eq!(got.as_ref(), oracle.iter().find(|s| s.first_seq() > sent));
                    sent = got.map_or(sent, |segment| segment.last_seq());
                }
                Step::Acknowledge(percent) => {
                    let upto = sent.0 * percent / 100;
                    // Acknowledgements fall on ends of segments.
                    let upto = oracle.iter().map(|s| s.last_seq().0).filter(|s| *s <= upto).max().unwrap_or(0);
                    acknowledged = acknowledged.max(OpSeq(upto));
                    queue.acknowledge(acknowledged).unwrap();
                }
                Step::Reconnect => sent = acknowledged,
            }
            prop_assert!(queue.memory_bytes <= memory || queue.memory.len() == 1);
            prop_assert!(queue.bytes() - queue.memory_bytes <= disk);
        }
    }
}
