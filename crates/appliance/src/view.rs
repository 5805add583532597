//! What the API shows of a job: one flat, stable shape for people, scripts and the console.

use crate::appliance::Appliance;
use crate::job::{BootState, JobShell};
use crate::network;
use crate::verify::Underway;
use serde::Serialize;
use serde_json::{Value, json};
use standin_model::{OpSeq, Timestamp};
use standin_protection::{JobState, Problem, ProtectionSummary};
use standin_wire::{CaptureStatus, ImpactStatus, LeftOut};

#[derive(Serialize)]
pub struct JobView {
    pub id: String,
    pub name: String,
    pub source: String,
    pub agent: String,
    pub state: &'static str,
    pub state_since: Option<Timestamp>,
    pub reason: Option<String>,
    pub flags: Vec<FlagView>,
    pub connected: bool,
    pub failover_possible: bool,
    pub consistent: Option<OpSeq>,
    pub watermarks: Watermarks,
    /// Age of the replica's state in seconds: the recovery point objective as it is now.
    pub lag_seconds: Option<u64>,
    pub mirror: Value,
    /// The verification that runs, with how far the source is in its pass; null where none does.
    pub verification: Value,
    pub queue_bytes: u64,
    pub journal_bytes: u64,
    pub bytes_changed: u64,
    /// Of them, what the replica had already, so that it was not sent.
    pub bytes_spared: u64,
    /// What exclusion rules kept from being sent: files when everything was last walked, and changes since the agent started the job.
    pub left_out: LeftOut,
    pub bytes_sent: u64,
    pub gaps: u64,
    pub records_dropped: u64,
    /// Which driver captures the source, and with which promise; null until the agent has said.
    pub capture: Value,
    /// What the agent takes from the source, and may take; null from an agent that does not measure it.
    pub impact: Option<ImpactStatus>,
    /// The limit, why it holds, and what the agent says of its connection.
    pub network: Value,
    pub boot: Value,
    /// How many recovery points there are, and the last consistent one.
    pub points: Value,
    pub worker: Value,
    pub created_at: Timestamp,
    pub summary: ProtectionSummary,
}

#[derive(Serialize)]
pub struct FlagView {
    pub flag: &'static str,
    pub problem: Option<Problem>,
}

#[derive(Serialize)]
pub struct Watermarks {
    pub captured: OpSeq,
    pub queued: OpSeq,
    pub sent: OpSeq,
    pub received: OpSeq,
    pub durable: OpSeq,
    pub applied: OpSeq,
}

pub fn job(appliance: &Appliance, shell: &JobShell) -> JobView {
    let connected = appliance.session(&shell.record.agent).is_some();
    let live = shell.live();
    let record = &shell.record;
    let source = live.source.clone().unwrap_or_default();
    let used: u64 = record.summary.volumes.iter().map(|volume| volume.used.0).sum();
    let nodes: u64 = record.summary.volumes.iter().map(|volume| volume.nodes).sum();
    let (since, reason) = match &live.job.state {
        JobState::Resyncing { since, reason, .. } => (Some(*since), Some(reason.clone())),
        JobState::Mirroring { since } | JobState::Protected { since, .. } | JobState::FailingOver { since, .. } => (Some(*since), None),
        JobState::FailedOver { since } | JobState::Testing { since, .. } | JobState::Reversing { since } => (Some(*since), None),
        JobState::Created | JobState::Provisioning => (None, None),
    };
    JobView {
        id: record.id.to_string(),
        name: record.name.clone(),
        source: record.summary.source.clone(),
        agent: record.agent.to_string(),
        state: live.job.state.name(),
        state_since: since,
        reason,
        flags: live.job.flags.iter().map(|(flag, problem)| FlagView { flag: flag.as_str(), problem: problem.cloned() }).collect(),
        connected,
        failover_possible: live.job.state.consistent().is_some() && !matches!(live.job.state, JobState::FailingOver { .. }),
        consistent: live.job.state.consistent(),
        watermarks: Watermarks {
            captured: source.watermarks.captured,
            queued: source.watermarks.queued,
            sent: source.watermarks.sent,
            received: live.target.received,
            durable: live.target.durable,
            applied: live.target.applied,
        },
        lag_seconds: live.lag_seconds(),
        mirror: live.speed.view(&source, (used, nodes)),
        verification: verification(&live.verify),
        queue_bytes: source.queue_bytes,
        journal_bytes: live.journal_bytes,
        bytes_changed: source.bytes_changed,
        bytes_spared: source.bytes_spared,
        left_out: source.left_out,
        bytes_sent: source.bytes_sent,
        gaps: source.gaps,
        records_dropped: source.records_dropped,
        capture: source.capture.as_ref().map_or(Value::Null, capture),
        impact: source.impact,
        network: network::job_view(&live),
        boot: boot(&live.boot),
        points: json!({
            "count": live.points.there.len(),
            "last_consistent": standin_protection::point::last_consistent(&live.points.there).map(|point| point.id()),
            "problem": live.points.problem,
        }),
        worker: json!({
            "pid": live.worker.as_ref().map(|worker| worker.pid), "restarts": live.worker_restarts,
            "items": live.replica.items, "content_bytes": live.replica.content_bytes, "wanted": live.replica.wanted,
            "power_cut_unverified": live.replica.power_cut.is_some(),
            "operations_failed": live.replica.operations_failed, "attributes_refused": live.replica.attributes_refused,
            "conflicts": live.replica.conflicts, "patches": live.replica.patches,
            "patches_refused": live.replica.patches_refused, "patches_unproven": live.replica.patches_unproven,
        }),
        created_at: record.created_at,
        summary: record.summary.clone(),
    }
}

fn verification(underway: &Option<Underway>) -> Value {
    underway.as_ref().map_or(Value::Null, |underway| {
        let source = underway.source.unwrap_or_default();
        json!({"record": underway.verifier.record, "pass": source.pass, "nodes": source.nodes, "bytes": source.bytes})
    })
}

fn capture(status: &CaptureStatus) -> Value {
    let promise = if status.periodic { "periodic consistency" } else { "every operation in its order" };
    json!({
        "driver": status.driver, "promise": promise, "periodic": status.periodic, "because": status.because,
        "changed_nodes": status.changed_nodes, "consistent_at": status.consistent_at,
        "stills": status.stills, "still_ms_max": status.still_ms_max, "trouble": status.trouble,
    })
}

fn boot(state: &BootState) -> Value {
    match state {
        BootState::Unprepared => json!({"state": "unprepared"}),
        BootState::Preparing => json!({"state": "preparing"}),
        BootState::Prepared { at } => json!({"state": "prepared", "at": at}),
        BootState::Failed(problem) => json!({"state": "failed", "problem": problem}),
    }
}
