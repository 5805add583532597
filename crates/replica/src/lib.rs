//! (room not furnished yet)

pub mod boot;
pub mod disk;
