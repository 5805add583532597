//! A reader follows a writer across files and stops at what is durable.

use super::*;
use crate::testing::segment;
use crate::{Journal, JournalOptions};
use tempfile::TempDir;

const SMALL: JournalOptions = JournalOptions { file_bytes_max: 600, bytes_max: 1 << 20 };

#[test]
fn follows_a_writer_and_never_runs_ahead() {
    let dir = TempDir::new().unwrap();
    let mut journal = Journal::open(dir.path(), SMALL).unwrap();
    let mut reader = JournalReader::open(dir.path(), OpSeq(0)).unwrap();
    for index in 0..30 {
        let written = segment(1, 1 + index * 2, 2, 60);
        journal.append(&written).unwrap();
        assert_eq!(reader.next(journal.durable()).unwrap(), None, "{index}");
        let durable = journal.sync().unwrap();
        assert_eq!(reader.next(durable).unwrap(), Some(written));
        assert_eq!(reader.next(durable).unwrap(), None);
    }
}

/// A writer that appends, syncs and discards as fast as it can, and a reader behind it that tells it how far it has read.
#[test]
fn keeps_up_with_a_writer_that_discards() {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
    const SEGMENTS: u64 = 400;
    let dir = TempDir::new().unwrap();
    let (durable, applied) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut journal = Journal::open(dir.path(), SMALL).unwrap();
            for index in 0..SEGMENTS {
                journal.append(&segment(1, 1 + index * 2, 2, 60)).unwrap();
                durable.store(journal.sync().unwrap().0, SeqCst);
                journal.discard_through(OpSeq(applied.load(SeqCst))).unwrap();
            }
        });
        while durable.load(SeqCst) == 0 {
            std::thread::yield_now();
        }
        let mut reader = JournalReader::open(dir.path(), OpSeq(1)).unwrap();
        let mut next = 1;
        while next <= SEGMENTS * 2 {
            match reader.next(OpSeq(durable.load(SeqCst))).unwrap() {
                None => std::thread::yield_now(),
                Some(segment) => {
                    assert_eq!(segment.first_seq(), OpSeq(next));
                    next = segment.last_seq().0 + 1;
                    applied.store(next - 1, SeqCst);
                }
            }
        }
    });
}

#[test]
fn begins_with_the_segment_that_holds_the_item() {
    let dir = TempDir::new().unwrap();
    let mut journal = Journal::open(dir.path(), SMALL).unwrap();
    for index in 0..20 {
        journal.append(&segment(1, 1 + index * 5, 5, 40)).unwrap();
    }
    let durable = journal.sync().unwrap();
    for from in 1..=100 {
        let first = JournalReader::open(dir.path(), OpSeq(from)).unwrap().next(durable).unwrap().unwrap();
        assert!(first.first_seq() <= OpSeq(from) && first.last_seq() >= OpSeq(from), "{from}");
    }
    assert_eq!(JournalReader::open(dir.path(), OpSeq(101)).unwrap().next(durable).unwrap(), None);
}

#[test]
fn says_when_what_it_wants_is_gone() {
    let dir = TempDir::new().unwrap();
    let mut journal = Journal::open(dir.path(), SMALL).unwrap();
    for index in 0..20 {
        journal.append(&segment(1, 1 + index * 5, 5, 40)).unwrap();
    }
    let durable = journal.sync().unwrap();
    journal.discard_through(OpSeq(50)).unwrap();
    let error = JournalReader::open(dir.path(), OpSeq(1)).unwrap().next(durable).unwrap_err();
    assert_eq!(error.code(), "STANDIN-E2008");
    let oldest = journal.oldest();
    assert_eq!(JournalReader::open(dir.path(), oldest).unwrap().next(durable).unwrap().unwrap().first_seq(), oldest);
}

#[test]
fn a_claim_that_the_files_do_not_bear_out_is_damage() {
    let dir = TempDir::new().unwrap();
    let mut journal = Journal::open(dir.path(), SMALL).unwrap();
    journal.append(&segment(1, 1, 5, 40)).unwrap();
    let mut reader = JournalReader::open(dir.path(), OpSeq(1)).unwrap();
    assert!(reader.next(OpSeq(9)).unwrap().is_some());
    assert!(reader.next(OpSeq(9)).unwrap_err().is_corrupt());
    assert_eq!(reader.next(OpSeq(5)).unwrap(), None);
    assert!(JournalReader::open(dir.path().join("none"), OpSeq(1)).unwrap().next(OpSeq(1)).is_err());
}
