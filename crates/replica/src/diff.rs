//! Compares two directory trees as a person would check a copy. The one comparison of the project: the operator's debugger, the applier's own tests and
//! the lab's evidence all use it.
//!
//! Compared: names, kind, content, mode, owner, modification time to the nanosecond, extended attributes (with ACLs and capabilities), projects, inode flags,
//! hard-link groups, holes in units of 4 KiB, symlink targets, device numbers. Not compared: access and change times, inode numbers, sizes of directories.
//!
//! It opens trees by path, follows no link, never crosses into another file system, and reads every byte of both sides; a node that changes
//! meanwhile shows as a difference. Content is compared by length and a 128-bit hash. What cannot be read is told as a difference of its own, and the rest
//! is compared all the same.

mod difference;
mod manifest;

pub use difference::{Difference, allowed, differences};
pub use manifest::{Entry, HOLE_UNIT, Kind, Manifest, content_of, forget_guards, read_tree};
