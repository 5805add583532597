//! How long a mirror will take: a band that the past speed supports, and what is likely within it.
//!
//! Work is bytes of content, and a node counts as so many bytes more. Speed is looked at in slots of a few seconds. What is likely goes on at the mean
//! of the last minutes; the band goes on at the fastest and the slowest that a stretch of them was. Where something stood still, nobody knows an end.

use serde::{Deserialize, Serialize};
use standin_model::Timestamp;
use std::collections::VecDeque;

/// Looking at a node and making it takes as long as so much content: a tree of 35,000 entries and 1 GB takes half as long again as large files of that size.
pub const NODE_BYTES: u64 = 16 << 10;
const SLOT_NS: i64 = 5_000_000_000;
/// Two minutes: long enough for a mean, and short enough to follow a limit that was changed.
const SLOTS_MAX: usize = 24;
/// Slots of a stretch. Shorter ones tell of the file that was read, not of what comes.
const STRETCH: usize = 3;
/// Nobody knows better than this what the files that are left are like.
const MARGIN: f64 = 0.2;

/// What a mirror has done, and what there is in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    pub done: u64,
    pub total: u64,
}

impl Work {
    pub fn new((bytes, bytes_total): (u64, u64), (nodes, nodes_total): (u64, u64)) -> Work {
        let sum = |bytes: u64, nodes: u64| bytes.saturating_add(nodes.saturating_mul(NODE_BYTES));
        Work { done: sum(bytes, nodes), total: sum(bytes_total.max(bytes), nodes_total.max(nodes)) }
    }
}

/// Seconds that are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimate {
    pub least: u64,
    pub likely: u64,
    /// `None` where it stood still lately.
    pub most: Option<u64>,
}

/// The speeds of one mirror, lately.
#[derive(Clone, Debug, Default)]
pub struct Estimator {
    begun: Option<(Timestamp, u64)>,
    slots: VecDeque<u64>,
    work: Work,
}

impl Estimator {
    /// What was done by then. Less than before means that another walk has begun.
    pub fn note(&mut self, at: Timestamp, work: Work) {
        let is_another = work.done < self.work.done;
        if is_another {
            *self = Estimator::default();
        }
        self.work = work;
        let (from, done) = *self.begun.get_or_insert((at, work.done));
        let slots = at.0.saturating_sub(from.0) / SLOT_NS;
        if slots < 1 {
            return;
        }
        // After a silence what was done in it is spread over it.
        let each = (work.done - done) / slots.unsigned_abs();
        for _ in 0..slots.min(SLOTS_MAX as i64) {
            self.slots.push_back(each);
        }
        while self.slots.len() > SLOTS_MAX {
            self.slots.pop_front();
        }
        self.begun = Some((Timestamp(from.0 + slots * SLOT_NS), work.done));
    }

    /// Nothing before there is a stretch to judge by, and when nothing was done in all of it; nothing either where all that is known of is done and the walk
    /// goes on, because it has yet to find what it will take.
    pub fn estimate(&self) -> Option<Estimate> {
        let slots: Vec<f64> = self.slots.iter().map(|slot| *slot as f64).collect();
        if slots.len() < STRETCH {
            return None;
        }
        let seconds = SLOT_NS as f64 / 1e9;
        let mean = slots.iter().sum::<f64>() / slots.len() as f64 / seconds;
        if mean <= 0.0 {
            return None;
        }
        let speeds: Vec<f64> = slots.windows(STRETCH).map(|stretch| stretch.iter().sum::<f64>() / STRETCH as f64 / seconds).collect();
        let fastest = speeds.iter().copied().fold(mean, f64::max) * (1.0 + MARGIN);
        let slowest = speeds.iter().copied().fold(mean, f64::min) * (1.0 - MARGIN);
        let left = self.work.total.saturating_sub(self.work.done) as f64;
        if left <= 0.0 {
            return None;
        }
        let most = (slowest > 0.0).then(|| (left / slowest).ceil() as u64);
        Some(Estimate { least: (left / fastest) as u64, likely: (left / mean).round() as u64, most })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::strategy::ValueTree;

    fn at(seconds: u64) -> Timestamp {
        Timestamp(seconds as i64 * 1_000_000_000)
    }

    /// How many of the estimates of a run hold the truth: a status a second, as much work done in each as `speeds` says.
    fn share_that_held(speeds: &[u64]) -> f64 {
        let total = speeds.iter().sum();
        let (mut estimator, mut done, mut held, mut said) = (Estimator::default(), 0, 0, 0);
        for (second, speed) in speeds.iter().enumerate() {
            estimator.note(at(second as u64), Work { done, total });
            done += speed;
            let left = (speeds.len() - second) as u64;
            if let Some(Estimate { least, most, .. }) = estimator.estimate() {
                said += 1;
                held += u32::from(least <= left && most.is_none_or(|most| left <= most + 1));
            }
        }
        assert!(said > 0, "nothing was ever said");
        f64::from(held) / f64::from(said)
    }

    /// Seconds differ by a factor of ten, files as they come. Of one run by itself this is not certain, since chance may put the slow seconds at its end; so the runs are
    /// always the same ones, and looked at together.
    #[test]
    fn the_band_holds_the_truth_where_the_future_is_like_the_past() {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let runs = proptest::collection::vec(10u64..100, 200..600);
        let shares = (0..256).map(|_| share_that_held(&runs.new_tree(&mut runner).expect("a run").current()));
        let mean = shares.sum::<f64>() / 256.0;
        assert!(mean >= 0.95, "{mean}");
    }

    proptest! {
        #[test]
        fn any_work_at_any_time_is_taken(notes in proptest::collection::vec((any::<i64>(), any::<u64>(), any::<u64>()), 0..50)) {
            let mut estimator = Estimator::default();
            for (time, done, total) in notes {
                estimator.note(Timestamp(time), Work { done, total });
                if let Some(Estimate { least, likely, most }) = estimator.estimate() {
                    prop_assert!(least <= likely + 1 && most.is_none_or(|most| likely <= most + 1));
                }
            }
        }
    }

    #[test]
    fn a_limit_that_comes_in_the_middle_is_followed_within_minutes() {
        let speeds: Vec<u64> = std::iter::repeat_n(1000, 300).chain(std::iter::repeat_n(100, 1200)).collect();
        let (mut estimator, mut done, total) = (Estimator::default(), 0, speeds.iter().sum());
        let mut likely = Vec::new();
        for (second, speed) in speeds.iter().enumerate() {
            estimator.note(at(second as u64), Work { done, total });
            done += speed;
            likely.push(estimator.estimate().map(|estimate| estimate.likely));
        }
        assert_eq!(likely[10], None, "too early to say");
        assert_eq!(likely[299], Some(121));
        assert_eq!(likely[500], Some(1000));
    }

    #[test]
    fn what_stands_still_has_no_end() {
        let mut estimator = Estimator::default();
        for second in 0..60 {
            estimator.note(at(second), Work { done: second.min(20) * 1000, total: 100_000 });
        }
        assert_eq!(estimator.estimate().map(|estimate| estimate.most), Some(None));
        for second in 60..200 {
            estimator.note(at(second), Work { done: 20_000, total: 100_000 });
        }
        assert_eq!(estimator.estimate(), None);
    }

    #[test]
    fn a_walk_that_has_done_what_it_knew_of_has_no_end_yet() {
        let mut estimator = Estimator::default();
        for second in 0..60 {
            estimator.note(at(second), Work { done: second * 1000, total: 60_000 });
        }
        assert!(estimator.estimate().is_some());
        estimator.note(at(60), Work { done: 60_000, total: 60_000 });
        assert_eq!(estimator.estimate(), None);
    }

    #[test]
    fn another_walk_is_judged_by_itself() {
        let mut estimator = Estimator::default();
        for second in 0..60 {
            estimator.note(at(second), Work { done: second * 1000, total: 100_000 });
        }
        estimator.note(at(60), Work { done: 0, total: 50 });
        assert_eq!(estimator.estimate(), None);
    }

    #[test]
    fn a_node_is_work_too() {
        assert_eq!(Work::new((5, 3), (2, 4)), Work { done: 5 + 2 * NODE_BYTES, total: 5 + 4 * NODE_BYTES });
    }
}
