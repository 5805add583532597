//! Protecting a source: the summary, and its acceptance.

use crate::appliance::Appliance;
use crate::facts::{find_agent, host_facts};
use crate::job::JobShell;
use crate::layout::now;
use crate::store::{JobRecord, StreamState};
use crate::{errors, launch, provision};
use standin_model::{Inventory, JobId, JobSpec, VolumeId, VolumeSpec};
use standin_protection::{Event, HostFacts, Job, Problem, ProtectRequest, ProtectionSummary, plan_protection};
use standin_replica::disk::DiskPlan;
use std::sync::Arc;

pub fn plan(appliance: &Appliance, request: &ProtectRequest) -> Result<ProtectionSummary, Vec<Problem>> {
    planned(appliance, request).map(|(summary, _)| summary)
}

fn planned(appliance: &Appliance, request: &ProtectRequest) -> Result<(ProtectionSummary, HostFacts), Vec<Problem>> {
    let agent = find_agent(appliance, &request.source).map_err(|problem| vec![problem])?;
    let facts = host_facts(appliance, &agent).map_err(|problem| vec![problem])?;
    let mut problems = Vec::new();
    if let Err(problem) = launch::parse_network(request.network.as_deref()) {
        problems.push(problem);
    }
    let summary = match plan_protection(&facts, request) {
        Ok(summary) => Some(summary),
        Err(more) => {
            problems.extend(more);
            None
        }
    };
    let Some(summary) = summary.filter(|_| problems.is_empty()) else { return Err(problems) };
    // The rooms that will do the work have the last word: the disk's own plan, and the machine.
    let volumes = volume_specs(&summary, &facts.inventory);
    if let Err(error) = DiskPlan::make(&facts.inventory, &volumes, facts.datastore_free.0) {
        problems.push(provision::disk_problem(&error));
    }
    let definition = launch::definition("planned", &summary, &facts.inventory);
    match definition.map(|definition| appliance.hypervisor.validate(&definition)) {
        Ok(Err(error)) => problems.push(errors::coded("E4052", &error, "standin host list")),
        Err(problem) => problems.push(problem),
        Ok(Ok(())) => {}
    }
    if problems.is_empty() { Ok((summary, facts)) } else { Err(problems) }
}

/// Plans once more and makes the job. What the operator saw may be outdated; what is made is what holds now.
pub fn accept(appliance: &Arc<Appliance>, request: &ProtectRequest, actor: &str) -> Result<Arc<JobShell>, Vec<Problem>> {
    let _one = appliance.protecting.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (summary, facts) = planned(appliance, request)?;
    let internal = |error: anyhow::Error| vec![errors::internal(format!("{error:#}"))];
    let id = JobId::from_random(random().map_err(internal)?);
    let volumes = volume_specs(&summary, &facts.inventory);
    let record = JobRecord {
        id: id.clone(),
        name: summary.name.clone(),
        agent: summary.agent.clone(),
        created_at: now(),
        spec: JobSpec { job: id, volumes, exclusions: summary.exclusions.clone() },
        request: request.clone(),
        summary,
        inventory: facts.inventory,
    };
    let shell = JobShell::open(&appliance.layout, record, Job::default(), StreamState::default(), None).map_err(internal)?;
    appliance.store.add_job(&shell.record, &Job::default()).map_err(internal)?;
    appliance.add_job(shell.clone());
    appliance.log(Some(&shell), actor, None, &format!("protects {}", shell.record.summary.source));
    appliance.event(&shell, Event::Accepted);
    Ok(shell)
}

/// Volumes in the order of their mount points; volume 0 holds `/`.
fn volume_specs(summary: &ProtectionSummary, inventory: &Inventory) -> Vec<VolumeSpec> {
    let specs = summary.volumes.iter().enumerate().filter_map(|(index, planned)| {
        let volume = inventory.volumes.iter().find(|volume| volume.mount_point == planned.mount_point)?;
        Some(VolumeSpec {
            id: VolumeId(u16::try_from(index).ok()?),
            mount_point: planned.mount_point.clone(),
            file_system: planned.file_system,
            uuid: volume.uuid.clone(),
            label: volume.label.clone(),
            size: planned.size,
        })
    });
    specs.collect()
}

fn random() -> anyhow::Result<[u8; 8]> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("the system has no randomness: {error}"))?;
    Ok(bytes)
}
