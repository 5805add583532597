//! Broken journals are described, not refused.

use super::*;
use crate::testing::segment;
use crate::{Journal, JournalOptions};
use std::os::unix::fs::FileExt;
use tempfile::TempDir;

fn journal(segments: u64, file_bytes_max: u64) -> (TempDir, Vec<PathBuf>) {
    let dir = TempDir::new().unwrap();
    let mut journal = Journal::open_as(dir.path(), JournalOptions { file_bytes_max, bytes_max: 4 << 20 }, true).unwrap();
    for index in 0..segments {
        journal.append(&segment(1, 1 + index * 2, 2, 60)).unwrap();
        journal.sync().unwrap();
    }
    let files = list(dir.path()).unwrap().into_iter().map(|(_, path)| path).collect();
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

/// What a walk finds, in short: `file 0`, `1-2`, `(3-4)` where the mark is lost, `! 5` where item 5 was expected.
fn walk(path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    dump(path, |finding| {
        found.push(match finding {
            Finding::File { base, .. } => format!("file {base}"),
            Finding::Segment { header, durable_before: Some(_), .. } => format!("{}-{}", header.first_seq, header.last_seq),
            Finding::Segment { header, .. } => format!("({}-{})", header.first_seq, header.last_seq),
            Finding::Problem(problem) => format!("! {}{}", problem.expected, if problem.is_torn_tail { " torn" } else { "" }),
        });
    })
    .unwrap();
    found
}

#[test]
fn a_segment_without_its_mark_is_read() {
    let (_dir, files) = journal(4, 1 << 20);
    let record = (fs::metadata(&files[0]).unwrap().len() - FILE_HEADER_LEN) / 4;
    smash(&files[0], FILE_HEADER_LEN + record);
    assert_eq!(walk(&files[0]), ["file 0", "1-2", "! 3", "(3-4)", "5-6", "7-8"]);
}

#[test]
fn segments_of_a_headless_file_are_found() {
    let (dir, files) = journal(4, 1 << 20);
    smash(&files[0], 0);
    assert_eq!(walk(&files[0]), ["file 0", "! 1", "(1-2)", "(3-4)", "(5-6)", "(7-8)"]);
    let copy = dir.path().join("copy of it");
    fs::rename(&files[0], &copy).unwrap();
    smash(&copy, FILE_HEADER_LEN + MARK_LEN);
    assert_eq!(walk(&copy), ["file 0", "! 1", "(3-4)", "(5-6)", "(7-8)"]);
}

#[test]
fn one_file_alone_is_walked_and_only_the_newest_can_be_torn() {
    let (dir, files) = journal(10, 600);
    assert!(files.len() > 2);
    for path in [&files[0], files.last().unwrap()] {
        let len = fs::metadata(path).unwrap().len();
        fs::OpenOptions::new().write(true).open(path).unwrap().set_len(len - 3).unwrap();
    }
    assert!(walk(&files[0]).last().unwrap().starts_with("! ") && !verify(&files[0]).unwrap().is_sound());
    assert!(walk(files.last().unwrap()).last().unwrap().ends_with(" torn") && verify(files.last().unwrap()).unwrap().is_sound());
    assert_eq!(verify(dir.path().join("missing")).unwrap_err().code(), "STANDIN-E2006");
}

#[test]
fn a_file_under_another_name_is_told() {
    let (dir, files) = journal(3, 1 << 20);
    fs::rename(&files[0], dir.path().join(format!("{:020}.journal", 7))).unwrap();
    assert_eq!(walk(dir.path()), ["file 0", "! 8", "1-2", "3-4", "5-6"]);
}

/// Searching goes on from where it was, so that a file that is damaged everywhere is read a few times and not once for each damage.
#[test]
fn damage_everywhere_is_counted_and_listed_within_bounds() {
    let (dir, files) = journal(3000, 4 << 20);
    let mut places = Vec::new();
    let note = |finding| {
        if let Finding::Segment { offset, .. } = finding {
            places.push(offset)
        }
    };
    dump(&files[0], note).unwrap();
    let mut bytes = fs::read(&files[0]).unwrap();
    places.iter().step_by(2).for_each(|offset| bytes[(offset + MARK_LEN + 80) as usize] ^= 1);
    fs::write(&files[0], &bytes).unwrap();
    let summary = verify(dir.path()).unwrap();
    assert!(summary.problem_count >= 1500 && summary.problems.len() == PROBLEMS_MAX, "{}", summary.problem_count);
    assert_eq!((summary.segments, summary.items), (1500, 3000));
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
