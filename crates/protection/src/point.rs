//! Recovery points: which are taken, which are kept, and which one a failover boots from.

use crate::{FailoverFacts, FailoverMode, FailoverRequest, JobState, Problem};
use serde::{Deserialize, Serialize};
use standin_model::{ByteLen, PointKind, RecoveryPoint, Timestamp};

/// How a failover request names the replica as it is now.
pub const NOW: &str = "now";

/// Where blocks are shared a point costs milliseconds and what changes afterwards, so every five minutes is cheap.
const INTERVAL_SECONDS_SHARED: u32 = 300;
const INTERVAL_SECONDS_MIN: u32 = 10;
const INTERVAL_SECONDS_MAX: u32 = 7 * 86_400;
/// Manual points are the operator's own: none is removed by itself, so there is a bound at which the next one is refused.
pub const MANUAL_MAX: usize = 8;
const KEEP_MAX: u32 = 64;
/// The newest serves the resync that runs; the one before it is of no more use than a regular one.
const KEEP_BEFORE_RESYNC: usize = 1;
/// A whole copy holds replication up: 2 GiB at a disk's 200 MB/s are ten seconds.
const COPY_BYTES_MAX: u64 = 2 << 30;
/// A resync within this time after a point keeps that one: resyncs may come in quick succession, and every point costs.
const FRESH_SECONDS_SHARED: i64 = 60;
const FRESH_SECONDS_COPIED: i64 = 900;

/// What a job wants of its recovery points.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PointPolicy {
    /// Seconds between regular points; 0 for none. `None`: 300 where the datastore can share blocks, none where it cannot.
    pub interval_seconds: Option<u32>,
    pub keep_regular: u32,
    /// Whether a marker makes a point.
    pub at_markers: bool,
    pub keep_markers: u32,
    /// Whether a consistent replica is kept before a resync changes it.
    pub before_resync: bool,
    /// Where blocks cannot be shared: the most that is copied for one point. Replication waits that long. 0 for never.
    pub copy_bytes_max: ByteLen,
}

impl Default for PointPolicy {
    fn default() -> Self {
        PointPolicy {
            interval_seconds: None,
            keep_regular: 3,
            at_markers: true,
            keep_markers: 8,
            before_resync: true,
            copy_bytes_max: ByteLen(COPY_BYTES_MAX),
        }
    }
}

impl PointPolicy {
    pub fn check(&self) -> Result<(), Problem> {
        let bad = |cause: String| Err(Problem::new("E4065", cause, "standin point policy JOB --every 300 --keep 3 --keep-markers 8"));
        if let Some(seconds) = self.interval_seconds
            && seconds != 0
            && !(INTERVAL_SECONDS_MIN..=INTERVAL_SECONDS_MAX).contains(&seconds)
        {
            return bad(format!("every {seconds} s is not 0 (never) or from {INTERVAL_SECONDS_MIN} to {INTERVAL_SECONDS_MAX} s"));
        }
        for (what, keep) in [("regular points", self.keep_regular), ("points at markers", self.keep_markers)] {
            if !(1..=KEEP_MAX).contains(&keep) {
                return bad(format!("{keep} {what} to keep are not from 1 to {KEEP_MAX}"));
            }
        }
        Ok(())
    }

    /// Seconds between regular points, if there are any.
    pub fn interval(&self, shares_blocks: bool) -> Option<u32> {
        let default = if shares_blocks { INTERVAL_SECONDS_SHARED } else { 0 };
        Some(self.interval_seconds.unwrap_or(default)).filter(|seconds| *seconds > 0)
    }

    /// Whether a regular point is due, by the appliance's clock.
    pub fn is_due(&self, now: Timestamp, shares_blocks: bool, points: &[RecoveryPoint]) -> bool {
        let Some(seconds) = self.interval(shares_blocks) else { return false };
        let last = points.iter().filter(|point| point.kind == PointKind::Regular).map(|point| point.taken_at).max();
        last.is_none_or(|last| age(last, now) >= i64::from(seconds))
    }

    /// Whether a resync that is about to begin needs a point, or the last one is recent enough.
    pub fn wants_before_resync(&self, now: Timestamp, shares_blocks: bool, points: &[RecoveryPoint]) -> bool {
        let fresh = if shares_blocks { FRESH_SECONDS_SHARED } else { FRESH_SECONDS_COPIED };
        let recent = last_consistent(points).is_some_and(|point| (0..fresh).contains(&age(point.taken_at, now)));
        self.before_resync && !recent
    }

    /// Ids of points that are not to be kept, oldest first. While the replica is not consistent, its last consistent point stays.
    pub fn surplus(&self, points: &[RecoveryPoint], replica_is_consistent: bool) -> Vec<String> {
        let needed = last_consistent(points).filter(|_| !replica_is_consistent).map(RecoveryPoint::id);
        let mut surplus = Vec::new();
        for (kind, keep) in [
            (PointKind::Regular, self.keep_regular as usize),
            (PointKind::Marker, self.keep_markers as usize),
            (PointKind::BeforeResync, KEEP_BEFORE_RESYNC),
        ] {
            let mut of_kind: Vec<_> = points.iter().filter(|point| point.kind == kind).collect();
            of_kind.sort_by_key(|point| (point.seq, point.taken_at));
            let count = of_kind.len().saturating_sub(keep);
            surplus.extend(of_kind.into_iter().take(count).map(RecoveryPoint::id).filter(|id| Some(id) != needed.as_ref()));
        }
        surplus
    }
}

/// Whole seconds; negative where a clock was set back.
fn age(then: Timestamp, now: Timestamp) -> i64 {
    now.0.saturating_sub(then.0) / 1_000_000_000
}

/// The newest state that the source really was in.
pub fn last_consistent(points: &[RecoveryPoint]) -> Option<&RecoveryPoint> {
    points.iter().filter(|point| point.consistent).max_by_key(|point| (point.seq, point.taken_at))
}

/// By id, or the newest of that name.
pub fn find<'a>(points: &'a [RecoveryPoint], text: &str) -> Option<&'a RecoveryPoint> {
    let named = |point: &&RecoveryPoint| point.name.as_ref().is_some_and(|name| name.as_str() == text);
    points.iter().find(|point| point.id() == text).or_else(|| points.iter().filter(named).max_by_key(|point| point.seq))
}

/// Which point a failover boots from; `None` for the replica as it is. What cannot be is a problem.
///
/// The operator's choice comes first. Without one, a replica that is being resynced is left alone where there is a consistent point: files of different
/// moments are worse than older files.
pub fn choose_point(
    facts: &FailoverFacts,
    mode: FailoverMode,
    request: &FailoverRequest,
    problems: &mut Vec<Problem>,
) -> Option<RecoveryPoint> {
    let list = format!("standin point list {}", facts.job_name);
    match request.at.as_deref() {
        Some(NOW) => None,
        Some(text) => match find(&facts.points, text) {
            Some(point) if point.consistent => Some(point.clone()),
            Some(point) => {
                let cause = format!("recovery point {} is no state that the source was in", point.id());
                problems.push(Problem::new("E4061", cause, list));
                None
            }
            None => {
                problems.push(Problem::new("E4060", format!("{} has no recovery point {text:?}", facts.job_name), list));
                None
            }
        },
        None if mode == FailoverMode::Unplanned && matches!(facts.state, JobState::Resyncing { .. }) => {
            last_consistent(&facts.points).cloned()
        }
        None => None,
    }
}

/// How a point is told to an operator.
pub fn describe(point: &RecoveryPoint, now: Timestamp) -> String {
    let name = point.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
    let seconds = age(point.captured_at.unwrap_or(point.taken_at), now).max(0);
    format!("{} ({}{name}, {seconds} s old, at {})", point.id(), point.kind.as_str(), point.seq)
}

#[cfg(test)]
mod tests;
