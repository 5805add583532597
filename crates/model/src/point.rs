//! Recovery points and the names of markers: states of a replica that were kept, each at one position of the job's order.

use crate::{OpSeq, Timestamp};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The name of a marker or of a recovery point: 1 to 64 of `A-Z a-z 0-9 . _ -`, beginning with a letter or digit. It becomes part of a directory's name
/// and is typed on command lines. A colon is left out on purpose: names with one are reserved for cuts that several jobs have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MarkName(String);

impl MarkName {
    pub const LENGTH_MAX: usize = 64;

    /// `None` when the text is no such name.
    pub fn parse(text: &str) -> Option<MarkName> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let good = (1..=Self::LENGTH_MAX).contains(&text.len())
            && text.bytes().all(allowed)
            && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric());
        good.then(|| MarkName(text.to_owned()))
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MarkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for MarkName {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
            .ok_or_else(|| "not a name: 1 to 64 letters, digits, '.', '_' and '-', beginning with a letter or digit".to_owned())
    }
}

impl From<MarkName> for String {
    fn from(name: MarkName) -> String {
        name.0
    }
}

/// Why a recovery point was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PointKind {
    /// By the job's interval.
    Regular,
    /// At a marker that somebody named on the source.
    Marker,
    /// By the operator.
    Manual,
    /// Before a resync began to change a consistent replica.
    BeforeResync,
}

impl PointKind {
    pub fn as_str(self) -> &'static str {
        match self {
            PointKind::Regular => "regular",
            PointKind::Marker => "marker",
            PointKind::Manual => "manual",
            PointKind::BeforeResync => "before-resync",
        }
    }
}

/// A state of the replica that was kept whole: its disk and its node table as they were at `seq`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryPoint {
    pub kind: PointKind,
    pub name: Option<MarkName>,
    /// Everything up to this item is in it, and nothing behind.
    pub seq: OpSeq,
    /// Until when the source's changes are in it, by the source's clock; `None` where no segment said so since the worker began.
    pub captured_at: Option<Timestamp>,
    /// When it was taken, by the appliance's clock.
    pub taken_at: Timestamp,
    /// Equal to the source at `seq`.
    pub consistent: bool,
    /// Bytes that were copied because the datastore cannot share them; 0 where it can.
    #[serde(default)]
    pub bytes_copied: u64,
    /// How long the replica was held still for it.
    #[serde(default)]
    pub held_ms: u64,
}

impl RecoveryPoint {
    /// The same for the same point of a job, however often it is taken: `4711-regular`, `4711-manual-NAME`.
    pub fn id(&self) -> String {
        let (seq, kind) = (self.seq, self.kind.as_str());
        match &self.name {
            Some(name) if self.kind == PointKind::Manual => format!("{seq}-{kind}-{name}"),
            _ => format!("{seq}-{kind}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_words() {
        for good in ["a", "before-upgrade", "2026-11-24.1", "A_b"] {
            assert_eq!(MarkName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "-x", "a/b", "a b", "cut:1", "ü", &"x".repeat(65)] {
            assert!(MarkName::parse(bad).is_none(), "{bad}");
        }
        assert!(serde_json::from_str::<MarkName>("\"../x\"").is_err());
    }
}
