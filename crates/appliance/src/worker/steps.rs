//! The worker's part of a failover: finish, inject, detach; and the preparation ahead of it.

use super::message::FromWorker;
use super::run::{Worker, report};
use crate::errors;
use crate::layout::BOOT_REPAIR_FILE;
use standin_model::OpSeq;
use standin_protection::Problem;
use standin_replica::boot::{self, BootRepairReport, TargetProfile};
use standin_replica::disk::{self, Attachment};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const NEXT: &str = "standin failover JOB   (takes up where it failed)";

impl Worker {
    fn staging(&self) -> PathBuf {
        self.orders.run_directory.with_file_name("boot")
    }

    /// On a thread of its own, so that replication goes on; one at a time.
    pub(super) fn prepare(&mut self) {
        let running = self.preparing.as_ref().is_some_and(|thread| !thread.is_finished());
        let Some(attachment) = self.attachment.clone().filter(|_| !running) else { return };
        let (profile, staging) = (self.orders.profile.clone(), self.staging());
        self.preparing = Some(std::thread::spawn(move || {
            let answer = match prepared(&attachment, &profile, &staging) {
                Ok(note) => FromWorker::Prepared { note },
                Err(problem) => FromWorker::PrepareFailed { problem },
            };
            if let Err(error) = report(&answer) {
                tracing::warn!(%error, "cannot report the preparation");
            }
        }));
    }

    /// Two trees cannot be assembled at one place.
    fn wait_for_preparation(&mut self) {
        if let Some(thread) = self.preparing.take() {
            let _ = thread.join();
        }
    }

    /// Applies through the cut and makes the replica what the source was. Doing it again finds nothing to do.
    pub(super) fn finish(&mut self, through: OpSeq) -> Result<(), Problem> {
        self.wait_for_preparation();
        self.durable = self.durable.max(through);
        while !self.finished && self.applied() < through {
            let stepped = self.step().map_err(|error| problem("E4047", &error))?;
            if !stepped {
                let cause = format!("the journal ends at {}, before the cut at {through}", self.applied());
                return Err(Problem::new("E4048", cause, "standin job show JOB"));
            }
        }
        self.report_state().map_err(|error| problem("E4047", &error))?;
        self.finish_applier()
    }

    fn finish_applier(&mut self) -> Result<(), Problem> {
        self.finished = true;
        let Some(mut applier) = self.applier.take() else { return Ok(()) };
        let finished = applier.finish();
        finished.map(|_| ()).map_err(|error| errors::coded("E4047", &error, NEXT))
    }

    pub(super) fn inject(&mut self) -> Result<String, Problem> {
        self.wait_for_preparation();
        let staging = self.staging();
        let attachment = self.attachment.as_ref().ok_or_else(detached_already)?;
        let tree = disk::assemble(attachment).map_err(|error| errors::coded("E4049", &error, NEXT))?;
        let injected = boot::inject(tree.root(), attachment.disk(), attachment.plan(), &self.orders.profile, &staging);
        drop(tree);
        let mut report = injected.map_err(|error| errors::coded("E4049", &error, NEXT))?;
        keep_report(&self.orders.run_directory.with_file_name(BOOT_REPAIR_FILE), &mut report).map_err(|error| problem("E4049", &error))?;
        attachment.sync().map_err(|error| errors::coded("E4049", &error, NEXT))?;
        for warning in &report.warnings {
            tracing::warn!(job = self.orders.job, warning, "boot repair");
        }
        Ok(format!("{} changes in {} ms for {}", report.changes.len(), report.milliseconds, report.default_kernel))
    }

    pub(super) fn detach(&mut self) -> Result<(), Problem> {
        self.wait_for_preparation();
        // After a crash behind `finish` this worker has opened the replica for applying once more; that is undone first.
        self.finish_applier()?;
        self.let_go()
    }

    /// Leaves the replica to another worker.
    pub(super) fn release(&mut self) -> Result<(), Problem> {
        self.wait_for_preparation();
        if let Some(applier) = &mut self.applier {
            applier.mark().map_err(|error| errors::coded("E4047", &error, NEXT))?;
        }
        // It holds files of the disk open.
        self.applier = None;
        self.let_go()
    }

    fn let_go(&mut self) -> Result<(), Problem> {
        let attachment = self.attachment.take().ok_or_else(detached_already)?;
        let attachment = match Arc::try_unwrap(attachment) {
            Ok(attachment) => attachment,
            Err(shared) => {
                self.attachment = Some(shared);
                return Err(Problem::new("E4055", "the replica's disk is still in use by boot repair", NEXT));
            }
        };
        attachment.detach().map(|_| ()).map_err(|(attachment, error)| {
            self.attachment = Some(Arc::new(attachment));
            errors::coded("E4055", &error, NEXT)
        })
    }
}

/// A step that is done again after a crash finds most of its work done; what the first attempt changed stays in the list.
fn keep_report(path: &Path, report: &mut BootRepairReport) -> anyhow::Result<()> {
    let before: Option<BootRepairReport> = std::fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let mut changes: Vec<_> = before.map(|before| before.changes).unwrap_or_default();
    let fresh: Vec<_> = report.changes.iter().filter(|change| !changes.contains(change)).cloned().collect();
    changes.extend(fresh);
    report.changes = changes;
    standin_journal::durable::write_atomically(path, &serde_json::to_vec_pretty(report)?)?;
    Ok(())
}

fn prepared(attachment: &Attachment, profile: &TargetProfile, staging: &Path) -> Result<String, Problem> {
    let next = "nothing: it is tried again, at the latest at failover";
    let tree = disk::assemble(attachment).map_err(|error| errors::coded("E4056", &error, next))?;
    let prepared = boot::prepare(tree.root(), attachment.plan(), profile, staging).map_err(|error| errors::coded("E4056", &error, next))?;
    Ok(format!("{}, kernels {}", prepared.distribution, prepared.kernels.join(", ")))
}

fn problem(code: &str, error: &anyhow::Error) -> Problem {
    error.downcast_ref::<Problem>().cloned().unwrap_or_else(|| Problem::new(code, format!("{error:#}"), NEXT))
}

fn detached_already() -> Problem {
    Problem::new("E4055", "the replica's disk is detached already", NEXT)
}
