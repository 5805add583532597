//! Verifications of the jobs: begun by an operator or by the schedule, carried from pass to pass, kept in the job's history.
//!
//! What comes next is decided by [`Verifier`], which is pure. Here its actions are performed, and what it cannot see ends it: a failover, a pause, a restarted
//! worker or agent, a silence. Only the record is stored; a verification that an end of this process interrupts is begun anew by whoever wants its result.

use crate::appliance::Appliance;
use crate::errors;
use crate::job::{JobShell, Live};
use crate::layout::now;
use crate::store::HistoryRow;
use crate::worker::message::ToWorker;
use serde::{Deserialize, Serialize};
use standin_model::{OpSeq, Timestamp};
use standin_protection::{Compared, Event, Flag, JobState, Problem, Stage, Verification, VerificationState, Verifier, VerifyAction};
use standin_replica::apply::Comparison;
use standin_wire::VerifyStatus;
use std::sync::Arc;

/// An agent that says nothing of its verification for so long does not carry it out; an agent without a connection may come back.
const SILENT_SECONDS: i64 = 60;
const DISCONNECTED_SECONDS: i64 = 24 * 3600;
/// Mirroring again what differs may mean a large file over a slow link.
const REPAIR_SECONDS: i64 = 7 * 24 * 3600;
const SECOND: i64 = 1_000_000_000;
/// Records that the API shows of one job.
pub const HISTORY_MAX: u32 = 100;

/// A verification because of a power cut that could not begin, or was interrupted, is begun again after this long.
const POWER_CUT_AGAIN_SECONDS: i64 = 60;

/// How a job is verified by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifySchedule {
    pub every_hours: u32,
    #[serde(default)]
    pub repair: bool,
    #[serde(default)]
    pub rate: u64,
    /// When the last one was begun, or the schedule made.
    #[serde(default)]
    pub last: Timestamp,
}

/// A verification that is under way.
pub struct Underway {
    pub verifier: Verifier,
    /// What the agent last said of it.
    pub source: Option<VerifyStatus>,
    heard: Timestamp,
    /// While repairing: the replica has been seen to lack what is mirrored again.
    lacking: bool,
    /// The source's power cut that it comes after.
    power_cut: Option<OpSeq>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VerifyRequest {
    pub repair: bool,
    /// Bytes a second that the source may read; 0 for the agent's default.
    pub rate: u64,
}

pub fn begin(appliance: &Arc<Appliance>, shell: &Arc<JobShell>, request: &VerifyRequest, actor: &str) -> Result<Verification, Problem> {
    let name = &shell.record.name;
    let show = format!("standin job show {name}");
    let state = shell.live().job.state.clone();
    if !matches!(state, JobState::Protected { .. }) {
        let cause = format!("{name} is {}, and only a protected job can be verified", state.name());
        return Err(Problem::new("E4070", cause, format!("standin watch {name} --until protected")));
    }
    let Some(session) = appliance.session(&shell.record.agent).filter(|session| session.runs(&shell.record.id)) else {
        return Err(Problem::new("E4071", "the source's agent is not connected, or the job is paused", show));
    };
    let at = now();
    // One lock from looking to taking, so that of two requests one is refused.
    let begun = shell.update(|live| -> anyhow::Result<Option<u64>> {
        if live.verify.is_some() {
            return Ok(None);
        }
        let mut verifier = Verifier::new(0, at, actor, request.repair, request.rate);
        let id = appliance.store.add_verification(&shell.record.id, &verifier.record)?;
        verifier.run = u64::try_from(id)?;
        let run = verifier.run;
        live.verify = Some(Underway { verifier, source: None, heard: at, lacking: false, power_cut: live.replica.power_cut });
        Ok(Some(run))
    });
    let run = match begun.map_err(errors::internal)? {
        Some(run) => run,
        None => {
            return Err(Problem::new("E4072", format!("{name} is being verified already"), format!("standin job verifications {name}")));
        }
    };
    appliance.event(shell, Event::VerificationStarted);
    appliance.log(Some(shell), actor, None, "starts a verification");
    session.verify(&shell.record.id, run, request.rate);
    let record = shell.live().verify.as_ref().map(|underway| underway.verifier.record.clone());
    record.ok_or_else(|| errors::internal("the verification ended at once"))
}

/// What the worker compared.
pub fn compared(appliance: &Arc<Appliance>, shell: &Arc<JobShell>, comparison: Comparison) {
    let Comparison { run, pass, checks, bytes, differences, unnamed_differences, not_compared, end } = comparison;
    let differences = differences.into_iter().map(|difference| (difference.suspect, difference.what)).collect();
    let part = Compared { run, pass, checks, bytes, differences, unnamed_differences, not_compared, end };
    step(appliance, shell, |underway| {
        underway.heard = now();
        underway.verifier.compared(now(), part)
    });
}

/// The verification under way and how far it has come.
pub fn so_far(live: &Live) -> Option<(u64, Verification)> {
    let underway = live.verify.as_ref()?;
    let mut record = underway.verifier.record.clone();
    // In its end the agent tells the same of the whole first pass.
    if let Some(source) = underway.source.filter(|_| record.nodes == 0) {
        (record.nodes, record.bytes) = (source.nodes, source.bytes);
    }
    Some((underway.verifier.run, record))
}

/// The worker has asked for nodes. Those of a repair may have come before anybody looks again.
pub fn note_wants(live: &mut Live) {
    if let Some(underway) = &mut live.verify {
        underway.lacking |= underway.verifier.stage() == Some(Stage::Repairing);
    }
}

/// What the agent says of the verification that it carries out.
pub fn status(appliance: &Arc<Appliance>, shell: &Arc<JobShell>, status: Option<VerifyStatus>) {
    let stray = shell.update(|live| match &mut live.verify {
        Some(underway) if status.is_some_and(|status| status.run == underway.verifier.run) => {
            (underway.source, underway.heard) = (status, now());
            None
        }
        _ => status,
    });
    // One that nobody here waits for, since this process was restarted.
    if let Some((stray, session)) = stray.zip(appliance.session(&shell.record.agent)) {
        session.end_verify(&shell.record.id, stray.run);
    }
}

pub fn interrupt(appliance: &Arc<Appliance>, shell: &Arc<JobShell>, reason: &str) {
    step(appliance, shell, |underway| Some(underway.verifier.interrupt(now(), reason)));
}

/// Lets the verifier decide under the job's lock, and carries out what it says.
fn step(appliance: &Arc<Appliance>, shell: &Arc<JobShell>, decide: impl FnOnce(&mut Underway) -> Option<VerifyAction>) {
    let action = shell.update(|live| live.verify.as_mut().and_then(decide));
    match action {
        None => {}
        Some(VerifyAction::Again { pass, suspects }) => {
            let order = shell.live().verify.as_ref().map(|underway| (underway.verifier.run, underway.verifier.record.rate));
            if let Some((session, (run, rate))) = appliance.session(&shell.record.agent).zip(order) {
                session.verify_again(&shell.record.id, run, pass, suspects, rate);
            } else {
                interrupt(appliance, shell, "the agent's connection ended between two passes");
            }
        }
        Some(VerifyAction::Repair { nodes }) => {
            let text = format!("verification: {} nodes differ and are mirrored again", nodes.len());
            appliance.log(Some(shell), "appliance", Some("STANDIN-E4073"), &text);
            shell.tell_worker(&ToWorker::Repair { nodes });
        }
        Some(VerifyAction::Ended) => end(appliance, shell),
    }
}

fn end(appliance: &Arc<Appliance>, shell: &Arc<JobShell>) {
    let Some(underway) = shell.update(|live| live.verify.take()) else { return };
    let Verifier { run, record, .. } = underway.verifier;
    if let Err(error) = appliance.store.save_verification(i64::try_from(run).unwrap_or(i64::MAX), &record) {
        tracing::error!(job = shell.record.name, %error, "the store does not take a verification's result");
    }
    if let Some(session) = appliance.session(&shell.record.agent) {
        session.end_verify(&shell.record.id, run);
    }
    let row = HistoryRow::new("verification", shell.live().target.applied, None, &record.summary());
    if let Err(error) = appliance.store.add_history(&shell.record.id, now(), &row) {
        tracing::error!(job = shell.record.name, %error, "the history does not take a verification");
    }
    if let Some(power_cut) = underway.power_cut.filter(|_| matches!(record.state, VerificationState::Equal | VerificationState::Repaired)) {
        shell.tell_worker(&ToWorker::PowerCutVerified { power_cut });
    }
    let differs = record.differences > 0;
    appliance.event(shell, Event::VerificationEnded);
    appliance.log(Some(shell), "appliance", differs.then_some("STANDIN-E4073"), &format!("verification: {}", record.summary()));
}

/// Once a second: what a verification waits for, and what ends it.
pub fn tick(appliance: &Arc<Appliance>, shell: &Arc<JobShell>) {
    let connected = appliance.session(&shell.record.agent).is_some();
    let at = now();
    let (reason, repaired, due) = shell.update(|live| {
        let after_power_cut = live.is_power_cut_due(at);
        let protected = matches!(live.job.state, JobState::Protected { .. });
        let wanted = live.replica.wanted > 0 || !live.replica.is_consistent;
        let (paused, state) = (live.job.flags.has(Flag::Paused), live.job.state.clone());
        let Some(underway) = &mut live.verify else {
            let possible = protected && connected;
            if possible && after_power_cut {
                live.power_cut_tried = at;
                let rate = live.verify_schedule.as_ref().map_or(0, |schedule| schedule.rate);
                return (None, false, Some((VerifyRequest { repair: true, rate }, Cause::PowerCut)));
            }
            let due = live.verify_schedule.as_ref().filter(|schedule| possible && schedule.is_due(at));
            let request = due.map(|schedule| VerifyRequest { repair: schedule.repair, rate: schedule.rate });
            return (None, false, request.map(|request| (request, Cause::Schedule)));
        };
        let repairing = underway.verifier.stage() == Some(Stage::Repairing);
        underway.lacking |= repairing && (wanted || !protected);
        let repaired = repairing && underway.lacking && protected && !wanted;
        let silent = at.0.saturating_sub(underway.heard.0) / SECOND;
        let limit = if repairing {
            REPAIR_SECONDS
        } else if connected {
            SILENT_SECONDS
        } else {
            DISCONNECTED_SECONDS
        };
        let reason = match state {
            JobState::Protected { .. } | JobState::Resyncing { .. } if paused => Some("the job was paused".to_owned()),
            JobState::Protected { .. } | JobState::Resyncing { .. } if silent > limit && !repaired => {
                Some(format!("the agent has not been at it for {silent} s: its queue was full, or it is too old to verify"))
            }
            JobState::Protected { .. } | JobState::Resyncing { .. } => None,
            other => Some(format!("the job is {}", other.name())),
        };
        (reason, repaired, None)
    });
    if let Some(reason) = reason {
        interrupt(appliance, shell, &reason);
    } else if repaired {
        step(appliance, shell, |underway| {
            underway.heard = now();
            underway.verifier.is_repaired()
        });
    } else if let Some((request, cause)) = due {
        match cause {
            Cause::Schedule => by_schedule(appliance, shell, &request),
            Cause::PowerCut => by_power_cut(appliance, shell, &request),
        }
    }
}

/// Why a verification begins that nobody has asked for.
enum Cause {
    Schedule,
    PowerCut,
}

impl Live {
    fn is_power_cut_due(&self, at: Timestamp) -> bool {
        self.replica.power_cut.is_some() && at.0.saturating_sub(self.power_cut_tried.0) / SECOND >= POWER_CUT_AGAIN_SECONDS
    }
}

/// What the source lost in its power cut without a trace only a comparison of everything finds.
fn by_power_cut(appliance: &Arc<Appliance>, shell: &Arc<JobShell>, request: &VerifyRequest) {
    if let Err(problem) = begin(appliance, shell, request, "the source's power cut") {
        appliance.log(Some(shell), "appliance", Some(&problem.code), &problem.cause);
    }
}

impl VerifySchedule {
    fn is_due(&self, at: Timestamp) -> bool {
        at.0.saturating_sub(self.last.0) / SECOND >= i64::from(self.every_hours) * 3600
    }
}

/// Also one that is refused counts, so that it is not tried every second.
fn by_schedule(appliance: &Arc<Appliance>, shell: &Arc<JobShell>, request: &VerifyRequest) {
    let schedule = shell.live().verify_schedule.clone().map(|schedule| VerifySchedule { last: now(), ..schedule });
    if let Err(problem) = set_schedule(appliance, shell, schedule).and_then(|()| begin(appliance, shell, request, "schedule").map(drop)) {
        appliance.log(Some(shell), "schedule", Some(&problem.code), &problem.cause);
    }
}

pub fn set_schedule(appliance: &Appliance, shell: &JobShell, schedule: Option<VerifySchedule>) -> Result<(), Problem> {
    appliance.store.save_verify_schedule(&shell.record.id, schedule.as_ref()).map_err(errors::internal)?;
    shell.update(|live| live.verify_schedule = schedule);
    Ok(())
}

/// After a start of this process: nobody knows any more what its last verifications had found.
pub fn take_up(appliance: &Appliance, shell: &JobShell) -> anyhow::Result<()> {
    appliance.store.interrupt_verifications(&shell.record.id, now(), "the appliance was restarted")?;
    let schedule = appliance.store.verify_schedule(&shell.record.id)?;
    shell.update(|live| {
        live.verify_schedule = schedule;
        live.job.flags.clear(Flag::Verifying);
    });
    Ok(())
}
