//! Where everything of an appliance lies, and what time it is.

use standin_model::{JobId, Timestamp};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// In a job's folder: what boot repair changed on its replica.
pub const BOOT_REPAIR_FILE: &str = "boot-repair.json";

/// The appliance's own directory (state) and its datastore (replica disks).
#[derive(Clone, Debug)]
pub struct Layout {
    pub dir: PathBuf,
    pub datastore: PathBuf,
}

impl Layout {
    pub fn authority(dir: &Path) -> PathBuf {
        dir.join("authority")
    }
    pub fn store(dir: &Path) -> PathBuf {
        dir.join("store.sqlite")
    }
    pub fn admin_token(dir: &Path) -> PathBuf {
        dir.join("admin.token")
    }
    /// Everything of one job but its disk.
    pub fn job(&self, job: &JobId) -> PathBuf {
        self.dir.join("jobs").join(job.as_str())
    }
    pub fn journal(&self, job: &JobId) -> PathBuf {
        self.job(job).join("journal")
    }
    pub fn boot_repair(&self, job: &JobId) -> PathBuf {
        self.job(job).join(BOOT_REPAIR_FILE)
    }
    pub fn node_table(&self, job: &JobId) -> PathBuf {
        self.job(job).join("nodes.redb")
    }
    /// Mount points of the worker, in its own namespace.
    pub fn run_directory(&self, job: &JobId) -> PathBuf {
        self.job(job).join("run")
    }
    /// Recovery points of a replica, beside its disk.
    pub fn points(&self, name: &str) -> PathBuf {
        self.datastore.join(name).join("points")
    }
    /// The duplicate of a recovery point that a machine runs from.
    pub fn launch(&self, name: &str) -> PathBuf {
        self.datastore.join(name).join("launch")
    }
    /// Mount points of the worker that makes such a duplicate bootable.
    pub fn launch_run_directory(&self, job: &JobId) -> PathBuf {
        self.job(job).join("launch-run")
    }
    /// Names were checked by the protection summary: letters, digits, `-`, `_`, `.`, not beginning with a dot.
    pub fn disk(&self, name: &str) -> PathBuf {
        self.datastore.join(name).join("disk.raw")
    }
}

pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}
