//! How fast this end may send: a limit in bits a second that can be changed at any moment, kept on every byte that goes to the socket, TLS included.
//!
//! The arithmetic is [`Bucket`], which is pure: a send is due when the ones before it are paid for, twice. In the long run they are paid for at the rate
//! itself, and what a thread has missed because it was not run in time may be caught up to [`CREDIT_NS`]; meanwhile never faster than 1.5 % above the rate,
//! but for 20 ms at once.
//! So within any ten seconds at most 1.6 % go beyond the rate and within any second 4.5 %, and stalls of 150 ms cost nothing over ten seconds.
//! [`Pace`] is what the threads hold. One `Pace` may serve several connections, and outlives each of them: connecting again is no way around the limit.

use standin_model::{BITS_PER_SECOND_MAX, BITS_PER_SECOND_MIN};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// What may be caught up: 1.5 % of ten seconds.
const CREDIT_NS: u64 = 150_000_000;
/// While it is caught up, and at once.
const PEAK_PER_MILLE: u64 = 1015;
const PEAK_CREDIT_NS: u64 = 20_000_000;
/// One slice takes this long at the limit: 1 % of a second.
const SLICE_NS: u64 = 10_000_000;
/// Below this a slice costs more in packet headers than it smooths; at the lowest limit it takes 32 ms.
const SLICE_BYTES_MIN: u64 = 256;
/// At high rates a slice is one write of the connection.
const SLICE_BYTES_MAX: u64 = 64 * 1024;
/// Whoever waits looks at least so often whether the limit has changed meanwhile, although a change wakes it.
const WAIT_MAX: Duration = Duration::from_millis(100);
/// Spans of [`Pace::rate`].
const RATE_SPANS: usize = 5;
const RATE_SPAN: Duration = Duration::from_secs(1);

/// When the next send is due, in nanoseconds of any clock that does not go back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    sustained: Due,
    peak: Due,
}

#[derive(Clone, Copy, Debug, Default)]
struct Due {
    at_ns: u64,
    /// What the division left, in bits · 10⁹: it would be lost at every send.
    rest: u64,
}

impl Due {
    fn not_before(&mut self, earliest: u64) {
        if self.at_ns < earliest {
            *self = Due { at_ns: earliest, rest: 0 };
        }
    }

    fn pay(&mut self, bytes: usize, bits_per_second: u64) {
        let rate = u128::from(bits_per_second.max(1));
        let cost = bytes as u128 * 8_000_000_000 + u128::from(self.rest);
        self.at_ns = self.at_ns.saturating_add(u64::try_from(cost / rate).unwrap_or(u64::MAX));
        self.rest = u64::try_from(cost % rate).unwrap_or(0);
    }
}

impl Bucket {
    /// Pays for `bytes` at `bits_per_second` and says nothing, or how long to wait before asking again.
    pub fn take(&mut self, now_ns: u64, bytes: usize, bits_per_second: u64) -> Option<u64> {
        self.sustained.not_before(now_ns.saturating_sub(CREDIT_NS));
        self.peak.not_before(now_ns.saturating_sub(PEAK_CREDIT_NS));
        let due_ns = self.sustained.at_ns.max(self.peak.at_ns);
        if due_ns > now_ns {
            return Some(due_ns - now_ns);
        }
        self.sustained.pay(bytes, bits_per_second);
        self.peak.pay(bytes, bits_per_second.saturating_mul(PEAK_PER_MILLE) / 1000);
        None
    }

    /// Another rate: what was paid for at the old one holds the new one up for a slice at most, and nothing is left to catch up.
    fn changed(&mut self, now_ns: u64) {
        let latest = now_ns.saturating_add(SLICE_NS);
        for due in [&mut self.sustained, &mut self.peak] {
            *due = Due { at_ns: due.at_ns.clamp(now_ns, latest), rest: 0 };
        }
    }
}

/// Bytes to hand to the kernel at once.
pub fn slice_bytes(bits_per_second: u64) -> usize {
    let bytes = u128::from(bits_per_second) * u128::from(SLICE_NS) / 8_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX).clamp(SLICE_BYTES_MIN, SLICE_BYTES_MAX) as usize
}

struct State {
    bucket: Bucket,
    /// Bytes that had passed when each of the last spans began, oldest first.
    spans: Vec<(Instant, u64)>,
}

/// The limit of one sending end.
pub struct Pace {
    started: Instant,
    /// Bits a second; 0 for no limit.
    limit: AtomicU64,
    passed: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
}

impl Default for Pace {
    fn default() -> Self {
        let started = Instant::now();
        let state = State { bucket: Bucket::default(), spans: vec![(started, 0)] };
        Pace { started, limit: AtomicU64::new(0), passed: AtomicU64::new(0), state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl std::fmt::Debug for Pace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pace").field("limit", &self.limit()).field("passed", &self.passed()).finish_non_exhaustive()
    }
}

impl Pace {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Bits a second, `None` for no limit. Outside of what there can be, the nearest that can.
    pub fn set_limit(&self, bits_per_second: Option<u64>) {
        let limit = bits_per_second.map_or(0, |bits| bits.clamp(BITS_PER_SECOND_MIN, BITS_PER_SECOND_MAX));
        let mut state = self.state();
        if self.limit.swap(limit, Ordering::Relaxed) != limit {
            state.bucket.changed(self.now_ns());
            self.changed.notify_all();
        }
    }

    pub fn limit(&self) -> Option<u64> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|limit| *limit > 0)
    }

    /// How much of `bytes` to write next, once that is due. Waits for it; returns early with everything where there is no limit.
    pub fn wait(&self, bytes: usize) -> usize {
        let mut state = None;
        loop {
            let Some(limit) = self.limit() else { return bytes };
            let now = self.now_ns();
            let slice = bytes.min(slice_bytes(limit));
            let held = state.get_or_insert_with(|| self.state());
            let Some(wait) = held.bucket.take(now, slice, limit) else { return slice };
            let wait = Duration::from_nanos(wait).min(WAIT_MAX);
            state =
                state.map(|held| self.changed.wait_timeout(held, wait).map_or_else(|poisoned| poisoned.into_inner().0, |(held, _)| held));
        }
    }

    /// The kernel has taken so many bytes.
    pub fn note(&self, bytes: usize) {
        self.passed.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes that went to the socket since this end began.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// Bits a second over the last seconds, up to [`RATE_SPANS`]; to be asked about once a second.
    pub fn rate(&self) -> u64 {
        let (now, passed) = (Instant::now(), self.passed());
        let mut state = self.state();
        if state.spans.last().is_none_or(|(at, _)| now.duration_since(*at) >= RATE_SPAN / 2) {
            state.spans.push((now, passed));
            let surplus = state.spans.len().saturating_sub(RATE_SPANS + 1);
            state.spans.drain(..surplus);
        }
        let Some((began, before)) = state.spans.first().copied() else { return 0 };
        let span = now.duration_since(began).as_nanos().max(1);
        u64::try_from(u128::from(passed - before) * 8_000_000_000 / span).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests;
