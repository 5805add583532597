//! How a stream begins when an agent connects: resume, resync or full mirror.
//!
//! An *epoch* is one life of the agent's capture. Within an epoch the agent still holds what is not durable here and resends it. A new
//! epoch has lost what was in the agent's memory, so everything that changed since the replica was consistent last is mirrored again.

use serde::{Deserialize, Serialize};
use standin_model::{OpSeq, Timestamp};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamFacts {
    /// The epoch of the last StartJob; 0 when there was none.
    pub epoch: u64,
    /// Whether the agent says that it still runs this epoch.
    pub agent_epoch: Option<u64>,
    /// The last durable item.
    pub durable: OpSeq,
    /// Capture time, by the source's clock, of the last item applied while the replica was consistent. Never that of a later durable item: a
    /// resync that the agent's end cut off would be forgotten.
    pub captured_at: Option<Timestamp>,
    /// Whether a `Consistent` marker is durable: the initial mirror has come to its end.
    pub mirrored: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartOrder {
    pub epoch: u64,
    pub next: OpSeq,
    /// Mirror what changed since then; `None` with a new epoch means everything.
    pub since: Option<Timestamp>,
}

pub fn decide_start(facts: &StreamFacts) -> StartOrder {
    let next = facts.durable.next();
    let same_life = facts.epoch != 0 && facts.agent_epoch == Some(facts.epoch);
    let epoch = if same_life { facts.epoch } else { facts.epoch.saturating_add(1) };
    // A mirror that was cut off has shown an unknown part of the tree only, so it begins anew.
    let since = facts.captured_at.filter(|_| facts.mirrored);
    StartOrder { epoch, next, since }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(facts: StreamFacts, epoch: u64, next: u64, since: Option<i64>) {
        assert_eq!(decide_start(&facts), StartOrder { epoch, next: OpSeq(next), since: since.map(Timestamp) });
    }

    #[test]
    fn starts() {
        let new = StreamFacts::default();
        check(new.clone(), 1, 1, None);
        let half = StreamFacts { epoch: 1, durable: OpSeq(50), captured_at: Some(Timestamp(7)), ..new };
        check(StreamFacts { agent_epoch: Some(1), ..half.clone() }, 1, 51, None);
        check(half.clone(), 2, 51, None);
        let whole = StreamFacts { mirrored: true, ..half };
        check(StreamFacts { agent_epoch: Some(1), ..whole.clone() }, 1, 51, Some(7));
        check(StreamFacts { agent_epoch: Some(9), ..whole.clone() }, 2, 51, Some(7));
        check(whole, 2, 51, Some(7));
    }
}
