//! (being furnished)
pub mod freeze;
pub mod inventory;
pub mod nodes;
pub mod pump;
pub mod queue;
pub mod reader;
