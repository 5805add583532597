//! Makes a job's replica disk, on a thread of its own, until it succeeds or the job no longer wants it.

use crate::appliance::Appliance;
use crate::errors;
use crate::job::JobShell;
use crate::store::JobRecord;
use standin_model::{FileSystem, Inventory, Volume, VolumeSpec};
use standin_protection::{Event, JobState, Problem};
use standin_replica::disk::{
    self, DiskError, DiskPlan, EspVolume, Firmware, FsFeatures, SourceInventory, SourceVolume, SwapVolume, WantedDisk,
};
use std::sync::Arc;
use std::time::Duration;

/// A full datastore is looked at again this often.
const RETRY_AFTER: Duration = Duration::from_secs(30);

pub fn begin(appliance: &Arc<Appliance>, shell: &Arc<JobShell>) {
    let (appliance, shell) = (appliance.clone(), shell.clone());
    std::thread::spawn(move || {
        loop {
            match create(&appliance, &shell.record) {
                Ok(()) => return appliance.event(&shell, Event::DisksCreated),
                Err(error) => {
                    let again = error.retryable();
                    appliance.event(&shell, Event::DisksRefused(disk_problem(&error)));
                    if !again {
                        return;
                    }
                }
            }
            // Waits for the state to change, and tries again when it has not.
            let moved = shell.wait(RETRY_AFTER, |live| (live.job.state != JobState::Provisioning).then_some(()));
            if moved.is_some() {
                return;
            }
        }
    });
}

fn create(appliance: &Appliance, record: &JobRecord) -> Result<(), DiskError> {
    let path = appliance.layout.disk(&record.name);
    let directory = path.parent().unwrap_or(&appliance.layout.datastore);
    std::fs::create_dir_all(directory).map_err(|source| DiskError::Io {
        path: directory.into(),
        operation: "making the directory",
        source,
    })?;
    // An unfinished disk of an earlier try still takes its space; a finished one needs none any more.
    let free = match disk::finished_plan(&path)? {
        Some(_) => u64::MAX,
        None => disk::datastore_free(directory)?,
    };
    let plan = plan(&record.inventory, &record.spec.volumes, free)?;
    disk::create(&path, &plan).map(|_| ())
}

/// The disk's plan; also asked before a job exists, so that its problems show in the protection summary.
pub fn plan(inventory: &Inventory, volumes: &[VolumeSpec], free: u64) -> Result<DiskPlan, DiskError> {
    let find = |spec: &VolumeSpec| inventory.volumes.iter().find(|volume| volume.mount_point == spec.mount_point);
    let source = SourceInventory {
        firmware: match inventory.firmware {
            standin_model::Firmware::Bios => Firmware::Bios,
            standin_model::Firmware::Uefi => Firmware::Uefi,
        },
        volumes: volumes.iter().filter_map(|spec| find(spec).map(|volume| source_volume(spec, volume))).collect(),
        swaps: inventory
            .swaps
            .iter()
            .map(|swap| SwapVolume {
                uuid: swap.uuid.clone(),
                label: swap.label.clone(),
                size: swap.size.0,
                device_names: vec![swap.device.clone()],
                partition_uuid: None,
            })
            .collect(),
        esp: inventory.system_partition.as_ref().map(|esp| EspVolume {
            volume_id: esp.uuid.clone(),
            label: esp.label.clone(),
            mount_point: esp.mount_point.clone(),
            size: esp.size.0,
            device_names: Vec::new(),
            partition_uuid: None,
        }),
    };
    // A size that the operator did not change is not passed on: the source's own size is trusted to hold its own data.
    let sizes = volumes
        .iter()
        .filter(|spec| find(spec).is_some_and(|volume| volume.size != spec.size))
        .map(|spec| (u32::from(spec.id.0), spec.size.0))
        .collect();
    DiskPlan::make(&source, &WantedDisk { volume_sizes: sizes, without_swap: false }, free)
}

fn source_volume(spec: &VolumeSpec, volume: &Volume) -> SourceVolume {
    // A source with many small files has more inodes than a default file system of that size; 25 % more than are in use are asked for.
    let default_inodes = spec.size.0 / 16_384;
    let wanted_inodes = volume.nodes_used.saturating_add(volume.nodes_used / 4);
    let inode_count = (spec.file_system == FileSystem::Ext4 && wanted_inodes > default_inodes).then_some(wanted_inodes);
    SourceVolume {
        id: spec.id.0.into(),
        mount_point: spec.mount_point.clone(),
        fs_type: spec.file_system.as_str().into(),
        uuid: spec.uuid.clone(),
        label: spec.label.clone(),
        size: volume.size.0,
        used: volume.used.0,
        subvolume: String::new(),
        other_subvolumes: Vec::new(),
        device_names: vec![volume.device.clone()],
        partition_uuid: None,
        features: FsFeatures { inode_count, ..FsFeatures::default() },
    }
}

pub fn disk_problem(error: &DiskError) -> Problem {
    let next = if error.retryable() { "nothing: it is tried again; look with: standin job show JOB" } else { "standin job show JOB" };
    Problem { code: error.code().into(), ..errors::coded("E4040", error, next) }
}
