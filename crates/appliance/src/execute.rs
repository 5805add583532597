//! Executes the runbook of a failover, step by step, each recorded in the store before and after it.
//!
//! One thread per run. Every wait has a bound. What fails before the fence aborts the run and thaws the source; what fails behind it leaves the run
//! resumable (`standin failover JOB` again), and a restart of the appliance resumes it by itself.

mod steps;

use crate::appliance::Appliance;
use crate::facts::failover_facts;
use crate::job::JobShell;
use crate::layout::now;
use crate::worker::message::ToWorker;
use crate::{errors, launch, supervise};
use standin_hypervisor::VmState;
use standin_protection::{Event, FailoverRequest, JobState, Problem, Run, RunState, Runbook, StepKind, Waiver, plan_failover};
use std::sync::Arc;

pub fn plan(appliance: &Appliance, shell: &JobShell, request: &FailoverRequest) -> Result<Runbook, Vec<Problem>> {
    plan_failover(now(), &failover_facts(appliance, shell), request)
}

/// Begins a failover, or takes up one that failed behind the fence.
pub fn begin(appliance: &Arc<Appliance>, shell: &Arc<JobShell>, request: &FailoverRequest, actor: &str) -> Result<Run, Vec<Problem>> {
    if let Some(run) = take_up_failed(appliance, shell, request, actor) {
        return Ok(run);
    }
    let runbook = plan(appliance, shell, request)?;
    let mode = runbook.mode;
    // Planning and starting are not under one lock, so this is where two requests are told apart.
    let claimed = shell.update(|live| {
        let free = !matches!(live.job.state, JobState::FailingOver { .. } | JobState::FailedOver { .. }) && !live.worker_held;
        live.worker_held |= free;
        if free {
            (live.fenced, live.doubt) = (false, None);
        }
        free
    });
    if !claimed {
        return Err(vec![Problem::new("E4005", "a failover of this job is running", format!("standin job show {}", shell.record.name))]);
    }
    let run = Run::new(runbook, now());
    let id = appliance.store.add_run(&shell.record.id, &run).map_err(|error| {
        shell.update(|live| live.worker_held = false);
        vec![errors::internal(error)]
    })?;
    shell.update(|live| live.run = Some((id, run.clone())));
    if let Some(waiver) = &run.runbook.waiver {
        log_waiver(appliance, shell, actor, waiver);
    }
    appliance.log(Some(shell), actor, None, "starts a failover");
    appliance.event(shell, Event::FailoverStarted { mode });
    spawn(appliance, shell, false);
    Ok(run)
}

fn log_waiver(appliance: &Appliance, shell: &JobShell, actor: &str, waiver: &Waiver) {
    appliance.log(Some(shell), actor, None, &format!("fence waived by {}: {}", waiver.name(), waiver.reason()));
}

fn take_up_failed(appliance: &Arc<Appliance>, shell: &Arc<JobShell>, request: &FailoverRequest, actor: &str) -> Option<Run> {
    if request.plan_only {
        return None;
    }
    let run = shell.update(|live| {
        let (_, run) = live.run.as_mut()?;
        if !matches!(live.job.state, JobState::FailingOver { .. }) || !matches!(run.state, RunState::Failed { .. }) {
            return None;
        }
        if let Some(waiver) = &request.waiver {
            run.waive(waiver.clone());
            live.doubt = None;
        }
        run.resume();
        Some(run.clone())
    })?;
    if let Some(waiver) = &request.waiver {
        log_waiver(appliance, shell, actor, waiver);
    }
    appliance.log(Some(shell), actor, None, "resumes the failover");
    spawn(appliance, shell, true);
    Some(run)
}

/// Takes down what says that the source of a failover runs, if its agent had confirmed before that it switches it off.
pub fn doubt_fence(appliance: &Appliance, shell: &JobShell, sign: &str) {
    let changed = shell.update(|live| {
        let (id, run) = live.run.as_mut().filter(|_| matches!(live.job.state, JobState::FailingOver { .. }))?;
        if !live.fenced && !run.is_fenced() || live.doubt.is_some() {
            return None;
        }
        live.doubt = Some(sign.to_owned());
        // A run that goes on belongs to its executor, which looks at the sign itself.
        let ended = run.state != RunState::Running;
        if ended {
            run.doubt_fence(sign.to_owned());
        }
        Some(ended.then(|| (*id, run.clone())))
    });
    let Some(ended) = changed else { return };
    if let Some(Err(error)) = ended.map(|(id, run)| appliance.store.save_run(id, &run)) {
        tracing::error!(job = shell.record.name, %error, "the store does not take the run's state");
    }
    let text = format!("the source's agent had said that it switches the source off, but {sign}");
    appliance.log(Some(shell), "appliance", Some("STANDIN-E4018"), &text);
}

/// After a restart of the appliance that found a run whose job had not begun to fail over: nothing was done yet.
pub fn abandon(appliance: &Appliance, shell: &JobShell) {
    let problem = Problem::new("E4005", "the appliance ended before the failover began", format!("standin failover {}", shell.record.name));
    let run = shell.update(|live| {
        let (id, run) = live.run.as_mut()?;
        run.abandon(now(), problem.clone());
        Some((*id, run.clone()))
    });
    let saved = run.map_or(Ok(()), |(id, run)| appliance.store.save_run(id, &run));
    if let Err(error) = saved {
        tracing::error!(job = shell.record.name, %error, "the store does not take the run's state");
    }
    appliance.log(Some(shell), "appliance", Some(&problem.code), &problem.cause);
}

/// After a restart of the appliance.
pub fn resume(appliance: &Arc<Appliance>, shell: &Arc<JobShell>) {
    shell.update(|live| {
        if let Some((_, run)) = &mut live.run {
            run.resume();
        }
    });
    appliance.log(Some(shell), "appliance", None, "resumes the failover that the appliance's end interrupted");
    spawn(appliance, shell, true);
}

fn spawn(appliance: &Arc<Appliance>, shell: &Arc<JobShell>, resumed: bool) {
    let (appliance, shell) = (appliance.clone(), shell.clone());
    std::thread::spawn(move || {
        let Some((id, run)) = shell.live().run.clone() else { return };
        let mut executor = Executor { appliance, shell, id, run, resumed, still: None };
        executor.all();
        executor.end();
    });
}

struct Executor {
    appliance: Arc<Appliance>,
    shell: Arc<JobShell>,
    id: i64,
    run: Run,
    /// Another executor was at work before, whose end nobody told the source.
    resumed: bool,
    /// The source that stands still, until it is fenced.
    still: Option<steps::StandsStill>,
}

impl Executor {
    fn all(&mut self) {
        while let Some((index, kind)) = self.run.next() {
            self.run.start(index, now());
            let saved = self.save();
            let result = self.may_begin(kind, saved).and_then(|()| self.step(kind));
            match result {
                Ok(note) => {
                    self.appliance.log(Some(&self.shell), "appliance", None, &format!("failover: {}: {note}", kind.title()));
                    self.run.done(index, now(), note);
                }
                Err(problem) => {
                    let text = format!("failover: {} failed: {}", kind.title(), problem.cause);
                    self.appliance.log(Some(&self.shell), "appliance", Some(&problem.code), &text);
                    self.run.failed(index, now(), problem);
                }
            }
            self.save();
        }
    }

    /// The worker is kept (or started anew after a crash) until the disks are detached.
    fn hold_worker(&self, kind: StepKind) -> Result<(), Problem> {
        let needed = !matches!(kind, StepKind::UsePoint | StepKind::AttachDisks | StepKind::PowerOn);
        let held = self.shell.update(|live| std::mem::replace(&mut live.worker_held, needed));
        if needed {
            supervise::ensure(&self.appliance, &self.shell);
        }
        tracing::debug!(held, needed, "worker for {}", kind.title());
        Ok(())
    }

    fn may_begin(&mut self, kind: StepKind, saved: bool) -> Result<(), Problem> {
        // Behind the fence only this run knows that the source is off. What comes later may go on in memory: it is safe to do twice.
        if matches!(kind, StepKind::Fence | StepKind::RequireFence) && !(saved && self.save_job()) {
            return Err(errors::internal("the store does not take the failover's state, so nothing irreversible is done"));
        }
        let state = self.machine()?;
        match state {
            // Powered on by this very run, whose last words were not stored: its disk must not be touched any more.
            Some(VmState::Running) if self.run.authority.is_some() => Ok(()),
            Some(VmState::Running | VmState::Paused | VmState::Failed) => Err(launch::in_use(&self.shell.record.name, state)),
            Some(VmState::Off) | None => {
                if self.run.authority.is_some() {
                    self.heed_signs()?;
                }
                self.hold_worker(kind)
            }
        }
    }

    /// A job that is not known to fail over would begin to replicate into the replica's disk after a crash.
    fn save_job(&self) -> bool {
        let live = self.shell.live();
        self.appliance.store.save_machine(&self.shell.record.id, &live.job).is_ok()
    }

    fn machine(&self) -> Result<Option<VmState>, Problem> {
        launch::machine(&self.appliance, &self.shell.record.name)
    }

    fn step(&mut self, kind: StepKind) -> Result<String, Problem> {
        if self.machine()? == Some(VmState::Running) {
            return Ok("the replica runs already".into());
        }
        match kind {
            StepKind::Quiesce => self.quiesce(),
            StepKind::Drain => self.drain(),
            StepKind::Fence => self.fence(),
            StepKind::RequireFence => self.require_fence(),
            StepKind::UsePoint => self.use_point(),
            StepKind::InjectDrivers => self.inject(),
            StepKind::DetachDisks => self.detach(),
            StepKind::AttachDisks => launch::attach(&self.appliance, &self.shell),
            StepKind::PowerOn => self.power_on(),
        }
    }

    fn power_on(&mut self) -> Result<String, Problem> {
        self.wait_for_signs();
        self.heed_signs()?;
        launch::power_on(&self.appliance, &self.shell, self.run.launch_authority()?, "failover")
    }

    fn save(&self) -> bool {
        let saved = self.appliance.store.save_run(self.id, &self.run);
        if let Err(error) = &saved {
            tracing::error!(job = self.shell.record.name, %error, "the store does not take the run's state");
        }
        self.shell.update(|live| live.run = Some((self.id, self.run.clone())));
        saved.is_ok()
    }

    /// What was held back behind the cut is told to the worker now.
    fn tell_durable(&self) {
        let seq = self.shell.live().target.durable;
        self.shell.tell_worker(&ToWorker::Durable { seq });
    }

    fn end(&self) {
        self.shell.update(|live| live.worker_held = false);
        match &self.run.state {
            RunState::Succeeded { .. } => self.appliance.event(&self.shell, Event::FailoverFinished),
            RunState::Aborted { problem, .. } => {
                self.appliance.event(&self.shell, Event::FailoverAborted(problem.clone()));
                self.tell_durable();
            }
            RunState::Failed { .. } | RunState::Running => {}
        }
    }
}
