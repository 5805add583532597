//! The queue between pump and connection, shared by the two threads.
//!
//! The lock is held for moments only: a spilled segment is read from disk without it, because the pump must never wait for the source's disk.

use standin_journal::{Next, Queue, QueueFull, Segment};
use standin_model::OpSeq;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

struct State {
    queue: Queue,
    /// Somebody has something else for the sender.
    nudged: bool,
    /// Last item that the appliance has for certain.
    durable: OpSeq,
    /// What may wait before the mirror adds to it.
    mirror_bytes_max: u64,
}

#[derive(Clone)]
pub struct SharedQueue(Arc<(Mutex<State>, Condvar)>);

impl SharedQueue {
    pub fn new(queue: Queue) -> SharedQueue {
        SharedQueue(Arc::new((
            Mutex::new(State { queue, nudged: false, durable: OpSeq::ZERO, mirror_bytes_max: u64::MAX }),
            Condvar::new(),
        )))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().expect("no thread panics with the queue in its hands")
    }

    pub fn push(&self, segment: Segment) -> Result<(), QueueFull> {
        let result = self.lock().queue.push(segment);
        self.0.1.notify_all();
        result
    }

    pub fn has_room(&self, len: u64) -> bool {
        self.lock().queue.has_room(len)
    }
    pub fn has_memory_room(&self, len: u64) -> bool {
        self.lock().queue.has_memory_room(len)
    }

    /// Whether the mirror may add `len` bytes: they fit the memory, and what waits already is gone soon.
    pub fn has_mirror_room(&self, len: u64) -> bool {
        let state = self.lock();
        state.queue.has_memory_room(len) && state.queue.bytes() < state.mirror_bytes_max
    }
    pub fn set_mirror_bound(&self, bytes: u64) {
        self.lock().mirror_bytes_max = bytes.max(1);
    }

    /// See [`Queue::hold_in_memory`].
    pub fn hold_in_memory(&self) -> bool {
        self.lock().queue.hold_in_memory()
    }
    pub fn release(&self) {
        self.lock().queue.release();
    }

    pub fn last(&self) -> OpSeq {
        self.lock().queue.last()
    }

    pub fn bytes(&self) -> u64 {
        self.lock().queue.bytes()
    }

    pub fn acknowledge(&self, durable: OpSeq) -> standin_journal::Result<()> {
        let mut state = self.lock();
        state.durable = state.durable.max(durable);
        let result = state.queue.acknowledge(durable);
        drop(state);
        self.0.1.notify_all();
        result
    }

    /// Whether the appliance has item `seq` for certain, waiting for it at most `bound`.
    pub fn wait_durable(&self, seq: OpSeq, bound: Duration) -> bool {
        let waited = self.0.1.wait_timeout_while(self.lock(), bound, |state| state.durable < seq);
        waited.expect("no thread panics with the queue in its hands").0.durable >= seq
    }

    /// Makes the waiting [`SharedQueue::next_after`], or the next one, return at once.
    pub fn nudge(&self) {
        self.lock().nudged = true;
        self.0.1.notify_all();
    }

    /// The segment behind `seq`, waiting for one at most `bound`, and not at all after a nudge.
    pub fn next_after(&self, seq: OpSeq, bound: Duration) -> standin_journal::Result<Option<Segment>> {
        let mut state = self.lock();
        let mut next = state.queue.begin_next(seq);
        if matches!(next, Next::Nothing) && !state.nudged {
            state = self.0.1.wait_timeout(state, bound).expect("no thread panics with the queue in its hands").0;
            next = state.queue.begin_next(seq);
        }
        state.nudged = false;
        drop(state);
        match next {
            Next::Nothing => Ok(None),
            Next::Segment(segment) => Ok(Some(segment)),
            Next::Spilled(mut read) => {
                let result = read.read();
                let counts = self.lock().queue.finish_next(read);
                if counts { result } else { Ok(result.unwrap_or(None)) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use standin_journal::{QueueOptions, Sealer};
    use standin_model::{Marker, Operation, Timestamp};

    /// Everything is spilled; a sender goes through it while a pump pushes and acknowledgements remove files.
    #[test]
    fn sending_from_disk_goes_on_beside_pushes_and_acknowledgements() {
        const SEGMENTS: u64 = 400;
        let directory = tempfile::tempdir().unwrap();
        let options = QueueOptions { memory_bytes_max: 1, disk_bytes_max: 1 << 30 };
        let queue = SharedQueue::new(Queue::open(directory.path().join("queue"), options).unwrap());
        let pump = queue.clone();
        let pushing = std::thread::spawn(move || {
            let mut sealer = Sealer::new(1, OpSeq(1), 0);
            for number in 0..SEGMENTS {
                let reason = format!("{number} ").repeat(20_000);
                sealer.push(Operation::Marker(Marker::Gap { reason }), Timestamp(1));
                pump.push(sealer.seal().unwrap()).unwrap();
            }
        });
        let mut sent = OpSeq::ZERO;
        while sent < OpSeq(SEGMENTS) {
            let Some(segment) = queue.next_after(sent, Duration::from_secs(5)).unwrap() else { continue };
            assert_eq!(segment.first_seq(), sent.next());
            sent = segment.last_seq();
            queue.acknowledge(OpSeq(sent.0.saturating_sub(3))).unwrap();
        }
        pushing.join().unwrap();
        assert_eq!(queue.last(), OpSeq(SEGMENTS));
    }

    #[test]
    fn a_nudge_ends_the_wait_even_before_it() {
        let directory = tempfile::tempdir().unwrap();
        let queue = SharedQueue::new(Queue::open(directory.path().join("queue"), QueueOptions::default()).unwrap());
        let begun = std::time::Instant::now();
        queue.nudge();
        assert!(queue.next_after(OpSeq::ZERO, Duration::from_secs(60)).unwrap().is_none());
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}
