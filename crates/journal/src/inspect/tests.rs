//! Broken journals are described, not refused.

use super::*;
use crate::testing::segment;
use crate::{Journal, JournalOptions};
use std::os::unix::fs::FileExt;
use tempfile::TempDir;

fn journal(segments: u64, file_bytes_max: u64) -> (TempDir, Vec<PathBuf>) {
    let dir = TempDir::new().unwrap();
    let mut journal = Journal::open(dir.path(), JournalOptions { file_bytes_max, bytes_max: 1 << 20 }).unwrap();
    for index in 0..segments {
        journal.append(&segment(1, 1 + index * 2, 2, 60)).unwrap();
        journal.sync().unwrap();
    }
    let files = paths(dir.path()).unwrap().into_iter().map(|(_, path)| path).collect();
    (dir, files)
}

fn smash(path: &Path, at: u64) {
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"smashed!", at).unwrap();
}

#[test]
fn a_sound_journal_is_sound() {
    let (dir, files) = journal(10, 600);
    let summary = verify(dir.path()).unwrap();
    assert!(summary.is_sound() && summary.problems.is_empty());
    assert_eq!((summary.files as usize, summary.segments, summary.items), (files.len(), 10, 20));
    assert_eq!((summary.first, summary.last), (Some(OpSeq(1)), Some(OpSeq(20))));
}

#[test]
fn goes_on_behind_damage() {
    let (dir, files) = journal(10, 1 << 20);
    smash(&files[0], FILE_HEADER_LEN + MARK_LEN + 100);
    let summary = verify(dir.path()).unwrap();
    assert_eq!(summary.segments, 9);
    assert!(!summary.is_sound());
    assert_eq!(summary.problems[0].expected, OpSeq(1));
    assert!(summary.problems[0].skipped_bytes > 0);
}

#[test]
fn a_torn_tail_is_called_one() {
    let (dir, files) = journal(3, 1 << 20);
    let len = fs::metadata(&files[0]).unwrap().len();
    fs::OpenOptions::new().write(true).open(&files[0]).unwrap().set_len(len - 3).unwrap();
    let summary = verify(dir.path()).unwrap();
    assert!(summary.is_sound());
    assert_eq!((summary.segments, summary.problems.len()), (2, 1));
}

#[test]
fn missing_and_headless_files_are_named() {
    let (dir, files) = journal(20, 600);
    fs::remove_file(&files[1]).unwrap();
    smash(&files[3], 10);
    let summary = verify(dir.path()).unwrap();
    assert!(summary.problems.iter().any(|p| matches!(p.cause, ProblemCause::Damage(DamageError::MissingFile { .. }))));
    assert!(summary.problems.iter().any(|p| p.path == files[3]));
    assert_eq!(summary.last, Some(OpSeq(40)));
}

#[test]
fn every_smashed_byte_is_noticed() {
    let (dir, files) = journal(4, 1 << 20);
    let whole = fs::read(&files[0]).unwrap();
    for at in (0..whole.len() as u64 - 8).step_by(5) {
        fs::write(&files[0], &whole).unwrap();
        smash(&files[0], at);
        assert!(!verify(dir.path()).unwrap().problems.is_empty(), "{at}");
    }
}
