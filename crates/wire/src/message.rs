//! What the two ends say to each other besides segments: JSON, one message per control frame.
//!
//! Both ends ignore fields and messages that they do not know, so that a newer end can add some without a new protocol number;
//! [`PROTOCOL`] changes only when an old end could misunderstand. Values are checked by their types while they are read.

use serde::{Deserialize, Serialize};
use standin_model::{AgentId, Differs, Inventory, JobId, JobSpec, NetworkPath, NodeId, OpSeq, SourceWatermarks, Suspect, Timestamp};

/// The protocol that this program speaks. Ends with different numbers refuse each other with STANDIN-E1004.
pub const PROTOCOL: u32 = 1;

/// Nodes in one `Want`; a longer list is sent as several messages. 8192 nodes of at most 100 bytes stay below the frame's 1 MiB.
pub const WANT_NODES_MAX: usize = 8192;
/// Suspects in one `VerifyAgain`, each of at most 190 bytes. What is above is not confirmed one by one.
pub const SUSPECTS_MAX: usize = 4096;

/// Answers in one `Differs`, each of at most 1,060 bytes.
pub const ANSWERS_MAX: usize = 512;

/// The first message of an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    pub protocol: u32,
    pub agent_version: String,
    pub agent: AgentId,
    pub inventory: Inventory,
    /// Jobs that run on the agent; an agent that does not know this field announces them by `Started` behind the welcome.
    #[serde(default)]
    pub running: Option<Vec<Running>>,
}

/// A job that an agent runs, and its stream's epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    pub job: JobId,
    pub epoch: u64,
}

/// The answer to `Hello`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    pub protocol: u32,
    pub appliance_version: String,
}

/// No, with a reason for the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// `STANDIN-E…`
    pub code: String,
    pub cause: String,
}

impl Refusal {
    pub fn new(code: &str, cause: impl Into<String>) -> Refusal {
        Refusal { code: code.to_owned(), cause: cause.into() }
    }
}

/// How one job stands on the source; sent about once a second while a job runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    #[serde(default)]
    pub job: Option<JobId>,
    pub watermarks: SourceWatermarks,
    /// When item `captured` was captured, by the source's clock.
    pub captured_at: Timestamp,
    #[serde(default)]
    pub mirror: Option<MirrorProgress>,
    /// Bytes of sealed segments that wait in memory and on disk.
    #[serde(default)]
    pub queue_bytes: u64,
    /// Bytes of operations captured since the job started on this agent, before compression.
    #[serde(default)]
    pub bytes_changed: u64,
    /// A protected volume that is not at its mount point.
    #[serde(default)]
    pub misplaced: Option<Refusal>,
    /// What exclusion rules keep from being sent.
    #[serde(default)]
    pub left_out: LeftOut,
    /// Of `bytes_changed`, what was not sent because the replica had it already: rewritten pages go as what changed in them.
    #[serde(default)]
    pub bytes_spared: u64,
    /// Bytes of segments sent since then.
    #[serde(default)]
    pub bytes_sent: u64,
    /// Losses that led to a resync since then.
    #[serde(default)]
    pub gaps: u64,
    #[serde(default)]
    pub ring: RingStats,
    /// The verification that runs, if one does.
    #[serde(default)]
    pub verify: Option<VerifyStatus>,
    /// Absent from agents that obey no limit.
    #[serde(default)]
    pub network: Option<NetworkStatus>,
    /// Absent from agents that know only one way.
    #[serde(default)]
    pub capture: Option<CaptureStatus>,
    /// Absent from agents that do not measure it.
    #[serde(default)]
    pub impact: Option<ImpactStatus>,
}

/// What the agent takes from its server, over the last second or since the job started on this agent; a limit of 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImpactStatus {
    /// Of one processor, over the last second. The limit holds back what can wait: reading for a mirror or a verification.
    pub cpu_percent: u32,
    pub cpu_percent_max: u32,
    /// Bytes read a second for mirror and verification, over the last second.
    pub read_rate: u64,
    pub read_rate_max: u64,
    /// Milliseconds of the last second for which the limits held reading back.
    pub rested_ms: u32,
    pub memory_bytes: u64,
    /// Of disk, for what waits for the link.
    pub queue_bytes_max: u64,
}

/// How a job's source is captured. By `ebpf` every operation comes in its order, and nothing more is to be said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CaptureStatus {
    /// `ebpf` or `fanotify`.
    pub driver: String,
    /// The replica is consistent only now and then.
    pub periodic: bool,
    /// Why it is that one.
    pub because: String,
    /// Nodes that changed since the replica was consistent last.
    pub changed_nodes: u64,
    /// When that was, by the source's clock.
    pub consistent_at: Option<Timestamp>,
    /// How often the source stood still for it, and for how long at most.
    pub stills: u64,
    pub still_ms_max: u64,
    /// Why it cannot become consistent now.
    pub trouble: Option<String>,
}

/// What exclusion rules keep from being sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LeftOut {
    /// Files that the last walk left out.
    pub nodes: u64,
    /// What they took on the source's disks then.
    pub bytes: u64,
    /// Of `bytes_changed`, what was written to excluded files.
    pub bytes_changed: u64,
}

/// The agent's connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkStatus {
    /// Bits a second that the agent keeps to; 0 for no limit.
    pub limit: u64,
    /// Bits a second that it sent over the last seconds, TLS included.
    pub rate: u64,
    /// Bytes that it has sent since it began, TLS included.
    pub bytes: u64,
    /// Where the connection begins and ends, as the source sees it.
    pub local: String,
    pub peer: String,
    /// The kernel's congestion control on it.
    pub congestion: String,
    /// Connections since the agent began.
    pub connects: u64,
    /// The level of zstd that segments are packed with at the moment; 0 for not at all.
    pub level: i32,
    /// The way that was ordered last, and does not work; the agent is back on the one before.
    pub trouble: Option<Refusal>,
}

/// How far a pass of a verification is on the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyStatus {
    pub run: u64,
    pub pass: u8,
    pub nodes: u64,
    /// Content read.
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MirrorPhase {
    /// Walking names and attributes.
    Names,
    /// Reading content.
    Content,
    /// Catching up with what was captured meanwhile.
    Draining,
    /// A phase of a newer agent.
    #[serde(other)]
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorProgress {
    pub phase: MirrorPhase,
    pub nodes_done: u64,
    pub nodes_total_estimate: u64,
    pub bytes_done: u64,
    pub bytes_total: u64,
    /// Absent from agents that count all volumes together.
    #[serde(default)]
    pub volumes: Vec<VolumeProgress>,
}

/// One volume's part of a mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeProgress {
    pub mount_point: String,
    pub nodes_done: u64,
    pub nodes_total: u64,
    pub bytes_done: u64,
    pub bytes_total: u64,
}

/// The kernel ring between probes and agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingStats {
    pub bytes_size: u64,
    /// Most that ever waited in it.
    #[serde(default)]
    pub bytes_used_peak: u64,
    /// Records that did not fit.
    #[serde(default)]
    pub records_dropped: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ToAppliance {
    Hello(Box<Hello>),
    /// The job runs; its first item has the number that `StartJob` gave.
    Started {
        job: JobId,
        epoch: u64,
    },
    Status(Status),
    /// The file systems are frozen, and `seq` is the number of `Marker::Quiesced`.
    Quiesced {
        job: JobId,
        seq: OpSeq,
    },
    /// The file systems run again, on request or because nobody fenced in time.
    Thawed {
        job: JobId,
        reason: String,
    },
    /// The last message before the source switches itself off.
    Fenced {
        job: JobId,
    },
    /// An order that cannot be carried out.
    Refused {
        #[serde(default)]
        job: Option<JobId>,
        code: String,
        cause: String,
    },
    /// Asks for a new certificate before the old one expires.
    Renew {
        csr: String,
    },
    /// A message of a newer agent; ignored.
    #[serde(other)]
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ToAgent {
    Welcome(Welcome),
    Refused(Refusal),
    StartJob {
        spec: JobSpec,
        /// Number of the first item.
        next: OpSeq,
        epoch: u64,
        /// Mirror only what changed since then, by the source's clock; everything where absent.
        #[serde(default)]
        since: Option<Timestamp>,
        /// The appliance compares digests and answers with `Differs`; an older one does not know them.
        #[serde(default)]
        compares: bool,
    },
    /// What the agent's connection may take from now on, and the way that its next one goes.
    Network {
        /// Bits a second; 0 for no limit.
        #[serde(default)]
        limit: u64,
        /// `None` leaves it as it is.
        #[serde(default)]
        path: Option<NetworkPath>,
    },
    StopJob {
        job: JobId,
        reason: String,
    },
    /// What survives a power cut of the appliance, and what is in the replica.
    Ack {
        job: JobId,
        durable: OpSeq,
        applied: OpSeq,
    },
    /// Nodes that the replica does not know; the agent mirrors them again.
    Want {
        job: JobId,
        nodes: Vec<NodeId>,
    },
    /// What comparing items of digests came to; each is answered once it is applied, and before an `Ack` says that it is.
    Differs {
        job: JobId,
        answers: Vec<Differs>,
    },
    /// Read everything once for verification `run`, at most `rate` bytes a second; 0 means the agent's default.
    Verify {
        job: JobId,
        run: u64,
        rate: u64,
    },
    /// The next pass: what did not match, each by itself.
    VerifyAgain {
        job: JobId,
        run: u64,
        pass: u8,
        suspects: Vec<Suspect>,
        rate: u64,
    },
    EndVerify {
        job: JobId,
        run: u64,
    },
    /// Freeze, drain, mark; thaw by yourself after this long unless fenced.
    Quiesce {
        job: JobId,
        timeout_ms: u64,
    },
    Thaw {
        job: JobId,
    },
    /// Switch the source off at once.
    Fence {
        job: JobId,
    },
    /// The replica has taken over; send nothing for this job any more.
    JobFailedOver {
        job: JobId,
    },
    Renewed {
        certificate: String,
    },
    /// A message of a newer appliance; ignored.
    #[serde(other)]
    Unknown,
}

/// The only message of an end without a certificate.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    pub protocol: u32,
    pub secret: String,
    /// Certificate signing request, PEM.
    pub csr: String,
    pub hostname: String,
}

impl std::fmt::Debug for EnrolRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The secret must not reach a log.
        f.debug_struct("EnrolRequest").field("protocol", &self.protocol).field("hostname", &self.hostname).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum EnrolReply {
    Enrolled { agent: AgentId, certificate: String, authority: String },
    Refused(Refusal),
}

#[cfg(test)]
mod tests;
