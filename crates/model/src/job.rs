//! What the operator asked for: the part of a job that both ends must know.

use crate::{ByteLen, FileSystem, JobId, VolumeId};
use serde::{Deserialize, Serialize};

/// The agent's orders for one job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    pub job: JobId,
    pub volumes: Vec<VolumeSpec>,
    /// Globs of absolute paths on the source whose contents are not protected.
    pub exclusions: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    pub id: VolumeId,
    pub mount_point: String,
    pub file_system: FileSystem,
    pub uuid: String,
    pub label: String,
    /// Size of the file system on the replica.
    pub size: ByteLen,
}
