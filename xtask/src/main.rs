//! (room not furnished yet)
fn main() {}
