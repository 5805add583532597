//! Makes a job's replica disk, on a thread of its own, until it succeeds or the job no longer wants it.

use crate::appliance::Appliance;
use crate::errors;
use crate::job::JobShell;
use crate::store::JobRecord;
use standin_protection::{Event, JobState, Problem};
use standin_replica::disk::{self, DiskError, DiskPlan};
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
    let plan = DiskPlan::make(&record.inventory, &record.spec.volumes, free)?;
    disk::create(&path, &plan).map(|_| ())
}

pub fn disk_problem(error: &DiskError) -> Problem {
    let next = if error.retryable() { "nothing: it is tried again; look with: standin job show JOB" } else { "standin job show JOB" };
    Problem { code: error.code().into(), ..errors::coded("E4040", error, next) }
}
