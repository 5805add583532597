//! (tests come with the next commit)
