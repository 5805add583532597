//! The one owner of all jobs and sessions, and the place where events become actions.

use crate::job::JobShell;
use crate::layout::{Layout, now};
use crate::network::{self, Governor};
use crate::session::Session;
use crate::store::Store;
use crate::{errors, execute, launch, perform, points, supervise, verify};
use anyhow::{Context, Result, anyhow};
use standin_hypervisor::Hypervisor;
use standin_model::{AgentId, JobId, OpSeq, Timestamp};
use standin_protection::{Action, Event, Flag, JobState, RunState};
use standin_wire::{Authority, Token};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

pub struct Appliance {
    pub layout: Layout,
    pub store: Store,
    pub hypervisor: Box<dyn Hypervisor>,
    /// `HOST:PORT` of the agents' listener, as agents are told to reach it.
    pub agent_address: String,
    pub authority: Arc<Authority>,
    /// Before this, nobody could tell this process anything.
    pub started_at: Timestamp,
    jobs: RwLock<BTreeMap<JobId, Arc<JobShell>>>,
    sessions: Mutex<HashMap<AgentId, Arc<Session>>>,
    /// Held from planning a protection to storing it, so that two requests cannot take one name.
    pub protecting: Mutex<()>,
    /// Program that runs workers; this one, but for tests.
    pub program: std::path::PathBuf,
    /// Asked once: a datastore does not change its kind while it is in use.
    shares_blocks: std::sync::OnceLock<bool>,
    pub network: Governor,
}

pub struct Parts {
    pub layout: Layout,
    pub store: Store,
    pub hypervisor: Box<dyn Hypervisor>,
    pub agent_address: String,
    pub authority: Arc<Authority>,
    pub program: std::path::PathBuf,
}

impl Appliance {
    /// Loads all jobs and takes up what a crash interrupted.
    pub fn start(parts: Parts) -> Result<Arc<Appliance>> {
        let network = Governor::new(parts.store.network(None)?.unwrap_or_default().rule);
        let appliance = Arc::new(Appliance {
            layout: parts.layout,
            store: parts.store,
            hypervisor: parts.hypervisor,
            agent_address: parts.agent_address,
            authority: parts.authority,
            started_at: now(),
            jobs: RwLock::default(),
            sessions: Mutex::default(),
            protecting: Mutex::default(),
            program: parts.program,
            shares_blocks: std::sync::OnceLock::new(),
            network,
        });
        for (record, job, stream) in appliance.store.jobs()? {
            let run = appliance.store.last_run(&record.id)?;
            let name = record.name.clone();
            let shell = JobShell::open(&appliance.layout, record, job, stream, run).with_context(|| format!("opening job {name}"))?;
            // Nobody is connected to a process that has just begun.
            shell.update(|live| live.job.flags.set(Flag::Disconnected, None));
            verify::take_up(&appliance, &shell)?;
            network::take_up(&appliance, &shell)?;
            appliance.jobs.write().expect("jobs lock").insert(shell.record.id.clone(), shell.clone());
            points::reconcile(&appliance, &shell);
            appliance.check_journal(&shell);
            appliance.take_up(&shell);
        }
        network::start(&appliance)?;
        let ticking = Arc::downgrade(&appliance);
        std::thread::Builder::new().name("tick".into()).spawn(move || {
            while let Some(appliance) = ticking.upgrade() {
                appliance.tick();
                drop(appliance);
                std::thread::sleep(Duration::from_secs(1));
            }
        })?;
        Ok(appliance)
    }

    /// Compares what was acknowledged with what the journal has. Damage to its very last record looks like a torn write, which opening cuts off.
    fn check_journal(self: &Arc<Self>, shell: &Arc<JobShell>) {
        let (acknowledged, durable) = {
            let live = shell.live();
            (live.stream.acknowledged, live.target.durable)
        };
        if durable < acknowledged {
            self.journal_lost(shell, durable, acknowledged);
        }
    }

    /// Items behind `end` were acknowledged, up to `promised` at least, and are gone: the agent has forgotten them too, so it mirrors again what changed.
    pub fn journal_lost(self: &Arc<Self>, shell: &Arc<JobShell>, end: OpSeq, promised: OpSeq) {
        let stream = shell.update(|live| {
            live.stream.lose_after(end);
            live.replica.is_consistent = false;
            live.stream.clone()
        });
        if let Err(error) = self.store.save_stream(&shell.record.id, &stream) {
            tracing::error!(job = shell.record.name, %error, "the store does not take the stream's position");
        }
        let reason = format!("the journal ends at {end}, and items up to {promised} had been acknowledged; what changed is mirrored again");
        self.log(Some(shell), "appliance", Some("STANDIN-E2013"), &reason);
        self.event(shell, Event::GapApplied { reason });
        // An agent that is connected goes on with items that nobody can place any more; it connects again.
        if let Some(session) = self.session(&shell.record.agent) {
            session.abort();
        }
    }

    /// The replica lacks more than can be listed: the agent connects again, and mirrors everything.
    pub fn mirror_everything(self: &Arc<Self>, shell: &Arc<JobShell>) {
        let stream = shell.update(|live| {
            live.stream.distrust();
            live.stream.clone()
        });
        if let Err(error) = self.store.save_stream(&shell.record.id, &stream) {
            tracing::error!(job = shell.record.name, %error, "the store does not take the stream's position");
        }
        let reason = "more is missing or doubtful in the replica than can be listed; everything is mirrored again".to_owned();
        self.log(Some(shell), "appliance", Some("STANDIN-E2014"), &reason);
        self.event(shell, Event::GapApplied { reason });
        if let Some(session) = self.session(&shell.record.agent) {
            session.abort();
        }
    }

    /// Restart is start: what the stored state asks for is begun again.
    fn take_up(self: &Arc<Self>, shell: &Arc<JobShell>) {
        let (state, run) = {
            let live = shell.live();
            (live.job.state.clone(), live.run.as_ref().map(|(_, run)| run.state.clone()))
        };
        match state {
            JobState::Created => self.event(shell, Event::Accepted),
            JobState::Provisioning => perform::perform(self, shell, Action::CreateDisks),
            // The run is stored before the job's state, so a crash between the two leaves them apart, at the end as at the beginning.
            JobState::FailingOver { .. } => match run {
                Some(RunState::Running) => execute::resume(self, shell),
                Some(RunState::Succeeded { .. }) => self.event(shell, Event::FailoverFinished),
                Some(RunState::Aborted { problem, .. }) => self.event(shell, Event::FailoverAborted(problem)),
                // Behind the fence; the operator takes it up.
                Some(RunState::Failed { .. }) => {}
                None => self.event(shell, Event::FailoverAborted(errors::internal("the store has lost the run of this failover"))),
            },
            state if state.wants_worker() => {
                if run == Some(RunState::Running) {
                    execute::abandon(self, shell);
                }
                supervise::ensure(self, shell);
            }
            JobState::FailedOver { .. } => launch::tell_if_off(self, shell),
            _ => {}
        }
    }

    /// Whether files of the datastore can share blocks, so that a recovery point costs next to nothing.
    pub fn shares_blocks(&self) -> bool {
        *self.shares_blocks.get_or_init(|| standin_replica::disk::can_reflink(&self.layout.datastore))
    }

    pub fn add_job(&self, shell: Arc<JobShell>) {
        self.jobs.write().expect("jobs lock").insert(shell.record.id.clone(), shell);
    }

    pub fn jobs(&self) -> Vec<Arc<JobShell>> {
        self.jobs.read().expect("jobs lock").values().cloned().collect()
    }

    pub fn job(&self, id: &JobId) -> Option<Arc<JobShell>> {
        self.jobs.read().expect("jobs lock").get(id).cloned()
    }

    /// A job by its id or its name.
    pub fn find_job(&self, text: &str) -> Option<Arc<JobShell>> {
        self.jobs().into_iter().find(|shell| shell.record.id.as_str() == text || shell.record.name == text)
    }

    pub fn jobs_of(&self, agent: &AgentId) -> Vec<Arc<JobShell>> {
        self.jobs().into_iter().filter(|shell| &shell.record.agent == agent).collect()
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<AgentId, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn session(&self, agent: &AgentId) -> Option<Arc<Session>> {
        self.sessions().get(agent).cloned()
    }

    /// Makes `session` the agent's one session and returns the one before it.
    pub fn session_opened(&self, session: Arc<Session>) -> Option<Arc<Session>> {
        self.sessions().insert(session.agent.clone(), session)
    }

    /// False when the agent has a newer session already, so that nothing has changed.
    pub fn session_closed(&self, session: &Arc<Session>) -> bool {
        let mut sessions = self.sessions();
        let current = sessions.get(&session.agent).is_some_and(|current| Arc::ptr_eq(current, session));
        if current {
            sessions.remove(&session.agent);
        }
        current
    }

    /// Feeds the machine, stores what changed, and performs what it asks for.
    pub fn event(self: &Arc<Self>, shell: &Arc<JobShell>, event: Event) {
        let actions = shell.update(|live| {
            let mut actions = Vec::new();
            let before = live.job.clone();
            live.job.apply(now(), event, &mut actions);
            if live.job != before
                && let Err(error) = self.store.save_machine(&shell.record.id, &live.job)
            {
                tracing::error!(job = shell.record.name, %error, "the store does not take the job's state; it stays in memory only");
            }
            actions
        });
        for action in actions {
            perform::perform(self, shell, action);
        }
    }

    /// One line in the event log and in our own.
    pub fn log(&self, shell: Option<&JobShell>, actor: &str, code: Option<&str>, text: &str) {
        let (job, name) = (shell.map(|shell| &shell.record.id), shell.map_or("", |shell| &shell.record.name));
        tracing::info!(job = name, actor, code, "{text}");
        if let Err(error) = self.store.log(now(), actor, job, code, text) {
            tracing::error!(%error, "the event log does not take entries");
        }
    }

    /// A one-time token for an agent; only its hash is kept.
    pub fn new_enrolment_token(&self, expires: Timestamp) -> Result<String> {
        let token = Token::generate(self.authority.fingerprint()).map_err(|error| anyhow!("the system has no randomness: {error}"))?;
        self.store.add_enrolment_token(token.secret(), now(), expires)?;
        Ok(token.to_string())
    }

    fn tick(self: &Arc<Self>) {
        for shell in self.jobs() {
            let lag = shell.live().stream_lag_seconds();
            if let Some(seconds) = lag {
                self.event(&shell, Event::LagMeasured { seconds });
            }
            let (problem, was) = shell.update(|live| live.converges(&shell.record.name));
            if problem.is_some() || was {
                self.event(&shell, Event::Converging(problem));
            }
            points::tick(self, &shell);
            verify::tick(self, &shell);
        }
    }
}
