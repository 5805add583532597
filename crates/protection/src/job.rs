//! One job: its state, its flags, and what every event does to them.
//!
//! [`Job::apply`] is total: an event that means nothing in a state changes nothing. It never fails and never waits; what has to be done
//! in the world is pushed as an [`Action`], and the shell performs it. Actions are safe to perform twice.

use crate::{FailoverMode, Flag, Flags, JobState, Problem};
use serde::{Deserialize, Serialize};
use standin_model::{OpSeq, Timestamp};

/// A lag above this raises `backlog`, and one below half of it clears it, so that the flag does not flutter.
pub const BACKLOG_SECONDS: u64 = 60;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    pub state: JobState,
    pub flags: Flags,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The operator accepted the protection summary.
    Accepted,
    DisksCreated,
    DisksRefused(Problem),
    AgentConnected,
    AgentDisconnected,
    WorkerRunning,
    WorkerStopped(Problem),
    /// The agent cannot carry out what it was told.
    AgentRefused(Problem),
    /// A protected volume is not at its mount point.
    VolumeUnmounted(Problem),
    /// All are there.
    VolumesMounted,
    /// The agent runs the job.
    StreamStarted,
    /// The journal or the datastore refuses; nothing is acknowledged to the agent meanwhile.
    JournalRefused(Problem),
    JournalAccepts,
    /// The worker applies nothing until the datastore has space again.
    ReplicaFull(Problem),
    ReplicaHasRoom,
    /// The worker applied `Marker::Consistent`.
    ConsistentApplied {
        seq: OpSeq,
    },
    /// The worker applied `Marker::Gap` or asked for nodes that it does not know.
    GapApplied {
        reason: String,
    },
    /// How old the replica's state is.
    LagMeasured {
        seconds: u64,
    },
    Paused,
    Resumed,
    FailoverStarted {
        mode: FailoverMode,
    },
    FailoverAborted(Problem),
    FailoverFinished,
    VerificationStarted,
    VerificationEnded,
    /// The agent says that it captures with a weaker promise, and why; or that it does not.
    CaptureIsPeriodic(Option<Problem>),
    /// Changes come faster than they are sent, or no longer do.
    Converging(Option<Problem>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    CreateDisks,
    StartWorker,
    /// Sends StartJob, if there is a session.
    StartStream,
    StopStream,
    /// Sends Thaw; harmless when nothing is frozen.
    ThawSource,
    /// Boot repair, ahead of the failover.
    PrepareBoot,
    /// The agent is told that the job has failed over and that it must send nothing more.
    TellFailedOver,
    /// One line for the event log.
    Log {
        code: Option<String>,
        text: String,
    },
}

impl Default for Job {
    fn default() -> Self {
        Job { state: JobState::Created, flags: Flags::default() }
    }
}

impl Job {
    /// Moves to `next` and logs one line. The only place where the state changes.
    fn transition(&mut self, next: JobState, actions: &mut Vec<Action>) {
        assert!(self.state.may_become(&next), "job: {} may not become {}", self.state.name(), next.name());
        actions.push(log(format!("{} -> {}", self.state.name(), next.name())));
        self.state = next;
    }

    pub fn apply(&mut self, now: Timestamp, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Accepted | Event::DisksCreated | Event::DisksRefused(_) => self.apply_provisioning(now, event, actions),
            Event::AgentConnected | Event::AgentDisconnected | Event::Paused | Event::Resumed => self.apply_session(event, actions),
            Event::WorkerRunning => self.flags.clear(Flag::Degraded),
            Event::JournalAccepts | Event::ReplicaHasRoom | Event::StreamStarted => self.flags.clear(Flag::Degraded),
            Event::WorkerStopped(problem) | Event::JournalRefused(problem) | Event::ReplicaFull(problem) | Event::AgentRefused(problem) => {
                self.degrade(problem, actions);
            }
            Event::ConsistentApplied { .. } | Event::GapApplied { .. } => self.apply_marker(now, event, actions),
            Event::LagMeasured { seconds } => self.measure(seconds),
            Event::VolumeUnmounted(problem) => self.raise(Flag::Unmounted, problem, actions),
            Event::VolumesMounted => self.flags.clear(Flag::Unmounted),
            Event::VerificationStarted => self.flags.set(Flag::Verifying, None),
            Event::VerificationEnded => self.flags.clear(Flag::Verifying),
            Event::Converging(problem) => self.note(Flag::NotConverging, problem, "it comes nearer to its source again", actions),
            Event::CaptureIsPeriodic(problem) => {
                self.note(Flag::Periodic, problem, "every operation of the source is captured in its order from here on", actions)
            }
            Event::FailoverStarted { .. } | Event::FailoverAborted(_) | Event::FailoverFinished => self.apply_failover(now, event, actions),
        }
    }

    fn apply_provisioning(&mut self, now: Timestamp, event: Event, actions: &mut Vec<Action>) {
        match (&self.state, event) {
            (JobState::Created, Event::Accepted) => {
                self.transition(JobState::Provisioning, actions);
                actions.push(Action::CreateDisks);
            }
            (JobState::Provisioning, Event::DisksCreated) => {
                self.flags.clear(Flag::Degraded);
                self.transition(JobState::Mirroring { since: now }, actions);
                actions.push(Action::StartWorker);
                self.start_stream(actions);
            }
            (JobState::Provisioning, Event::DisksRefused(problem)) => self.degrade(problem, actions),
            _ => {}
        }
    }

    fn apply_session(&mut self, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::AgentConnected => {
                self.flags.clear(Flag::Disconnected);
                match self.state {
                    JobState::FailedOver { .. } | JobState::Reversing { .. } => actions.push(Action::TellFailedOver),
                    _ => self.start_stream(actions),
                }
            }
            Event::AgentDisconnected => self.flags.set(Flag::Disconnected, None),
            Event::Paused if !self.flags.has(Flag::Paused) => {
                self.flags.set(Flag::Paused, None);
                actions.push(Action::StopStream);
                actions.push(log("paused by the operator"));
            }
            Event::Resumed if self.flags.has(Flag::Paused) => {
                self.flags.clear(Flag::Paused);
                actions.push(log("resumed by the operator"));
                self.start_stream(actions);
            }
            _ => {}
        }
    }

    fn start_stream(&self, actions: &mut Vec<Action>) {
        let blocked = self.flags.has(Flag::Paused) || self.flags.has(Flag::Disconnected);
        if self.state.wants_stream() && !blocked {
            actions.push(Action::StartStream);
        }
    }

    fn apply_marker(&mut self, now: Timestamp, event: Event, actions: &mut Vec<Action>) {
        match (&mut self.state, event) {
            (JobState::Protected { consistent, .. }, Event::ConsistentApplied { seq }) => *consistent = seq,
            (JobState::Mirroring { .. } | JobState::Resyncing { .. }, Event::ConsistentApplied { seq }) => {
                self.transition(JobState::Protected { since: now, consistent: seq }, actions);
                actions.push(Action::PrepareBoot);
            }
            (JobState::Protected { consistent, .. }, Event::GapApplied { reason }) => {
                let consistent = *consistent;
                self.transition(JobState::Resyncing { since: now, consistent, reason }, actions);
            }
            // While a failover drains, what it returns to on abort must still be true.
            (JobState::FailingOver { before, .. }, Event::ConsistentApplied { seq }) => {
                **before = JobState::Protected { since: now, consistent: seq };
            }
            (JobState::FailingOver { before, .. }, Event::GapApplied { reason }) => {
                if let JobState::Protected { consistent, .. } = **before {
                    **before = JobState::Resyncing { since: now, consistent, reason };
                }
            }
            _ => {}
        }
    }

    fn apply_failover(&mut self, now: Timestamp, event: Event, actions: &mut Vec<Action>) {
        match (&self.state, event) {
            (JobState::Protected { .. } | JobState::Resyncing { .. }, Event::FailoverStarted { mode }) => {
                let before = Box::new(self.state.clone());
                self.transition(JobState::FailingOver { since: now, mode, before }, actions);
            }
            (JobState::FailingOver { before, mode, .. }, Event::FailoverAborted(problem)) => {
                let (before, mode) = ((**before).clone(), *mode);
                actions.push(Action::Log { code: Some(problem.code.clone()), text: format!("failover aborted: {}", problem.cause) });
                self.transition(before, actions);
                if mode == FailoverMode::Planned {
                    actions.push(Action::ThawSource);
                }
                actions.push(Action::StartWorker);
                self.start_stream(actions);
            }
            (JobState::FailingOver { .. }, Event::FailoverFinished) => {
                self.flags.clear(Flag::Degraded);
                self.flags.clear(Flag::Backlog);
                self.flags.clear(Flag::NotConverging);
                self.transition(JobState::FailedOver { since: now }, actions);
                actions.push(Action::TellFailedOver);
            }
            _ => {}
        }
    }

    fn degrade(&mut self, problem: Problem, actions: &mut Vec<Action>) {
        self.raise(Flag::Degraded, problem, actions);
    }

    fn raise(&mut self, flag: Flag, problem: Problem, actions: &mut Vec<Action>) {
        // What is only said again is no news.
        if self.flags.problem(flag) != Some(&problem) {
            actions.push(Action::Log { code: Some(problem.code.clone()), text: problem.cause.clone() });
        }
        self.flags.set(flag, Some(problem));
    }

    /// A flag that is logged when it comes and when it goes, however its problem changes meanwhile.
    fn note(&mut self, flag: Flag, problem: Option<Problem>, gone: &str, actions: &mut Vec<Action>) {
        match problem {
            Some(problem) => {
                if !self.flags.has(flag) {
                    actions.push(Action::Log { code: Some(problem.code.clone()), text: problem.cause.clone() });
                }
                self.flags.set(flag, Some(problem));
            }
            None if self.flags.has(flag) => {
                self.flags.clear(flag);
                actions.push(log(gone));
            }
            None => {}
        }
    }

    fn measure(&mut self, seconds: u64) {
        if seconds > BACKLOG_SECONDS && self.state.wants_stream() {
            self.flags.set(Flag::Backlog, None);
        } else if seconds <= BACKLOG_SECONDS / 2 {
            self.flags.clear(Flag::Backlog);
        }
    }
}

fn log(text: impl Into<String>) -> Action {
    Action::Log { code: None, text: text.into() }
}

#[cfg(test)]
mod tests;
