//! Random lives of a journal, with and without power cuts, against a list of segments.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Append { count: u64, len: usize },
    AppendAgain,
    Sync,
    Discard(u64),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let one = prop_oneof![
        4 => (1..6u64, 0..300usize).prop_map(|(count, len)| Step::Append { count, len }),
        1 => Just(Step::AppendAgain),
        2 => Just(Step::Sync),
        1 => (0..100u64).prop_map(Step::Discard),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(one, 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn behaves_like_a_list(steps in steps()) {
        let dir = TempDir::new().unwrap();
        let mut journal = Some(Journal::open(dir.path(), SMALL).unwrap());
        let mut oracle: Vec<Segment> = Vec::new();
        let mut discarded = 0;
        for step in steps {
            let j = journal.as_mut().unwrap();
            match step {
                Step::Append { count, len } => {
                    let segment = segment(1, j.last().0 + 1, count, len);
                    j.append(&segment).unwrap();
                    oracle.push(segment);
                }
                Step::AppendAgain => if let Some(last) = oracle.last() { j.append(last).unwrap() },
                Step::Sync => prop_assert_eq!(j.sync().unwrap(), j.last()),
                Step::Discard(percent) => {
                    let through = j.durable().0 * percent / 100;
                    j.discard_through(OpSeq(through)).unwrap();
                    discarded = discarded.max(through);
                }
                Step::Reopen => {
                    drop(journal.take());
                    journal = Some(Journal::open(dir.path(), SMALL).unwrap());
                }
            }
            let j = journal.as_ref().unwrap();
            prop_assert_eq!(j.last(), oracle.last().map_or(OpSeq(0), |s| s.last_seq()));
            prop_assert!(j.oldest().0 <= discarded + 1);
            let on_disk: u64 = list(dir.path()).unwrap().iter().map(|file| file.len).sum();
            prop_assert_eq!(j.bytes(), on_disk);
            let expected: Vec<_> = oracle.iter()
                .filter(|s| s.first_seq() >= j.oldest() && s.last_seq() <= j.durable()).cloned().collect();
            prop_assert_eq!(read_all(dir.path(), j.oldest().0, j.durable()), expected);
        }
    }
}

/// What a power cut leaves: of the bytes that were not synced, some blocks are zero, and the file may be shorter.
fn cut_power(path: &Path, synced: u64, lost_blocks: &[bool], kept_percent: u64) {
    const BLOCK: u64 = 64;
    let len = fs::metadata(path).unwrap().len();
    let unsynced = len - synced;
    for (index, at) in (synced..len).step_by(BLOCK as usize).enumerate() {
        if !lost_blocks.is_empty() && lost_blocks[index % lost_blocks.len()] {
            zero(path, at, BLOCK.min(len - at) as usize);
        }
    }
    OpenOptions::new().write(true).open(path).unwrap().set_len(synced + unsynced * kept_percent / 100).unwrap();
}

#[derive(Clone, Debug)]
struct Life {
    /// Items of each append, and whether a sync follows.
    appends: Vec<(u64, bool)>,
    lost_blocks: Vec<bool>,
    kept_percent: u64,
}

fn lives() -> impl Strategy<Value = Vec<Life>> {
    let appends = prop::collection::vec((1..4u64, any::<bool>()), 0..12);
    let life = (appends, prop::collection::vec(any::<bool>(), 0..9), 0..=100u64);
    prop::collection::vec(life.prop_map(|(appends, lost_blocks, kept_percent)| Life { appends, lost_blocks, kept_percent }), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    /// After any power cut the journal opens, has everything that was durable, and nothing that was not appended.
    #[test]
    fn no_power_cut_loses_what_was_durable(lives in lives()) {
        let dir = TempDir::new().unwrap();
        let mut oracle: Vec<Segment> = Vec::new();
        for life in lives {
            let mut journal = Journal::open(dir.path(), SMALL).unwrap();
            oracle.retain(|segment| segment.last_seq() <= journal.last());
            for (count, sync) in life.appends {
                let segment = segment(1, journal.last().0 + 1, count, 40);
                journal.append(&segment).unwrap();
                oracle.push(segment);
                if sync {
                    journal.sync().unwrap();
                }
            }
            let (durable, path, synced) = (journal.durable(), journal.active.path.clone(), journal.active.durable_len);
            drop(journal);
            cut_power(&path, synced, &life.lost_blocks, life.kept_percent);
            let journal = Journal::open(dir.path(), SMALL).unwrap();
            prop_assert!(journal.last() >= durable);
            let expected: Vec<_> = oracle.iter().filter(|segment| segment.last_seq() <= journal.last()).cloned().collect();
            prop_assert_eq!(read_all(dir.path(), 1, journal.last()), expected);
        }
    }
}
