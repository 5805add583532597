//! Recovery points: states of a replica kept whole, in a directory of the datastore beside the replica's disk.
//!
//! ```text
//! NAME/disk.raw                       the replica, which goes on
//! NAME/points/4711-marker/disk.raw    its disk as it was at item 4711, with disk.raw.plan.json
//!                        /nodes.redb  its node table then, with nodes.roots.json
//!                        /point.json  what it is: a `RecoveryPoint`
//! NAME/points/draft/                  one that is being taken; its request.json says at which item
//! NAME/points/gone-*/                 one that is being removed
//! NAME/launch/                        a duplicate of a point for the machine that runs from it
//! ```
//! Invariants: a point is there whole or not at all, because its directory gets its name last, after everything in it was written down; nothing
//! ever writes below a point that is there. What was begun is told from what is there by name alone, so cleaning up needs no memory.

mod error;
mod launch;
mod take;
#[cfg(test)]
mod tests;

pub use error::PointError;
pub use launch::{LaunchFiles, make_launch};
pub use take::{Draft, Held, PointRequest, draft_of, drop_draft, take};

use standin_model::RecoveryPoint;
use std::path::{Path, PathBuf};

pub const DISK_FILE: &str = "disk.raw";
pub const TABLE_FILE: &str = "nodes.redb";
const POINT_FILE: &str = "point.json";
const DRAFT: &str = "draft";
const GONE: &str = "gone-";
/// More than any retention keeps; a directory with more was not filled by us.
pub const POINTS_MAX: usize = 256;

/// What was learned about a volume's roots, beside its node table.
pub fn roots_of(table: &Path) -> PathBuf {
    table.with_extension("roots.json")
}

/// All whole points, oldest first.
pub fn list(directory: &Path) -> Result<Vec<RecoveryPoint>, PointError> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(PointError::io(directory, "listing")(error)),
    };
    let mut points = Vec::new();
    for entry in entries.flatten().take(POINTS_MAX) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == DRAFT || name.starts_with(GONE) {
            continue;
        }
        match read(&entry.path()) {
            Some(point) if point.id() == name => points.push(point),
            // Nobody but us writes here, so this is somebody's own directory; it is left alone.
            _ => tracing::warn!(path = %entry.path().display(), "not a recovery point"),
        }
    }
    points.sort_by_key(|point| (point.seq, point.kind, point.taken_at));
    Ok(points)
}

fn read(path: &Path) -> Option<RecoveryPoint> {
    serde_json::from_slice(&std::fs::read(path.join(POINT_FILE)).ok()?).ok()
}

/// Removes a point: first its name, so that it is not there any more, then its files. Removing what is not there is done already.
pub fn remove(directory: &Path, id: &str) -> Result<(), PointError> {
    let gone = directory.join(format!("{GONE}{id}"));
    match std::fs::rename(directory.join(id), &gone) {
        Ok(()) => standin_journal::durable::sync_directory(directory).map_err(PointError::io(directory, "writing down"))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(PointError::io(&gone, "renaming")(error)),
    }
    remove_tree(&gone)
}

/// Finishes removals that were cut off.
pub fn sweep(directory: &Path) -> Result<(), PointError> {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(GONE) {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_tree(path: &Path) -> Result<(), PointError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(PointError::io(path, "removing")(error)),
        _ => Ok(()),
    }
}
