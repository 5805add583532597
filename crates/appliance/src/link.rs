//! The way to a running worker's stdin: a thread of its own writes, so that whoever has something to tell never waits for a pipe.
//!
//! A worker that is busy does not read, and a full pipe would otherwise hold up the job's `live` lock and everybody behind it. Of what is durable only the
//! newest position counts, so it has one place; everything else waits in a short queue, which is as long as more than a failover ever asks at once.

use crate::worker::message::ToWorker;
use standin_model::OpSeq;
use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

const WAITING_MAX: usize = 64;

/// Dropping it closes the worker's stdin behind what waits, and the worker ends.
pub struct WorkerLink {
    pub pid: u32,
    outbox: Arc<Outbox>,
}

#[derive(Default)]
struct Outbox {
    state: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    durable: Option<OpSeq>,
    messages: VecDeque<ToWorker>,
    closed: bool,
}

impl WorkerLink {
    pub fn begin(pid: u32, stdin: impl Write + Send + 'static) -> std::io::Result<WorkerLink> {
        let outbox = Arc::new(Outbox::default());
        let writing = outbox.clone();
        std::thread::Builder::new().name("to worker".into()).spawn(move || writing.write_all(stdin))?;
        Ok(WorkerLink { pid, outbox })
    }

    /// Never waits. False when the worker is known to be gone, or has not read for so long that the queue is full.
    pub fn send(&mut self, message: &ToWorker) -> bool {
        let mut waiting = self.outbox.state();
        if waiting.closed || waiting.messages.len() >= WAITING_MAX {
            return false;
        }
        match message {
            ToWorker::Durable { seq } => waiting.durable = waiting.durable.max(Some(*seq)),
            message => waiting.messages.push_back(message.clone()),
        }
        drop(waiting);
        self.outbox.changed.notify_one();
        true
    }
}

impl Drop for WorkerLink {
    fn drop(&mut self) {
        self.outbox.state().closed = true;
        self.outbox.changed.notify_one();
    }
}

impl Outbox {
    fn state(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// What is to be written next; `None` when all is written and no more comes.
    fn next(&self) -> Option<ToWorker> {
        let mut waiting = self.state();
        loop {
            if let Some(seq) = waiting.durable.take() {
                return Some(ToWorker::Durable { seq });
            }
            if let Some(message) = waiting.messages.pop_front() {
                return Some(message);
            }
            if waiting.closed {
                return None;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    fn write_all(&self, mut stdin: impl Write) {
        while let Some(message) = self.next() {
            let mut line = serde_json::to_vec(&message).expect("worker messages are plain data");
            line.push(b'\n');
            // A worker that is gone cannot be told anything; its supervisor notices by itself.
            if stdin.write_all(&line).is_err() {
                self.state().closed = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    /// Far more than a pipe takes.
    const POSITIONS: u64 = 100_000;

    #[test]
    fn a_worker_that_does_not_read_holds_nobody_up_and_hears_the_newest_position() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut link = WorkerLink::begin(1, writer).unwrap();
        for seq in 1..=POSITIONS {
            assert!(link.send(&ToWorker::Durable { seq: OpSeq(seq) }));
        }
        let mut queued = 0;
        while link.send(&ToWorker::Prepare) {
            queued += 1;
            // The writer may take a few away before its pipe is full.
            assert!(queued < POSITIONS, "the queue has no bound");
        }
        drop(link);
        let told: Vec<ToWorker> = BufReader::new(reader).lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
        let durable = told.iter().filter_map(|message| if let ToWorker::Durable { seq } = message { Some(*seq) } else { None });
        assert_eq!(durable.max(), Some(OpSeq(POSITIONS)));
        assert_eq!(told.iter().filter(|message| matches!(message, ToWorker::Prepare)).count() as u64, queued);
    }

    #[test]
    fn a_worker_that_is_gone_takes_nothing() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut link = WorkerLink::begin(1, writer).unwrap();
        drop(reader);
        // Until the writer has met the closed pipe.
        while link.send(&ToWorker::Durable { seq: OpSeq(1) }) {
            std::thread::yield_now();
        }
    }
}
