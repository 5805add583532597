//! The replica's virtual disk: what it will look like, its making, and its attachment to the apply worker.
//!
//! Three steps, each usable alone. [`DiskPlan::make`] is pure: it turns the source's inventory into one raw, sparse disk with a
//! fresh GPT. [`create`] makes that disk exist and is idempotent. [`Attachment`] holds its file systems mounted in the private
//! mount namespace of one worker process, and lets go of them so that nothing keeps a loop device busy afterwards.
//!
//! Invariants: a disk without a finished sidecar is never attached; nothing here ever touches a block device that it did not
//! bind itself; the file systems keep the source's UUID and label, so that the guest's own references stay valid.

mod assemble;
mod attach;
mod btrfs;
mod create;
mod duplicate;
mod error;
mod features;
#[cfg(test)]
pub(crate) mod fixture;
mod format;
mod freeze;
#[cfg(test)]
mod fuzz;
mod gpt;
mod grow;
mod identity;
mod loopdev;
mod plan;
mod projects;
pub(crate) mod tool;

pub use assemble::{Assembled, assemble};
#[cfg(test)]
pub(crate) use attach::in_private_namespace;
pub use attach::{Attachment, Detached, enter_private_namespace};
pub use create::{Created, create, finished_plan, plan_path, remove};
pub use duplicate::{allocated_bytes, can_reflink, duplicate};
pub use error::DiskError;
pub use freeze::{Frozen, scratch_of, thaw_leftover};
pub use grow::{VolumeSize, grow};
pub use loopdev::LoopDevice;
pub use plan::{DiskPlan, Partition, PartitionRole, ReplicaVolume, datastore_free};
