//! `standin debug replica diff`: two mounted trees laid side by side.

use super::{Out, found};
use crate::exit::{Failure, Result};
use serde_json::json;
use standin_replica::apply::LIMBO_NAME;
use standin_replica::diff::{Difference, Manifest, allowed, differences, forget_guards, read_tree};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Each side is read whole, one after the other; what a tree is like is in `standin_replica::diff`.
pub fn diff(out: &mut Out, left: &Path, right: &Path, allow: &[String]) -> Result<()> {
    out.line(
        || format!("left {}, right {}, as they are now; times of access and change are not compared", left.display(), right.display()),
        || json!({"view": "trees", "left": left.to_string_lossy(), "right": right.to_string_lossy()}),
    )?;
    let (mut one, mut other) = (read(left)?, read(right)?);
    if [left, right].into_iter().any(is_in_work) {
        [&mut one, &mut other].into_iter().for_each(forget_guards);
    }
    let (accepted, told): (Vec<Difference>, Vec<Difference>) =
        differences(&one, &other).into_iter().partition(|one| allowed(&one.path, allow));
    for Difference { path, what, left, right, .. } in &told {
        out.line(
            || format!("/{path}: {what}: {left} | {right}"),
            || json!({"difference": what, "path": path, "left": left, "right": right}),
        )?;
    }
    let unreadable = told.iter().filter(|one| one.what == "unreadable").count();
    let (entries, count, accepted) = (one.len().max(other.len()), told.len(), accepted.len());
    let status = match (count, unreadable) {
        (0, _) => "equal",
        (_, 0) => "different",
        _ => "damaged",
    };
    out.line(
        || match status {
            "equal" => format!("status: equal; {entries} entries, {accepted} allowed differences"),
            "different" => format!("status: DIFFERENT in {count} places; {entries} entries, {accepted} allowed differences"),
            _ => format!(
                "status: DAMAGED, {unreadable} entries cannot be read, of {count} differences; {entries} entries, {accepted} allowed"
            ),
        },
        || json!({"status": status, "entries": entries, "differences": count, "unreadable": unreadable, "allowed": accepted}),
    )?;
    match status {
        "equal" => Ok(()),
        "different" => Err(found("STANDIN-E3015", format!("the trees differ in {count} places"), "standin job boot-repair JOB".into())),
        _ => Err(found("STANDIN-E3016", format!("{unreadable} entries cannot be read"), "dmesg".into())),
    }
}

/// A replica that is being applied to, or was not finished.
fn is_in_work(root: &Path) -> bool {
    root.join(OsStr::from_bytes(LIMBO_NAME)).symlink_metadata().is_ok()
}

/// Limbo holds what no source has.
fn read(root: &Path) -> Result<Manifest> {
    let is_directory = std::fs::metadata(root).is_ok_and(|data| data.is_dir());
    if !is_directory {
        return Err(Failure::Usage(format!("{} is no directory that can be read; mount the tree first", root.display())));
    }
    Ok(read_tree(root, &[LIMBO_NAME])?)
}
