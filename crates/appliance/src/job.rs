//! The shell of one job: the pure machine, what is known about its stream right now, and handles to its threads and its worker.
//!
//! `live` is the single owner of everything that changes; threads wait on `changed` instead of polling. The journal has a lock of its own,
//! because it is held across fdatasync; the order is journal before live, and neither is held while a message is sent to an agent.

use crate::layout::{Layout, now};
use crate::link::WorkerLink;
use crate::network::JobLink;
use crate::points::Points;
use crate::progress::MirrorSpeed;
use crate::store::{JobRecord, StreamState};
use crate::verify::{Underway, VerifySchedule};
use crate::worker::message::{ToWorker, WorkerState};
use anyhow::{Context, Result};
use serde::Serialize;
use standin_journal::{Journal, JournalOptions};
use standin_model::{NodeId, OpSeq, RecoveryPoint, SourceWatermarks, TargetWatermarks, Timestamp};
use standin_protection::{Convergence, Flag, Job, JobState, Problem, Run, StepKind, StepState, Work};
use standin_wire::{CaptureStatus, ImpactStatus, LeftOut, MirrorProgress};
use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

pub struct JobShell {
    pub record: JobRecord,
    pub journal: Mutex<Journal>,
    live: Mutex<Live>,
    changed: Condvar,
}

pub struct Live {
    pub job: Job,
    pub stream: StreamState,
    pub target: TargetWatermarks,
    /// Number of the newest intake; the others have nothing to say any more.
    pub intake: u64,
    /// Where the journal ended when this process opened it, until a worker has said that it is not ahead of that.
    pub opened_at: Option<OpSeq>,
    /// Bytes of the journal's files.
    pub journal_bytes: u64,
    pub source: Option<SourceStatus>,
    pub source_at: Option<Timestamp>,
    pub speed: MirrorSpeed,
    pub convergence: Convergence,
    /// Capture time of the last applied segment, by the source's clock.
    pub applied_captured_at: Option<Timestamp>,
    /// Capture time of the last durable segment, by the source's clock.
    pub durable_captured_at: Option<Timestamp>,
    /// When `stream` was stored last.
    pub stream_saved_at: Timestamp,
    pub replica: WorkerState,
    pub worker: Option<WorkerLink>,
    pub worker_restarts: u64,
    /// The failover executor needs a worker although the state does not.
    pub worker_held: bool,
    pub supervised: bool,
    pub boot: BootState,
    pub points: Points,
    /// The agent's answers to the executor.
    pub quiesced: Option<OpSeq>,
    pub fenced: bool,
    pub refused: Option<Problem>,
    /// What says that the source runs although its agent had confirmed the fence.
    pub doubt: Option<String>,
    /// Number of the last question to a worker.
    pub question: u64,
    /// The worker's answer to it.
    pub step_answer: Option<Result<String, Problem>>,
    /// Nodes that the agent has to mirror again; a new session is asked for all of them once more.
    pub wants: BTreeSet<NodeId>,
    pub run: Option<(i64, Run)>,
    pub network: JobLink,
    pub verify: Option<Underway>,
    pub verify_schedule: Option<VerifySchedule>,
    /// When a verification was last begun because of a power cut of the source.
    pub power_cut_tried: Timestamp,
}

/// What the agent last said about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SourceStatus {
    pub watermarks: SourceWatermarks,
    /// Capture time of the newest item, by the source's clock.
    pub captured_at: Option<Timestamp>,
    /// While a mirror or resync runs. Totals are 0 where the agent does not know.
    pub mirror: Option<MirrorProgress>,
    pub queue_bytes: u64,
    pub bytes_changed: u64,
    pub bytes_spared: u64,
    pub left_out: LeftOut,
    pub bytes_sent: u64,
    pub gaps: u64,
    pub records_dropped: u64,
    /// `None` from an agent that says nothing of it.
    pub capture: Option<CaptureStatus>,
    /// `None` from an agent that does not measure it.
    pub impact: Option<ImpactStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum BootState {
    #[default]
    Unprepared,
    Preparing,
    Prepared {
        at: Timestamp,
    },
    Failed(Problem),
}

impl JobShell {
    pub fn open(layout: &Layout, record: JobRecord, job: Job, stream: StreamState, run: Option<(i64, Run)>) -> Result<Arc<JobShell>> {
        let dir = layout.journal(&record.id);
        std::fs::create_dir_all(layout.job(&record.id)).with_context(|| format!("making {}", layout.job(&record.id).display()))?;
        let journal = Journal::open(&dir, JournalOptions::default()).with_context(|| format!("opening the journal {}", dir.display()))?;
        if let Some((path, offset, damage)) = &journal.recovery().torn {
            let (bytes, path) = (journal.recovery().torn_bytes, path.display());
            tracing::warn!(job = record.name, bytes, %path, offset, %damage, "cut a torn end off the journal");
        }
        let durable = journal.durable();
        let live = Live {
            job,
            stream,
            // What is durable was received; how much of it is applied, the worker says.
            target: TargetWatermarks { received: durable, durable, applied: OpSeq::ZERO },
            intake: 0,
            opened_at: Some(durable),
            journal_bytes: journal.bytes(),
            source: None,
            source_at: None,
            speed: MirrorSpeed::default(),
            convergence: Convergence::default(),
            applied_captured_at: None,
            durable_captured_at: None,
            stream_saved_at: Timestamp(0),
            replica: WorkerState::default(),
            worker: None,
            worker_restarts: 0,
            worker_held: false,
            supervised: false,
            boot: BootState::Unprepared,
            points: Points::default(),
            quiesced: None,
            fenced: false,
            refused: None,
            doubt: None,
            question: 0,
            step_answer: None,
            wants: BTreeSet::new(),
            run,
            network: JobLink::default(),
            verify: None,
            verify_schedule: None,
            power_cut_tried: Timestamp(0),
        };
        Ok(Arc::new(JobShell { record, journal: Mutex::new(journal), live: Mutex::new(live), changed: Condvar::new() }))
    }

    pub fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Changes what is known, and wakes everybody who waits for it.
    pub fn update<T>(&self, change: impl FnOnce(&mut Live) -> T) -> T {
        let result = change(&mut self.live());
        self.changed.notify_all();
        result
    }

    /// Waits until `ready` gives a value; `None` after `limit`.
    pub fn wait<T>(&self, limit: Duration, mut ready: impl FnMut(&mut Live) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + limit;
        let mut live = self.live();
        loop {
            if let Some(value) = ready(&mut live) {
                return Some(value);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            live = self.changed.wait_timeout(live, left).map_or_else(|poisoned| poisoned.into_inner().0, |(live, _)| live);
        }
    }

    /// Tells the worker something; false when there is none.
    pub fn tell_worker(&self, message: &ToWorker) -> bool {
        self.live().worker.as_mut().is_some_and(|worker| worker.send(message))
    }
}

impl Live {
    /// Of a source that tells only which nodes changed, and where some have: when the replica was a state of the source last. What is captured and not applied is
    /// no measure there.
    fn periodic_state(&self) -> Option<Timestamp> {
        let capture = self.source.as_ref()?.capture.as_ref().filter(|capture| capture.periodic && capture.changed_nodes > 0)?;
        capture.consistent_at
    }

    pub fn wants_worker(&self) -> bool {
        self.worker_held || self.job.state.wants_worker()
    }

    /// Whether the source is done with: from the moment that a launch is authorised it must send nothing more.
    pub fn is_cut_off(&self) -> bool {
        let authorised = || self.run.as_ref().is_some_and(|(_, run)| run.authority.is_some());
        matches!(self.job.state, JobState::FailingOver { .. }) && authorised()
    }

    /// The recovery point that a failover boots from, from the planning of its run to its end.
    pub fn point_in_use(&self) -> Option<String> {
        let run = self.run.as_ref().filter(|_| matches!(self.job.state, JobState::FailingOver { .. }) || self.worker_held);
        run.and_then(|(_, run)| run.runbook.point.as_ref()).map(RecoveryPoint::id)
    }

    /// The recovery point whose duplicate takes the place of the replica's disk in the failover that runs: from the moment that it is there.
    pub fn launched_point(&self) -> Option<&RecoveryPoint> {
        let (_, run) =
            self.run.as_ref().filter(|_| matches!(self.job.state, JobState::FailingOver { .. } | JobState::FailedOver { .. }))?;
        let index = run.runbook.steps.iter().position(|step| step.kind == StepKind::UsePoint)?;
        run.runbook.point.as_ref().filter(|_| matches!(run.steps.get(index), Some(StepState::Done { .. })))
    }

    /// The durable items that the worker may apply: nothing behind the cut of a failover, which boot repair may have followed already, and nothing at all
    /// to a recovery point's duplicate.
    pub fn applicable(&self, durable: OpSeq) -> OpSeq {
        if let Some(point) = self.launched_point() {
            return point.seq;
        }
        let cut = self.run.as_ref().filter(|_| matches!(self.job.state, JobState::FailingOver { .. })).and_then(|(_, run)| run.cut);
        cut.map_or(durable, |cut| durable.min(cut))
    }

    /// Why it does not come nearer to its source, and whether that was known. Of a job without a stream nobody can say.
    pub fn converges(&mut self, name: &str) -> (Option<Problem>, bool) {
        let was = self.job.flags.has(Flag::NotConverging);
        let is_measured = self.job.state.wants_stream() && !self.job.flags.has(Flag::Disconnected) && !self.job.flags.has(Flag::Paused);
        match (&self.source, self.stream_lag_seconds()) {
            (Some(source), Some(lag)) if is_measured => {
                let mirror = source
                    .mirror
                    .as_ref()
                    .map(|mirror| Work::new((mirror.bytes_done, mirror.bytes_total), (mirror.nodes_done, mirror.nodes_total_estimate)));
                self.convergence.note(now(), lag, mirror);
            }
            _ => self.convergence.forget(),
        }
        (self.convergence.problem(name), was)
    }

    /// How old the replica's state is, in seconds of the source's clock: 0 when everything captured is applied.
    pub fn lag_seconds(&self) -> Option<u64> {
        let of_stream = self.stream_lag_seconds();
        match self.periodic_state() {
            Some(consistent_at) => Some(seconds_between(consistent_at, now()).max(of_stream.unwrap_or(0))),
            None => of_stream,
        }
    }

    /// The same, of what the agent has put into the stream: how far sending and applying are behind.
    pub fn stream_lag_seconds(&self) -> Option<u64> {
        if self.source.as_ref().is_some_and(|status| status.watermarks.captured <= self.target.applied) {
            // Nothing newer was captured when the agent spoke last; it speaks once a second, so a few seconds of silence mean nothing.
            return Some(self.source_at.map_or(0, |at| seconds_between(at, now()).saturating_sub(5)));
        }
        let captured_at = self.source.as_ref().and_then(|status| status.captured_at);
        Some(seconds_between(self.applied_captured_at?, captured_at.unwrap_or_else(now)))
    }
}

pub fn seconds_between(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.0.saturating_sub(from.0) / 1_000_000_000).unwrap_or(0)
}
