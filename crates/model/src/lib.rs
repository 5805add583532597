//! The words that source and target share: ids, positions, operations, markers and watermarks.
//!
//! This crate is the only vocabulary of the whole stream (capture → queue → wire → journal → apply). It does no I/O, knows no
//! operating system, and uses nothing of ours, so that it also builds for other source platforms. Values here are already
//! validated; bytes become values only through [`codec`].

pub mod check;
pub mod codec;
pub mod difference;
pub mod id;
pub mod inventory;
pub mod job;
pub mod network;
pub mod operation;
pub mod patch;
pub mod point;
pub mod position;
pub mod watermark;

pub use check::{Check, CheckOf, Digest, NodeDigest, PassEnd, Suspect};
pub use difference::{BlockSet, DIGEST_BLOCK_BYTES_MAX, DIGESTS_MAX, Differs};
pub use id::{AgentId, JobId, NodeId, VolumeId};
pub use inventory::{FileSystem, Firmware, Inventory, NetworkCard, SwapArea, SystemPartition, Volume};
pub use job::{JobSpec, VolumeSpec};
pub use network::{AddressFamily, BITS_PER_SECOND_MAX, BITS_PER_SECOND_MIN, NetworkPath, PathError, Proxy, ProxyKind, SourcePlace};
pub use operation::{Attributes, DirectoryEntry, Item, Marker, Name, NameError, NodeKind, Operation, RenameMode, Timestamp};
pub use patch::{PATCH_BYTES_MAX, PatchPart};
pub use point::{MarkName, PointKind, RecoveryPoint};
pub use position::{ByteLen, ByteOffset, JournalOffset, OpSeq};
pub use watermark::{SourceWatermarks, TargetWatermarks, WatermarkError};
