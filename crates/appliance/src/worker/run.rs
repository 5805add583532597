//! The worker's loop: messages, segments, marks, reports — on one thread; another reads stdin, and a third prepares boot repair.

use super::exclusive::Exclusive;
use super::message::{FromWorker, ToWorker, WorkerOrders, WorkerState};
use super::room::{Room, Space};
use super::roots::Roots;
use crate::errors;
use anyhow::{Context, Result};
use rustix::io::Errno;
use standin_journal::JournalReader;
use standin_model::{Item, OpSeq, Timestamp};
use standin_protection::Problem;
use standin_replica::apply::{Applier, ApplyConfig, ApplyError, VolumeConfig};
use standin_replica::disk::{self, Attachment, DiskError};
use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const MARK_EVERY: Duration = Duration::from_secs(1);
/// Said again, because a job that begins anew takes everything for well.
const TELL_FULL_EVERY: Duration = Duration::from_secs(5);
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// One want line stays far below the appliance's bound of 4 MiB.
const WANT_NODES_MAX: usize = 8192;
/// The same for answers of at most 1,060 bytes.
const ANSWERS_MAX: usize = 1024;

pub(super) struct Worker {
    pub orders: WorkerOrders,
    pub attachment: Option<Arc<Attachment>>,
    pub applier: Option<Applier>,
    pub roots: Roots,
    pub reader: JournalReader,
    pub durable: OpSeq,
    room: Room,
    told_full_at: Instant,
    pub captured_at: Option<Timestamp>,
    /// Items from before the first root was known; only markers can be among them.
    early: Vec<Item>,
    pub preparing: Option<JoinHandle<()>>,
    /// The replica is as it will be launched; what becomes durable now is not applied to it.
    pub finished: bool,
    /// The last one of the appliance.
    question: u64,
    marked_at: Instant,
    reported_at: Instant,
    reported: Option<(OpSeq, OpSeq, WorkerState)>,
    /// Declared last, so that it is let go after the disk.
    _exclusive: Exclusive,
}

/// Runs until stdin closes or the disks are detached. Failures are reported before they are returned.
pub fn run() -> Result<()> {
    // Before any other thread exists, so that all of them are inside.
    disk::enter_private_namespace().context("entering a private mount namespace")?;
    let mut lines = std::io::BufReader::new(std::io::stdin()).lines();
    let first = lines.next().context("no orders came")??;
    let orders: WorkerOrders = serde_json::from_str(&first).context("reading the orders")?;
    let (sender, receiver) = sync_channel(1024);
    std::thread::spawn(move || listen(lines, &sender));
    let result = Worker::open(orders).and_then(|mut worker| worker.serve(&receiver));
    if let Err(error) = &result {
        let problem = match error.downcast_ref::<Problem>() {
            Some(problem) => problem.clone(),
            None if is_full(error) => {
                let next = "nothing: it grows with the source; look with: standin job show JOB";
                Problem::new("E4075", format!("a volume of the replica is full: {error:#}"), next)
            }
            None => Problem::new("E4045", format!("{error:#}"), "nothing: the worker is started again; look with: standin job show JOB"),
        };
        report(&FromWorker::Failed { problem })?;
    }
    result
}

/// The replica's file system itself, which has nothing to do with the datastore's space.
fn is_full(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ApplyError::Volume { source: Errno::NOSPC | Errno::DQUOT, .. }))
}

fn listen(lines: impl Iterator<Item = std::io::Result<String>>, sender: &SyncSender<ToWorker>) {
    for line in lines.map_while(|line| line.ok()) {
        match serde_json::from_str(&line) {
            Ok(message) => {
                if sender.send(message).is_err() {
                    return;
                }
            }
            Err(error) => tracing::warn!(%error, "unreadable message of the appliance"),
        }
    }
}

/// One line, whole, from any thread.
pub(super) fn report(message: &FromWorker) -> Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    out.write_all(&line)?;
    Ok(out.flush()?)
}

/// Lets the disk grow with its source first. A volume that cannot grow is used as it is.
fn attach(orders: &WorkerOrders) -> Result<Attachment> {
    let refused = |error: &DiskError| Problem { code: "STANDIN-E4074".into(), ..errors::coded("E4074", error, "standin host list") };
    if let Err(error) = disk::grow(&orders.disk, &orders.sizes) {
        report(&FromWorker::NotGrown { problem: refused(&error) })?;
    }
    let attachment =
        Attachment::attach(&orders.disk, &orders.run_directory).map_err(|error| errors::coded("E4046", &error, "dmesg | tail"))?;
    for (volume, grown) in attachment.grown() {
        match grown {
            Ok(()) => report(&FromWorker::Grown { note: format!("the replica's file system of {volume} has grown") })?,
            Err(error) => report(&FromWorker::NotGrown { problem: refused(error) })?,
        }
    }
    Ok(attachment)
}

impl Worker {
    fn open(orders: WorkerOrders) -> Result<Worker> {
        std::fs::create_dir_all(&orders.run_directory).with_context(|| format!("making {}", orders.run_directory.display()))?;
        let exclusive = Exclusive::take(&orders.node_table.with_extension("lock"), &orders.disk, &orders.run_directory)?;
        let attachment = attach(&orders)?;
        let roots = Roots::load(&orders.node_table)?;
        let now = Instant::now();
        let mut worker = Worker {
            durable: orders.durable,
            room: Room::of(&orders.disk),
            told_full_at: now,
            reader: JournalReader::open(&orders.journal, OpSeq(1))?,
            orders,
            attachment: Some(Arc::new(attachment)),
            applier: None,
            roots,
            captured_at: None,
            early: Vec::new(),
            preparing: None,
            finished: false,
            question: 0,
            marked_at: now,
            reported_at: now,
            reported: None,
            _exclusive: exclusive,
        };
        if !worker.roots.known().is_empty() {
            worker.open_applier()?;
        }
        worker.reader = JournalReader::open(&worker.orders.journal, worker.applied().next())?;
        report(&FromWorker::Ready { applied: worker.applied() })?;
        worker.report_known()?;
        // Before anything else is applied.
        worker.take_up_draft()?;
        Ok(worker)
    }

    pub(super) fn open_applier(&mut self) -> Result<()> {
        // The table has one owner at a time.
        self.applier = None;
        let attachment = self.attachment.as_ref().context("the disk is detached already")?;
        let volumes =
            self.roots.known().iter().map(|root| VolumeConfig { id: root.volume, mount: attachment.volume_path(root.volume), root: *root });
        let mut applier = Applier::open(ApplyConfig { volumes: volumes.collect(), table: self.orders.node_table.clone() })?;
        applier.redo_through(self.orders.durable)?;
        self.applier = Some(applier);
        Ok(())
    }

    pub(super) fn applied(&self) -> OpSeq {
        self.applier.as_ref().map_or(OpSeq::ZERO, Applier::applied)
    }

    fn serve(&mut self, messages: &Receiver<ToWorker>) -> Result<()> {
        loop {
            let wait = if !self.finished && !self.room.is_full && self.applied() < self.durable { Duration::ZERO } else { REPORT_EVERY };
            match messages.recv_timeout(wait) {
                Ok(message) => {
                    if self.obey(message)? {
                        return Ok(());
                    }
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.leave(),
            }
            if !self.finished {
                self.step_in_room()?;
                self.mark_and_report()?;
            }
        }
    }

    /// One step, as far as the datastore has space for it.
    fn step_in_room(&mut self) -> Result<()> {
        let was_full = self.room.is_full;
        let space = self.room.look()?;
        match (was_full, space) {
            (_, Space::Full) => {
                if !was_full || self.told_full_at.elapsed() >= TELL_FULL_EVERY {
                    self.told_full_at = Instant::now();
                    report(&FromWorker::Full { problem: self.room.problem() })?;
                }
                return Ok(());
            }
            (true, Space::Enough | Space::Near) => report(&FromWorker::HasRoom)?,
            (false, Space::Enough | Space::Near) => {}
        }
        let stepped = self.step()?;
        if let Some(applier) = self.applier.as_mut().filter(|_| stepped && space == Space::Near) {
            applier.mark()?;
        }
        Ok(())
    }

    /// The appliance has gone: leave the replica marked, so that the next worker has nothing to redo.
    fn leave(&mut self) -> Result<()> {
        if let Some(applier) = &mut self.applier {
            applier.mark()?;
        }
        Ok(())
    }

    /// True when the worker has nothing left to do.
    fn obey(&mut self, message: ToWorker) -> Result<bool> {
        match message {
            ToWorker::Durable { seq } => self.durable = self.durable.max(seq),
            ToWorker::Repair { nodes } => {
                if let Some(applier) = &mut self.applier {
                    applier.repair(nodes)?;
                }
            }
            ToWorker::PowerCutVerified { power_cut } => {
                if let Some(applier) = &mut self.applier {
                    applier.power_cut_is_verified(power_cut);
                }
            }
            ToWorker::Prepare => self.prepare(),
            ToWorker::Finish { through } => self.answer(|worker| worker.finish(through).map(|()| FromWorker::Finished))?,
            ToWorker::Inject => self.answer(|worker| worker.inject().map(|note| FromWorker::Injected { note }))?,
            ToWorker::Detach => return self.end(Worker::detach),
            ToWorker::Release => return self.end(Worker::release),
            ToWorker::Restart => {
                self.release()?;
                report(&FromWorker::Detached)?;
                return Ok(true);
            }
            ToWorker::Point { kind, name } => self.take_point(kind, name)?,
            ToWorker::PointPolicy { policy } => {
                if let Some(points) = &mut self.orders.points {
                    points.policy = policy;
                }
            }
            ToWorker::Ask { question, step } => {
                self.question = question;
                return self.obey(*step);
            }
        }
        Ok(false)
    }

    /// True when the disk was let go.
    fn end(&mut self, step: impl FnOnce(&mut Worker) -> Result<(), Problem>) -> Result<bool> {
        let mut detached = false;
        self.answer(|worker| {
            step(worker)?;
            detached = true;
            Ok(FromWorker::Detached)
        })?;
        Ok(detached)
    }

    /// A failed step of a failover is an answer, not the worker's end.
    fn answer(&mut self, step: impl FnOnce(&mut Worker) -> Result<FromWorker, Problem>) -> Result<()> {
        let answer = step(self);
        let answer = answer.unwrap_or_else(|problem| FromWorker::StepFailed { problem });
        report(&FromWorker::Answer { question: self.question, answer: Box::new(answer) })
    }

    /// Applies one segment, if there is one.
    pub(super) fn step(&mut self) -> Result<bool> {
        let next = self.reader.next(self.durable).map_err(|error| errors::journal(&error))?;
        let Some(segment) = next else { return Ok(false) };
        let items = segment.items()?;
        let mut learned = false;
        for item in &items {
            learned |= self.roots.learn(item)?;
        }
        if learned {
            if let Some(applier) = &mut self.applier {
                applier.mark()?;
            }
            self.open_applier()?;
        }
        // Markers may come before the first node; without a root there is nothing yet that they could be applied to.
        let Some(applier) = &mut self.applier else {
            self.early.extend(items);
            return Ok(true);
        };
        let early = std::mem::take(&mut self.early);
        applier.apply_segment(&early)?;
        self.apply_items(&items, segment.captured_at())?;
        Ok(true)
    }

    pub(super) fn mark_and_report(&mut self) -> Result<()> {
        let now = Instant::now();
        self.report_differs()?;
        let Some(applier) = &mut self.applier else { return Ok(()) };
        // Before a mark, so that none is lost by a crash behind it.
        for comparison in applier.take_comparisons() {
            report(&FromWorker::Compared { comparison })?;
        }
        if now.duration_since(self.marked_at) >= MARK_EVERY && applier.marked() < applier.applied() {
            applier.mark()?;
            self.marked_at = now;
        }
        if now.duration_since(self.reported_at) < REPORT_EVERY {
            return Ok(());
        }
        self.reported_at = now;
        self.report_state()
    }

    /// The agent waits for them. They come before the news that their items are applied, from which it would conclude that they are lost.
    fn report_differs(&mut self) -> Result<()> {
        let Some(applier) = &mut self.applier else { return Ok(()) };
        for answers in applier.take_differs().chunks(ANSWERS_MAX) {
            report(&FromWorker::Differs { answers: answers.to_vec() })?;
        }
        Ok(())
    }

    pub(super) fn report_state(&mut self) -> Result<()> {
        self.report_differs()?;
        let Some(applier) = &mut self.applier else { return Ok(()) };
        for nodes in applier.take_wants().chunks(WANT_NODES_MAX) {
            report(&FromWorker::Want { nodes: nodes.to_vec() })?;
        }
        let (state, counters) = (applier.state(), applier.counters());
        let state = WorkerState {
            consistent_at: state.consistent_at,
            is_consistent: state.is_consistent(),
            gap_reason: state.gap_reason.clone(),
            quiesced_at: state.quiesced_at,
            wanted: state.wanted,
            everything_wanted: state.everything_wanted,
            power_cut: state.power_cut,
            items: counters.items,
            content_bytes: counters.content_bytes,
            operations_failed: counters.operations_failed,
            attributes_refused: counters.attributes_refused,
            conflicts: counters.conflicts,
            patches: counters.patches,
            patches_refused: counters.patches_refused,
            patches_unproven: counters.patches_unproven,
        };
        let current = (applier.applied(), applier.marked(), state);
        if self.reported.as_ref() == Some(&current) {
            return Ok(());
        }
        let (seq, marked, state) = current.clone();
        self.reported = Some(current);
        report(&FromWorker::Applied { seq, marked, captured_at: self.captured_at, state })
    }
}
