//! Syncs the protected volumes now and then, so that it is known what a power cut of the source could take back.
//!
//! What capture has seen may not be on the source's disks yet. When the power fails, the replica has it and the source has not, and the nodes that changed
//! since the last sync are what the replica asks for again. The kernel writes everything older than half a minute anyway, so a sync every
//! five minutes adds little. It runs on a thread of its own; one that takes long only makes the next come later.

use crate::nodes::Root;
use crate::pump::{Capture, Pump, PumpReader};
use anyhow::{Context, Result};
use standin_model::OpSeq;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(300);
/// How long the ring is waited for while a last sync runs.
const DRAIN_WAIT: Duration = Duration::from_millis(5);

pub struct Settling {
    roots: Arc<Vec<Root>>,
    running: Option<(OpSeq, Receiver<bool>)>,
    last: Instant,
    /// The stream's end after the last sync: nothing has happened since while it is the same.
    settled_at: OpSeq,
}

impl Settling {
    pub fn new(roots: Arc<Vec<Root>>) -> Settling {
        Settling { roots, running: None, last: Instant::now(), settled_at: OpSeq::ZERO }
    }

    /// Whether a sync is due; `captured` is the stream's end.
    pub fn is_due(&self, captured: OpSeq) -> bool {
        self.running.is_none() && captured != self.settled_at && self.last.elapsed() >= EVERY
    }

    /// Starts to sync. Everything up to `through` has happened before.
    pub fn begin(&mut self, through: OpSeq) -> Result<()> {
        let (done, receiver) = sync_channel(1);
        let roots = Arc::clone(&self.roots);
        let work = move || {
            let result = sync(&roots);
            if let Err(error) = &result {
                tracing::warn!(error = format!("{error:#}"), "a protected volume cannot be synced");
            }
            let _ = done.send(result.is_ok());
        };
        std::thread::Builder::new().name("sync".to_owned()).spawn(work)?;
        self.last = Instant::now();
        self.running = Some((through, receiver));
        Ok(())
    }

    /// What a sync that has ended covers.
    pub fn take(&mut self) -> Option<OpSeq> {
        let (through, receiver) = self.running.as_ref()?;
        let through = *through;
        let ended = match receiver.try_recv() {
            Err(TryRecvError::Empty) => return None,
            Ok(done) => done,
            Err(TryRecvError::Disconnected) => false,
        };
        self.running = None;
        ended.then_some(through)
    }

    /// Before the agent ends: what has happened goes to the source's disks within the bound, and the stream says so. `false` where it does not get
    /// that far. Nothing is read of the source but what keeps a segment whole.
    pub fn settle_now<C: Capture, R: PumpReader>(&mut self, pump: &mut Pump<C, R>, bound: Duration) -> Result<bool> {
        let until = Instant::now() + bound;
        // What programs have mapped is captured when it is written back; so the first sync brings it into the stream, and the second covers it.
        self.sync_until(until, || pump.drain(DRAIN_WAIT))?;
        let Some(through) = pump.position()? else { return Ok(false) };
        // What comes now stays in the ring, and goes with it.
        let synced = self.sync_until(until, || {
            std::thread::sleep(DRAIN_WAIT);
            Ok(())
        })?;
        Ok(synced && pump.settled_at_last(through))
    }

    fn sync_until(&mut self, until: Instant, mut meanwhile: impl FnMut() -> Result<()>) -> Result<bool> {
        self.begin(OpSeq::ZERO)?;
        while self.running.is_some() && Instant::now() < until {
            if self.take().is_some() {
                return Ok(true);
            }
            meanwhile()?;
        }
        Ok(false)
    }

    /// The stream's end after `Settled` was appended.
    pub fn told(&mut self, captured: OpSeq) {
        self.settled_at = captured;
    }
}

fn sync(roots: &[Root]) -> Result<()> {
    roots.iter().try_for_each(|root| rustix::fs::syncfs(&root.directory).with_context(|| root.mount_point.clone()))
}

/// The first 16 hex digits of the kernel's boot id.
pub fn boot() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("reading the kernel's boot id")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&digits, 16).context("reading the kernel's boot id")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_covers_what_was_before_it_and_an_idle_source_is_left_alone() {
        let mut settling = Settling::new(Arc::new(vec![Root::open("/").unwrap()]));
        settling.last = Instant::now() - EVERY;
        assert!(settling.is_due(OpSeq(7)));
        settling.begin(OpSeq(7)).unwrap();
        assert!(!settling.is_due(OpSeq(9)), "one at a time");
        let deadline = Instant::now() + Duration::from_secs(60);
        let through = loop {
            if let Some(through) = settling.take() {
                break through;
            }
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(through, OpSeq(7));
        settling.told(OpSeq(10));
        settling.last = Instant::now() - EVERY;
        assert!(!settling.is_due(OpSeq(10)));
        assert!(settling.is_due(OpSeq(11)));
    }

    #[test]
    fn a_volume_that_cannot_be_synced_settles_nothing() {
        // Not opened for reading: the kernel answers EBADF.
        let directory = rustix::fs::open("/", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        let mut settling = Settling::new(Arc::new(vec![Root { mount_point: "/".into(), directory }]));
        settling.begin(OpSeq(7)).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while settling.running.is_some() && Instant::now() < deadline {
            assert_eq!(settling.take(), None);
        }
        assert!(settling.running.is_none());
        assert_ne!(boot().unwrap(), 0);
    }
}
