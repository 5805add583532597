//! The queue between pump and connection, shared by the two threads.
//!
//! The lock is held for moments only: a spilled segment is read from disk without it, because the pump must never wait for the source's disk.

use standin_journal::{Next, Queue, QueueFull, Segment};
use standin_model::OpSeq;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

struct State {
    queue: Queue,
    /// Somebody has something else for the sender.
    nudged: bool,
    /// Last item that the appliance has for certain.
    durable: OpSeq,
    /// Last item of the segment that the sender has or had in its hands.
    taken: OpSeq,
    /// What may wait or be on its way before the mirror adds to it, if the sender has something to do.
    mirror_bytes_max: u64,
    /// When the sender or the appliance took something last.
    moved: Option<Instant>,
    /// How long the sender has waited for something to send, and since when it does.
    starved: Duration,
    starving_since: Option<Instant>,
}

/// A link that has taken nothing for so long will not take something at the next moment.
const STILL_AFTER: Duration = Duration::from_secs(2);

/// A step of the mirror under a limit, at least: less is more barriers than content.
const MIRROR_STEP_BYTES_MIN: u64 = 32 * 1024;

#[derive(Clone)]
pub struct SharedQueue(Arc<(Mutex<State>, Condvar)>);

impl SharedQueue {
    pub fn new(queue: Queue) -> SharedQueue {
        SharedQueue(Arc::new((
            Mutex::new(State {
                queue,
                nudged: false,
                durable: OpSeq::ZERO,
                taken: OpSeq::ZERO,
                mirror_bytes_max: u64::MAX,
                moved: None,
                starved: Duration::ZERO,
                starving_since: None,
            }),
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

    /// Whether the mirror may add `len` bytes: they fit the memory, and what waits already is gone soon. The sender never runs dry for it: what is
    /// only to be acknowledged yet keeps no link busy.
    pub fn has_mirror_room(&self, len: u64) -> bool {
        let state = self.lock();
        let is_short = state.queue.bytes() < state.mirror_bytes_max || state.queue.last() <= state.taken;
        is_short && state.queue.has_memory_room(len)
    }

    /// What the mirror reads between two looks at the room: two of them are what it may be ahead.
    pub fn mirror_step_bytes(&self) -> usize {
        usize::try_from((self.lock().mirror_bytes_max / 2).max(MIRROR_STEP_BYTES_MIN)).unwrap_or(usize::MAX)
    }

    pub fn set_mirror_bound(&self, bytes: u64) {
        self.lock().mirror_bytes_max = bytes.max(1);
    }

    /// Whether there may be room at any moment.
    pub fn is_moving(&self) -> bool {
        self.lock().moved.is_some_and(|at| at.elapsed() < STILL_AFTER)
    }

    /// Whether something waits for the sender.
    pub fn has_backlog(&self) -> bool {
        let state = self.lock();
        state.queue.last() > state.taken
    }

    /// How long senders have waited for something to send.
    pub fn starved(&self) -> Duration {
        let state = self.lock();
        state.starved + state.starving_since.map_or(Duration::ZERO, |since| since.elapsed())
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
        state.moved = Some(Instant::now());
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
            let since = Instant::now();
            state.starving_since = Some(since);
            state = self.0.1.wait_timeout(state, bound).expect("no thread panics with the queue in its hands").0;
            state.starving_since = None;
            state.starved += since.elapsed();
            next = state.queue.begin_next(seq);
        }
        state.nudged = false;
        drop(state);
        let segment = match next {
            Next::Nothing => None,
            Next::Segment(segment) => Some(segment),
            Next::Spilled(mut read) => {
                let result = read.read();
                let counts = self.lock().queue.finish_next(read);
                if counts { result? } else { result.unwrap_or(None) }
            }
        };
        if let Some(segment) = &segment {
            let mut state = self.lock();
            (state.taken, state.moved) = (segment.last_seq(), Some(Instant::now()));
        }
        Ok(segment)
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

    /// Under a limit: a segment that is sent but not acknowledged fills the bound, and yet the sender has to find the next one.
    #[test]
    fn the_mirror_goes_on_while_nothing_waits_for_the_sender() {
        let directory = tempfile::tempdir().unwrap();
        let queue = SharedQueue::new(Queue::open(directory.path().join("queue"), QueueOptions::default()).unwrap());
        let mut sealer = Sealer::new(1, OpSeq(1), 0);
        let mut push = || {
            sealer.push(Operation::Marker(Marker::Consistent), Timestamp(1));
            queue.push(sealer.seal().unwrap()).unwrap();
        };
        queue.set_mirror_bound(1);
        assert!(queue.has_mirror_room(1) && !queue.is_moving());
        push();
        assert!(!queue.has_mirror_room(1));
        assert!(queue.next_after(OpSeq::ZERO, Duration::ZERO).unwrap().is_some());
        assert!(queue.has_mirror_room(1) && queue.is_moving());
        push();
        assert!(!queue.has_mirror_room(1));
        // Another connection begins behind what the appliance has.
        assert!(queue.next_after(OpSeq(1), Duration::ZERO).unwrap().is_some());
        push();
        assert!(queue.next_after(OpSeq::ZERO, Duration::ZERO).unwrap().is_some());
        assert!(!queue.has_mirror_room(1));
        queue.acknowledge(queue.last()).unwrap();
        assert!(queue.has_mirror_room(1));
        queue.set_mirror_bound(1 << 20);
        assert_eq!(queue.mirror_step_bytes(), 1 << 19);
    }
}
