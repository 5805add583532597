//! Keeps a job's worker process running while the job wants one, and takes in what it reports.
//!
//! A worker may be killed at any time: the supervisor starts another after a growing pause, and that one redoes from its last mark. The worker ends by
//! itself when this process does, because its stdin closes.

use crate::appliance::Appliance;
use crate::job::{BootState, JobShell};
use crate::layout::now;
use crate::link::WorkerLink;
use crate::store::HistoryRow;
use crate::worker::message::{FromWorker, PointOrders, ToWorker, WorkerOrders, WorkerState};
use crate::{errors, growth, launch, points, verify};
use standin_hypervisor::VmState;
use standin_model::{OpSeq, Timestamp};
use standin_protection::{Event, JobState, Problem};
use standin_replica::point::LaunchFiles;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Pauses double from the first to the last; a worker that lived for a minute begins anew with the first.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_LAST: Duration = Duration::from_secs(30);
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// In nanoseconds.
const STREAM_SAVED_EVERY: i64 = 1_000_000_000;
/// No report is longer; a want list is cut into pieces by the worker.
const LINE_BYTES_MAX: u64 = 4 << 20;

/// Makes sure that a supervisor runs for this job.
pub fn ensure(appliance: &Arc<Appliance>, shell: &Arc<JobShell>) {
    let already = shell.update(|live| std::mem::replace(&mut live.supervised, true));
    if already {
        return;
    }
    let (appliance, shell) = (appliance.clone(), shell.clone());
    std::thread::spawn(move || {
        let mut pause = PAUSE_FIRST;
        while wanted(&shell) {
            let began = Instant::now();
            let problem = match run_once(&appliance, &shell) {
                Ok(None) => continue,
                Ok(Some(problem)) => problem,
                Err(error) => Problem::new("E4041", format!("the worker cannot be started: {error:#}"), "journalctl -u standin-appliance"),
            };
            if !shell.live().wants_worker() {
                continue;
            }
            shell.update(|live| live.worker_restarts += 1);
            verify::interrupt(&appliance, &shell, "the replica's worker was restarted");
            appliance.event(&shell, Event::WorkerStopped(problem));
            pause = if began.elapsed() > HEALTHY_AFTER { PAUSE_FIRST } else { (pause * 2).min(PAUSE_LAST) };
            std::thread::sleep(pause);
        }
    });
}

/// Says whether another worker is wanted; the supervisor's own end is noted under the same lock, so that `ensure` cannot miss it.
fn wanted(shell: &JobShell) -> bool {
    shell.update(|live| {
        live.supervised = live.wants_worker();
        live.supervised
    })
}

/// Runs one worker to its end. `None` when it ended as it was told to.
fn run_once(appliance: &Arc<Appliance>, shell: &Arc<JobShell>) -> anyhow::Result<Option<Problem>> {
    // Whatever the store says of the job: two that write to one disk destroy it.
    match launch::machine(appliance, &shell.record.name) {
        Ok(None | Some(VmState::Off)) => {}
        Ok(state) => return Ok(Some(launch::in_use(&shell.record.name, state))),
        Err(problem) => return Ok(Some(problem)),
    }
    let mut child = spawn(appliance)?;
    let (mut stdin, stdout) = (child.stdin.take().expect("stdin is piped"), child.stdout.take().expect("stdout is piped"));
    let pid = child.id();
    let orders = orders(appliance, shell);
    let on_point = orders.points.is_none();
    let link = match send_orders(&orders, &mut stdin).and_then(|()| Ok(WorkerLink::begin(pid, stdin)?)) {
        Ok(link) => link,
        Err(error) => {
            // It may have ended before it read them; nothing is left behind either way.
            let _ = child.kill();
            child.wait()?;
            return Err(error);
        }
    };
    shell.update(|live| {
        live.boot = BootState::Unprepared;
        live.worker = Some(link);
    });
    let mut taking = Taking { appliance, shell, problem: None, question: None, detached: false, on_point };
    taking.all(BufReader::new(stdout));
    shell.update(|live| live.worker = None);
    let status = child.wait()?;
    if taking.detached && status.success() {
        return Ok(None);
    }
    let next = "nothing: it is started again; look with: standin job show JOB";
    Ok(Some(taking.problem.unwrap_or_else(|| Problem::new("E4042", format!("the worker (pid {pid}) ended: {status}"), next))))
}

fn spawn(appliance: &Appliance) -> anyhow::Result<Child> {
    use anyhow::Context;
    let mut command = Command::new(&appliance.program);
    command.arg("worker").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    command.spawn().with_context(|| format!("running {}", appliance.program.display()))
}

/// For the replica's disk, or for the duplicate of the recovery point that a failover boots from.
fn orders(appliance: &Appliance, shell: &JobShell) -> WorkerOrders {
    let (layout, record) = (&appliance.layout, &shell.record);
    let durable = shell.journal().durable();
    let live = shell.live();
    let durable = live.applicable(durable);
    let orders = WorkerOrders {
        job: record.name.clone(),
        disk: layout.disk(&record.name),
        journal: layout.journal(&record.id),
        node_table: layout.node_table(&record.id),
        run_directory: layout.run_directory(&record.id),
        volumes: record.spec.volumes.iter().map(|volume| volume.id).collect(),
        durable,
        profile: launch::profile(&record.summary, &record.inventory),
        sizes: growth::told(appliance, record),
        points: Some(PointOrders { directory: layout.points(&record.name), policy: live.points.policy.clone() }),
    };
    if live.launched_point().is_none() {
        return orders;
    }
    let files = LaunchFiles::of(&layout.launch(&record.name));
    let run_directory = layout.launch_run_directory(&record.id);
    WorkerOrders { disk: files.disk, node_table: files.table, run_directory, points: None, sizes: Vec::new(), ..orders }
}

fn send_orders(orders: &WorkerOrders, stdin: &mut ChildStdin) -> anyhow::Result<()> {
    use std::io::Write;
    let mut line = serde_json::to_vec(orders)?;
    line.push(b'\n');
    stdin.write_all(&line)?;
    Ok(())
}

struct Taking<'a> {
    appliance: &'a Arc<Appliance>,
    shell: &'a Arc<JobShell>,
    problem: Option<Problem>,
    /// What is being taken answers this question.
    question: Option<u64>,
    detached: bool,
    /// The worker works on a recovery point's duplicate, and what it applied says nothing about the replica.
    on_point: bool,
}

impl Taking<'_> {
    fn all(&mut self, mut reader: impl BufRead) {
        loop {
            let mut line = Vec::new();
            let read = (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
            if !matches!(read, Ok(count) if count > 0) {
                return;
            }
            match serde_json::from_slice(&line) {
                Ok(report) => self.take(report),
                // Something in the worker printed to stdout; it is not ours to stop for.
                Err(error) => tracing::warn!(job = self.shell.record.name, %error, "unreadable report of the worker"),
            }
        }
    }

    fn take(&mut self, report: FromWorker) {
        let (appliance, shell) = (self.appliance, self.shell);
        match report {
            FromWorker::Ready { .. } | FromWorker::Applied { .. } | FromWorker::Want { .. } | FromWorker::Mark { .. } if self.on_point => {}
            FromWorker::Differs { .. } if self.on_point => {}
            FromWorker::Mark { name, seq, captured_at, consistent } => points::marked(appliance, shell, name, seq, captured_at, consistent),
            FromWorker::Point { point } => points::taken(appliance, shell, point),
            FromWorker::PointFailed { kind, name, seq, problem } => points::failed(appliance, shell, kind, name, seq, problem),
            FromWorker::Ready { applied } => {
                if self.is_ahead_of_journal(applied) {
                    return;
                }
                self.shell.update(|live| live.target.applied = applied.min(live.target.durable));
                // What became durable between the orders and now was told to nobody.
                let durable = self.shell.update(|live| live.applicable(live.target.durable));
                self.shell.tell_worker(&ToWorker::Durable { seq: durable });
                self.appliance.event(self.shell, Event::WorkerRunning);
                if matches!(self.shell.live().job.state, JobState::Protected { .. }) {
                    crate::perform::perform(self.appliance, self.shell, standin_protection::Action::PrepareBoot);
                }
            }
            FromWorker::Applied { seq, marked, captured_at, state } => self.applied(seq, marked, captured_at, state),
            FromWorker::Want { nodes } => self.want(nodes),
            FromWorker::Differs { answers } => {
                if let Some(session) = appliance.session(&shell.record.agent) {
                    session.differs(shell, &answers);
                }
            }
            FromWorker::Compared { comparison } => verify::compared(self.appliance, self.shell, comparison),
            FromWorker::Grown { note } => appliance.log(Some(shell), "appliance", None, &note),
            FromWorker::NotGrown { problem } => appliance.log(Some(shell), "appliance", Some(&problem.code), &problem.cause),
            FromWorker::Full { problem } => appliance.event(shell, Event::ReplicaFull(problem)),
            FromWorker::HasRoom => appliance.event(shell, Event::ReplicaHasRoom),
            FromWorker::Prepared { note } => {
                self.shell.update(|live| live.boot = BootState::Prepared { at: now() });
                self.appliance.log(Some(self.shell), "appliance", None, &format!("boot repair is prepared: {note}"));
            }
            FromWorker::PrepareFailed { problem } => {
                self.appliance.log(Some(self.shell), "appliance", Some(&problem.code), &problem.cause);
                self.shell.update(|live| live.boot = BootState::Failed(problem));
            }
            FromWorker::Detached => {
                self.detached = true;
                self.step(Ok("Detached".into()));
            }
            FromWorker::Finished => self.step(Ok("Finished".into())),
            FromWorker::Injected { note } => self.step(Ok(note)),
            FromWorker::StepFailed { problem } => self.step(Err(problem)),
            FromWorker::Answer { question, answer } => {
                self.question = Some(question);
                self.take(*answer);
                self.question = None;
            }
            FromWorker::Failed { problem } => self.problem = Some(problem),
        }
    }

    fn step(&self, result: Result<String, Problem>) {
        self.shell.update(|live| {
            // A late answer to a question that nobody waits for any more answers none that came after it.
            if self.question == Some(live.question) {
                live.step_answer = Some(result);
            }
        });
    }

    fn want(&self, nodes: Vec<standin_model::NodeId>) {
        let count = nodes.len();
        self.appliance.event(self.shell, Event::GapApplied { reason: format!("{count} nodes are mirrored again") });
        self.shell.update(|live| {
            live.wants.extend(&nodes);
            verify::note_wants(live);
        });
        if let Some(session) = self.appliance.session(&self.shell.record.agent) {
            session.want(self.shell, &nodes);
        }
    }

    /// A replica that was applied further than the journal reached when this process opened it proves that the journal lost its end. What came since
    /// would be taken for applied, so the journal begins anew behind the replica, and so does the worker.
    fn is_ahead_of_journal(&self, applied: OpSeq) -> bool {
        let Some(end) = self.shell.update(|live| live.opened_at.take()).filter(|end| *end < applied) else { return false };
        tracing::error!(job = self.shell.record.name, %applied, %end, "the replica is ahead of the journal");
        let epoch = self.shell.live().stream.epoch;
        let mut journal = self.shell.journal();
        if let Err(error) = journal.restart_after(applied, epoch) {
            drop(journal);
            // Asked again by the next worker.
            self.shell.update(|live| (live.opened_at, live.worker) = (Some(end), None));
            self.appliance.event(self.shell, Event::JournalRefused(errors::journal(&error)));
            return true;
        }
        drop(journal);
        self.shell.update(|live| {
            (live.target.received, live.target.durable) = (applied, applied);
            live.worker = None;
        });
        self.appliance.journal_lost(self.shell, applied, applied);
        true
    }

    fn applied(&mut self, seq: OpSeq, marked: OpSeq, captured_at: Option<Timestamp>, mut state: WorkerState) {
        let (consistent, gap, everything) = self.shell.update(|live| {
            if live.stream.lost_after.is_some_and(|lost| state.consistent_at.is_none_or(|seq| seq <= lost)) {
                state.is_consistent = false;
                state.gap_reason.get_or_insert_with(|| "the journal lost acknowledged items".into());
            } else if state.is_consistent && live.stream.lost_after.take().is_some() {
                live.stream_saved_at = Timestamp(0);
            }
            live.target.applied = seq.min(live.target.durable);
            live.applied_captured_at = captured_at.or(live.applied_captured_at);
            let consistent = state.consistent_at.filter(|_| state.is_consistent);
            let newly =
                consistent.filter(|_| !matches!(live.job.state, JobState::Protected { .. }) || live.replica.consistent_at != consistent);
            let gap =
                (!state.is_consistent && state.consistent_at.is_some() && live.replica.is_consistent).then(|| state.gap_reason.clone());
            if state.wanted == 0 {
                live.wants.clear();
            }
            if state.is_consistent && captured_at.is_some() {
                live.stream.captured_at = captured_at;
            }
            let everything = state.everything_wanted && !live.replica.everything_wanted;
            // A `Consistent` that closes what was mended within a segment changes nothing for anyone.
            let changes = !live.replica.is_consistent || !matches!(live.job.state, JobState::Protected { .. });
            live.replica = state;
            (newly.map(|seq| (seq, changes)), gap, everything)
        });
        self.save_stream();
        if everything {
            self.appliance.mirror_everything(self.shell);
        }
        if let Some(reason) = gap {
            let reason = reason.unwrap_or_else(|| "the replica misses nodes and asks for them".into());
            points::history(self.appliance, self.shell, HistoryRow::new("resync", seq, None, &reason));
            self.appliance.event(self.shell, Event::GapApplied { reason });
        }
        if let Some((seq, changes)) = consistent {
            if changes {
                let text = "the replica equals the source from here on";
                points::history(self.appliance, self.shell, HistoryRow::new("consistent", seq, None, text));
            }
            self.mirrored();
            self.appliance.event(self.shell, Event::ConsistentApplied { seq });
        }
        if let Some(session) = self.appliance.session(&self.shell.record.agent) {
            session.acknowledge(self.shell);
        }
        let mut journal = self.shell.journal();
        if let Err(error) = journal.discard_through(marked) {
            tracing::warn!(job = self.shell.record.name, %error, "old journal files cannot be removed");
        }
        let bytes = journal.bytes();
        drop(journal);
        self.shell.update(|live| live.journal_bytes = bytes);
    }

    /// From now on a new epoch needs only what changed.
    fn mirrored(&self) {
        let first = self.shell.update(|live| !std::mem::replace(&mut live.stream.mirrored, true));
        if first {
            self.shell.update(|live| live.stream_saved_at = Timestamp(0));
            self.save_stream();
        }
    }

    fn save_stream(&self) {
        save_stream(self.appliance, self.shell);
    }
}

/// Stores the stream's position now and then; an older one only makes a resync a little wider.
pub fn save_stream(appliance: &Appliance, shell: &JobShell) {
    let stream = shell.update(|live| {
        let due = now().0.saturating_sub(live.stream_saved_at.0) > STREAM_SAVED_EVERY;
        due.then(|| {
            live.stream_saved_at = now();
            live.stream.clone()
        })
    });
    let Some(stream) = stream else { return };
    if let Err(error) = appliance.store.save_stream(&shell.record.id, &stream) {
        tracing::warn!(job = shell.record.name, %error, "the store does not take the stream's position");
    }
}
