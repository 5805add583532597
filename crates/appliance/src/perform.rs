//! Performs the actions of the job machine. Every action may be performed twice.

use crate::appliance::Appliance;
use crate::job::{BootState, JobShell};
use crate::worker::message::ToWorker;
use crate::{provision, supervise};
use standin_protection::Action;
use std::sync::Arc;

pub fn perform(appliance: &Arc<Appliance>, shell: &Arc<JobShell>, action: Action) {
    match action {
        Action::CreateDisks => provision::begin(appliance, shell),
        Action::StartWorker => supervise::ensure(appliance, shell),
        Action::PrepareBoot => prepare_boot(shell),
        Action::Log { code, text } => appliance.log(Some(shell), "appliance", code.as_deref(), &text),
        Action::StartStream | Action::StopStream | Action::ThawSource | Action::TellFailedOver => {
            // Without a session there is nobody to tell; the next one begins with what the state says then.
            if let Some(session) = appliance.session(&shell.record.agent) {
                session.perform(appliance, shell, &action);
            }
        }
    }
}

/// Once per worker life unless it failed: the worker prepares beside its apply loop.
fn prepare_boot(shell: &Arc<JobShell>) {
    shell.update(|live| {
        let idle = matches!(live.boot, BootState::Unprepared | BootState::Failed(_));
        if idle && live.worker.as_mut().is_some_and(|worker| worker.send(&ToWorker::Prepare)) {
            live.boot = BootState::Preparing;
        }
    });
}
