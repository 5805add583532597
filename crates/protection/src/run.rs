//! One execution of a runbook: the state of every step, recorded before and after it, so that a crash in between is seen.
//!
//! ```text
//! step: pending ─► running ─► done          run: running ─► succeeded
//!          ▲          └─────► failed ─┐             ├─────► aborted  (replication goes on)
//!          └──────────────────────────┘             └─────► failed   (can be resumed: the source may be off)
//! ```
//!
//! Steps are idempotent. After a crash of the appliance the run resumes at the first step that is not done — except that a source which
//! was quiesced but not fenced has thawed itself meanwhile, so quiesce and drain begin anew.

use crate::fence::{LaunchAuthority, SourceFenced, Waiver};
use crate::{FailoverMode, Problem, Runbook, StepKind};
use serde::{Deserialize, Serialize};
use standin_model::{OpSeq, Timestamp};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum StepState {
    Pending,
    Running { started: Timestamp },
    Done { started: Timestamp, ended: Timestamp, note: String },
    Failed { started: Timestamp, ended: Timestamp, problem: Problem },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum RunState {
    Running,
    Succeeded { ended: Timestamp },
    Aborted { ended: Timestamp, problem: Problem },
    Failed { ended: Timestamp, problem: Problem },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    pub runbook: Runbook,
    pub started: Timestamp,
    pub state: RunState,
    pub steps: Vec<StepState>,
    /// The last item that the replica takes: the one before the source stood still, or the last durable one when its fence was waived.
    pub cut: Option<OpSeq>,
    pub authority: Option<LaunchAuthority>,
    /// What says that the source runs although its agent had confirmed the fence. Only a waiver takes it back.
    #[serde(default)]
    pub doubt: Option<String>,
    /// When the fence was ordered, if the appliance ended before it could record an answer: the source may be off or not.
    #[serde(default)]
    pub fence_ordered: Option<Timestamp>,
}

impl Run {
    pub fn new(runbook: Runbook, now: Timestamp) -> Run {
        let steps = vec![StepState::Pending; runbook.steps.len()];
        Run { runbook, started: now, state: RunState::Running, steps, cut: None, authority: None, doubt: None, fence_ordered: None }
    }

    /// The step to do next, with its index; `None` when all are done or the run has ended.
    pub fn next(&self) -> Option<(usize, StepKind)> {
        if self.state != RunState::Running {
            return None;
        }
        let index = self.steps.iter().position(|step| !matches!(step, StepState::Done { .. }))?;
        self.runbook.steps.get(index).map(|step| (index, step.kind))
    }

    pub fn start(&mut self, index: usize, now: Timestamp) {
        assert!(self.next().map(|(next, _)| next) == Some(index), "failover: steps run in their order");
        self.steps[index] = StepState::Running { started: now };
    }

    pub fn done(&mut self, index: usize, now: Timestamp, note: String) {
        let StepState::Running { started } = self.steps[index] else { panic!("failover: a step that does not run cannot end") };
        self.steps[index] = StepState::Done { started, ended: now, note };
        if self.next().is_none() {
            self.state = RunState::Succeeded { ended: now };
        }
    }

    /// Ends the run: aborted where replication can go on, failed (resumable) where the source may be off.
    pub fn failed(&mut self, index: usize, now: Timestamp, problem: Problem) {
        let StepState::Running { started } = self.steps[index] else { panic!("failover: a step that does not run cannot fail") };
        self.steps[index] = StepState::Failed { started, ended: now, problem: problem.clone() };
        let can_abort = self.runbook.steps[index].kind.can_abort() && !self.is_fenced();
        self.state = if can_abort { RunState::Aborted { ended: now, problem } } else { RunState::Failed { ended: now, problem } };
    }

    /// Takes up a run that a crash interrupted or that failed behind the fence.
    pub fn resume(&mut self) {
        if matches!(self.state, RunState::Succeeded { .. } | RunState::Aborted { .. }) {
            return;
        }
        self.state = RunState::Running;
        if self.authority.is_none() {
            let ordered = self.runbook.steps.iter().zip(&self.steps).find_map(|(step, state)| match state {
                StepState::Running { started } if step.kind == StepKind::Fence => Some(*started),
                _ => None,
            });
            self.fence_ordered = ordered.or(self.fence_ordered);
        }
        for step in &mut self.steps {
            if !matches!(step, StepState::Done { .. }) {
                *step = StepState::Pending;
            }
        }
        if self.runbook.mode == FailoverMode::Planned && self.authority.is_none() {
            self.cut = None;
            self.steps.fill(StepState::Pending);
        }
    }

    /// Ends a run that a crash cut off before its job knew of it: nothing was done yet.
    pub fn abandon(&mut self, now: Timestamp, problem: Problem) {
        if self.state == RunState::Running {
            self.state = RunState::Aborted { ended: now, problem };
        }
    }

    pub fn record_fenced(&mut self, token: SourceFenced) {
        assert_eq!(token.job(), &self.runbook.job, "failover: a fence of another job");
        self.authority = Some(LaunchAuthority::Fenced(token));
    }

    /// A sign that the source was not switched off after all.
    pub fn doubt_fence(&mut self, sign: String) {
        if self.is_fenced() {
            self.doubt.get_or_insert(sign);
        }
    }

    /// An operator answers for a source that was fenced, or for one whose fence is in doubt.
    pub fn waive(&mut self, waiver: Waiver) {
        self.authority = Some(LaunchAuthority::Waived(waiver));
        self.doubt = None;
    }

    /// What allows to power the replica on now.
    pub fn launch_authority(&self) -> Result<&LaunchAuthority, Problem> {
        let job = &self.runbook.job_name;
        match (&self.authority, &self.doubt) {
            (None, _) => Err(Problem::new("E4011", "nothing proves that the source is off", format!("standin failover {job}"))),
            (Some(LaunchAuthority::Fenced(_)), Some(sign)) => {
                let cause = format!("the source's agent said that it switches the source off, but {sign}");
                let next = format!("switch the source off, then: standin failover {job} --waive-fence 'YOUR NAME' 'it is switched off'");
                Err(Problem::new("E4018", cause, next))
            }
            (Some(authority), _) => Ok(authority),
        }
    }

    /// Takes the waiver as authority, if the runbook has one.
    pub fn record_waiver(&mut self) -> bool {
        self.authority = self.runbook.waiver.clone().map(LaunchAuthority::Waived);
        self.authority.is_some()
    }

    pub fn is_fenced(&self) -> bool {
        matches!(self.authority, Some(LaunchAuthority::Fenced(_)))
    }
}

#[cfg(test)]
mod tests;
