//! The states of a job and the ways between them.
//!
//! ```text
//! created ─► provisioning ─► mirroring ─► protected ◄──► resyncing
//!                                │   ▲        │  ▲           │
//!                                │   └────────│──│───────────│─── abort returns to where the failover began
//!                                ▼            ▼  ▼           ▼
//!                              (refused)    failing-over ◄───┘
//!                                               │
//!                                               ▼
//!                                          failed-over ─► reversing (reserved)
//! testing (reserved) is entered from and left to protected.
//! ```
//!
//! A job is *protected* when the replica has applied a `Consistent` marker and no `Gap` after it.

use crate::FailoverMode;
use serde::{Deserialize, Serialize};
use standin_model::{OpSeq, Timestamp};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum JobState {
    /// Accepted by nobody yet.
    Created,
    /// The replica's disks are being made.
    Provisioning,
    /// The initial mirror runs.
    Mirroring {
        since: Timestamp,
    },
    /// `consistent` is the last point at which the replica is known to equal the source.
    Protected {
        since: Timestamp,
        consistent: OpSeq,
    },
    /// Known to differ from the source since a gap; `consistent` is the last good point before.
    Resyncing {
        since: Timestamp,
        consistent: OpSeq,
        reason: String,
    },
    /// `before` is where an abort leads back to.
    FailingOver {
        since: Timestamp,
        mode: FailoverMode,
        before: Box<JobState>,
    },
    FailedOver {
        since: Timestamp,
    },
    /// Reserved for test failover.
    Testing {
        since: Timestamp,
        consistent: OpSeq,
    },
    /// Reserved for failback.
    Reversing {
        since: Timestamp,
    },
}

impl JobState {
    pub fn name(&self) -> &'static str {
        match self {
            JobState::Created => "created",
            JobState::Provisioning => "provisioning",
            JobState::Mirroring { .. } => "mirroring",
            JobState::Protected { .. } => "protected",
            JobState::Resyncing { .. } => "resyncing",
            JobState::FailingOver { .. } => "failing-over",
            JobState::FailedOver { .. } => "failed-over",
            JobState::Testing { .. } => "testing",
            JobState::Reversing { .. } => "reversing",
        }
    }

    /// The chart above, as a function.
    pub fn may_become(&self, next: &JobState) -> bool {
        use JobState::*;
        match (self, next) {
            (Created, Provisioning)
            | (Provisioning, Mirroring { .. })
            | (Mirroring { .. }, Protected { .. })
            | (Protected { .. }, Resyncing { .. })
            | (Resyncing { .. }, Protected { .. })
            | (Protected { .. } | Resyncing { .. }, FailingOver { .. })
            | (Protected { .. }, Testing { .. })
            | (Testing { .. }, Protected { .. })
            | (FailingOver { .. }, FailedOver { .. })
            | (FailedOver { .. }, Reversing { .. })
            | (Reversing { .. }, Protected { .. }) => true,
            // An abort leads back, and nowhere else; what was applied in between may have moved the point forward.
            (FailingOver { before, .. }, Protected { .. } | Resyncing { .. }) => {
                matches!(**before, Protected { .. } | Resyncing { .. })
            }
            _ => false,
        }
    }

    /// The last point at which the replica equalled the source, if there ever was one.
    pub fn consistent(&self) -> Option<OpSeq> {
        match self {
            JobState::Protected { consistent, .. } | JobState::Resyncing { consistent, .. } | JobState::Testing { consistent, .. } => {
                Some(*consistent)
            }
            JobState::FailingOver { before, .. } => before.consistent(),
            _ => None,
        }
    }

    /// Whether the agent should be capturing for this job.
    pub fn wants_stream(&self) -> bool {
        use JobState::*;
        matches!(self, Mirroring { .. } | Protected { .. } | Resyncing { .. } | FailingOver { .. } | Testing { .. })
    }

    /// Whether the worker should hold the replica's disks.
    pub fn wants_worker(&self) -> bool {
        use JobState::*;
        matches!(self, Mirroring { .. } | Protected { .. } | Resyncing { .. } | Testing { .. })
    }
}
