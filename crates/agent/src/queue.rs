//! The queue between pump and connection, shared by the two threads.

use standin_journal::{Queue, QueueFull, Segment};
use standin_model::OpSeq;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

#[derive(Clone)]
pub struct SharedQueue(Arc<(Mutex<Queue>, Condvar)>);

impl SharedQueue {
    pub fn new(queue: Queue) -> SharedQueue {
        SharedQueue(Arc::new((Mutex::new(queue), Condvar::new())))
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.0.lock().expect("no thread panics with the queue in its hands")
    }

    pub fn push(&self, segment: Segment) -> Result<(), QueueFull> {
        let result = self.lock().push(segment);
        self.0.1.notify_all();
        result
    }

    pub fn has_room(&self, len: u64) -> bool {
        self.lock().has_room(len)
    }

    pub fn last(&self) -> OpSeq {
        self.lock().last()
    }

    pub fn bytes(&self) -> u64 {
        self.lock().bytes()
    }

    pub fn acknowledge(&self, durable: OpSeq) -> standin_journal::Result<()> {
        self.lock().acknowledge(durable)
    }

    /// The segment behind `seq`, waiting for one at most `bound`.
    pub fn next_after(&self, seq: OpSeq, bound: Duration) -> standin_journal::Result<Option<Segment>> {
        let mut queue = self.lock();
        if let Some(segment) = queue.next_after(seq)? {
            return Ok(Some(segment));
        }
        let (mut queue, _) = self.0.1.wait_timeout(queue, bound).expect("no thread panics with the queue in its hands");
        queue.next_after(seq)
    }
}
