//! The replica: its disk, what the worker applies to it, and what makes it boot.
//!
//! `apply` executes the job's stream on mounted file systems, by node id; `diff` compares the result with another tree; `point` keeps states of it.

pub mod apply;
pub mod boot;
pub mod diff;
pub mod disk;
pub mod point;
