//! Notices that a protected volume has grown since the appliance was told of it.

use crate::inventory;
use standin_model::{ByteLen, Inventory, JobSpec};
use std::time::{Duration, Instant};

/// Nobody grows volumes so often that it mattered, and looking is one read of a small file for each.
const LOOK_EVERY: Duration = Duration::from_secs(10);

pub struct Growth {
    /// Devices with the sizes that the appliance knows.
    devices: Vec<(String, ByteLen)>,
    looked_at: Instant,
}

impl Growth {
    /// What has grown since this inventory was read.
    pub fn since(inventory: &Inventory, spec: &JobSpec) -> Growth {
        let protected = |mount_point: &str| spec.volumes.iter().any(|volume| volume.mount_point == mount_point);
        let volumes = inventory.volumes.iter().filter(|volume| protected(&volume.mount_point));
        Growth { devices: volumes.map(|volume| (volume.device.clone(), volume.size)).collect(), looked_at: Instant::now() }
    }

    /// Looks now and then; a device that does not tell its size has not grown.
    pub fn is_seen(&mut self) -> bool {
        if self.looked_at.elapsed() < LOOK_EVERY {
            return false;
        }
        self.looked_at = Instant::now();
        self.devices.iter().any(|(device, known)| inventory::device_size(device).is_some_and(|size| size > *known))
    }
}
