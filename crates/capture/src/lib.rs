//! Capture: every file operation of the protected volumes, in order, from kernel probes to `Operation`s.
//!
//! Place on the spine: kernel ring → **capture** → pump. `ebpf` loads programs and owns the ring, `record` decodes it, `assembler` pairs and
//! holds records and makes operations; all of it is behind [`CaptureSource`]. It only observes: when the agent dies, every program
//! detaches with its descriptors. What cannot be captured is never silent: it becomes [`CaptureEvent::Lost`].
//!
//! `fanotify` is the second source, for kernels on which the first cannot run: it tells which nodes changed, and nothing more ([`Promise`]).

pub mod assembler;
pub mod btf;
pub mod ebpf;
pub mod facts;
mod fanotify;
#[cfg(test)]
mod fuzz;
pub mod handles;
pub mod hooks;
mod misses;
pub mod mounts;
pub mod processes;
pub mod record;
mod ring;
pub mod script;
mod self_test;
mod under_way;
mod writeback;
pub mod writers;

use standin_model::{FileSystem, NodeId, Operation, Timestamp, VolumeId};
use std::{io, path::Path, path::PathBuf, time::Duration};
use thiserror::Error;

pub use ebpf::EbpfCapture;
pub use fanotify::{FanotifyCapture, obstacle as fanotify_obstacle};

/// A mounted file system to capture.
#[derive(Clone, Debug)]
pub struct CapturedVolume {
    pub id: VolumeId,
    pub mount_point: PathBuf,
    /// The kernel's number of the file system (`major << 20 | minor`), as in mountinfo. On btrfs stat(2) tells another one.
    pub device: u32,
    pub file_system: FileSystem,
}

impl CapturedVolume {
    /// Looks the mount point up; the last mount on a point is the visible one.
    pub fn of_mount_point(id: VolumeId, mount_point: &Path) -> io::Result<CapturedVolume> {
        let refuse = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
        let mounts = mounts::read()?;
        let mount = mounts::visible(&mounts, mount_point).ok_or_else(|| refuse(format!("{} is no mount point", mount_point.display())))?;
        let file_system = match mount.file_system.as_str() {
            "ext4" => FileSystem::Ext4,
            "xfs" => FileSystem::Xfs,
            "btrfs" => FileSystem::Btrfs,
            other => return Err(refuse(format!("{} holds {other}, which cannot be captured", mount_point.display()))),
        };
        Ok(CapturedVolume { id, mount_point: mount_point.to_owned(), device: mount.device, file_system })
    }
}

#[derive(Clone, Debug)]
pub struct CaptureConfig {
    /// At most [`hooks::DEVICES_MAX`].
    pub volumes: Vec<CapturedVolume>,
    /// A power of two from [`Self::RING_BYTES_MIN`] to [`Self::RING_BYTES_MAX`]. The ring absorbs bursts; nothing ever waits for it.
    pub ring_bytes: u32,
    /// The agent itself: what it writes is not captured.
    pub exclude_tgid: u32,
}

impl CaptureConfig {
    /// All of it counts as the agent's memory, and an idle agent is to stay below 64 MiB. A page of content takes 4,096 + 144 bytes, so 32 MiB
    /// hold 31 MiB of written content: 100 ms of a disk of 300 MB/s, while the pump is away for about ten (a mirror read from a slow disk).
    pub const RING_BYTES: u32 = 32 << 20;
    /// Sixteen of the longest records (an extended attribute's value of 64 KiB).
    pub const RING_BYTES_MIN: u32 = 1 << 20;
    /// Half of what the kernel allows; the kernel's side cannot be swapped out.
    pub const RING_BYTES_MAX: u32 = 1 << 30;

    pub fn new(volumes: Vec<CapturedVolume>) -> CaptureConfig {
        CaptureConfig { volumes, ring_bytes: Self::RING_BYTES, exclude_tgid: std::process::id() }
    }
}

/// Nodes whose modification time an operation moved, with the new time. The pump sends one SetTimes for each at a segment's end.
pub type Touched = [Option<(NodeId, Timestamp)>; 2];

#[derive(Clone, Debug, PartialEq)]
pub enum CaptureEvent {
    Operation {
        operation: Operation,
        touched: Touched,
    },
    /// Something about this node was missed, `range` of its content at least; read it again. For a directory: its entries too.
    Lost {
        node: NodeId,
        range: (u64, u64),
        reason: LossReason,
    },
    /// Anything may have been missed: resync all that changed since the last durable capture time.
    LostEverything {
        reason: LossReason,
    },
    /// The node sees direct I/O: read it with O_DIRECT from now on. Sent at each direct write.
    DirectIo {
        node: NodeId,
    },
    /// The node has been written through a mapping and waits for writeback; see [`CaptureSource::flush_mapped`].
    Mapped {
        node: NodeId,
    },
    /// Something about this node is not what it was. All that a source of [`Promise::Periodic`] tells.
    Changed {
        node: NodeId,
        /// The directory through which it was reached, where that is known.
        directory: Option<NodeId>,
        /// It is a directory, and names in it came or went.
        names: bool,
    },
}

/// What a source's events are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Every operation, in its order, or a loss that is told: the replica is at every moment what the source was at one.
    Ordered,
    /// Which nodes changed. The replica is what the source was whenever everything that changed has been read and nothing changed meanwhile.
    Periodic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LossReason {
    #[error("the ring was full")]
    RingFull,
    #[error("the map of lost nodes was full")]
    LostMapFull,
    #[error("the content could not be read in the kernel")]
    Unread,
    #[error("a call's parts did not pair")]
    Unpaired,
    #[error("it was changed by a call that does not tell what it does")]
    Untold,
    #[error("too much was held back")]
    HeldTooLong,
    #[error("a call failed part way")]
    CallFailed,
    #[error("a direct write failed part way")]
    DirectWriteFailed,
    #[error("the node was in use before its creation was announced")]
    UsedBeforeCreation,
    #[error("its content was cloned from a node that was lost")]
    CopiedFromLost,
    #[error("a probe was skipped by the kernel")]
    ProbeMissed,
    #[error("a record could not be decoded")]
    BadRecord,
    #[error("the kernel left a record unfinished")]
    RingStuck,
    #[error("the kernel's queue of events was full")]
    EventQueueFull,
    #[error("more changed unseen than is looked at one by one")]
    TooMuchUnseen,
}

/// How full the ring was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingUse {
    /// Most that ever waited when somebody came to take it.
    pub bytes_peak: u64,
    /// Records that did not fit.
    pub dropped: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptureStats {
    pub records: u64,
    pub bytes: u64,
    pub operations: u64,
    pub lost: u64,
    pub lost_everything: u64,
    pub misses: u64,
    pub mapped_marks: u64,
    pub held_bytes: u64,
    /// Hook, and what became of it.
    pub hooks: Vec<(String, String)>,
}

impl CaptureStats {
    fn count(&mut self, event: &CaptureEvent) {
        match event {
            CaptureEvent::Operation { .. } => self.operations += 1,
            CaptureEvent::Lost { .. } => self.lost += 1,
            CaptureEvent::LostEverything { .. } => self.lost_everything += 1,
            CaptureEvent::DirectIo { .. } | CaptureEvent::Mapped { .. } | CaptureEvent::Changed { .. } => {}
        }
    }
}

#[derive(Debug, Error)]
pub enum CaptureError {
    #[error("{file_system} on this kernel cannot be captured: {reason}")]
    Unsupported { file_system: &'static str, reason: String },
    #[error("this kernel has no type information (BTF); capture needs one that was built with CONFIG_DEBUG_INFO_BTF")]
    NoTypes {
        #[source]
        source: io::Error,
    },
    #[error("{hook}: this kernel declares {found}, known is {known}")]
    Prototype { hook: &'static str, found: String, known: String },
    #[error("{field}: this kernel declares {found}, known is {known}")]
    Field { field: &'static str, found: String, known: String },
    #[error("a test write on {mount_point} was not captured as it was made: {reason}")]
    SelfTest { mount_point: String, reason: String },
    #[error("task {task} is in a call that began before capture and takes effect at any moment; it is tried again")]
    CallUnderWay { task: String },
    #[error("cannot {doing}")]
    Io {
        doing: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot load the capture programs")]
    Load {
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("cannot load program {program}: {cause}")]
    Program { program: String, cause: String },
    #[error("fanotify cannot watch {what}: {cause}")]
    Fanotify { what: String, cause: String },
    #[error(
        "this kernel cannot be captured operation by operation ({}: {reason}), and fanotify, which promises less, is not allowed here. \
         Next: standin-agent capture --driver auto",
        reason.code()
    )]
    WeakerNotAllowed {
        #[source]
        reason: Box<CaptureError>,
    },
}

impl CaptureError {
    /// Whether the kernel as it is stands in the way, so that trying again is of no use.
    pub fn is_of_the_kernel(&self) -> bool {
        !matches!(self, CaptureError::CallUnderWay { .. })
    }

    /// See docs/errors.
    pub fn code(&self) -> &'static str {
        match self {
            CaptureError::WeakerNotAllowed { .. } => "STANDIN-E6009",
            CaptureError::Fanotify { .. } => "STANDIN-E6010",
            CaptureError::NoTypes { .. } => "STANDIN-E6005",
            CaptureError::Prototype { .. } | CaptureError::Field { .. } | CaptureError::Unsupported { .. } => "STANDIN-E6006",
            CaptureError::SelfTest { .. } => "STANDIN-E6007",
            CaptureError::Io { .. } | CaptureError::Load { .. } | CaptureError::Program { .. } | CaptureError::CallUnderWay { .. } => {
                "STANDIN-E6003"
            }
        }
    }
}

/// Receives events in stream order.
pub type Sink<'a> = &'a mut dyn FnMut(CaptureEvent);

/// Where operations come from: the kernel, or a script in tests.
pub trait CaptureSource {
    /// Takes whatever is there now.
    fn drain(&mut self, sink: Sink<'_>);
    /// When this returns, every operation that had happened before the call is in the sink, or its node was declared lost.
    fn barrier(&mut self, sink: Sink<'_>);
    /// Waits until there is something to drain, at most `timeout`.
    fn wait(&mut self, timeout: Duration) -> io::Result<()>;
    fn stats(&self) -> CaptureStats;
    fn ring_use(&self) -> RingUse {
        RingUse::default()
    }
    /// Nodes with mapped writes that were not asked for yet, or whose writeback is being started.
    fn pending_mapped(&self) -> usize;
    /// Has the writeback of nodes started whose oldest known mapped write is older than this, so that their content comes. Never waits for a disk.
    /// Returns how many.
    fn flush_mapped(&mut self, older_than: Duration) -> usize;
    fn promise(&self) -> Promise {
        Promise::Ordered
    }
    /// Why it is a source that promises less; empty where it is not.
    fn because(&self) -> String {
        String::new()
    }
    /// Tells of what has changed since then, by the source's clock, as far as it comes by no event of its own. Costs a look at every process; an
    /// ordered source has nothing to tell.
    fn sweep(&mut self, _since: Timestamp, _sink: Sink<'_>) {}
}

impl CaptureSource for Box<dyn CaptureSource + Send> {
    fn drain(&mut self, sink: Sink<'_>) {
        (**self).drain(sink);
    }
    fn barrier(&mut self, sink: Sink<'_>) {
        (**self).barrier(sink);
    }
    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        (**self).wait(timeout)
    }
    fn stats(&self) -> CaptureStats {
        (**self).stats()
    }
    fn ring_use(&self) -> RingUse {
        (**self).ring_use()
    }
    fn pending_mapped(&self) -> usize {
        (**self).pending_mapped()
    }
    fn flush_mapped(&mut self, older_than: Duration) -> usize {
        (**self).flush_mapped(older_than)
    }
    fn promise(&self) -> Promise {
        (**self).promise()
    }
    fn because(&self) -> String {
        (**self).because()
    }
    fn sweep(&mut self, since: Timestamp, sink: Sink<'_>) {
        (**self).sweep(since, sink);
    }
}
