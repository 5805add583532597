//! The authority to launch a replica: proof that the source is off, or an operator who answers for it.
//!
//! Never two of one server. [`SourceFenced`] can only be made from the agent's confirmation that a run recorded; [`Waiver`] carries a
//! name and a reason and ends up in the event log.

use crate::Problem;
use serde::{Deserialize, Serialize};
use standin_model::{JobId, Timestamp};

/// The agent confirmed that it switches the source off now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFenced {
    job: JobId,
    at: Timestamp,
}

impl SourceFenced {
    /// Only the executor calls this, on the agent's `Fenced` for a quiesced and drained source.
    pub fn confirmed_by_agent(job: JobId, at: Timestamp) -> SourceFenced {
        SourceFenced { job, at }
    }
    pub fn job(&self) -> &JobId {
        &self.job
    }
    /// When it was confirmed, by the appliance's clock.
    pub fn at(&self) -> Timestamp {
        self.at
    }
}

/// An operator's word that the source is off, or that two of it do no harm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WaiverText")]
pub struct Waiver {
    name: String,
    reason: String,
}

#[derive(Deserialize)]
struct WaiverText {
    name: String,
    reason: String,
}

/// Longer texts would only fill the log.
const TEXT_BYTES_MAX: usize = 500;

impl Waiver {
    pub fn new(name: &str, reason: &str) -> Result<Waiver, Problem> {
        let (name, reason) = (name.trim(), reason.trim());
        let fine = |text: &str| !text.is_empty() && text.len() <= TEXT_BYTES_MAX && !text.chars().any(char::is_control);
        if fine(name) && fine(reason) {
            return Ok(Waiver { name: name.into(), reason: reason.into() });
        }
        let cause = "a waiver of the fence needs a name and a reason, in one line each";
        Err(Problem::new("E4010", cause, "standin failover JOB --waive-fence 'YOUR NAME' 'WHY THE SOURCE IS OFF'"))
    }
    pub fn name(&self) -> &str {
        &self.name
    }
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl TryFrom<WaiverText> for Waiver {
    type Error = Problem;
    fn try_from(text: WaiverText) -> Result<Waiver, Problem> {
        Waiver::new(&text.name, &text.reason)
    }
}

/// What allows to power a replica on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LaunchAuthority {
    Fenced(SourceFenced),
    Waived(Waiver),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiver_needs_name_and_reason() {
        assert!(Waiver::new("Ada", "unplugged").is_ok());
        for (name, reason) in [("", "x"), ("Ada", " "), ("Ada", "two\nlines")] {
            assert_eq!(Waiver::new(name, reason).unwrap_err().code, "STANDIN-E4010");
        }
        assert!(serde_json::from_str::<Waiver>(r#"{"name":"","reason":"x"}"#).is_err());
    }
}
