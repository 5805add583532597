//! Random histories, straight and with crashes. A crash is a drop without a mark: the file system stays as it was at that item, and the
//! table goes back to the last mark, which is what SIGKILL leaves behind.

use super::oracle::Random;
use super::*;

const STEPS_PER_SEGMENT: u64 = 25;

/// A history of a seed, with the oracle as it is at its end.
fn history(seed: u64, steps: u64) -> (Vec<Item>, Oracle) {
    let mut oracle = Oracle::new(seed);
    let mut operations = vec![Operation::SetOwner { node: ROOT, owner: 0, group: 0 }, Operation::SetMode { node: ROOT, mode: 0o755 }];
    for step in 0..steps {
        oracle.step(&mut operations);
        if step % STEPS_PER_SEGMENT == 0 {
            oracle.end_segment(&mut operations);
        }
    }
    oracle.end_segment(&mut operations);
    (numbered(operations), oracle)
}

#[track_caller]
pub fn assert_healthy(lab: &Lab, applier: &mut Applier, oracle: &Oracle, context: &str) {
    assert_eq!(applier.take_wants(), [], "{context}");
    assert_same(lab, oracle, context);
}

#[test]
fn a_random_history_gives_the_oracles_tree() {
    for seed in 1..=12 {
        let Some(lab) = Lab::new("random history") else { return };
        let (items, oracle) = history(seed, 600);
        let mut applier = lab.open();
        applier.redo_through(OpSeq::ZERO).unwrap();
        applier.apply_segment(&items).unwrap();
        applier.mark().unwrap();
        let context = format!("seed {seed}");
        assert_eq!(applier.counters().operations_failed, 0, "{context}");
        let is_whiteout = |item: &&Item| matches!(item.operation, Operation::Rename { mode: RenameMode::Whiteout, .. });
        let whiteouts = items.iter().filter(is_whiteout).count() as u64;
        assert!(applier.counters().conflicts <= whiteouts, "{context}: only whiteouts have no node that we know");
        assert_healthy(&lab, &mut applier, &oracle, &context);
        applier.finish().unwrap();
        assert!(!lab.volume().join(".standin-limbo").exists());
        assert_same(&lab, &oracle, &format!("{context}, finished"));
    }
}

/// Applies with marks now and then, crashes `crashes` times at random places, and then applies to the end.
pub fn crash(seed: u64, crashes: usize, items: &[Item]) -> Option<(Lab, Applier, String)> {
    let lab = Lab::new("crash")?;
    let end = items.len() as u64;
    let mut random = Random::new(seed ^ 0x5151);
    let mut reached = 0;
    let mut cuts = Vec::new();
    for _ in 0..crashes {
        let mut applier = lab.open();
        applier.redo_through(OpSeq(reached)).unwrap();
        let from = applier.applied().0;
        let cut = (from + 1 + random.below(end / 4 + 80)).min(end);
        let mark_at = from + 1 + random.below(cut - from + 40);
        for item in &items[from as usize..cut as usize] {
            applier.apply(item).unwrap();
            if item.seq.0 == mark_at {
                applier.mark().unwrap();
            }
        }
        reached = reached.max(cut);
        cuts.push((from, mark_at, cut));
    }
    let mut applier = lab.open();
    applier.redo_through(OpSeq(reached)).unwrap();
    let context = format!("seed {seed}, crashes (from, mark, cut) {cuts:?}, then from {}", applier.applied());
    applier.apply_segment(&items[applier.applied().0 as usize..]).unwrap();
    applier.mark().unwrap();
    assert_eq!(applier.counters().operations_failed, 0, "{context}");
    Some((lab, applier, context))
}

fn crash_and_compare(seed: u64, crashes: usize, items: Vec<Item>, oracle: Oracle) {
    let Some((lab, mut applier, context)) = crash(seed, crashes, &items) else { return };
    assert_healthy(&lab, &mut applier, &oracle, &context);
    let unnamed = applier.table.iter().filter(|(_, entry)| entry.has(table::fact::UNNAMED)).count();
    assert!(unnamed > 0 || limbo_is_empty(&lab), "{context}");
}

pub fn seeds(default: u64) -> std::ops::RangeInclusive<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse().ok());
    number("STANDIN_SEED").map_or(1..=number("STANDIN_SEEDS").unwrap_or(default), |seed| seed..=seed)
}

#[test]
fn redo_after_one_crash_gives_the_oracles_tree() {
    for seed in seeds(60) {
        let (items, oracle) = history(seed, 400);
        crash_and_compare(seed, 1, items, oracle);
    }
}

#[test]
fn redo_after_many_crashes_gives_the_oracles_tree() {
    for seed in seeds(60) {
        let seed = seed.wrapping_mul(7919);
        let (items, oracle) = history(seed, 400);
        crash_and_compare(seed, 2 + (seed % 7) as usize, items, oracle);
    }
}
