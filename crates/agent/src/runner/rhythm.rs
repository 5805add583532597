//! Standing still, for a cut of a source that is never without changes: what is left of them is read while nothing can change.
//!
//! A source of every operation needs the standstill for a planned failover only. One that tells only what changed needs it for markers as well, and now and then
//! for a consistent state at all: bounded, and tried less and less often where it comes to nothing. What needs longer to be read than the source may stand
//! still is not tried.

use super::*;

/// What a standstill is for.
pub(super) enum Cut {
    /// The source is about to be switched off.
    Failover,
    Marker(MarkName),
    Consistency,
}

/// Without success, the next one is tried after twice as long, at most this.
const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// How long its own standstill is put off until little is left to read.
const NEAR_MAX: Duration = Duration::from_secs(5);
/// A marker is waited for by somebody, and for half as long as who asked waits for the answer.
const MARK_MAX: Duration = Duration::from_secs(15);

/// How the standstills of a periodic source fare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stills {
    /// Zero where the source may not stand still.
    bound: Duration,
    pub tries: u64,
    /// The longest.
    pub longest: Duration,
    /// Why the last one came to nothing.
    pub trouble: Option<String>,
    pause: Duration,
    next: Option<Instant>,
}

impl Stills {
    pub fn new(bound: Duration) -> Stills {
        Stills { bound, ..Stills::default() }
    }

    fn is_due(&self) -> bool {
        self.next.is_none_or(|next| Instant::now() >= next)
    }

    fn failed(&mut self, reason: String, period: Duration) {
        self.pause = (self.pause * 2).clamp(period.min(PAUSE_MAX), PAUSE_MAX);
        self.next = Some(Instant::now() + self.pause);
        self.trouble = Some(reason);
    }

    fn succeeded(&mut self) {
        (self.pause, self.next, self.trouble) = (Duration::ZERO, None, None);
    }
}

impl Work {
    pub(super) fn is_periodic(&self) -> bool {
        self.pump.standing().is_some()
    }

    /// Whether a freeze need not wait any longer for the mirror.
    pub(super) fn is_ready(&self) -> bool {
        if self.is_periodic() { self.pump.is_near() } else { self.pump.is_consistent() }
    }

    /// A standstill where passes alone do not get anywhere.
    pub(super) fn stand_still_if_wanted(&mut self) -> Result<()> {
        let Some(took) = self.pump.wants_stillness().filter(|_| self.stills.is_due()) else { return Ok(()) };
        let bound = self.stills.bound;
        if took > bound {
            let (took, bound) = (took.as_millis(), bound.as_millis());
            let reason = match bound {
                0 => "this server is never without changes, and may not stand still".to_owned(),
                _ => format!("reading what changes takes {took} ms, and this server may stand still for {bound} ms"),
            };
            self.stills.failed(reason, self.period);
            return Ok(());
        }
        self.stand_still_of_its_own(&Cut::Consistency, bound).map(drop)
    }

    /// A marker where no change is seen by itself: at a standstill, so that it is where it says.
    pub(super) fn mark(&mut self, name: &MarkName) -> Result<Option<OpSeq>> {
        if !self.is_periodic() {
            return self.pump.mark(name);
        }
        if !self.stills.bound.is_zero() {
            return self.stand_still_of_its_own(&Cut::Marker(name.clone()), self.stills.bound);
        }
        // Without one, a moment without changes is waited for.
        let begun = Instant::now();
        self.pump.hurry(true);
        self.pump.look()?;
        while begun.elapsed() < MARK_MAX && !self.is_stopped() {
            self.pump.turn(READY_WAIT)?;
            if self.pump.is_current() {
                break;
            }
        }
        self.pump.hurry(false);
        self.pump.mark(name)
    }

    fn stand_still_of_its_own(&mut self, cut: &Cut, bound: Duration) -> Result<Option<OpSeq>> {
        // Somebody may hold the source frozen already, for a fence.
        if lock(&self.frozen).is_some() {
            return Ok(None);
        }
        self.stills.tries += 1;
        let still = self.stand_still(bound, cut)?;
        let held = self.frozen_at.take().map(|at| at.elapsed()).unwrap_or_default();
        self.thaw();
        self.is_own.store(false, Ordering::SeqCst);
        self.stills.longest = self.stills.longest.max(held);
        let reason = match still {
            Still::At(seq) => {
                self.stills.succeeded();
                return Ok(Some(seq));
            }
            Still::CalledOff => "it was called off".to_owned(),
            Still::Impossible(reason) => reason,
            Still::Lost => format!("what had changed could not be read within {} ms", bound.as_millis()),
        };
        tracing::info!(reason, held = ?held, "the server stood still in vain");
        self.stills.failed(reason, self.period);
        Ok(None)
    }

    /// While the file systems are frozen: what is left is read, and then the state is exactly the source's.
    pub(super) fn read_what_is_left(&mut self) -> Result<()> {
        if !self.is_periodic() {
            return Ok(());
        }
        let frozen = Arc::clone(&self.frozen);
        self.pump.stand_still(Some(Box::new(move || lock(&frozen).as_ref().is_some_and(Frozen::holds))));
        while !self.pump.is_settled() && !self.is_called_off() && lock(&self.frozen).as_ref().is_some_and(Frozen::holds) {
            self.pump.turn(Duration::from_millis(1))?;
        }
        Ok(())
    }

    /// The item behind which the replica is what the source is now.
    pub(super) fn cut(&mut self, cut: &Cut) -> Result<Option<OpSeq>> {
        if self.is_periodic() && !self.pump.is_settled() {
            return Ok(None);
        }
        match cut {
            Cut::Failover => self.pump.quiesced(),
            Cut::Marker(name) => self.pump.mark(name),
            Cut::Consistency => Ok(Some(self.pump.captured())),
        }
    }

    /// How long a standstill is put off.
    pub(super) fn ready_max(&self, cut: &Cut) -> Duration {
        match cut {
            Cut::Consistency => NEAR_MAX,
            Cut::Failover | Cut::Marker(_) => READY_MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_to_nothing_is_tried_less_and_less_often() {
        let mut stills = Stills::new(Duration::from_secs(2));
        assert!(stills.is_due());
        let period = Duration::from_secs(300);
        let mut pauses = Vec::new();
        for _ in 0..6 {
            stills.failed("too much".into(), period);
            assert!(!stills.is_due());
            pauses.push(stills.pause.as_secs());
        }
        assert_eq!(pauses, [300, 600, 1200, 2400, 3600, 3600]);
        stills.succeeded();
        assert!(stills.is_due() && stills.trouble.is_none());
        stills.failed("once more".into(), period);
        assert_eq!(stills.pause, period);
    }
}
