//! Takes a point: the replica is held still, its disk duplicated, the replica released, and the duplicate gets its name.
//!
//! The caller has applied up to exactly `seq`, has marked (so that the node table on disk is that of `seq`), and applies nothing until this returns.
//! That is also what makes a draft worth something after a crash: a worker that finds one of the very item that its table is marked at
//! knows that the file systems are at that item too, and may take the point again before it applies anything.

use super::error::PointError;
use super::{DISK_FILE, DRAFT, POINT_FILE, TABLE_FILE, read, remove_tree, roots_of};
use crate::disk::{self, Attachment, DiskError, Frozen};
use serde::{Deserialize, Serialize};
use standin_journal::durable;
use standin_model::{MarkName, OpSeq, PointKind, RecoveryPoint, Timestamp};
use std::path::Path;
use std::time::{Duration, Instant};

const REQUEST_FILE: &str = "request.json";
/// A draft that its worker did not survive this often is given up.
const TRIES_MAX: u32 = 3;
/// What a point leaves free for replication itself: a twentieth of the datastore, at most this much.
const RESERVE_BYTES_MAX: u64 = 1 << 30;

/// What the point shall be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointRequest {
    pub kind: PointKind,
    pub name: Option<MarkName>,
    pub seq: OpSeq,
    pub captured_at: Option<Timestamp>,
    pub taken_at: Timestamp,
    pub consistent: bool,
}

/// A point that was begun and not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draft {
    pub request: PointRequest,
    #[serde(default)]
    pub tries: u32,
}

/// The replica of which the point is taken.
#[derive(Clone, Copy)]
pub struct Held<'a> {
    pub attachment: &'a Attachment,
    pub table: &'a Path,
    /// The job's directory of points.
    pub directory: &'a Path,
    /// The most that may be copied where blocks cannot be shared.
    pub copy_bytes_max: u64,
}

impl PointRequest {
    fn point(&self) -> RecoveryPoint {
        RecoveryPoint {
            kind: self.kind,
            name: self.name.clone(),
            seq: self.seq,
            captured_at: self.captured_at,
            taken_at: self.taken_at,
            consistent: self.consistent,
            bytes_copied: 0,
            held_ms: 0,
        }
    }
}

/// The draft that a worker left, unless it was tried too often.
pub fn draft_of(directory: &Path) -> Option<Draft> {
    let text = std::fs::read(directory.join(DRAFT).join(REQUEST_FILE)).ok()?;
    serde_json::from_slice::<Draft>(&text).ok().filter(|draft| draft.tries < TRIES_MAX)
}

pub fn drop_draft(directory: &Path) -> Result<(), PointError> {
    remove_tree(&directory.join(DRAFT))
}

/// Takes the point, or returns the one that is there already. On an error nothing is left of it but what the next call removes.
pub fn take(draft: &Draft, held: Held) -> Result<RecoveryPoint, PointError> {
    let place = held.directory.join(draft.request.point().id());
    if let Some(point) = read(&place) {
        drop_draft(held.directory)?;
        return Ok(point);
    }
    durable::create_directory(held.directory).map_err(PointError::io(held.directory, "making"))?;
    drop_draft(held.directory)?;
    let taken = check_space(&held).and_then(|()| fill(draft, &held, &place));
    if taken.is_err() {
        drop_draft(held.directory)?;
    }
    taken
}

/// Refuses before anything is written.
fn check_space(held: &Held) -> Result<(), PointError> {
    let allocated = disk::allocated_bytes(held.attachment.disk()).map_err(PointError::Hold)?;
    let table = disk::allocated_bytes(held.table).map_err(PointError::Hold)?;
    let needed = if disk::can_reflink(held.directory) {
        table
    } else if allocated > held.copy_bytes_max {
        return Err(PointError::CopyTooLarge { needed: allocated, allowed: held.copy_bytes_max });
    } else {
        allocated.saturating_add(table)
    };
    let stat = rustix::fs::statvfs(held.directory).map_err(|errno| PointError::io(held.directory, "measuring")(errno.into()))?;
    let (free, size) = (stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize));
    let reserve = (size / 20).min(RESERVE_BYTES_MAX);
    if free < needed.saturating_add(reserve) { Err(PointError::NoSpace { needed, free, reserve }) } else { Ok(()) }
}

fn fill(draft: &Draft, held: &Held, place: &Path) -> Result<RecoveryPoint, PointError> {
    let path = held.directory.join(DRAFT);
    durable::create_directory(&path).map_err(PointError::io(&path, "making"))?;
    // Read by the next worker if this one ends in the middle.
    write_json(&path.join(REQUEST_FILE), &Draft { tries: draft.tries + 1, ..draft.clone() })?;
    let mut point = draft.request.point();
    let (copied, held_for) = clone_still(held, &path.join(DISK_FILE))?;
    (point.bytes_copied, point.held_ms) = (copied, u64::try_from(held_for.as_millis()).unwrap_or(u64::MAX));
    // The table belongs to the caller, who does nothing meanwhile; the file systems need not stand still for it.
    let mut beside = vec![(held.table.to_path_buf(), path.join(TABLE_FILE)), (roots_of(held.table), roots_of(&path.join(TABLE_FILE)))];
    beside.push((disk::plan_path(held.attachment.disk()), disk::plan_path(&path.join(DISK_FILE))));
    for (from, to) in beside {
        disk::duplicate(&from, &to).map_err(unwrap_io)?;
    }
    write_json(&path.join(POINT_FILE), &point)?;
    std::fs::remove_file(path.join(REQUEST_FILE)).map_err(PointError::io(&path, "finishing"))?;
    durable::sync_directory(&path).map_err(PointError::io(&path, "writing down"))?;
    std::fs::rename(&path, place).map_err(PointError::io(place, "naming"))?;
    durable::sync_directory(held.directory).map_err(PointError::io(held.directory, "writing down"))?;
    Ok(point)
}

/// Freezes, duplicates, thaws.
fn clone_still(held: &Held, to: &Path) -> Result<(u64, Duration), PointError> {
    let begun = Instant::now();
    let frozen = Frozen::freeze(held.attachment).map_err(PointError::Hold)?;
    // What the loop devices still hold goes into the disk's file; a freeze alone leaves it to them.
    let copied = held.attachment.flush_devices().map_err(PointError::Hold).and_then(|()| {
        let copied = disk::duplicate(held.attachment.disk(), to);
        copied.map_err(unwrap_io)
    });
    frozen.thaw().map_err(PointError::Stuck)?;
    Ok((copied?, begun.elapsed()))
}

fn unwrap_io(error: DiskError) -> PointError {
    match error {
        DiskError::Io { path, operation, source } => PointError::Io { path, operation, source },
        other => PointError::Hold(other),
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), PointError> {
    let text = serde_json::to_vec_pretty(value).expect("points are plain data");
    durable::write_atomically(path, &text).map_err(PointError::io(path, "writing"))
}
