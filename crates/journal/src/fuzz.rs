//! Fuzz targets of what lies on disk or came over the wire: one segment, the files of a journal, the files of the source's queue.
//!
//! Damage is never taken for what was written; a forged checksum gets further, and still nothing panics and memory has its bound.

use crate::log::record::{FILE_HEADER_LEN, MARK_LEN, mark_bytes};
use crate::segment::{HEADER_LEN, SEGMENT_BODY_BYTES_MAX, VERSION, array};
use crate::testing::{marker, patch, segment, write};
use crate::*;
use standin_fuzz::{Script, TIME, check, edited, is_guided, within};
use standin_model::{Item, OpSeq, Operation, Timestamp};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_64;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src");

/// Heap for opening a segment of so many raw bytes: the bytes, and an item of some 170 bytes for two of them (a marker), in a vector that doubles.
fn items_heap_bytes_max(raw_len: u32) -> usize {
    assert!(size_of::<Item>() <= 180);
    4096 + raw_len as usize * 140
}

/// Opens a segment and asserts what must hold of whatever opens.
fn take_segment(bytes: &[u8]) -> Option<Segment> {
    let segment = match within(4096 + 3 * bytes.len(), || Segment::parse(bytes.to_vec())) {
        Ok(segment) => segment,
        Err(error) => {
            assert!(matches!(error.code(), "STANDIN-E2005" | "STANDIN-E2010"), "{error}");
            return None;
        }
    };
    assert_eq!(&segment.bytes[..], bytes);
    // An earlier version has another number, and so another checksum.
    let again = segment.header.to_bytes();
    assert_eq!((&again[..4], &again[6..64]), (&bytes[..4], &bytes[6..64]));
    if let Ok(items) = within(items_heap_bytes_max(segment.header.raw_len), || segment.items()) {
        let (first, last) = (segment.first_seq(), segment.last_seq());
        assert!(items.iter().map(|item| item.seq.0).eq(first.0..=last.0));
        let mut sealer = Sealer::new(segment.header.epoch, first, 0);
        for item in &items {
            sealer.push(item.operation.clone(), Timestamp(0));
        }
        let again = sealer.seal().and_then(|segment| segment.items().ok());
        assert_eq!(again.as_ref(), Some(&items), "what was opened is sealed and opened to the same");
    }
    Some(segment)
}

/// Makes the checksums of a changed segment right again; the length of the body too, where there is one.
fn forge_segment(bytes: &mut [u8]) {
    let Some((head, body)) = bytes.split_at_mut_checked(HEADER_LEN) else { return };
    head[52..56].copy_from_slice(&(body.len() as u32).to_le_bytes());
    head[56..64].copy_from_slice(&xxh3_64(body).to_le_bytes());
    let checksum = xxh3_64(&head[..64]);
    head[64..72].copy_from_slice(&checksum.to_le_bytes());
}

#[test]
fn sealed_segment() {
    let samples = [segment_samples(), vec![("patches", patches())]].concat();
    check!(name = "segment").with_test_time(TIME).for_each(|bytes| {
        take_segment(bytes);
        let mut script = Script::new(bytes);
        let (_, valid) = &samples[script.below(samples.len())];
        let is_forged = script.byte() % 2 == 1;
        let mut changed = edited(valid, &mut script);
        if is_forged {
            forge_segment(&mut changed);
        }
        let taken = take_segment(&changed);
        if !is_forged && !is_guided() {
            assert_eq!(taken.is_some(), changed == *valid, "damage is noticed");
        }
    });
}

#[test]
fn segments_of_every_version_are_read() {
    let samples = segment_samples();
    for version in 1..=VERSION {
        let names: Vec<String> = samples.iter().map(|(name, _)| format!("v{version}-{name}")).collect();
        let seeds: Vec<(&str, Vec<u8>)> = names.iter().zip(&samples).map(|(name, (_, bytes))| (name.as_str(), bytes.clone())).collect();
        for ((name, bytes), (_, now)) in standin_fuzz::seeds(FOLDER, "segment", &seeds).into_iter().zip(&samples) {
            assert_eq!(u16::from_le_bytes(array(&bytes, 4)), version, "{name}");
            let open = |bytes: &[u8]| Segment::parse(bytes.to_vec()).and_then(|segment| segment.items());
            assert_eq!(open(&bytes).unwrap_or_else(|error| panic!("{name}: {error}")), open(now).expect("it was just sealed"), "{name}");
        }
    }
}

/// From version 5 on.
fn patches() -> Vec<u8> {
    let mut sealer = Sealer::new(3, OpSeq(100), 0);
    for count in 1..5 {
        sealer.push(patch(7, count), Timestamp(1_700_000_000_000_000_000));
    }
    sealer.seal().expect("there are operations").bytes.to_vec()
}

/// What version 5 has beyond version 4 is read as it was first written.
#[test]
fn patches_are_read_as_they_were_first_written() {
    let committed = standin_fuzz::seeds(FOLDER, "segment", &[("v5-patches", patches())]);
    let segment = Segment::parse(committed[0].1.clone()).expect("a sound segment");
    assert_eq!(u16::from_le_bytes(array(&segment.bytes, 4)), 5);
    let operations: Vec<Operation> = segment.items().expect("it opens").into_iter().map(|item| item.operation).collect();
    assert_eq!(operations, (1..5).map(|count| patch(7, count)).collect::<Vec<_>>());
}

fn segment_samples() -> Vec<(&'static str, Vec<u8>)> {
    let sealed = |level, operations: Vec<Operation>| {
        let mut sealer = Sealer::new(3, OpSeq(100), level);
        for operation in operations {
            sealer.push(operation, Timestamp(1_700_000_000_000_000_000));
        }
        sealer.seal().expect("there are operations").bytes.to_vec()
    };
    let writes = |count: u64| (0..count).map(|inode| write(inode, &[inode as u8; 40])).collect::<Vec<_>>();
    vec![
        ("marker", sealed(0, vec![marker()])),
        ("raw", sealed(0, writes(5))),
        ("zstd", sealed(3, writes(60))),
        // A frame of a few bytes that opens to many.
        ("dense", sealed(19, vec![write(1, &[0; 200_000])])),
    ]
}

/// A sound journal as files in memory, and what is in it.
struct Sound {
    folder: TempDir,
    files: Vec<(PathBuf, Vec<u8>)>,
    segments: Vec<Segment>,
}

const OPTIONS: JournalOptions = JournalOptions { file_bytes_max: 700, bytes_max: 1 << 20 };

impl Sound {
    fn new() -> Sound {
        let folder = TempDir::new().expect("a directory");
        let segments: Vec<_> = (0..9).map(|index| segment(1 + index / 6, 1 + index * 2, 2, 40 + index as usize * 13)).collect();
        let mut journal = Journal::open_as(folder.path(), OPTIONS, true).expect("a new journal");
        for segment in &segments {
            journal.append(segment).and_then(|()| journal.sync()).expect("room");
        }
        drop(journal);
        Sound { files: read_files(folder.path()), folder, segments }
    }

    /// Puts other files in the place of all that is there.
    fn replace(&self, files: &[(PathBuf, Vec<u8>)]) {
        for (path, _) in read_files(self.folder.path()) {
            fs::remove_file(path).expect("it was just listed");
        }
        files.iter().for_each(|(path, bytes)| fs::write(path, bytes).expect("a file can be written"));
    }

    fn has(&self, segment: &Segment) -> bool {
        self.segments.contains(segment)
    }
}

fn read_files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = fs::read_dir(folder).expect("a directory").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<_> =
        paths.filter(|path| path.extension().is_some()).map(|path| (path.clone(), fs::read(path).expect("a file"))).collect();
    files.sort();
    files
}

/// Walks the records of a file by the lengths in their marks, and makes every checksum on the way right again.
fn forge_file(bytes: &mut [u8]) {
    let (head, mark_len) = (FILE_HEADER_LEN as usize, MARK_LEN as usize);
    let Some((header, mut rest)) = bytes.split_at_mut_checked(head) else { return };
    let checksum = xxh3_64(&header[..40]);
    header[40..48].copy_from_slice(&checksum.to_le_bytes());
    let salt = u64::from_le_bytes(array(header, 32));
    while let Some((mark, behind)) = rest.split_at_mut_checked(mark_len) {
        let len = u32::from_le_bytes(array(mark, 4));
        mark.copy_from_slice(&mark_bytes(len, OpSeq(u64::from_le_bytes(array(mark, 8))), salt));
        let Some((segment, behind)) = behind.split_at_mut_checked(len as usize) else { return };
        forge_segment(segment);
        rest = behind;
    }
}

/// What happens to the files; true where checksums were forged.
fn damage(files: &mut Vec<(PathBuf, Vec<u8>)>, script: &mut Script) -> bool {
    let mut is_forged = false;
    for _ in 0..=script.byte() % 2 {
        let at = script.below(files.len());
        let other = script.below(files.len());
        let Some(bytes) = files.get(at).map(|(_, bytes)| bytes.clone()) else { break };
        match script.byte() % 8 {
            0 => drop(files.remove(at)),
            1 => files[other].1 = bytes,
            2 => {
                let base = script.edge();
                files[at].0.set_file_name(format!("{base:020}.journal"));
            }
            // A torn write: blocks of zeroes, or the end is gone.
            3 => {
                let from = script.below(bytes.len() + 1);
                files[at].1[from..].fill(0);
            }
            4 => {
                files[at].1 = edited(&bytes, script);
                forge_file(&mut files[at].1);
                is_forged = true;
            }
            _ => files[at].1 = edited(&bytes, script),
        }
    }
    is_forged
}

/// One window of a search, and one segment that claims to be the largest.
const HEAP_BYTES_MAX: usize = (3 << 20) + 2 * SEGMENT_BODY_BYTES_MAX;

fn check_code(error: &JournalError) {
    assert!(error.code().starts_with("STANDIN-E20") && !error.next_command().is_empty(), "{error}");
}

/// Everything that a reader gives out until its end or its first error.
fn read_through(folder: &Path, from: OpSeq, durable: OpSeq) -> (Vec<Segment>, Option<JournalError>) {
    let mut reader = JournalReader::open(folder, from).expect("opening looks at nothing");
    let mut read = Vec::new();
    loop {
        match reader.next(durable) {
            Ok(Some(segment)) => read.push(segment),
            Ok(None) => return (read, None),
            Err(error) => {
                check_code(&error);
                return (read, Some(error));
            }
        }
    }
}

fn take_journal(sound: &Sound, is_forged: bool) {
    let folder = sound.folder.path();
    let mut seen = Vec::new();
    let mut clean = true;
    within(HEAP_BYTES_MAX, || {
        let looked = dump(folder, |finding| match finding {
            Finding::File { .. } => {}
            Finding::Segment { header, items, .. } => seen.push((header, items.is_ok())),
            Finding::Problem(problem) => clean &= problem.is_torn_tail,
        });
        looked.expect("the directory can be listed");
    });
    assert_eq!(verify(folder).expect("as above").is_sound(), clean && seen.iter().all(|(_, opens)| *opens));
    let durable = sound.segments.last().map_or(OpSeq(0), Segment::last_seq);
    let (read, error) = within(HEAP_BYTES_MAX, || read_through(folder, OpSeq(1), durable));
    if !is_forged {
        assert!(read.iter().all(|segment| sound.has(segment)), "damage is never given out");
        assert!(error.is_some() || read.last().map(Segment::last_seq) == Some(durable), "what is durable is there, or missed");
        assert!(seen.iter().all(|(header, _)| sound.segments.iter().any(|segment| segment.header == *header)));
        let contiguous = seen.windows(2).all(|pair| pair[0].0.last_seq.next() == pair[1].0.first_seq);
        assert!(contiguous || !clean, "a hole is told");
    }
    match within(HEAP_BYTES_MAX, || Journal::open_as(folder, OPTIONS, true)) {
        Err(error) => check_code(&error),
        Ok(journal) => take_opened(sound, journal, is_forged),
    }
}

/// An opened journal holds only what was written, takes more, and is opened again with all of it.
fn take_opened(sound: &Sound, mut journal: Journal, is_forged: bool) {
    let folder = sound.folder.path();
    let (oldest, last) = (journal.oldest(), journal.last());
    let (read, error) = read_through(folder, oldest, last);
    if !is_forged {
        assert!(read.iter().all(|segment| sound.has(segment)));
        assert!(error.is_some() || last < oldest || read.last().map(Segment::last_seq) == Some(last));
    }
    if last.0 > u64::MAX - 10 {
        return;
    }
    let more = segment(journal.epoch(), last.0 + 1, 2, 30);
    journal.append(&more).and_then(|()| journal.sync().map(drop)).expect("the next one is taken");
    drop(journal);
    let journal = Journal::open_as(folder, OPTIONS, true).expect("what was opened is opened again");
    assert_eq!(journal.last(), more.last_seq());
    assert!(read_through(folder, more.first_seq(), more.last_seq()).0.contains(&more));
}

#[test]
fn journal_files() {
    let sound = Sound::new();
    check!(name = "journal").with_test_time(TIME * 2).for_each(|bytes| {
        let mut script = Script::new(bytes);
        let mut files = sound.files.clone();
        let is_forged = if script.byte().is_multiple_of(16) {
            // The input itself is a file, maybe one that an earlier version wrote.
            files[0].1 = script.rest().to_vec();
            true
        } else {
            damage(&mut files, &mut script)
        };
        sound.replace(&files);
        take_journal(&sound, is_forged || is_guided());
    });
}

/// A journal that an earlier version wrote is opened, read whole, and continued.
#[test]
fn journals_of_every_version_are_read() {
    for version in 1..=VERSION {
        let sound = Sound::new();
        let names: Vec<String> = (1..=sound.files.len()).map(|number| format!("v{version}-{number}")).collect();
        // The first byte tells the target that the rest is a file.
        let with_prefix = |bytes: &Vec<u8>| [&[0][..], bytes.as_slice()].concat();
        let contents = sound.files.iter().map(|(_, bytes)| with_prefix(bytes));
        let seeds: Vec<(&str, Vec<u8>)> = names.iter().map(String::as_str).zip(contents).collect();
        let committed = standin_fuzz::seeds(FOLDER, "journal", &seeds);
        let files: Vec<_> = sound.files.iter().zip(committed).map(|((path, _), (_, bytes))| (path.clone(), bytes[1..].to_vec())).collect();
        sound.replace(&files);
        let (read, error) = read_through(sound.folder.path(), OpSeq(1), OpSeq(18));
        let items = |segments: &[Segment]| segments.iter().map(|segment| segment.items().expect("it opens")).collect::<Vec<_>>();
        assert!(error.is_none() && items(&read) == items(&sound.segments), "version {version}: {error:?}");
        let journal = Journal::open_as(sound.folder.path(), OPTIONS, true).expect("it is sound");
        assert_eq!((journal.last(), journal.recovery().torn_bytes), (OpSeq(18), 0));
        take_opened(&sound, journal, true);
    }
}

/// The queue's files change under a running agent: it sends what was pushed, or says that it cannot.
#[test]
fn queue_files() {
    let segments: Vec<_> = (0..8).map(|index| segment(1, 1 + index * 2, 2, 100)).collect();
    check!(name = "queue").with_test_time(TIME).for_each(|bytes| {
        let mut script = Script::new(bytes);
        let folder = TempDir::new().expect("a directory");
        let mut queue = Queue::open(folder.path(), QueueOptions { memory_bytes_max: 600, disk_bytes_max: 1 << 20 }).expect("a new queue");
        let pushed = 3 + script.below(segments.len() - 2);
        segments[..pushed].iter().for_each(|segment| queue.push(segment.clone()).expect("room"));
        let mut files = read_files(folder.path());
        assert!(!files.is_empty(), "it spills");
        if script.byte().is_multiple_of(2) {
            // Reading has begun already.
            drop(queue.next_after(OpSeq(4)));
        }
        let is_forged = damage(&mut files, &mut script) || is_guided();
        files.iter().for_each(|(path, bytes)| fs::write(path, bytes).expect("a file can be written"));
        let mut sent = OpSeq(0);
        let failed = within(HEAP_BYTES_MAX, || {
            loop {
                match queue.next_after(sent) {
                    Ok(Some(segment)) => {
                        assert!(is_forged || segments.contains(&segment), "only what was pushed is sent");
                        assert!(segment.last_seq() > sent, "it goes on");
                        sent = segment.last_seq();
                    }
                    Ok(None) => return None,
                    Err(error) => return Some(error),
                }
            }
        });
        failed.iter().for_each(check_code);
        assert!(failed.is_some() || is_forged || sent == segments[pushed - 1].last_seq(), "nothing is left out silently");
        let acknowledged = OpSeq(script.below(20) as u64);
        let _ = queue.acknowledge(acknowledged);
        queue.clear();
        assert!(queue.is_empty() && read_files(folder.path()).is_empty());
    });
}
