//! Joins the capture crate to the pump: events become what the pump takes, and mapped writes are asked for before they grow old.

use crate::pump::{Capture, Captured};
use anyhow::Result;
use standin_capture::{CaptureEvent, CaptureSource, Promise};
use standin_model::Timestamp;
use standin_wire::RingStats;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A write through a mapping becomes visible to capture at writeback; asking for it after this long bounds how far it lags.
const MAPPED_AGE_MAX: Duration = Duration::from_secs(1);
/// How often the ages are looked at.
const MAPPED_CHECK: Duration = Duration::from_millis(250);

pub struct Observed<S> {
    source: S,
    checked: Instant,
    ring: Arc<Mutex<RingStats>>,
}

impl<S: CaptureSource> Observed<S> {
    pub fn new(source: S, ring_bytes: u32) -> Observed<S> {
        let ring = RingStats { bytes_size: ring_bytes.into(), ..RingStats::default() };
        Observed { source, checked: Instant::now(), ring: Arc::new(Mutex::new(ring)) }
    }

    /// How the ring fares, for the status.
    pub fn ring(&self) -> Arc<Mutex<RingStats>> {
        Arc::clone(&self.ring)
    }

    fn ask_for_mapped(&mut self) {
        if self.checked.elapsed() >= MAPPED_CHECK {
            self.checked = Instant::now();
            if self.source.pending_mapped() > 0 {
                self.source.flush_mapped(MAPPED_AGE_MAX);
            }
            let use_now = self.source.ring_use();
            let mut ring = self.ring.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            (ring.bytes_used_peak, ring.records_dropped) = (use_now.bytes_peak, use_now.dropped);
        }
    }
}

fn translate(event: CaptureEvent) -> Option<Captured> {
    Some(match event {
        CaptureEvent::Operation { operation, touched } => {
            Captured::Operation { operation, touched: touched.into_iter().flatten().collect() }
        }
        CaptureEvent::Lost { node, reason, .. } => Captured::LostNodes { nodes: vec![node], reason: reason.to_string() },
        CaptureEvent::LostEverything { reason } => Captured::LostEverything { reason: reason.to_string() },
        CaptureEvent::DirectIo { node } => Captured::DirectIo { node },
        CaptureEvent::Changed { node, directory, names } => Captured::Changed { node, directory, names },
        CaptureEvent::Mapped { .. } => return None,
    })
}

impl<S: CaptureSource> Capture for Observed<S> {
    fn barrier(&mut self, sink: &mut Vec<Captured>) -> Result<()> {
        self.ask_for_mapped();
        self.source.barrier(&mut |event| sink.extend(translate(event)));
        Ok(())
    }

    fn wait(&mut self, bound: Duration) -> Result<()> {
        Ok(self.source.wait(bound)?)
    }

    fn is_periodic(&self) -> bool {
        self.source.promise() == Promise::Periodic
    }

    fn sweep(&mut self, since: Timestamp, sink: &mut Vec<Captured>) {
        self.source.sweep(since, &mut |event| sink.extend(translate(event)));
    }
}
