//! Segments, and where they are kept until their effect is in the replica: the source's queue and the appliance's journal.
//!
//! A [`Segment`] is sealed once, on the source, and its bytes never change again: the same bytes lie in the queue, travel the wire, and
//! lie in the journal. This crate is synchronous, knows no network, and trusts no byte that it reads. Nothing here drops an item
//! silently: what cannot be kept is refused with an error that says whether a retry can help.

pub mod durable;
pub mod error;
#[cfg(test)]
mod fuzz;
pub mod inspect;
pub mod log;
pub mod queue;
pub mod reader;
pub mod segment;
#[cfg(test)]
mod testing;

pub use error::JournalError;
pub use inspect::{Finding, Problem, ProblemCause, Summary, dump, verify};
pub use log::{Journal, JournalOptions, Recovery};
pub use queue::{FullCause, Next, Queue, QueueFull, QueueOptions, SpillRead};
pub use reader::JournalReader;
pub use segment::{Codec, SEGMENT_BYTES_MAX, SEGMENT_RAW_BYTES_MAX, Sealer, Segment, SegmentError, SegmentHeader};

/// Result of everything that touches a journal.
pub type Result<T> = std::result::Result<T, JournalError>;
