//! Boot repair.
