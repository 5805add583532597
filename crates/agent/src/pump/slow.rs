//! Writes that are stamped long before they are captured.
//!
//! A file's change time is stamped once, at the beginning of a write(2), and its pages are captured until the call ends: minutes later where the
//! disk is slow. A mapped page is stamped at the first store and captured at writeback. Every "changed since" has a slack for that; a write that
//! takes longer than the slack would be missed. So while one goes on, the time up to which everything is known stays near its beginning. Its pages
//! carry the stamp, as the file's modification time.
//!
//! A call that stands still between two of its pages for longer than the slack, and loses the agent meanwhile, is what `writers` looks for.

use standin_model::Timestamp;
use std::collections::BTreeMap;

const SECOND: i64 = 1_000_000_000;
/// Taken off every "changed since".
pub const CHANGE_SLACK_NS: i64 = 60 * SECOND;
/// A write is slow when its stamp is older than this: most of the slack, so that the rest is left for what is under way between kernel and here.
const SLOW_NS: i64 = 45 * SECOND;
/// No write(2) takes longer: 2 GiB, which is all that one call may write, at 600 KiB/s. Who sets a file's time back to earlier is no slow write.
const SLOW_NS_MAX: i64 = 3600 * SECOND;
/// A slow write of which nothing came for this long is over.
const QUIET_NS: i64 = 60 * SECOND;

#[derive(Default)]
pub struct Slow {
    /// When the barrier began that is being taken, or the last one.
    begun: Timestamp,
    /// The earliest stamp of the slow writes of each second; at most one entry for each second of `QUIET_NS`.
    stamps: BTreeMap<i64, Timestamp>,
}

impl Slow {
    pub fn begin(&mut self, now: Timestamp) {
        self.begun = now;
        while let Some(entry) = self.stamps.first_entry().filter(|entry| *entry.key() < (now.0 - QUIET_NS) / SECOND) {
            entry.remove();
        }
    }

    /// A write came whose file was stamped then.
    pub fn note(&mut self, stamped: Timestamp) {
        if (SLOW_NS..SLOW_NS_MAX).contains(&self.begun.0.saturating_sub(stamped.0)) {
            let earliest = self.stamps.entry(self.begun.0 / SECOND).or_insert(stamped);
            *earliest = stamped.min(*earliest);
        }
    }

    /// Every change that was stamped before this is in the stream once the barrier has been taken, but for the slack.
    pub fn known_until(&self) -> Timestamp {
        let slow = self.stamps.values().min().map(|stamped| Timestamp(stamped.0 + SLOW_NS));
        slow.map_or(self.begun, |slow| slow.min(self.begun))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_takes_minutes_holds_the_known_time_back_until_it_is_over() {
        let mut slow = Slow::default();
        let at = |seconds: i64| Timestamp(seconds * SECOND);
        for second in 1000..1300 {
            slow.begin(at(second));
            slow.note(at(1000));
            let reached = slow.known_until().0 - CHANGE_SLACK_NS;
            assert!(reached < at(1000).0, "the file would count as unchanged at second {second}");
        }
        slow.begin(at(1359));
        assert_eq!(slow.known_until(), at(1045));
        slow.begin(at(1361));
        assert_eq!((slow.known_until(), slow.stamps.len()), (at(1361), 0));
    }

    #[test]
    fn quick_writes_and_old_dates_change_nothing() {
        let mut slow = Slow::default();
        slow.begin(Timestamp(10_000 * SECOND));
        for stamped in [0, 5_000, 9_980, 10_000, 20_000] {
            slow.note(Timestamp(stamped * SECOND));
        }
        assert_eq!(slow.known_until(), Timestamp(10_000 * SECOND));
    }
}
