//! An appliance's directory on a file system of its own, which can be filled, and whose power can be cut.
//!
//! An XFS in a sparse file, so that recovery points share blocks as they do on a datastore that was made for them. The suite runs in a mount
//! namespace of its own (`lab::space::run_inside`), whose end unmounts it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::lab::command;

/// Twice what a replica of the lab's servers can take; sparse.
const BYTES: u64 = 12 << 30;
const LIMIT: Duration = Duration::from_secs(120);

/// Dropping it unmounts and removes it.
pub struct Datastore {
    image: PathBuf,
    mount: PathBuf,
}

impl Datastore {
    pub fn make(mount: &Path) -> Result<Datastore> {
        fs::create_dir_all(mount)?;
        let datastore = Datastore { image: mount.with_extension("img"), mount: mount.to_owned() };
        File::create(&datastore.image).and_then(|file| file.set_len(BYTES)).context("making the datastore's file")?;
        command::run(&["mkfs.xfs", "-q", "-f", &datastore.image.to_string_lossy()], LIMIT)?;
        datastore.mount()?;
        Ok(datastore)
    }

    fn mount(&self) -> Result<()> {
        command::run(&["mount", "-o", "loop", &self.image.to_string_lossy(), &self.mount.to_string_lossy()], LIMIT).map(drop)
    }

    fn filler(&self) -> PathBuf {
        self.mount.join("filler")
    }

    /// Leaves half of what the appliance keeps for itself: a fiftieth.
    pub fn fill(&self) -> Result<()> {
        let stat = rustix::fs::statvfs(&self.mount)?;
        let left = stat.f_blocks * stat.f_frsize / 100;
        let filler = File::create(self.filler())?;
        let take = (stat.f_bavail * stat.f_frsize).saturating_sub(left);
        rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, take).context("filling the datastore")?;
        Ok(())
    }

    pub fn empty(&self) -> Result<()> {
        fs::remove_file(self.filler()).context("emptying the datastore")
    }

    /// Everything that is not on the disk is lost: the file system stops at once and writes down nothing any more.
    pub fn stop(&self) -> Result<()> {
        command::run(&["xfs_io", "-x", "-c", "shutdown", &self.mount.to_string_lossy()], LIMIT).map(drop)
    }

    /// As after the power came back. Nobody may use it any more.
    pub fn start(&self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        // What was killed lets go of it a moment later.
        while let Err(error) = command::run(&["umount", &self.mount.to_string_lossy()], LIMIT) {
            ensure!(Instant::now() < deadline, "the datastore is still used: {error:#}");
            command::pause(Duration::from_millis(200))?;
        }
        self.mount()
    }
}

impl Drop for Datastore {
    fn drop(&mut self) {
        command::run(&["umount", &self.mount.to_string_lossy()], LIMIT).ok();
        fs::remove_file(&self.image).ok();
    }
}
