//! Takes the segments of one session into the job's journal: everything that is there is appended, then made durable at once, then acknowledged.
//!
//! A segment that cannot be kept is held and tried again while the session waits (its socket fills up, and the source queues); nothing is
//! acknowledged before fdatasync returned. What the agent cannot have meant ends the session, and the next one begins behind `durable`. An intake
//! may outlive its session in such a wait; it ends when the next one begins.

use crate::appliance::Appliance;
use crate::errors;
use crate::job::JobShell;
use crate::worker::message::ToWorker;
use standin_journal::{JournalError, Segment};
use standin_model::{OpSeq, Timestamp};
use standin_protection::{Event, Problem};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// Segments between the socket and the journal: 32 of at most a few MiB bound the memory, and are more than one fdatasync groups.
const WAITING_MAX: usize = 32;
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Ends when its sender is dropped, or by itself on a segment that does not fit or when a higher `number` has begun.
pub fn begin(
    appliance: &Arc<Appliance>,
    shell: &Arc<JobShell>,
    number: u64,
    acknowledge: impl Fn(OpSeq, OpSeq) -> bool + Send + 'static,
) -> SyncSender<Segment> {
    let (sender, receiver) = sync_channel(WAITING_MAX);
    let (appliance, shell) = (appliance.clone(), shell.clone());
    std::thread::spawn(move || {
        let mut intake = Intake { appliance, shell, number, refusing: false };
        if let Err(problem) = intake.run(&receiver, acknowledge) {
            intake.appliance.log(Some(&intake.shell), "appliance", Some(&problem.code), &problem.cause);
        }
    });
    sender
}

struct Intake {
    appliance: Arc<Appliance>,
    shell: Arc<JobShell>,
    number: u64,
    refusing: bool,
}

impl Intake {
    fn run(&mut self, receiver: &Receiver<Segment>, acknowledge: impl Fn(OpSeq, OpSeq) -> bool) -> Result<(), Problem> {
        while let Ok(first) = receiver.recv() {
            let mut captured_at = first.captured_at();
            if !self.append(&first)? {
                return Ok(());
            }
            while let Ok(next) = receiver.try_recv() {
                captured_at = next.captured_at();
                if !self.append(&next)? {
                    return Ok(());
                }
            }
            let durable = self.sync()?;
            self.note(durable, captured_at);
            let applied = self.shell.live().target.applied;
            if !acknowledge(durable, applied) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Appends, waiting out what passes (a full disk, a full journal). False when another session's intake has taken this one's place.
    fn append(&mut self, segment: &Segment) -> Result<bool, Problem> {
        loop {
            let mut journal = self.shell.journal();
            // Under the journal's lock, as it is changed: what is appended behind this was there before the next session looked.
            if self.shell.live().intake != self.number {
                return Ok(false);
            }
            let result = journal.append(segment);
            drop(journal);
            match result {
                Ok(()) => {
                    self.accept();
                    self.shell.update(|live| live.target.received = live.target.received.max(segment.last_seq()));
                    return Ok(true);
                }
                Err(error) if error.is_retryable() && !matches!(error, JournalError::SyncFailed { .. }) => self.refuse(&error),
                Err(error) => return Err(self.give_up(&error)),
            }
        }
    }

    fn sync(&mut self) -> Result<OpSeq, Problem> {
        let result = self.shell.journal().sync();
        result.map_err(|error| self.give_up(&error))
    }

    /// The journal's state is behind what was received: the session ends, and what follows `durable` is sent again.
    fn give_up(&mut self, error: &JournalError) -> Problem {
        let problem = errors::journal(error);
        let mut journal = self.shell.journal();
        if matches!(error, JournalError::Poisoned { .. } | JournalError::Io { .. })
            && let Err(error) = journal.reopen()
        {
            tracing::error!(job = self.shell.record.name, %error, "the journal does not open again; it is tried with the next session");
        }
        let durable = journal.durable();
        drop(journal);
        self.shell.update(|live| (live.target.durable, live.target.received) = (durable, durable));
        if !matches!(error, JournalError::NotContiguous { .. } | JournalError::StaleEpoch { .. }) {
            self.refusing = true;
            self.appliance.event(&self.shell, Event::JournalRefused(problem.clone()));
        }
        problem
    }

    fn refuse(&mut self, error: &JournalError) {
        if !self.refusing {
            self.refusing = true;
            self.appliance.event(&self.shell, Event::JournalRefused(errors::journal(error)));
        }
        std::thread::sleep(RETRY_AFTER);
    }

    fn accept(&mut self) {
        if std::mem::take(&mut self.refusing) {
            self.appliance.event(&self.shell, Event::JournalAccepts);
        }
    }

    fn note(&mut self, durable: OpSeq, captured_at: Timestamp) {
        let bytes = self.shell.journal().bytes();
        self.shell.update(|live| {
            live.target.durable = live.target.durable.max(durable);
            live.journal_bytes = bytes;
            live.durable_captured_at = Some(captured_at);
            live.stream.acknowledged = live.stream.acknowledged.max(durable);
            let seq = live.applicable(durable);
            if let Some(worker) = &mut live.worker {
                worker.send(&ToWorker::Durable { seq });
            }
        });
        crate::supervise::save_stream(&self.appliance, &self.shell);
    }
}
