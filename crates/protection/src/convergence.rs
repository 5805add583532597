//! Whether a job comes nearer to its source, or changes come faster than they are sent. Judged over ten minutes, so that a checkpoint or an update is no alarm.

use crate::{Problem, Work};
use standin_model::Timestamp;
use std::collections::VecDeque;

const SLOT_NS: i64 = 30_000_000_000;
const SLOTS: usize = 20;
/// Falling behind by less than a tenth of the time is what every busy hour does.
const LAG_GROWTH_MIN: u64 = 60;
/// At a thousandth of what is left in ten minutes, a mirror takes a week.
const PROGRESS_MIN: u64 = 1000;

#[derive(Clone, Copy, Debug)]
struct Slot {
    at: Timestamp,
    /// Seconds.
    lag: u64,
    /// Of the mirror or resync, where one runs.
    mirror: Option<Work>,
}

/// What was seen lately.
#[derive(Clone, Debug, Default)]
pub struct Convergence(VecDeque<Slot>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trend {
    /// Or nobody can say yet.
    Converging,
    FallsBehind {
        by: u64,
        lag: u64,
    },
    MirrorStands {
        left: u64,
    },
}

impl Convergence {
    pub fn note(&mut self, at: Timestamp, lag: u64, mirror: Option<Work>) {
        if self.0.back().is_some_and(|last| (0..SLOT_NS).contains(&(at.0.saturating_sub(last.at.0)))) {
            return;
        }
        // A clock that was set, or a silence: what was before it says nothing of now.
        if self.0.back().is_some_and(|last| !(0..2 * SLOT_NS).contains(&at.0.saturating_sub(last.at.0))) {
            self.0.clear();
        }
        self.0.push_back(Slot { at, lag, mirror });
        if self.0.len() > SLOTS + 1 {
            self.0.pop_front();
        }
    }

    /// The job has no stream at the moment.
    pub fn forget(&mut self) {
        self.0.clear();
    }

    pub fn trend(&self) -> Trend {
        let (Some(first), Some(middle), Some(last)) = (self.0.front(), self.0.get(SLOTS / 2), self.0.get(SLOTS)) else {
            return Trend::Converging;
        };
        if let (Some(from), Some(to)) = (first.mirror, last.mirror) {
            let left = to.total.saturating_sub(to.done);
            let stands = self.0.iter().all(|slot| slot.mirror.is_some_and(|work| work.done >= from.done))
                && to.done - from.done <= left / PROGRESS_MIN;
            return if stands { Trend::MirrorStands { left } } else { Trend::Converging };
        }
        let by = last.lag.saturating_sub(first.lag);
        let grows = self.0.iter().all(|slot| slot.mirror.is_none()) && first.lag < middle.lag && middle.lag < last.lag;
        if grows && by >= LAG_GROWTH_MIN { Trend::FallsBehind { by, lag: last.lag } } else { Trend::Converging }
    }

    pub fn problem(&self, job: &str) -> Option<Problem> {
        let cause = match self.trend() {
            Trend::Converging => return None,
            Trend::FallsBehind { by, lag } => format!(
                "changes come faster than they are sent and applied: the replica fell behind by {by} s within ten minutes, and is {lag} s behind"
            ),
            Trend::MirrorStands { left } => format!(
                "the mirror has read next to nothing for ten minutes, with {} MiB left: what the source writes, or a limit, leaves it nothing",
                left >> 20
            ),
        };
        Some(Problem::new("E4077", cause, format!("standin job show {job}   (what limits it)")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(seconds: u64, mut at: impl FnMut(u64) -> (u64, Option<Work>)) -> Convergence {
        let mut convergence = Convergence::default();
        for second in 0..=seconds {
            let (lag, mirror) = at(second);
            convergence.note(Timestamp(second as i64 * 1_000_000_000), lag, mirror);
        }
        convergence
    }

    #[test]
    fn a_replica_that_falls_behind_for_ten_minutes_does_not_converge() {
        let trend = |seconds, lag: fn(u64) -> u64| run(seconds, |second| (lag(second), None)).trend();
        assert_eq!(trend(599, |second| second / 2), Trend::Converging, "too early to say");
        assert_eq!(trend(600, |second| second / 2), Trend::FallsBehind { by: 300, lag: 300 });
        assert_eq!(trend(3600, |second| second / 2), Trend::FallsBehind { by: 300, lag: 1800 });
        assert_eq!(trend(3600, |second| second / 20), Trend::Converging, "too little");
        assert_eq!(trend(3600, |_| 500), Trend::Converging, "late, but no later than before");
        assert_eq!(trend(600, |second| if second < 300 { second } else { 600 - second }), Trend::Converging, "a peak");
        assert_eq!(trend(3600, |second| second % 200), Trend::Converging, "checkpoints");
    }

    #[test]
    fn a_mirror_that_reads_nothing_does_not_converge() {
        let work = |done| Some(Work { done, total: 10_000_000 });
        let trend = |seconds, done: fn(u64) -> u64| run(seconds, |second| (3, work(done(second)))).trend();
        assert_eq!(trend(600, |_| 5_000_000), Trend::MirrorStands { left: 5_000_000 });
        assert_eq!(trend(600, |second| 5_000_000 + second), Trend::MirrorStands { left: 4_999_400 });
        assert_eq!(trend(600, |second| 5_000_000 + 100 * second), Trend::Converging);
        assert_eq!(trend(600, |second| if second < 300 { 5_000_000 } else { 0 }), Trend::Converging, "it began again");
        assert_eq!(run(600, |second| (0, work(5).filter(|_| second > 10))).trend(), Trend::Converging, "it has just begun");
    }

    #[test]
    fn what_was_before_a_silence_does_not_count() {
        let mut convergence = run(600, |second| (second, None));
        assert!(convergence.problem("web").is_some_and(|problem| problem.code == "STANDIN-E4077"));
        convergence.note(Timestamp(700_000_000_000), 900, None);
        assert_eq!(convergence.problem("web"), None);
        let mut convergence = run(600, |second| (second, None));
        convergence.forget();
        assert_eq!(convergence.trend(), Trend::Converging);
    }
}
