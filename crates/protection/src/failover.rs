//! The failover planner: facts of a job in, an immutable runbook or all problems out.

use crate::fence::Waiver;
use crate::point::{choose_point, describe, last_consistent};
use crate::{FailoverMode, JobState, Problem, Runbook, Step, StepKind};
use serde::{Deserialize, Serialize};
use standin_model::{JobId, OpSeq, RecoveryPoint, Timestamp};

/// What the operator asks for. Without a mode, a connected source means planned and a waiver means unplanned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FailoverRequest {
    pub mode: Option<FailoverMode>,
    pub waiver: Option<Waiver>,
    /// A recovery point by id or name, or `now` for the replica as it is. Without it: the replica, or, while that is being resynced, its last
    /// consistent point.
    pub at: Option<String>,
    /// Show the runbook only.
    pub plan_only: bool,
}

#[derive(Clone, Debug)]
pub struct FailoverFacts {
    pub job: JobId,
    pub job_name: String,
    pub state: JobState,
    pub agent_connected: bool,
    /// Why the source sends nothing although it is connected, if that is so.
    pub stream_stopped: Option<String>,
    /// Why the host could not run the replica's machine now.
    pub obstacles: Vec<Problem>,
    pub durable: OpSeq,
    pub applied: OpSeq,
    /// Age of the newest durable state, if known: what an unplanned failover loses at most.
    pub loss_seconds: Option<u64>,
    /// The source tells only which nodes changed: it becomes consistent by standing still, in whatever state the job is.
    pub periodic: bool,
    pub replica_name: String,
    pub boot_prepared: bool,
    pub points: Vec<RecoveryPoint>,
}

pub fn plan_failover(now: Timestamp, facts: &FailoverFacts, request: &FailoverRequest) -> Result<Runbook, Vec<Problem>> {
    let mode = request.mode.unwrap_or(if request.waiver.is_some() { FailoverMode::Unplanned } else { FailoverMode::Planned });
    let mut problems = Vec::new();
    let job = &facts.job_name;
    let consistent = check_state(now, facts, mode, &mut problems);
    let point = choose_point(facts, mode, request, &mut problems);
    if mode == FailoverMode::Planned && !facts.agent_connected {
        let next = format!("standin failover {job} --waive-fence 'YOUR NAME' 'WHY THE SOURCE IS OFF'");
        let cause = "the source's agent is not connected, so it can be neither quiesced nor fenced";
        problems.push(Problem::new("E4003", cause, next));
    }
    if let Some(why) = facts.stream_stopped.as_ref().filter(|_| mode == FailoverMode::Planned && facts.agent_connected) {
        let cause = format!("replication of {job} is stopped ({why}), so that nothing could be drained");
        problems.push(Problem::new("E4016", cause, format!("standin job resume {job}")));
    }
    // Behind the fence there is no way back, so what can be known before is asked before.
    problems.extend(facts.obstacles.iter().cloned());
    if mode == FailoverMode::Unplanned && request.waiver.is_none() {
        let next = format!("standin failover {job} --waive-fence 'YOUR NAME' 'WHY THE SOURCE IS OFF'");
        problems.push(Problem::new("E4004", "nothing proves that the source is off, and two of one server must never run", next));
    }
    let Some(consistent) = consistent.filter(|_| problems.is_empty()) else { return Err(problems) };
    Ok(Runbook {
        job: facts.job.clone(),
        job_name: job.clone(),
        mode,
        planned_at: now,
        consistent: point.as_ref().map_or(consistent, |point| point.seq),
        waiver: request.waiver.clone().filter(|_| mode == FailoverMode::Unplanned),
        steps: steps(now, facts, mode, request, point.as_ref()),
        warnings: warnings(now, facts, mode, point.as_ref()),
        point,
    })
}

fn check_state(now: Timestamp, facts: &FailoverFacts, mode: FailoverMode, problems: &mut Vec<Problem>) -> Option<OpSeq> {
    let job = &facts.job_name;
    match &facts.state {
        JobState::FailedOver { .. } => {
            problems.push(Problem::new("E4002", format!("{job} has failed over already"), format!("standin job show {job}")));
        }
        JobState::FailingOver { .. } => {
            problems.push(Problem::new("E4005", format!("a failover of {job} is running"), format!("standin job show {job}")));
        }
        JobState::Resyncing { .. } if mode == FailoverMode::Planned && !facts.periodic => {
            let cause = format!("{job} is resyncing, and a planned failover starts from a consistent replica");
            problems.push(match last_consistent(&facts.points) {
                Some(point) => {
                    let cause = format!("{cause}. The last consistent recovery point is {}", describe(point, now));
                    let next = format!(
                        "wait: standin watch {job}; or, with the source off: standin failover {job} --at {} --waive-fence 'YOUR NAME' 'WHY THE SOURCE IS OFF'",
                        point.id()
                    );
                    Problem::new("E4006", cause, next)
                }
                None => Problem::new("E4006", cause, format!("standin watch {job}")),
            });
        }
        state if state.consistent().is_none() => {
            let cause = format!("{job} is {}; there is no consistent replica to fail over to yet", state.name());
            problems.push(Problem::new("E4001", cause, format!("standin watch {job}")));
        }
        _ => {}
    }
    facts.state.consistent()
}

fn steps(now: Timestamp, facts: &FailoverFacts, mode: FailoverMode, request: &FailoverRequest, point: Option<&RecoveryPoint>) -> Vec<Step> {
    let step = |kind: StepKind, detail: String| Step { kind, title: kind.title().into(), detail };
    let mut steps = match mode {
        FailoverMode::Planned => vec![
            step(StepKind::Quiesce, "freeze the protected file systems and capture what is left".into()),
            step(StepKind::Drain, "apply up to the last captured operation".into()),
            step(StepKind::Fence, "the agent powers the source off at once; its file systems are frozen and clean".into()),
        ],
        FailoverMode::Unplanned => {
            let by = request.waiver.as_ref().map(|w| format!("waived by {}: {}", w.name(), w.reason())).unwrap_or_default();
            let drain = step(StepKind::Drain, format!("apply everything that is durable here, up to {}", facts.durable));
            // What is durable is not in an older point anyway, and the replica itself stays as it is.
            [Some(step(StepKind::RequireFence, by)), Some(drain).filter(|_| point.is_none())].into_iter().flatten().collect()
        }
    };
    if let Some(point) = point {
        let detail = format!("{}; the point itself and the replica as it is stay untouched", describe(point, now));
        steps.push(step(StepKind::UsePoint, detail));
    }
    let inject = if facts.boot_prepared && point.is_none() {
        "put the prepared boot files in place"
    } else {
        "prepare the boot files, then put them in place"
    };
    steps.push(step(StepKind::InjectDrivers, inject.into()));
    steps.push(step(StepKind::DetachDisks, "unmount, check and release the replica's disks".into()));
    steps.push(step(StepKind::AttachDisks, "through an overlay; the disk as it was at the cut stays untouched as a recovery point".into()));
    steps.push(step(StepKind::PowerOn, format!("start the replica VM {}", facts.replica_name)));
    steps
}

fn warnings(now: Timestamp, facts: &FailoverFacts, mode: FailoverMode, point: Option<&RecoveryPoint>) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(point) = point {
        warnings.push(format!("boots recovery point {}: what the source did since then is not in it", describe(point, now)));
    }
    if mode == FailoverMode::Unplanned {
        match facts.loss_seconds {
            _ if point.is_some() => {}
            Some(seconds) => warnings.push(format!("changes of the last {seconds} s on the source may be missing")),
            None => warnings.push("changes that had not reached the appliance are missing".into()),
        }
        if facts.agent_connected {
            warnings.push("the source's agent IS connected: the source is running. A planned failover would lose nothing".into());
        }
    }
    // A source that stands still for the failover is read to its end first.
    if let (JobState::Resyncing { reason, .. }, FailoverMode::Unplanned) = (&facts.state, mode) {
        warnings.push(match point {
            Some(_) => {
                format!("the replica is being resynced ({reason}), so a point from before is booted; the replica as it is: --at now")
            }
            None => format!("the replica was being resynced ({reason}): files may be from different moments"),
        });
    }
    if !facts.boot_prepared {
        warnings.push("boot repair has not been prepared yet; the failover takes longer by that".into());
    }
    warnings
}

#[cfg(test)]
mod tests;
