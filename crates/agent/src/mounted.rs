//! Whether the protected volumes are where they were protected: a mount point may lead nowhere by now, or to another file system.
//!
//! Capture and mirror hold the file system itself, so an unmount loses nothing: whatever changes it later, by whichever mount, is captured as before.
//! But what an administrator takes for protected is what the mount point shows.

use crate::runner::Runner;
use standin_capture::{CapturedVolume, mounts};
use standin_model::{Inventory, JobSpec};
use standin_wire::Refusal;
use std::time::{Duration, Instant};
use thiserror::Error;

#[derive(Debug, Error, PartialEq, Eq)]
pub enum Misplaced {
    #[error("nothing is mounted on {mount_point}, which is protected")]
    NotMounted { mount_point: String },
    #[error("{mount_point} shows another file system than the one that is protected")]
    Covered { mount_point: String },
    #[error("{mount_point} is protected as file system {protected}, and holds {found} now")]
    Another { mount_point: String, protected: String, found: String },
}

impl Misplaced {
    /// See docs/errors.
    pub fn code(&self) -> &'static str {
        match self {
            Misplaced::NotMounted { .. } => "STANDIN-E6028",
            Misplaced::Covered { .. } | Misplaced::Another { .. } => "STANDIN-E6029",
        }
    }
}

/// Before anything is read of the volumes: what is not the protected file system must not be taken for its next state.
pub fn check(spec: &JobSpec, inventory: &Inventory) -> Result<(), Misplaced> {
    for volume in &spec.volumes {
        let mount_point = volume.mount_point.clone();
        let Some(facts) = inventory.volumes.iter().find(|facts| facts.mount_point == mount_point) else {
            return Err(Misplaced::NotMounted { mount_point });
        };
        // Where udev has not said yet what it is, nothing contradicts.
        let known = !facts.uuid.is_empty() && !volume.uuid.is_empty();
        if known && facts.uuid != volume.uuid {
            return Err(Misplaced::Another { mount_point, protected: volume.uuid.clone(), found: facts.uuid.clone() });
        }
    }
    Ok(())
}

const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Looks now and then while a job runs.
pub struct Watch {
    looked_at: Option<Instant>,
    found: Option<Refusal>,
}

impl Watch {
    pub fn new() -> Watch {
        Watch { looked_at: None, found: None }
    }

    /// What is misplaced now, to tell the appliance.
    pub fn look(&mut self, runner: &Runner) -> Option<Refusal> {
        if self.looked_at.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
            self.looked_at = Some(Instant::now());
            // A list that cannot be read says nothing.
            if let Ok(list) = mounts::read() {
                self.found = find(&list, &runner.captured).err().map(|error| Refusal::new(error.code(), error.to_string()));
            }
        }
        self.found.clone()
    }
}

fn find(list: &[mounts::Mount], captured: &[CapturedVolume]) -> Result<(), Misplaced> {
    for volume in captured {
        let mount_point = volume.mount_point.to_string_lossy().into_owned();
        match mounts::visible(list, &volume.mount_point) {
            None => return Err(Misplaced::NotMounted { mount_point }),
            Some(mount) if mount.device != volume.device => return Err(Misplaced::Covered { mount_point }),
            Some(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use standin_model::{FileSystem, VolumeId};

    fn mount(mount_point: &str, device: u32) -> mounts::Mount {
        let words = ["/", mount_point, "ext4", "/dev/sdb", "rw"].map(str::to_owned);
        let [root, mount_point, file_system, source, options] = words;
        mounts::Mount { device, root, mount_point, file_system, source, options }
    }

    #[test]
    fn the_last_mount_on_a_point_counts() {
        let captured =
            [CapturedVolume { id: VolumeId(0), mount_point: "/srv".into(), device: 8 << 20 | 17, file_system: FileSystem::Ext4 }];
        assert_eq!(find(&[mount("/", 8 << 20 | 1), mount("/srv", 8 << 20 | 17)], &captured), Ok(()));
        let gone = find(&[mount("/", 8 << 20 | 1)], &captured).unwrap_err();
        assert_eq!(gone.code(), "STANDIN-E6028");
        let covered = find(&[mount("/srv", 8 << 20 | 17), mount("/srv", 8 << 20 | 33)], &captured).unwrap_err();
        assert_eq!(covered, Misplaced::Covered { mount_point: "/srv".into() });
        // Mounted again after an unmount.
        assert_eq!(find(&[mount("/srv", 8 << 20 | 33), mount("/srv", 8 << 20 | 17)], &captured), Ok(()));
    }
}
