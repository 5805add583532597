//! Makes a duplicate of a point for a machine to run from. The point itself is only read, so it can be launched from any number of times.

use super::error::PointError;
use super::{DISK_FILE, TABLE_FILE, read, remove_tree, roots_of};
use crate::disk;
use standin_journal::durable;
use std::path::{Path, PathBuf};

/// Says which point the duplicate is of; written last.
const ORIGIN_FILE: &str = "origin.json";

/// What a worker needs to make a point bootable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchFiles {
    pub disk: PathBuf,
    pub table: PathBuf,
}

impl LaunchFiles {
    pub fn of(directory: &Path) -> LaunchFiles {
        LaunchFiles { disk: directory.join(DISK_FILE), table: directory.join(TABLE_FILE) }
    }
}

/// Duplicates point `id` to `launch`. One that was finished before is kept, because a machine may have run from it; an unfinished one, or one of another
/// point, is made anew. Returns the bytes copied.
pub fn make_launch(points: &Path, id: &str, launch: &Path) -> Result<u64, PointError> {
    let from = points.join(id);
    let origin = launch.join(ORIGIN_FILE);
    if std::fs::read(&origin).is_ok_and(|text| text == id.as_bytes()) {
        return Ok(0);
    }
    let gone = || PointError::Gone { id: id.to_owned() };
    read(&from).ok_or_else(gone)?;
    remove_tree(launch)?;
    durable::create_directory(launch).map_err(PointError::io(launch, "making"))?;
    check_space(&from, launch)?;
    let (old, new) = (LaunchFiles::of(&from), LaunchFiles::of(launch));
    let files = [
        (old.disk.clone(), new.disk.clone()),
        (old.table.clone(), new.table.clone()),
        (roots_of(&old.table), roots_of(&new.table)),
        (disk::plan_path(&old.disk), disk::plan_path(&new.disk)),
    ];
    let mut copied = 0;
    for (old, new) in files {
        copied += disk::duplicate(&old, &new).map_err(|error| match error {
            disk::DiskError::Io { path, operation, source } => PointError::Io { path, operation, source },
            other => PointError::Hold(other),
        })?;
    }
    durable::write_atomically(&origin, id.as_bytes()).map_err(PointError::io(&origin, "writing"))?;
    Ok(copied)
}

/// Nothing is kept back here: a failover is what the space was kept for.
fn check_space(from: &Path, launch: &Path) -> Result<(), PointError> {
    if disk::can_reflink(launch) {
        return Ok(());
    }
    let needed = disk::allocated_bytes(&from.join(DISK_FILE)).map_err(|_| PointError::Gone { id: from.display().to_string() })?;
    let free = disk::datastore_free(launch).map_err(PointError::Hold)?;
    if free < needed { Err(PointError::NoSpace { needed, free, reserve: 0 }) } else { Ok(()) }
}
