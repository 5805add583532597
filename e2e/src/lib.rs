//! The VM lab: real Debian servers in QEMU, a database workload with a witness, and a tree comparison that tells whether a
//! replica is what the source was.
//!
//! Everything here drives real programmes (QEMU, mkfs, ssh) and needs root for loop mounts. Nothing here is shipped. What a run
//! starts ends with it: VMs are children of the run, and mounts live in a private mount namespace that dies with its holder.

pub mod bench;
pub mod chores;
pub mod churn;
pub mod cli;
pub mod compare;
pub mod databases;
pub mod datastore;
pub mod demo;
pub mod evidence;
pub mod exact;
pub mod faults;
pub mod grow;
mod history;
pub mod job;
pub mod kernels;
pub mod lab;
pub mod main_job;
pub mod marker;
#[cfg(test)]
mod periodic;
pub mod points;
pub mod product;
pub mod random;
pub mod selftest;
pub mod specials;
pub mod workload;
