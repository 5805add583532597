//! What the appliance and a worker process tell each other: one JSON object per line, on the worker's stdin and stdout.

use serde::{Deserialize, Serialize};
use standin_model::{Differs, MarkName, NodeId, OpSeq, PointKind, RecoveryPoint, Timestamp, VolumeId};
use standin_protection::{PointPolicy, Problem};
use standin_replica::apply::Comparison;
use standin_replica::boot::TargetProfile;
use standin_replica::disk::VolumeSize;
use std::path::PathBuf;

/// The first line that a worker reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerOrders {
    pub job: String,
    pub disk: PathBuf,
    pub journal: PathBuf,
    pub node_table: PathBuf,
    pub run_directory: PathBuf,
    /// Volume numbers of the job, in order.
    pub volumes: Vec<VolumeId>,
    /// Where the journal ended when this worker was started: up to there it redoes.
    pub durable: OpSeq,
    /// The machine that boot repair prepares for.
    pub profile: TargetProfile,
    /// Where recovery points are kept and which are wanted; none of a disk that is itself a duplicate of one.
    #[serde(default)]
    pub points: Option<PointOrders>,
    /// What the volumes have on the source by now; the disk grows with them.
    #[serde(default)]
    pub sizes: Vec<VolumeSize>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PointOrders {
    pub directory: PathBuf,
    pub policy: PointPolicy,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "tell")]
pub enum ToWorker {
    /// The journal is durable up to here.
    Durable {
        seq: OpSeq,
    },
    /// Have these nodes mirrored again: a verification found that they differ.
    Repair {
        nodes: Vec<NodeId>,
    },
    /// A verification has found the replica right since that power cut of the source.
    PowerCutVerified {
        power_cut: OpSeq,
    },
    /// Prepare boot repair, ahead of the failover.
    Prepare,
    /// Apply everything durable, make it durable in the replica, and clean the replica of our own directories.
    Finish {
        through: OpSeq,
    },
    /// Put the boot repair in place.
    Inject,
    /// Unmount, release the disk, and end.
    Detach,
    /// Like `Detach`, but the replica stays as it is, to be applied to again.
    Release,
    /// Leave the replica to a next worker, which gets new orders.
    Restart,
    /// Take a recovery point of the replica as it is.
    Point {
        kind: PointKind,
        name: Option<MarkName>,
    },
    PointPolicy {
        policy: PointPolicy,
    },
    /// A step of a failover, whose answer has to name its question.
    Ask {
        question: u64,
        step: Box<ToWorker>,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerState {
    pub consistent_at: Option<OpSeq>,
    pub is_consistent: bool,
    pub gap_reason: Option<String>,
    pub quiesced_at: Option<OpSeq>,
    pub wanted: u64,
    /// Only a mirror of everything can make the replica whole.
    #[serde(default)]
    pub everything_wanted: bool,
    /// The item that told of a power cut of the source since which nothing has been verified.
    #[serde(default)]
    pub power_cut: Option<OpSeq>,
    pub items: u64,
    pub content_bytes: u64,
    pub operations_failed: u64,
    pub attributes_refused: u64,
    pub conflicts: u64,
    #[serde(default)]
    pub patches: u64,
    /// Patches that did not give what the source has; their nodes were wanted.
    #[serde(default)]
    pub patches_refused: u64,
    #[serde(default)]
    pub patches_unproven: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "report")]
pub enum FromWorker {
    Ready {
        applied: OpSeq,
    },
    Applied {
        seq: OpSeq,
        /// The last durable mark: what the journal may forget.
        marked: OpSeq,
        captured_at: Option<Timestamp>,
        state: WorkerState,
    },
    Want {
        nodes: Vec<NodeId>,
    },
    /// A named marker was applied; told again by the next worker, which does not know when it was captured.
    Mark {
        name: MarkName,
        seq: OpSeq,
        captured_at: Option<Timestamp>,
        consistent: Option<bool>,
    },
    /// A recovery point is there; told again where it was there already.
    Point {
        point: RecoveryPoint,
    },
    PointFailed {
        kind: PointKind,
        name: Option<MarkName>,
        seq: OpSeq,
        problem: Problem,
    },
    /// What checks of a verification came to.
    Compared {
        comparison: Comparison,
    },
    /// The replica's disk has grown with the source, or could not.
    Grown {
        note: String,
    },
    NotGrown {
        problem: Problem,
    },
    /// Nothing is applied until the datastore has space again.
    Full {
        problem: Problem,
    },
    HasRoom,
    /// What digests came to; before an `Applied` that reaches their items.
    Differs {
        answers: Vec<Differs>,
    },
    Prepared {
        note: String,
    },
    PrepareFailed {
        problem: Problem,
    },
    Finished,
    Injected {
        note: String,
    },
    Detached,
    /// To an `Ask`: one of the three above or the one below.
    Answer {
        question: u64,
        answer: Box<FromWorker>,
    },
    /// A step of the failover failed; the worker goes on.
    StepFailed {
        problem: Problem,
    },
    /// The worker ends with this.
    Failed {
        problem: Problem,
    },
}
