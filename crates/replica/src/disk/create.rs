//! Makes the replica's disk file exist as planned, whatever an earlier attempt left behind.
//!
//! Beside `X.raw` lies `X.raw.plan.json`, written last and atomically: its presence says that the disk is finished, its content
//! says by which plan. Without it the disk file is an unfinished attempt and is made anew; with an equal plan the disk is
//! verified and reused; with a different plan the call is refused, because the file may hold a replica.

use super::plan::DiskPlan;
use super::{DiskError, format, gpt};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// What `create` found or did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The disk was made by this call.
    New,
    /// A finished disk of the same plan was there, and its partition table is intact.
    Reused,
}

/// Path of the sidecar that marks a disk as finished.
pub fn plan_path(disk: &Path) -> PathBuf {
    let mut name = disk.as_os_str().to_owned();
    name.push(".plan.json");
    PathBuf::from(name)
}

/// The plan of a finished disk, or `None` where no disk was finished.
pub fn finished_plan(disk: &Path) -> Result<Option<DiskPlan>, DiskError> {
    let sidecar = plan_path(disk);
    let text = match std::fs::read(&sidecar) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(DiskError::io(&sidecar, "reading")(error)),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| DiskError::NotFinished { path: disk.into(), reason: format!("its plan is unreadable: {error}") })
}

/// Creates the disk, or verifies and reuses a finished one.
pub fn create(disk: &Path, plan: &DiskPlan) -> Result<Created, DiskError> {
    match finished_plan(disk)? {
        Some(found) if found != *plan => Err(DiskError::OtherPlan { path: disk.into() }),
        Some(_) => verify(disk, plan).map(|()| Created::Reused),
        None => make(disk, plan).map(|()| Created::New),
    }
}

/// Removes a disk and its sidecar. The sidecar goes first, so that a crash in between leaves an unfinished disk.
pub fn remove(disk: &Path) -> Result<(), DiskError> {
    for path in [plan_path(disk), disk.to_path_buf()] {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(DiskError::io(&path, "removing")(error)),
            _ => {}
        }
    }
    Ok(())
}

fn verify(disk: &Path, plan: &DiskPlan) -> Result<(), DiskError> {
    let mut file = File::open(disk).map_err(DiskError::io(disk, "opening"))?;
    let length = file.metadata().map_err(DiskError::io(disk, "reading the size"))?.len();
    if length != plan.size {
        let reason = format!("it has {length} bytes instead of {}", plan.size);
        return Err(DiskError::NotFinished { path: disk.into(), reason });
    }
    gpt::verify(&mut file, disk, plan)
}

fn make(disk: &Path, plan: &DiskPlan) -> Result<(), DiskError> {
    remove(disk)?;
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(disk).map_err(DiskError::io(disk, "creating"))?;
    file.set_len(plan.size).map_err(DiskError::io(disk, "sizing"))?;
    gpt::write(&mut file, disk, plan)?;
    for part in &plan.partitions {
        format::format(disk, part)?;
    }
    file.sync_all().map_err(DiskError::io(disk, "writing down"))?;
    finish(disk, plan)
}

/// Makes `plan` the disk's plan: the commit of its making, and of its growing.
pub(super) fn finish(disk: &Path, plan: &DiskPlan) -> Result<(), DiskError> {
    let sidecar = plan_path(disk);
    let draft = sidecar.with_extension("json.draft");
    let text = serde_json::to_vec_pretty(plan).map_err(|error| DiskError::NotFinished { path: disk.into(), reason: error.to_string() })?;
    let written = File::create(&draft).and_then(|mut file| {
        file.write_all(&text)?;
        file.sync_all()
    });
    written.map_err(DiskError::io(&draft, "writing"))?;
    std::fs::rename(&draft, &sidecar).map_err(DiskError::io(&sidecar, "renaming"))?;
    let directory = disk.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(DiskError::io(directory, "syncing"))
}
