//! The runbook of a failover: named steps in a fixed order, immutable once planned.

use crate::fence::Waiver;
use serde::{Deserialize, Serialize};
use standin_model::{JobId, OpSeq, RecoveryPoint, Timestamp};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailoverMode {
    /// The source is alive: quiesced, drained and switched off. Nothing is lost.
    Planned,
    /// The source is gone: what is durable on the appliance is all there is.
    Unplanned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepKind {
    Quiesce,
    Drain,
    Fence,
    RequireFence,
    UsePoint,
    InjectDrivers,
    DetachDisks,
    AttachDisks,
    PowerOn,
}

impl StepKind {
    /// The classic names.
    pub fn title(self) -> &'static str {
        match self {
            StepKind::Quiesce => "quiesce the source",
            StepKind::Drain => "drain: apply everything that was captured",
            StepKind::Fence => "fence: switch the source off",
            StepKind::RequireFence => "require proof that the source is off",
            StepKind::UsePoint => "make a disk of the recovery point",
            StepKind::InjectDrivers => "inject drivers into the replica VM",
            StepKind::DetachDisks => "detach disks from the appliance",
            StepKind::AttachDisks => "attach disks to the replica VM",
            StepKind::PowerOn => "power on",
        }
    }

    /// Whether a failure of this step leads back to replication: nothing irreversible was done before or in it.
    pub fn can_abort(self) -> bool {
        matches!(self, StepKind::Quiesce | StepKind::Drain | StepKind::Fence | StepKind::RequireFence)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub kind: StepKind,
    pub title: String,
    /// What exactly will be done, for review.
    pub detail: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runbook {
    pub job: JobId,
    pub job_name: String,
    pub mode: FailoverMode,
    pub planned_at: Timestamp,
    /// The last point known to be consistent when this was planned; with a recovery point, that one.
    pub consistent: OpSeq,
    /// What the machine boots from, where that is not the replica as it is.
    #[serde(default)]
    pub point: Option<RecoveryPoint>,
    pub waiver: Option<Waiver>,
    pub steps: Vec<Step>,
    pub warnings: Vec<String>,
}
