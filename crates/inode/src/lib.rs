//! What a file system tells of one open file beyond POSIX, asked for in the same way on the source and on the replica.

pub mod extents;
pub mod project;
