//! The pump's part of a verification: reads between two barriers, at a bounded rate, while the job is live and has nothing better to do.

use super::*;
use standin_mirror::{Verify, VerifyProgress};
use standin_model::Suspect;

/// Content per read, as for the mirror.
const STEP_BYTES: u64 = 1024 * 1024;
/// What the source gives to a verification unless told otherwise: half of what a slow disk reads, and 16,000 nodes a second.
pub const RATE_DEFAULT: u64 = 64 << 20;
/// Between looks at what cannot go on now.
const PAUSE_NS: i64 = 50_000_000;
/// Slower than this, a volume would be verified for years.
pub const RATE_MIN: u64 = 64 << 10;

/// A verification as the appliance ordered it.
pub struct Verifying {
    verify: Verify,
    /// Bytes a second, with a page for each node.
    rate: u64,
    /// Not before then, so that the rate is kept.
    next: Timestamp,
}

impl<C: Capture, R: PumpReader> Pump<C, R> {
    /// Begins a verification; one that runs is left. `rate` is in bytes a second, 0 for the default.
    pub fn verify(&mut self, run: u64, rate: u64) {
        let verify = Verify::new(run, self.roots.iter().copied());
        self.begin_verify(verify, rate);
    }

    /// The next pass of a verification, over what did not match.
    pub fn verify_again(&mut self, run: u64, pass: u8, suspects: Vec<Suspect>, rate: u64) {
        self.begin_verify(Verify::again(run, pass, suspects), rate);
    }

    fn begin_verify(&mut self, verify: Verify, rate: u64) {
        let rate = if rate == 0 { RATE_DEFAULT } else { rate.max(RATE_MIN) };
        self.verifying = Some(Verifying { verify, rate, next: Timestamp(0) });
    }

    pub fn end_verify(&mut self, run: u64) {
        self.verifying.take_if(|verifying| verifying.verify.run() == run);
    }

    /// A source that is to stand still is not read.
    pub fn abandon_verify(&mut self) {
        self.verifying = None;
    }

    pub fn verify_progress(&self) -> Option<VerifyProgress> {
        self.verifying.as_ref().map(|verifying| verifying.verify.progress())
    }

    /// How long the pump may sleep without being late for the next read.
    pub(super) fn verify_wait(&self, patience: Duration) -> Duration {
        let Some(verifying) = self.verifying.as_ref().filter(|verifying| !verifying.verify.is_ended()) else { return patience };
        let left = verifying.next.0.saturating_sub((self.clock)().0).max(1_000_000);
        patience.min(Duration::from_nanos(left.unsigned_abs()))
    }

    pub(super) fn note_for_verify(&mut self, operation: &Operation, touched: &[(NodeId, Timestamp)]) {
        if let Some(verifying) = &mut self.verifying {
            verifying.verify.note(operation, touched, (self.clock)());
        }
    }

    pub(super) fn note_node_for_verify(&mut self, node: NodeId) {
        if let Some(verifying) = &mut self.verifying {
            verifying.verify.note_node(node, (self.clock)());
        }
    }

    /// Reads a little, if it is time; true when it did.
    pub(super) fn verify_some(&mut self) -> Result<bool> {
        let now = (self.clock)();
        let Some(verifying) = self.verifying.as_mut().filter(|verifying| !verifying.verify.is_ended() && verifying.next <= now) else {
            return Ok(false);
        };
        // While a gap is open the replica is not what the source is, and nobody need be told of that.
        if !self.consistent || self.loss.is_some() {
            verifying.verify.suspend(now);
            verifying.next = Timestamp(now.0 + PAUSE_NS);
            return Ok(false);
        }
        if !self.queue.has_memory_room(MIRROR_ROOM_BYTES) {
            verifying.next = Timestamp(now.0 + PAUSE_NS);
            return Ok(false);
        }
        if let Some(rest) = self.rest() {
            self.verifying.iter_mut().for_each(|verifying| verifying.next = Timestamp(now.0 + rest.as_nanos() as i64));
            return Ok(false);
        }
        // Here as elsewhere, what a barrier brings may have to be read within its segment.
        self.take_barrier()?;
        self.mend()?;
        let yielding = self.impact.as_ref().and_then(|_| Yielding::begin());
        let now = (self.clock)();
        let mut read = 0;
        if let Some(verifying) = self.verifying.as_mut().filter(|_| self.consistent && self.loss.is_none()) {
            let cost = verifying.verify.step(&self.mirror, &mut self.reader, STEP_BYTES, now);
            read = cost;
            let pause = i64::try_from(u128::from(cost) * 1_000_000_000 / u128::from(verifying.rate)).unwrap_or(i64::MAX);
            // Where nothing was read, something waits for its time.
            verifying.next = Timestamp(now.0.saturating_add(if cost == 0 { PAUSE_NS } else { pause }));
        }
        drop(yielding);
        self.pay(read);
        self.take_barrier()?;
        self.mend()?;
        self.push_checks();
        Ok(true)
    }

    fn push_checks(&mut self) {
        let now = (self.clock)();
        let Some(verifying) = &mut self.verifying else { return };
        if !self.consistent || self.loss.is_some() {
            return verifying.verify.suspend(now);
        }
        let checks = verifying.verify.take_due(now);
        if checks.is_empty() {
            return;
        }
        // The times of what was touched are part of a check, and otherwise come at the segment's end.
        self.push_times();
        for check in checks {
            self.push(check);
            if self.sealer.raw_len() >= self.limits.segment_bytes {
                self.seal();
            }
        }
    }
}
