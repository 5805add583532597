//! One agent's connection: hello, orders out, segments and reports in.
//!
//! An agent that still runs a job says so (`Started`) right after the welcome, and its stream is resumed; one that says nothing for a moment has lost its
//! memory, and its job begins a new epoch. Segments carry no job: they belong to the job that was started last on this session.

use crate::appliance::Appliance;
use crate::job::{JobShell, SourceStatus};
use crate::layout::now;
use crate::network::{self, Ordered};
use crate::{errors, execute, growth, intake};
use standin_journal::{Journal, JournalError, Segment};
use standin_model::{AgentId, Differs, Inventory, JobId, NodeId, OpSeq, Suspect};
use standin_protection::{Action, Event, Flag, JobState, Problem, StreamFacts, decide_start};
use standin_wire::message::{ANSWERS_MAX, WANT_NODES_MAX};
use standin_wire::{Connection, Incoming, Receiver, Refusal, Running, Sender, Status, ToAgent, ToAppliance};
use std::collections::{HashMap, HashSet};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// How long an agent has to announce the jobs that it still runs; it does so at once.
const ANNOUNCE_MAX: Duration = Duration::from_millis(700);

pub struct Session {
    pub agent: AgentId,
    sender: Sender,
    state: Mutex<SessionState>,
    /// What the agent is to be told of its connection, and what it was told.
    ordered: Mutex<Option<Ordered>>,
    told: Mutex<Option<Ordered>>,
}

#[derive(Default)]
struct SessionState {
    /// Epochs that the agent says it runs.
    announced: HashMap<JobId, u64>,
    /// Jobs that were started on this session.
    running: HashSet<JobId>,
    /// Where segments go.
    intake: Option<SyncSender<Segment>>,
    greeted: bool,
}

/// What the wire's listener calls.
pub struct Port(pub Arc<Appliance>);

impl standin_wire::Handler for Port {
    fn redeem(&self, secret: &str, hostname: &str) -> Result<AgentId, Refusal> {
        let appliance = &self.0;
        let failed = |error: &dyn std::fmt::Display| {
            tracing::error!(%error, "enrolment failed");
            Refusal::new("STANDIN-E5001", "the appliance failed; see its log")
        };
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).map_err(|error| failed(&error))?;
        let agent = AgentId::from_random(bytes);
        if !appliance.store.use_enrolment_token(secret, &agent, now()).map_err(|error| failed(&error))? {
            return Err(Refusal::new("STANDIN-E1011", "the token is not known, was used before, or is too old"));
        }
        appliance.store.add_agent(&agent, now()).map_err(|error| failed(&error))?;
        appliance.log(None, "agent", None, &format!("{agent} enrolled from {}", hostname.escape_debug()));
        Ok(agent)
    }

    fn session(&self, agent: AgentId, mut connection: Connection) {
        let appliance = &self.0;
        let hello = match standin_wire::accept_session(&mut connection, &agent, env!("CARGO_PKG_VERSION")) {
            Ok(hello) => hello,
            Err(error) => return tracing::info!(%agent, %error, "a session did not begin"),
        };
        match appliance.store.agent_seen(&agent, now(), &hello.agent_version, &hello.inventory) {
            Ok(true) => {}
            Ok(false) => {
                let refused = ToAgent::Refused(Refusal::new("STANDIN-E1012", "this appliance does not know the agent; enrol it again"));
                let _ = connection.send(&refused);
                return;
            }
            Err(error) => return tracing::error!(%agent, %error, "the store does not take the agent's inventory"),
        }
        let (sender, receiver) = connection.split();
        let running = hello.running;
        let session = Arc::new(Session { agent, sender, state: Mutex::default(), ordered: Mutex::default(), told: Mutex::default() });
        run(appliance, &session, &hello.inventory, running, receiver);
    }
}

fn run(appliance: &Arc<Appliance>, session: &Arc<Session>, inventory: &Inventory, running: Option<Vec<Running>>, mut receiver: Receiver) {
    if let Some(before) = appliance.session_opened(session.clone()) {
        before.sender.abort();
    }
    tracing::info!(agent = %session.agent, "connected");
    for shell in appliance.jobs_of(&session.agent) {
        execute::doubt_fence(appliance, &shell, "it connected again");
        growth::look(appliance, &shell, inventory);
    }
    match running {
        // It has said all with its greeting, so that nothing depends on how long a word takes.
        Some(running) => {
            session.state().announced.extend(running.into_iter().map(|running| (running.job, running.epoch)));
            session.greet(appliance);
        }
        None => {
            let (greeter, greeted) = (appliance.clone(), session.clone());
            std::thread::spawn(move || {
                std::thread::sleep(ANNOUNCE_MAX);
                greeted.greet(&greeter);
            });
        }
    }
    let reason = loop {
        match receiver.receive::<ToAppliance>() {
            Ok(Incoming::Segment(bytes)) => {
                if let Err(reason) = session.segment(bytes) {
                    break reason;
                }
            }
            Ok(Incoming::Control(message)) => session.take(appliance, message),
            Err(error) => break crate::errors::chain(&error),
        }
    };
    session.state().intake = None;
    session.sender.abort();
    tracing::info!(agent = %session.agent, reason, "disconnected");
    if appliance.session_closed(session) {
        for shell in appliance.jobs_of(&session.agent) {
            appliance.event(&shell, Event::AgentDisconnected);
        }
    }
}

impl Session {
    fn state(&self) -> MutexGuard<'_, SessionState> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn send(&self, message: &ToAgent) -> bool {
        match self.sender.send(message) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(agent = %self.agent, %error, "cannot send");
                false
            }
        }
    }

    /// Once: lets the machines of the agent's jobs know that it is there.
    fn greet(self: &Arc<Self>, appliance: &Arc<Appliance>) {
        if std::mem::replace(&mut self.state().greeted, true) {
            return;
        }
        let current = appliance.session(&self.agent).is_some_and(|current| Arc::ptr_eq(&current, self));
        if !current {
            return;
        }
        let mut jobs = appliance.jobs_of(&self.agent);
        // A source that was protected anew after a failover has two jobs; of the old one it needs to hear nothing.
        let over = |shell: &Arc<JobShell>| matches!(shell.live().job.state, JobState::FailedOver { .. });
        if jobs.iter().any(|shell| !over(shell)) {
            jobs.retain(|shell| !over(shell));
        }
        for shell in jobs {
            appliance.event(&shell, Event::AgentConnected);
        }
    }

    fn segment(&self, bytes: Vec<u8>) -> Result<(), String> {
        let segment = Segment::parse(bytes).map_err(|error| crate::errors::chain(&error))?;
        let intake = self.state().intake.clone().ok_or("a segment came before a job was started")?;
        intake.send(segment).map_err(|_| "the journal did not take a segment".into())
    }

    fn take(self: &Arc<Self>, appliance: &Arc<Appliance>, message: ToAppliance) {
        match message {
            ToAppliance::Started { job, epoch } => self.started(appliance, job, epoch),
            ToAppliance::Status(status) => self.status(appliance, status),
            ToAppliance::Quiesced { job, seq } => self.of(appliance, &job, |shell| shell.update(|live| live.quiesced = Some(seq))),
            ToAppliance::Fenced { job } => self.of(appliance, &job, |shell| shell.update(|live| live.fenced = true)),
            ToAppliance::Thawed { job, reason } => self.of(appliance, &job, |shell| {
                appliance.log(Some(shell), "agent", None, &format!("the source runs again: {reason}"));
                let problem =
                    Problem::new("E4015", format!("the source runs again before it was fenced: {reason}"), "standin failover JOB");
                shell.update(|live| live.refused = Some(problem));
                execute::doubt_fence(appliance, shell, &format!("it said later that the source runs again: {reason}"));
            }),
            ToAppliance::Refused { job, code, cause } => self.refused(appliance, job, code, cause),
            ToAppliance::Renew { csr } => self.renew(appliance, &csr),
            ToAppliance::Hello(_) | ToAppliance::Unknown => {}
        }
    }

    /// Only a job of this very agent.
    fn of(&self, appliance: &Appliance, job: &JobId, then: impl FnOnce(&Arc<JobShell>)) {
        match appliance.job(job).filter(|shell| shell.record.agent == self.agent) {
            Some(shell) => then(&shell),
            None => tracing::warn!(agent = %self.agent, %job, "the agent speaks of a job that is not its own"),
        }
    }

    fn started(self: &Arc<Self>, appliance: &Arc<Appliance>, job: JobId, epoch: u64) {
        let fresh = {
            let mut state = self.state();
            state.announced.insert(job.clone(), epoch);
            !state.running.contains(&job)
        };
        // An announcement of a job that runs on, as opposed to the answer to our StartJob.
        if fresh {
            self.greet(appliance);
        } else {
            self.of(appliance, &job, |shell| appliance.event(shell, Event::StreamStarted));
        }
    }

    fn status(&self, appliance: &Arc<Appliance>, status: Status) {
        let job = status.job.clone().or_else(|| self.state().running.iter().next().cloned());
        let Some(job) = job else { return };
        if let Err(error) = status.watermarks.check() {
            return tracing::warn!(agent = %self.agent, %error, "the agent's status is not possible");
        }
        self.of(appliance, &job, |shell| {
            let source = SourceStatus {
                watermarks: status.watermarks,
                captured_at: Some(status.captured_at).filter(|at| at.0 != 0),
                mirror: status.mirror.clone(),
                queue_bytes: status.queue_bytes,
                bytes_changed: status.bytes_changed,
                left_out: status.left_out,
                bytes_spared: status.bytes_spared,
                bytes_sent: status.bytes_sent,
                gaps: status.gaps,
                records_dropped: status.ring.records_dropped,
                capture: status.capture.clone(),
                impact: status.impact,
            };
            let unmounted = shell.update(|live| {
                let is_resync = matches!(live.job.state, JobState::Resyncing { .. });
                live.speed.note(now(), source.mirror.as_ref(), is_resync);
                (live.source, live.source_at) = (Some(source), Some(now()));
                live.network.status = status.network;
                live.job.flags.has(Flag::Unmounted)
            });
            if let Some(Refusal { code, cause }) = status.misplaced {
                let next = "findmnt   (on the source)".to_owned();
                appliance.event(shell, Event::VolumeUnmounted(Problem { code, cause, next }));
            } else if unmounted {
                appliance.event(shell, Event::VolumesMounted);
            }
            if let Some(capture) = &status.capture {
                let problem = errors::periodic(capture);
                let is_new = shell.live().job.flags.problem(Flag::Periodic) != problem.as_ref();
                if is_new {
                    appliance.event(shell, Event::CaptureIsPeriodic(problem));
                }
            }
            crate::verify::status(appliance, shell, status.verify);
        });
    }

    fn refused(&self, appliance: &Arc<Appliance>, job: Option<JobId>, code: String, cause: String) {
        let job = job.or_else(|| self.state().running.iter().next().cloned());
        let Some(job) = job else { return tracing::warn!(agent = %self.agent, code, cause, "the agent refuses") };
        let problem = Problem { code, cause, next: "journalctl -u standin-agent   (on the source)".into() };
        self.of(appliance, &job, |shell| {
            execute::doubt_fence(appliance, shell, &format!("it said later: {}", problem.cause));
            let waited_for = shell.update(|live| {
                live.refused = Some(problem.clone());
                matches!(live.job.state, JobState::FailingOver { .. })
            });
            if !waited_for {
                self.state().running.remove(&job);
                appliance.event(shell, Event::AgentRefused(problem));
            }
        });
    }

    fn renew(&self, appliance: &Appliance, csr: &str) {
        let validity = standin_wire::ServeOptions::default().agent_validity;
        match appliance.authority.sign_agent(csr, &self.agent, validity) {
            Ok(certificate) => self.send(&ToAgent::Renewed { certificate }),
            Err(error) => self.send(&ToAgent::Refused(Refusal::new(error.code(), error.to_string()))),
        };
    }

    pub fn perform(self: &Arc<Self>, appliance: &Arc<Appliance>, shell: &Arc<JobShell>, action: &Action) {
        let job = shell.record.id.clone();
        match action {
            Action::StartStream => self.start(appliance, shell),
            Action::StopStream => {
                self.forget(&job);
                self.send(&ToAgent::StopJob { job, reason: "paused by the operator".into() });
            }
            Action::ThawSource => self.thaw(&job),
            Action::TellFailedOver => self.dismiss(&job),
            _ => {}
        }
    }

    /// From here on nothing of the job is taken in: a segment that comes all the same ends the session.
    fn forget(&self, job: &JobId) {
        let mut state = self.state();
        state.announced.remove(job);
        if state.running.remove(job) {
            state.intake = None;
        }
    }

    /// The job has failed over, or is about to: the agent sends nothing more, and nothing more is taken.
    pub fn dismiss(&self, job: &JobId) {
        self.forget(job);
        self.send(&ToAgent::JobFailedOver { job: job.clone() });
    }

    /// The agent connects again, and everything about its jobs is decided anew.
    pub fn abort(&self) {
        self.sender.abort();
    }

    pub fn thaw(&self, job: &JobId) {
        self.send(&ToAgent::Thaw { job: job.clone() });
    }

    /// Resumes or begins the stream, unless it runs on this session already.
    fn start(self: &Arc<Self>, appliance: &Arc<Appliance>, shell: &Arc<JobShell>) {
        let job = shell.record.id.clone();
        if shell.live().is_cut_off() {
            return self.dismiss(&job);
        }
        let agent_epoch = {
            let mut state = self.state();
            if !state.running.insert(job.clone()) {
                return;
            }
            state.announced.get(&job).copied()
        };
        let mut journal = shell.journal();
        // The intake of the session before may have appended what it did not sync, and its end left it at that.
        let durable = match settle(&mut journal) {
            Ok(durable) => durable,
            Err(error) => {
                drop(journal);
                return self.start_failed(appliance, shell, errors::journal(&error));
            }
        };
        let (order, stream, number) = shell.update(|live| {
            live.intake += 1;
            let facts = StreamFacts {
                epoch: live.stream.epoch,
                agent_epoch,
                durable,
                captured_at: live.stream.captured_at,
                mirrored: live.stream.mirrored,
            };
            let order = decide_start(&facts);
            live.stream.epoch = order.epoch;
            (live.target.received, live.target.durable) = (durable, durable);
            (order, live.stream.clone(), live.intake)
        });
        // Still under the lock under which `durable` was read: whatever comes behind it now comes from this epoch.
        journal.begin_epoch(order.epoch);
        drop(journal);
        // An epoch that was given out is never given out again, so it is stored first.
        if let Err(error) = appliance.store.save_stream(&job, &stream) {
            return self.start_failed(appliance, shell, errors::internal(format!("the store does not take the epoch: {error:#}")));
        }
        let (sender, id) = (self.sender.clone(), job.clone());
        let acknowledge = move |durable, applied| sender.send(&ToAgent::Ack { job: id.clone(), durable, applied }).is_ok();
        self.state().intake = Some(intake::begin(appliance, shell, number, acknowledge));
        let resumed = agent_epoch == Some(order.epoch);
        if !resumed {
            crate::verify::interrupt(appliance, shell, "the source's agent was restarted");
        }
        let how = match (resumed, order.since) {
            (true, _) => "resumed",
            (false, Some(_)) => "resync of what changed since the last durable item",
            (false, None) => "full mirror",
        };
        appliance.log(Some(shell), "appliance", None, &format!("stream from {} in epoch {}: {how}", order.next, order.epoch));
        // Before the stream: nothing of it goes without its limit.
        network::divide_now(appliance);
        let spec = shell.record.spec.clone();
        self.send(&ToAgent::StartJob { spec, next: order.next, epoch: order.epoch, since: order.since, compares: true });
        self.acknowledge(shell);
        let wants: Vec<NodeId> = shell.live().wants.iter().copied().collect();
        // Also of an agent that goes on: they may have come up while there was no session. What it has answered already it answers again.
        if !wants.is_empty() {
            self.want(shell, &wants);
        }
    }

    /// Connecting again is how it is tried again.
    fn start_failed(&self, appliance: &Arc<Appliance>, shell: &Arc<JobShell>, problem: Problem) {
        self.state().running.remove(&shell.record.id);
        appliance.event(shell, Event::JournalRefused(problem));
        self.sender.abort();
    }

    pub fn runs(&self, job: &JobId) -> bool {
        self.state().running.contains(job)
    }

    pub fn acknowledge(&self, shell: &JobShell) {
        let (durable, applied) = {
            let live = shell.live();
            (live.target.durable, live.target.applied)
        };
        if self.state().running.contains(&shell.record.id) {
            self.send(&ToAgent::Ack { job: shell.record.id.clone(), durable, applied });
        }
    }

    pub fn want(&self, shell: &JobShell, nodes: &[NodeId]) {
        for nodes in nodes.chunks(WANT_NODES_MAX) {
            self.send(&ToAgent::Want { job: shell.record.id.clone(), nodes: nodes.to_vec() });
        }
    }

    /// Where there is no stream that could wait for them, they are lost, and the agent hears from `applied` that they are.
    pub fn differs(&self, shell: &JobShell, answers: &[Differs]) {
        if !self.state().running.contains(&shell.record.id) {
            return;
        }
        for answers in answers.chunks(ANSWERS_MAX) {
            self.send(&ToAgent::Differs { job: shell.record.id.clone(), answers: answers.to_vec() });
        }
    }

    /// Tells the agent what it has not been told yet. Of two at once both see to it that the later one is the last.
    pub fn order_network(&self, order: Ordered) {
        *network::lock(&self.ordered) = Some(order);
        let mut told = network::lock(&self.told);
        let Some(order) = network::lock(&self.ordered).clone().filter(|order| told.as_ref() != Some(order)) else { return };
        if self.send(&ToAgent::Network { limit: order.limit.unwrap_or(0), path: order.path.clone() }) {
            *told = Some(order);
        }
    }

    pub fn verify(&self, job: &JobId, run: u64, rate: u64) {
        self.send(&ToAgent::Verify { job: job.clone(), run, rate });
    }

    pub fn verify_again(&self, job: &JobId, run: u64, pass: u8, suspects: Vec<Suspect>, rate: u64) {
        self.send(&ToAgent::VerifyAgain { job: job.clone(), run, pass, suspects, rate });
    }

    pub fn end_verify(&self, job: &JobId, run: u64) {
        self.send(&ToAgent::EndVerify { job: job.clone(), run });
    }

    pub fn quiesce(&self, job: &JobId, limit: Duration) -> bool {
        let timeout_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        self.send(&ToAgent::Quiesce { job: job.clone(), timeout_ms })
    }

    pub fn fence(&self, job: &JobId) -> bool {
        self.send(&ToAgent::Fence { job: job.clone() })
    }
}

/// Where the journal ends, with nothing behind it that is not durable.
fn settle(journal: &mut Journal) -> Result<OpSeq, JournalError> {
    match journal.sync() {
        Ok(durable) => Ok(durable),
        // It was cut back to its durable end.
        Err(JournalError::SyncFailed { durable, .. }) => Ok(durable),
        Err(_) => journal.reopen().map(|()| journal.durable()),
    }
}
