//! The worker: one process per job that holds the replica's disk and applies the journal to it.
//!
//! It lives in a mount namespace of its own, takes orders on stdin, reports on stdout, and ends when its stdin closes. Everything that it needs after a crash is
//! in the replica and in the node table; it may be killed at any point.

mod exclusive;
pub mod message;
mod points;
mod room;
mod roots;
mod run;
mod steps;

pub use run::run;
