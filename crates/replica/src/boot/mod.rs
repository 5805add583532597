//! Boot repair: makes a replica start on a machine that its source never was.
//!
//! Two halves. [`prepare`] runs ahead, while replication goes on, and writes only into a staging directory: it reads the replica's kernels,
//! finds what their initrds lack, and builds loader images. [`inject`] runs at failover and only copies: prepared files,
//! boot sectors, and edits of small text files, so that it takes well under two seconds. Every change is an entry of the [`BootRepairReport`].
//!
//! Invariants: the replica's own programmes are never run; no path of the replica is followed out of its root (`guest`); replaced files
//! keep a `.standin-original` beside them; running `inject` twice gives what running it once gave.

mod agent;
mod cpio;
mod error;
mod fstab;
mod grubcfg;
mod guest;
mod initrd;
mod inject;
mod kernel;
mod labels;
mod loader;
mod network;
mod prepare;
mod profile;
mod swapfile;

pub use error::BootError;
pub use guest::GuestRoot;
pub use inject::inject;
pub use prepare::{Prepared, fingerprint, prepare};
pub use profile::{BootRepairReport, Change, DiskController, NicMap, TargetProfile};

#[cfg(test)]
mod fuzz;
