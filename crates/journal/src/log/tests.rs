//! The log against a dumb oracle (a list of segments), against cuts at every byte, and against damage everywhere.

use super::record::MARK_LEN;
use super::*;
use crate::JournalReader;
use crate::testing::segment;
use tempfile::TempDir;

const SMALL: JournalOptions = JournalOptions { file_bytes_max: 1000, bytes_max: 1 << 20 };
const ONE_FILE: JournalOptions = JournalOptions { file_bytes_max: 1 << 20, bytes_max: 1 << 20 };

fn filled(dir: &Path, options: JournalOptions, segments: u64) -> Journal {
    let mut journal = Journal::open(dir, options).unwrap();
    for index in 0..segments {
        journal.append(&segment(1, 1 + index * 3, 3, 50)).unwrap();
        journal.sync().unwrap();
    }
    journal
}

fn read_all(dir: &Path, from: u64, durable: OpSeq) -> Vec<Segment> {
    let mut reader = JournalReader::open(dir, OpSeq(from)).unwrap();
    std::iter::from_fn(|| reader.next(durable).unwrap()).collect()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    list(dir).unwrap().into_iter().map(|file| file.path).collect()
}

#[test]
fn an_empty_journal_begins_at_one() {
    let dir = TempDir::new().unwrap();
    let mut journal = Journal::open(dir.path().join("new/dir"), SMALL).unwrap();
    assert_eq!((journal.last(), journal.durable(), journal.oldest()), (OpSeq(0), OpSeq(0), OpSeq(1)));
    assert_eq!(journal.sync().unwrap(), OpSeq(0));
    assert!(matches!(journal.append(&segment(1, 2, 1, 1)), Err(JournalError::NotContiguous { .. })));
}

#[test]
fn durable_moves_only_by_sync_and_survives() {
    let dir = TempDir::new().unwrap();
    let mut journal = filled(dir.path(), SMALL, 2);
    journal.append(&segment(2, 7, 2, 10)).unwrap();
    assert_eq!((journal.last(), journal.durable(), journal.epoch()), (OpSeq(8), OpSeq(6), 2));
    assert_eq!(journal.sync().unwrap(), OpSeq(8));
    drop(journal);
    let journal = Journal::open(dir.path(), SMALL).unwrap();
    assert_eq!((journal.last(), journal.durable(), journal.epoch()), (OpSeq(8), OpSeq(8), 2));
    assert_eq!(journal.recovery().torn_bytes, 0);
}

#[test]
fn sending_again_is_harmless_and_a_hole_is_refused() {
    let dir = TempDir::new().unwrap();
    let mut journal = filled(dir.path(), SMALL, 3);
    let bytes = journal.bytes();
    journal.append(&segment(1, 1, 3, 50)).unwrap();
    journal.append(&segment(1, 4, 6, 50)).unwrap();
    assert_eq!(journal.bytes(), bytes);
    for (first, count) in [(11, 1), (9, 2), (1, 10)] {
        assert!(matches!(journal.append(&segment(1, first, count, 1)), Err(JournalError::NotContiguous { .. })), "{first}");
    }
}

#[test]
fn epochs_only_grow_and_never_reuse_numbers_silently() {
    let dir = TempDir::new().unwrap();
    let mut journal = filled(dir.path(), SMALL, 1);
    journal.append(&segment(5, 4, 1, 1)).unwrap();
    assert!(matches!(journal.append(&segment(4, 5, 1, 1)), Err(JournalError::StaleEpoch { .. })));
    assert!(matches!(journal.append(&segment(6, 4, 1, 1)), Err(JournalError::NotContiguous { .. })));
    journal.append(&segment(1, 1, 3, 50)).unwrap();
    assert_eq!(journal.last(), OpSeq(4));
}

#[test]
fn an_epoch_that_has_begun_refuses_new_items_of_the_one_before() {
    let dir = TempDir::new().unwrap();
    let mut journal = filled(dir.path(), SMALL, 1);
    journal.begin_epoch(2);
    for _ in 0..2 {
        assert!(matches!(journal.append(&segment(1, 4, 2, 1)), Err(JournalError::StaleEpoch { found: 1, current: 2, .. })));
        journal.append(&segment(1, 1, 3, 50)).unwrap();
        journal.reopen().unwrap();
    }
    assert_eq!(journal.last(), OpSeq(3));
    journal.append(&segment(2, 4, 1, 1)).unwrap();
}

#[test]
fn only_one_writer() {
    let dir = TempDir::new().unwrap();
    let journal = Journal::open(dir.path(), SMALL).unwrap();
    assert_eq!(Journal::open(dir.path(), SMALL).unwrap_err().code(), "STANDIN-E2004");
    drop(journal);
    Journal::open(dir.path(), SMALL).unwrap();
}

#[test]
fn the_bound_refuses_and_discarding_makes_room() {
    let dir = TempDir::new().unwrap();
    let mut journal = Journal::open(dir.path(), JournalOptions { file_bytes_max: 1000, bytes_max: 3000 }).unwrap();
    let mut first = 1;
    let error = loop {
        match journal.append(&segment(1, first, 3, 50)) {
            Ok(()) => first += 3,
            Err(error) => break error,
        }
    };
    assert_eq!((error.code(), error.is_retryable()), ("STANDIN-E2003", true));
    assert_eq!(journal.last(), OpSeq(first - 1));
    journal.sync().unwrap();
    journal.discard_through(journal.durable()).unwrap();
    journal.append(&segment(1, first, 3, 50)).unwrap();
    assert!(journal.oldest() > OpSeq(1));
    let durable = journal.sync().unwrap();
    assert_eq!(read_all(dir.path(), journal.oldest().0, durable).last().unwrap().last_seq(), OpSeq(first + 2));
}

#[test]
fn discarding_removes_whole_files_only() {
    let dir = TempDir::new().unwrap();
    let mut journal = filled(dir.path(), SMALL, 20);
    let before = files(dir.path()).len();
    assert!(before > 4);
    journal.discard_through(OpSeq(1)).unwrap();
    assert_eq!(files(dir.path()).len(), before);
    let second = list(dir.path()).unwrap()[1].header.base;
    journal.discard_through(second).unwrap();
    assert_eq!((files(dir.path()).len(), journal.oldest()), (before - 1, second.next()));
    journal.discard_through(OpSeq(u64::MAX)).unwrap();
    assert_eq!((files(dir.path()).len(), journal.last()), (1, OpSeq(60)));
    drop(journal);
    let mut journal = Journal::open(dir.path(), SMALL).unwrap();
    assert_eq!(journal.last(), OpSeq(60));
    journal.append(&segment(1, 61, 3, 50)).unwrap();
}

#[test]
fn restarting_goes_on_elsewhere() {
    let dir = TempDir::new().unwrap();
    let mut journal = filled(dir.path(), SMALL, 20);
    journal.restart_after(OpSeq(1000), 7).unwrap();
    journal.append(&segment(7, 1001, 1, 5)).unwrap();
    assert_eq!((journal.oldest(), journal.sync().unwrap()), (OpSeq(1001), OpSeq(1001)));
    drop(journal);
    assert_eq!(Journal::open(dir.path(), SMALL).unwrap().last(), OpSeq(1001));
}

/// Every cut of the last file: what was whole stays, the rest is reported, and the log goes on.
#[test]
fn a_cut_at_every_byte_is_recovered() {
    let dir = TempDir::new().unwrap();
    let mut journal = Journal::open(dir.path(), ONE_FILE).unwrap();
    let mut ends = vec![journal.active.len];
    // Not synced in between: all of it may be torn.
    for index in 0..4 {
        journal.append(&segment(1, 1 + index * 2, 2, 30)).unwrap();
        ends.push(journal.active.len);
    }
    let path = journal.active.path.clone();
    drop(journal);
    let whole = fs::read(&path).unwrap();
    for cut in FILE_HEADER_LEN..=whole.len() as u64 {
        fs::write(&path, &whole[..cut as usize]).unwrap();
        let kept = ends.iter().filter(|end| **end <= cut).count() - 1;
        let mut journal = Journal::open(dir.path(), ONE_FILE).unwrap();
        assert_eq!(journal.last(), OpSeq(kept as u64 * 2), "cut at {cut}");
        assert_eq!(journal.recovery().torn_bytes, cut - ends[kept], "cut at {cut}");
        journal.append(&segment(1, kept as u64 * 2 + 1, 1, 1)).unwrap();
        journal.sync().unwrap();
        assert_eq!(read_all(dir.path(), 0, journal.durable()).len(), kept + 1);
    }
}

/// Pages of one unsynced batch may reach the disk in any order: a hole before a whole record is still a torn tail.
#[test]
fn a_hole_among_unsynced_records_is_torn() {
    let dir = TempDir::new().unwrap();
    let mut journal = filled(dir.path(), ONE_FILE, 2);
    let hole = journal.active.len;
    for first in [7, 10] {
        journal.append(&segment(1, first, 3, 50)).unwrap();
    }
    let path = journal.active.path.clone();
    drop(journal);
    zero(&path, hole + MARK_LEN + 100, 20);
    let journal = Journal::open(dir.path(), ONE_FILE).unwrap();
    assert_eq!(journal.last(), OpSeq(6));
    assert!(journal.recovery().torn_bytes > 0);
}

fn zero(path: &Path, at: u64, len: usize) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&vec![0; len], at).unwrap();
}

/// Every byte of a synced journal, flipped: before the last record it is refused, in the last record it is cut. Never is something wrong
/// read.
#[test]
fn damage_at_every_byte_is_refused_or_cut() {
    let dir = TempDir::new().unwrap();
    let journal = filled(dir.path(), ONE_FILE, 3);
    let path = journal.active.path.clone();
    let last_record = journal.active.len - record_len(segment(1, 7, 3, 50).byte_len());
    drop(journal);
    let whole = fs::read(&path).unwrap();
    for index in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[index] ^= 0x40;
        fs::write(&path, &bytes).unwrap();
        match Journal::open(dir.path(), ONE_FILE) {
            Err(error) => assert!((index as u64) < last_record && !error.is_retryable(), "byte {index}: {error}"),
            Ok(journal) => assert!(index as u64 >= last_record && journal.last() == OpSeq(6), "byte {index}"),
        }
    }
}

#[test]
fn damage_in_a_closed_file_is_found_by_its_reader() {
    let dir = TempDir::new().unwrap();
    let journal = filled(dir.path(), SMALL, 20);
    zero(&files(dir.path())[1], FILE_HEADER_LEN + 200, 8);
    let mut reader = JournalReader::open(dir.path(), OpSeq(1)).unwrap();
    let error = std::iter::from_fn(|| reader.next(journal.durable()).transpose()).find_map(Result::err).unwrap();
    assert_eq!((error.code(), error.is_corrupt()), ("STANDIN-E2001", true));
}

#[test]
fn a_missing_file_is_refused() {
    let dir = TempDir::new().unwrap();
    drop(filled(dir.path(), SMALL, 20));
    fs::remove_file(&files(dir.path())[2]).unwrap();
    assert!(Journal::open(dir.path(), SMALL).unwrap_err().is_corrupt());
}

#[test]
fn a_file_that_was_being_made_is_forgotten() {
    let dir = TempDir::new().unwrap();
    let journal = filled(dir.path(), SMALL, 2);
    let name = file_path(dir.path(), journal.last());
    drop(journal);
    fs::write(format!("{}.tmp", name.display()), b"half").unwrap();
    assert_eq!(Journal::open(dir.path(), SMALL).unwrap().last(), OpSeq(6));
}

#[test]
fn a_later_format_is_not_called_damage() {
    let dir = TempDir::new().unwrap();
    drop(filled(dir.path(), SMALL, 1));
    let path = &files(dir.path())[0];
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(&[2], 4).unwrap();
    assert_eq!(Journal::open(dir.path(), SMALL).unwrap_err().code(), "STANDIN-E2005");
}

#[test]
fn a_poisoned_journal_refuses_until_it_is_reopened() {
    let dir = TempDir::new().unwrap();
    let mut journal = filled(dir.path(), ONE_FILE, 2);
    // A handle that can neither write nor cut.
    journal.active.file = open_file(&journal.active.path, false).unwrap();
    assert_eq!(journal.append(&segment(1, 7, 3, 50)).unwrap_err().code(), "STANDIN-E2006");
    assert_eq!(journal.append(&segment(1, 7, 3, 50)).unwrap_err().code(), "STANDIN-E2012");
    journal.reopen().unwrap();
    assert_eq!(Journal::open(dir.path(), ONE_FILE).unwrap_err().code(), "STANDIN-E2004", "the lock was kept");
    journal.append(&segment(1, 7, 3, 50)).unwrap();
    assert_eq!(journal.sync().unwrap(), OpSeq(9));
}

/// The inner half of the next test: runs in a mount namespace of its own, with 256 KiB of disk.
#[test]
#[ignore = "run by a_full_disk_refuses_and_leaves_the_log_intact"]
fn inner_full_disk() {
    let dir = PathBuf::from(std::env::var_os("STANDIN_TEST_SMALL_DISK").unwrap());
    let mut journal = Journal::open(dir.join("journal"), JournalOptions { file_bytes_max: 50_000, ..SMALL }).unwrap();
    let mut first = 1;
    let error = loop {
        match journal.append(&segment(1, first, 3, 2000)) {
            Ok(()) => first += 3,
            Err(error) => break error,
        }
        journal.sync().unwrap();
    };
    assert_eq!((error.code(), error.is_retryable(), error.is_corrupt()), ("STANDIN-E2002", true, false));
    assert_eq!((journal.last(), journal.durable()), (OpSeq(first - 1), OpSeq(first - 1)));
    let read = read_all(&dir.join("journal"), 1, journal.durable());
    assert_eq!(read.len() as u64, (first - 1) / 3);
    journal.discard_through(OpSeq(first / 2)).unwrap();
    journal.append(&segment(1, first, 3, 2000)).unwrap();
    drop(journal);
    let journal = Journal::open(dir.join("journal"), SMALL).unwrap();
    assert_eq!((journal.last(), journal.recovery().torn_bytes), (OpSeq(first + 2), 0));
}

#[test]
fn a_full_disk_refuses_and_leaves_the_log_intact() {
    let dir = TempDir::new().unwrap();
    let script = "mount -t tmpfs -o size=256k standin \"$STANDIN_TEST_SMALL_DISK\" || exit 77; exec \"$0\" --ignored --exact log::tests::inner_full_disk";
    let run = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .env("STANDIN_TEST_SMALL_DISK", dir.path())
        .output();
    match run {
        Ok(output) if output.status.success() => assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed")),
        Ok(output) if output.status.code() == Some(101) => panic!("{}", String::from_utf8_lossy(&output.stdout)),
        other => eprintln!("skipped: no mount namespace of our own: {other:?}"),
    }
}

mod random;
