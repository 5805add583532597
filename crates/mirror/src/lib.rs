//! Mirror: shows a live source to the replica, in parallel with replication, without a range sent twice and without a snapshot.
//!
//! Place on the spine: the agent's pump asks [`Mirror::step`] for the next items right after a barrier, and asks [`Mirror::admit`] for every
//! captured operation. The machine does no I/O of its own: it reads through [`SourceReader`], which the agent implements with system calls
//! and the simulator with a virtual disk.
//!
//! Invariants:
//! - A node is *shown* from the position of its `MirrorNode` on. Operations on nodes not shown are left out: the read that shows
//!   them comes after the operation, so it contains its effect.
//! - Names are replicated from the position at which their directory was listed.
//! - When no task is left, everything on the source is shown, and the state after the following barrier is consistent.
//!
//! A resync is the same walk with a filter: a node that did not change since the given time is marked shown and costs nothing on the wire.
//! Whatever cannot be read is reported as a [`Trouble`] and stays a gap; it never stops the walk.

mod admit;
mod exclude;
mod progress;
mod reader;
mod walk;

pub use admit::Admission;
pub use exclude::{ExclusionError, Exclusions};
pub use progress::Progress;
pub use reader::{Chunk, Content, ListedEntry, NodeFacts, ReadError, SourceReader};
pub use walk::{Mirror, Scope, Step, Trouble};

#[cfg(test)]
mod tests;
