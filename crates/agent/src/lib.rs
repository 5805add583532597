//! The agent: captures a live server and streams it to its appliance.
//!
//! Shell around the cores: `observe` (capture) → `pump` (order) → `queue` → `uplink` (connection), with `reader` for the mirror. One thread pumps,
//! one sends, one receives. A lost connection stops nothing but the sending; a lost agent is a gap that the next one closes.
//! The source is never harmed: everything here observes, and the one thing that holds writers (`freeze`) ends by itself.

pub mod answers;
pub mod control;
pub mod driver;
pub mod freeze;
#[cfg(test)]
mod fuzz;
mod growth;
pub mod host;
pub mod impact;
pub mod inventory;
pub mod kernel;
pub mod memory;
mod mounted;
pub mod network;
pub mod nodes;
pub mod observe;
pub mod pump;
pub mod queue;
pub mod reader;
pub mod renewal;
pub mod runner;
pub mod serve;
pub mod settings;
mod settle;
pub mod signature;
mod stop;
mod uplink;
mod writers;
