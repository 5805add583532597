//! Mirror: shows a live source to the replica, in parallel with replication, without a range sent twice and without a snapshot.
//!
//! Place on the spine: the agent's pump asks [`Mirror::step`] for the next items right after a barrier, and asks [`Mirror::admit`] for every
//! captured operation. The machine does no I/O of its own: it reads through [`SourceReader`], which the agent implements with system calls
//! and the simulator with a virtual disk.
//!
//! The source is a set of cells: one for each name of a directory, and one for a node's attributes and content. An operation writes cells, and but
//! for a few it writes them blindly: what it leaves does not depend on what was there. Rules:
//!
//! 1. A node is *shown* from its `MirrorNode` on, a directory's names from its listing on. An operation passes as far as the cells that it writes are
//!    shown: a rename whose directories are not both listed passes as a link or an unlink in the one that is.
//! 2. A name is given only to a node that the replica certainly has: shown, or *announced* by a listing. Otherwise its directory is listed
//!    again, and counts as not listed until then.
//! 3. Whatever is left out is owed: its node becomes *stale*, which no change time and no filter makes up for, only a read that comes later.
//! 4. What must not be applied twice (collapse, insert, clone) passes only where no read can have seen it or its origin's later state; otherwise the
//!    file is stale.
//! 5. A file without a name is met by no walk. It counts as shown only if its creation passed and no resync began since.
//!
//! Why the end is right: take a cell and the last operation on it. If that came behind the last read of the cell, it passed (1) and wrote the cell
//! blindly. If it came before the barrier of that read, the read saw it. In between both are true. And every cell is read, or known to be
//! unchanged: the root is visited; below a directory whose names are right, each name leads to a node that is shown, or announced and
//! queued (2); by induction everything that has a path is shown when no task is left. Unchanged means that the change time is before the
//! scope's, which is when the replica was last whole, and that nothing about it was left out since (3).
//!
//! A resync is the same walk with a filter: a node that did not change since the given time is marked shown and costs nothing on the wire.
//! A larger file that did change goes as digests, and what the replica has otherwise as data behind them; see `compare`.
//! A source that tells only which nodes changed has them read again, and no operation ever passes; see `alone`.
//! Whatever cannot be read is reported as a [`Trouble`] and stays a gap; it never stops the walk.

mod admit;
mod alone;
mod border;
mod compare;
mod listing;
mod places;
mod progress;
mod reader;
mod verify;
mod walk;

pub use admit::Admission;
pub use alone::Concern;
pub use compare::CompareSizes;
pub use progress::{Done, LeftOut, Progress};
pub use reader::{Chunk, Content, ListedEntry, NodeFacts, ReadError, SourceReader};
pub use standin_exclusion::{ExclusionError, Exclusions};
pub use verify::{Verify, VerifyProgress};
pub use walk::{Mirror, Scope, Step, Trouble};

#[cfg(test)]
mod tests;
