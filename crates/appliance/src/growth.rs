//! Volumes of the source that have grown: the replica's disk follows.
//!
//! The agent tells the sizes with every greeting, and connects again when one changes. A worker that is started gets them with its orders and makes
//! the disk longer before it attaches it; one that runs is started anew. A source that fills its new space before that stops at a full
//! replica, which loses nothing: its worker is started again, with the new sizes.

use crate::appliance::Appliance;
use crate::job::JobShell;
use crate::store::JobRecord;
use crate::worker::message::ToWorker;
use standin_model::Inventory;
use standin_protection::JobState;
use standin_replica::disk::{self, VolumeSize};
use std::sync::Arc;

/// What the job's volumes have on the source. One that was formatted anew is another volume.
pub fn sizes(record: &JobRecord, inventory: &Inventory) -> Vec<VolumeSize> {
    let sized = |spec: &standin_model::VolumeSpec| {
        let volume = inventory.volumes.iter().find(|volume| volume.mount_point == spec.mount_point && volume.uuid == spec.uuid)?;
        Some(VolumeSize { volume: spec.id, size: volume.size.0 })
    };
    record.spec.volumes.iter().filter_map(sized).collect()
}

/// The sizes of the agent's last greeting; nothing where there was none.
pub fn told(appliance: &Appliance, record: &JobRecord) -> Vec<VolumeSize> {
    match appliance.store.agent(&record.agent) {
        Ok(agent) => agent.and_then(|agent| agent.inventory).map(|inventory| sizes(record, &inventory)).unwrap_or_default(),
        Err(error) => {
            tracing::warn!(job = record.name, %error, "the store does not tell the source's volumes");
            Vec::new()
        }
    }
}

/// Starts the worker of a job anew whose source has outgrown its replica. During a failover nothing grows.
pub fn look(appliance: &Arc<Appliance>, shell: &Arc<JobShell>, inventory: &Inventory) {
    let state = shell.live().job.state.clone();
    if !matches!(state, JobState::Mirroring { .. } | JobState::Protected { .. } | JobState::Resyncing { .. }) {
        return;
    }
    let plan = match disk::finished_plan(&appliance.layout.disk(&shell.record.name)) {
        Ok(Some(plan)) => plan,
        Ok(None) => return,
        Err(error) => return tracing::warn!(job = shell.record.name, %error, "the replica's disk cannot be looked at"),
    };
    let outgrown = |wish: &VolumeSize| plan.volume(wish.volume).filter(|part| part.size < wish.size).map(|part| part.size);
    for wish in sizes(&shell.record, inventory) {
        if let Some(size) = outgrown(&wish) {
            let mount_point = shell.record.spec.volumes.iter().find(|spec| spec.id == wish.volume).map_or("", |spec| &spec.mount_point);
            let text = format!("{mount_point} has grown to {} bytes on the source; the replica has {size} and grows too", wish.size);
            appliance.log(Some(shell), "appliance", None, &text);
            shell.tell_worker(&ToWorker::Restart);
            return;
        }
    }
}
