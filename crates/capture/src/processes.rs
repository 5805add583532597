//! What `/proc` lists of the machine's processes. One may end at any moment: what cannot be read any more is left out.

use std::fs;
use std::path::{Path, PathBuf};

pub fn all() -> impl Iterator<Item = PathBuf> {
    let is_number = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    entries(Path::new("/proc")).filter(move |path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_number))
}

/// What is in a directory of it.
pub fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}
