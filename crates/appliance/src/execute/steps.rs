//! The steps themselves. Each is safe to do twice.

use super::Executor;
use crate::job::Live;
use crate::layout::now;
use crate::session::Session;
use crate::worker::message::ToWorker;
use crate::{errors, launch, supervise};
use standin_protection::fence::LaunchAuthority;
use standin_protection::{FailoverMode, Problem, SourceFenced};
use standin_replica::point::make_launch;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The source stands still at most this long; its own watchdog thaws it then.
const FREEZE_MAX: Duration = Duration::from_secs(120);
/// A source is frozen only when its replica is this near.
const LAG_SECONDS_NEAR: u64 = 5;
/// Well below the 8 MiB that an agent keeps in memory by default: it freezes nothing while a part of its queue lies in files.
const QUEUE_BYTES_NEAR: u64 = 4 << 20;
const CATCH_UP_MAX: Duration = Duration::from_secs(600);
/// Freezing writes back all dirty pages first, which on a slow disk takes its time.
const QUIESCE_MAX: Duration = Duration::from_secs(60);
/// What is left of the freeze for the drain, with room for the fence.
const DRAIN_MAX: Duration = Duration::from_secs(90);
const FENCE_MAX: Duration = Duration::from_secs(20);
/// A fence is ordered only while the source's own watchdog is at least this far away.
const FENCE_RESERVE: Duration = Duration::from_secs(15);
/// An agent tries to connect at least every 15 s, and is greeted within one.
const RECONNECT_MAX: Duration = Duration::from_secs(40);
/// An agent that cannot switch its source off says so within 300 ms and the link's delay.
const POWER_OFF_FAILS_MAX: Duration = Duration::from_secs(2);
const THAW_MAX: Duration = Duration::from_secs(10);
/// A step that its worker did not survive is done again with the next worker this often in all.
const WORKER_TRIES: u32 = 3;
/// Without a frozen source there is no hurry; applying the journal's whole bound takes minutes.
const UNPLANNED_DRAIN_MAX: Duration = Duration::from_secs(4 * 3600);
/// A worker that was killed redoes from its mark first.
const WORKER_MAX: Duration = Duration::from_secs(300);

fn nanoseconds(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

/// A source that was quiesced: over this connection, at that time, and not thawed since as far as anybody told.
pub(super) struct StandsStill {
    session: Arc<Session>,
    ordered: Instant,
}

impl StandsStill {
    /// What is left until the source's watchdog thaws it, counted from before it was frozen.
    fn left(&self) -> Duration {
        (FREEZE_MAX - FENCE_RESERVE).saturating_sub(self.ordered.elapsed())
    }
}

impl Executor {
    fn problem(&self, code: &str, cause: impl Into<String>) -> Problem {
        Problem::new(code, cause, format!("standin job show {}", self.shell.record.name))
    }

    /// The source goes on working until little is left to drain; freezing it first would make it wait for its backlog.
    fn catch_up(&self) -> Result<(), Problem> {
        let near = |live: &mut Live| {
            let little = live.source.as_ref().is_none_or(|source| source.queue_bytes <= QUEUE_BYTES_NEAR);
            (little && live.stream_lag_seconds().is_none_or(|lag| lag <= LAG_SECONDS_NEAR)).then_some(())
        };
        let cause = || format!("the replica did not come within {LAG_SECONDS_NEAR} s of the source in {} s", CATCH_UP_MAX.as_secs());
        self.wait_for_agent(CATCH_UP_MAX, "E4017", "catch up with", near).map_err(|problem| match problem.code.as_str() {
            "STANDIN-E4017" => self.problem("E4017", cause()),
            _ => problem,
        })
    }

    pub(super) fn quiesce(&mut self) -> Result<String, Problem> {
        if self.resumed {
            self.thaw_first()?;
        }
        self.shell.update(|live| {
            (live.quiesced, live.fenced) = (None, false);
            (live.refused, live.doubt) = (None, None);
        });
        self.catch_up()?;
        let ordered = Instant::now();
        let session = self.appliance.session(&self.shell.record.agent);
        let session = session.filter(|session| session.quiesce(&self.shell.record.id, FREEZE_MAX));
        let Some(session) = session else {
            return Err(self.problem("E4003", "the source's agent is not connected, so it cannot be quiesced"));
        };
        self.still = Some(StandsStill { session, ordered });
        let cut = self.wait_for_agent(QUIESCE_MAX, "E4007", "quiesce", |live| live.quiesced)?;
        self.run.cut = Some(cut);
        Ok(format!("the source stands still at {cut}"))
    }

    /// The source may still stand still for the executor before this one, and a second freeze would be refused. The agent comes back by itself.
    fn thaw_first(&mut self) -> Result<(), Problem> {
        let (appliance, record) = (self.appliance.clone(), self.shell.record.clone());
        let ordered = self.run.fence_ordered.take();
        let deadline = Instant::now() + RECONNECT_MAX;
        let session = loop {
            match appliance.session(&record.agent).filter(|session| session.runs(&record.id)) {
                Some(session) => break session,
                None if Instant::now() > deadline && ordered.is_some() => {
                    self.run.fence_ordered = ordered;
                    let cause = "the appliance ended while the agent was to switch the source off, and the agent did not come back";
                    return Err(self.problem("E4013", cause));
                }
                None if Instant::now() > deadline => {
                    return Err(self.problem("E4008", format!("the agent did not come back within {} s", RECONNECT_MAX.as_secs())));
                }
                None => drop(self.shell.wait(Duration::from_millis(200), |_| None::<()>)),
            }
        };
        self.shell.update(|live| live.refused = None);
        session.thaw(&record.id);
        // The answer is that it runs; an agent without one had nothing frozen.
        self.shell.wait(THAW_MAX, |live| live.refused.take());
        Ok(())
    }

    /// Waits for an answer of the agent, its refusal, or the end of its session.
    fn wait_for_agent<T>(
        &self,
        limit: Duration,
        code: &str,
        doing: &str,
        mut ready: impl FnMut(&mut Live) -> Option<T>,
    ) -> Result<T, Problem> {
        let (appliance, agent) = (&self.appliance, &self.shell.record.agent);
        let deadline = Instant::now() + limit;
        loop {
            let slice = Duration::from_secs(1).min(deadline.saturating_duration_since(Instant::now()));
            let answer = self.shell.wait(slice, |live| match live.refused.take() {
                Some(problem) => Some(Err(problem)),
                None => ready(live).map(Ok),
            });
            if let Some(answer) = answer {
                return answer;
            }
            if Instant::now() >= deadline {
                return Err(self.problem(code, format!("the agent did not {doing} the source within {} s", limit.as_secs())));
            }
            if appliance.session(agent).is_none() {
                return Err(self.problem("E4008", format!("the agent's connection ended before it could {doing} the source")));
            }
        }
    }

    pub(super) fn drain(&mut self) -> Result<String, Problem> {
        let planned = self.run.runbook.mode == FailoverMode::Planned;
        let limit = match &self.still {
            Some(still) => DRAIN_MAX.min(still.left()),
            None => UNPLANNED_DRAIN_MAX,
        };
        let durable = self.shell.live().target.durable;
        let cut = *self.run.cut.get_or_insert(durable);
        self.save();
        let drained = self.shell.wait(limit, |live| match live.refused.take() {
            Some(problem) if planned => Some(Err(problem)),
            _ => (live.target.applied >= cut).then_some(Ok(live.target.applied)),
        });
        let Some(applied) = drained.transpose()? else {
            let at = self.shell.live().target.applied;
            return Err(self.problem("E4009", format!("the replica is at {at} and did not reach {cut} within {} s", limit.as_secs())));
        };
        if planned {
            self.require_consistent()?;
        }
        Ok(format!("applied through {applied}"))
    }

    /// Nothing is switched off for a replica that is known to differ.
    fn require_consistent(&self) -> Result<(), Problem> {
        let settled = self.shell.wait(Duration::from_secs(5), |live| live.replica.is_consistent.then_some(()));
        settled.ok_or_else(|| {
            let reason = self.shell.live().replica.gap_reason.clone().unwrap_or_else(|| "nodes are still to be mirrored again".into());
            self.problem("E4012", format!("the replica is not consistent at the cut: {reason}"))
        })
    }

    pub(super) fn fence(&mut self) -> Result<String, Problem> {
        if self.run.is_fenced() {
            return self.save_authority("the agent had confirmed it before");
        }
        // What could run the replica when this was planned may be taken by now, and here the way back is still free.
        if let Some(problem) = launch::obstacles(&self.appliance, &self.shell).into_iter().next() {
            return Err(problem);
        }
        let session = self.still_session()?;
        if !session.fence(&self.shell.record.id) {
            return Err(self.problem("E4008", "the agent's connection ended before it could fence the source"));
        }
        self.wait_for_agent(FENCE_MAX, "E4013", "fence", |live| live.fenced.then_some(()))?;
        self.run.record_fenced(SourceFenced::confirmed_by_agent(self.shell.record.id.clone(), now()));
        self.save_authority("the agent confirmed that it switches the source off")
    }

    /// After a crash nobody else would know that the replica may be launched, or is.
    fn save_authority(&self, note: &str) -> Result<String, Problem> {
        match self.save() {
            true => Ok(note.into()),
            false => Err(errors::internal("the store does not take that the replica may be launched")),
        }
    }

    /// The session over which the source was quiesced, if nothing speaks against its standing still: a source that ran on since holds changes that the
    /// replica has not, and must not be switched off.
    fn still_session(&mut self) -> Result<Arc<Session>, Problem> {
        let still = self.still.take().ok_or_else(|| self.problem("E4015", "nobody knows whether the source still stands still"))?;
        if let Some(problem) = self.shell.update(|live| live.refused.take()) {
            return Err(problem);
        }
        let current = self.appliance.session(&self.shell.record.agent);
        if current.is_none_or(|current| !Arc::ptr_eq(&current, &still.session)) {
            return Err(self.problem("E4015", "the agent's connection changed since the source was quiesced, so it may run again"));
        }
        if still.left().is_zero() {
            return Err(self.problem("E4015", "the source stands still for so long that its watchdog may thaw it at any moment"));
        }
        Ok(still.session)
    }

    /// A power-off that failed is told at once; what could not be told to an appliance that was down comes with the agent's next connection.
    pub(super) fn wait_for_signs(&self) {
        let Some(LaunchAuthority::Fenced(fenced)) = &self.run.authority else { return };
        let mut until = fenced.at().0.saturating_add(nanoseconds(POWER_OFF_FAILS_MAX));
        if fenced.at() < self.appliance.started_at {
            until = until.max(self.appliance.started_at.0.saturating_add(nanoseconds(RECONNECT_MAX)));
        }
        let left = Duration::from_nanos(u64::try_from(until.saturating_sub(now().0)).unwrap_or(0));
        self.shell.wait(left.min(RECONNECT_MAX), |live| live.doubt.is_some().then_some(()));
    }

    /// Fails when something says that the fenced source runs.
    pub(super) fn heed_signs(&mut self) -> Result<(), Problem> {
        let doubt = self.shell.live().doubt.clone();
        if let Some(sign) = doubt {
            self.run.doubt_fence(sign);
        }
        self.run.launch_authority().map(drop)
    }

    pub(super) fn require_fence(&mut self) -> Result<String, Problem> {
        let waived = self.run.record_waiver();
        let waiver = self.run.runbook.waiver.as_ref().filter(|_| waived);
        let waiver = waiver.ok_or_else(|| self.problem("E4011", "nothing proves that the source is off"))?;
        // Stored first: an agent that connects from now on is told that its job fails over. One that is connected is told now.
        let note = self.save_authority(&format!("waived by {}: {}", waiver.name(), waiver.reason()))?;
        if let Some(session) = self.appliance.session(&self.shell.record.agent) {
            session.dismiss(&self.shell.record.id);
        }
        Ok(note)
    }

    /// Duplicates the recovery point; from here on that is what the workers of this failover work on.
    pub(super) fn use_point(&mut self) -> Result<String, Problem> {
        let point = self.run.runbook.point.clone().ok_or_else(|| self.problem("E4060", "this failover has no recovery point"))?;
        // Two file systems of one identity are not mounted at once: btrfs would take them for one.
        self.release_worker()?;
        let (layout, name) = (&self.appliance.layout, &self.shell.record.name);
        let made = make_launch(&layout.points(name), &point.id(), &layout.launch(name));
        let copied = made.map_err(|error| {
            let next = format!("standin failover {name}   (takes up where it failed)");
            Problem { code: error.code().into(), ..errors::coded("E3024", &error, &next) }
        })?;
        Ok(match copied {
            0 => format!("{} is duplicated", point.id()),
            bytes => format!("{} is duplicated, {bytes} bytes copied", point.id()),
        })
    }

    /// The replica's own worker leaves the replica as it is.
    fn release_worker(&self) -> Result<(), Problem> {
        // One that is being started is waited for, since nobody starts another now.
        let settled = self.shell.wait(WORKER_MAX, |live| match &live.worker {
            Some(worker) => Some(Some(worker.pid)),
            None => (!live.supervised).then_some(None),
        });
        match settled {
            None => return Err(self.problem("E4043", "the replica's worker neither runs nor ends")),
            Some(None) => return Ok(()),
            Some(Some(_)) => match self.ask_worker(ToWorker::Release) {
                Err(problem) if problem.code != "STANDIN-E4042" => return Err(problem),
                // Gone is gone, however it went.
                _ => {}
            },
        }
        let gone = self.shell.wait(Duration::from_secs(30), |live| (live.worker.is_none() && !live.supervised).then_some(()));
        gone.ok_or_else(|| self.problem("E4014", "the worker did not end after it had released the replica"))
    }

    pub(super) fn inject(&mut self) -> Result<String, Problem> {
        let present = || self.run.cut.unwrap_or_else(|| self.shell.live().target.durable);
        let through = self.run.runbook.point.as_ref().map_or_else(present, |point| point.seq);
        self.with_workers(|| {
            self.ask_worker(ToWorker::Finish { through })?;
            self.ask_worker(ToWorker::Inject)
        })
    }

    pub(super) fn detach(&mut self) -> Result<String, Problem> {
        self.with_workers(|| {
            self.shell.update(|live| live.worker_held = true);
            supervise::ensure(&self.appliance, &self.shell);
            self.wait_for_worker()?;
            // Once told to detach the worker ends, and no other may be started.
            self.shell.update(|live| live.worker_held = false);
            self.ask_worker(ToWorker::Detach)
        })?;
        let gone = self.shell.wait(Duration::from_secs(30), |live| live.worker.is_none().then_some(()));
        gone.ok_or_else(|| self.problem("E4014", "the worker did not end after it had detached the disks"))?;
        Ok("the disk is released".into())
    }

    /// A worker may be killed at any time; what it was asked is safe to ask the next one.
    fn with_workers(&self, ask: impl Fn() -> Result<String, Problem>) -> Result<String, Problem> {
        let mut answer = ask();
        for _ in 1..WORKER_TRIES {
            match &answer {
                Err(problem) if problem.code == "STANDIN-E4042" => answer = ask(),
                _ => break,
            }
        }
        answer
    }

    fn wait_for_worker(&self) -> Result<u32, Problem> {
        let found = self.shell.wait(WORKER_MAX, |live| live.worker.as_ref().map(|worker| worker.pid));
        found.ok_or_else(|| self.problem("E4043", "no worker could be started for the replica's disk"))
    }

    /// One question to the worker that runs now; its end before the answer is a failure of the step.
    fn ask_worker(&self, step: ToWorker) -> Result<String, Problem> {
        let pid = self.wait_for_worker()?;
        let asked = self.shell.update(|live| {
            live.step_answer = None;
            live.question += 1;
            let ask = ToWorker::Ask { question: live.question, step: Box::new(step) };
            live.worker.as_mut().is_some_and(|worker| worker.send(&ask))
        });
        let answer = self.shell.wait(WORKER_MAX, |live| {
            let ended = live.worker.as_ref().map(|worker| worker.pid) != Some(pid);
            live.step_answer
                .take()
                .or_else(|| (ended || !asked).then(|| Err(self.problem("E4042", "the worker ended in the middle of the step"))))
        });
        if matches!(&answer, Some(Err(problem)) if problem.code == "STANDIN-E4042") {
            // The next question must not go to the one that is dying.
            self.shell.wait(WORKER_MAX, |live| (live.worker.as_ref().map(|worker| worker.pid) != Some(pid)).then_some(()));
        }
        answer.unwrap_or_else(|| Err(self.problem("E4044", format!("the worker did not answer within {} s", WORKER_MAX.as_secs()))))
    }
}
