//! Which level of zstd the stream is packed with: what the processor can give while everything waits for the link, and no more than keeps the link busy
//! where it is the pump that everything waits for.
//!
//! Looked at over windows of a quarter of a second in which segments were sealed:
//!
//! | seen | then |
//! |---|---|
//! | the pump was held up by what waits to be sent, for longer than the next rung is expected to take | a rung up |
//! | the sender found nothing to send, nothing held the pump up, and packing took a good part of the time | a rung down |
//! | less comes through than on the rung above, one window later | back to it; this one is not tried again soon |
//! | there was little to do | a rung towards the first one |
//!
//! Pure but for the time that it is given.

use std::time::Duration;

/// Levels of zstd, 0 for none, and what packing takes with each, relative to level 1 on an operating system's tree.
const RUNGS: [(i32, f64); 8] = [(0, 0.0), (-5, 0.45), (-1, 0.75), (1, 1.0), (3, 1.7), (5, 3.5), (7, 5.5), (9, 8.0)];
/// Where a stream begins.
const FIRST: usize = 3;
pub const LEVEL_FIRST: i32 = RUNGS[FIRST].0;
/// What the server itself writes is packed no better than this: its processor is for its own work. A mirror waits.
const LIVE_MAX: usize = 4;
const HIGH: usize = 6;
const WINDOW: Duration = Duration::from_millis(250);
/// Windows for which a rung that was the slower one is left alone.
const REST_WINDOWS: u32 = 80;
/// Of two windows of the same stream.
const NOISE: f64 = 0.9;
/// The first window on a lower rung says nothing: the queue has run empty and is filled.
const TRIAL_WINDOWS: u32 = 2;

/// What happened since the last decision.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    pub wall: Duration,
    /// The pump waited for what is in the queue to be sent.
    pub held: Duration,
    /// The pump had nothing to do, and the sender neither.
    pub idle: Duration,
    /// The sender found nothing to send.
    pub starved: Duration,
    pub packing: Duration,
    /// Bytes before packing.
    pub raw: u64,
}

pub struct Levels {
    rung: usize,
    trial: Option<Trial>,
    /// The rung was gone up to in the last window.
    has_risen: bool,
    /// The rung that was the slower one, and for how many windows it still rests.
    resting: (usize, u32),
    seen: Seen,
    starved_before: Duration,
}

/// A lower rung that has to show that more comes through, before anything else is decided.
struct Trial {
    above: f64,
    windows: u32,
}

impl Default for Levels {
    fn default() -> Levels {
        Levels {
            rung: FIRST,
            trial: None,
            has_risen: false,
            resting: (RUNGS.len(), 0),
            seen: Seen::default(),
            starved_before: Duration::ZERO,
        }
    }
}

impl Levels {
    pub fn level(&self) -> i32 {
        RUNGS[self.rung].0
    }

    /// The link has been waited for long.
    pub fn is_high(&self) -> bool {
        self.rung >= HIGH
    }

    pub fn waited(&mut self, took: Duration, is_held: bool) {
        let sum = if is_held { &mut self.seen.held } else { &mut self.seen.idle };
        *sum += took;
    }

    /// A segment was packed. `wall` is the time since the last decision, `starved` of the sender since it began. True when the window is over and another
    /// one begins.
    pub fn packed(&mut self, (raw, took): (usize, Duration), wall: Duration, starved: Duration, mirrors: bool) -> bool {
        self.seen.packing += took;
        self.seen.raw += raw as u64;
        if wall < WINDOW {
            return false;
        }
        let starved_now = starved.saturating_sub(self.starved_before);
        let seen = Seen { wall, starved: starved_now, ..std::mem::take(&mut self.seen) };
        self.starved_before = starved;
        self.go_on(seen, mirrors);
        true
    }

    fn go_on(&mut self, seen: Seen, mirrors: bool) {
        let speed = seen.raw as f64 / seen.wall.as_secs_f64().max(f64::EPSILON);
        self.resting.1 = self.resting.1.saturating_sub(1);
        if let Some(trial) = &mut self.trial {
            trial.windows += 1;
            if trial.windows < TRIAL_WINDOWS {
                return;
            }
            let is_slower = speed < NOISE * trial.above;
            self.trial = None;
            if is_slower && seen.idle < seen.wall / 2 {
                self.resting = (self.rung, REST_WINDOWS);
                self.rung += 1;
                return;
            }
        }
        let next = self.next(seen, mirrors);
        let is_quiet = seen.idle >= seen.wall / 2;
        if next < self.rung && !is_quiet {
            if self.has_risen {
                // It was too slow.
                self.resting = (self.rung, REST_WINDOWS);
            } else {
                self.trial = Some(Trial { above: speed, windows: 0 });
            }
        }
        self.has_risen = next > self.rung;
        self.rung = next;
    }

    fn next(&self, seen: Seen, mirrors: bool) -> usize {
        let share = |of: Duration| of.as_secs_f64() / seen.wall.as_secs_f64().max(f64::EPSILON);
        let (held, starved, packing) = (share(seen.held), share(seen.starved), share(seen.packing));
        let highest = if mirrors { RUNGS.len() - 1 } else { LIVE_MAX };
        if self.rung > highest {
            return self.rung - 1;
        }
        let rests = |rung: usize| self.resting.1 > 0 && rung == self.resting.0;
        if held >= 0.2 && self.rung < highest && !rests(self.rung + 1) {
            let fits = |rung: usize, share: f64| match RUNGS[self.rung].1 {
                0.0 => rung == 1,
                cost => packing * (RUNGS[rung].1 / cost - 1.0) <= share * held,
            };
            // Two at once only with room to spare.
            let two = self.rung + 2 <= highest && !rests(self.rung + 2) && fits(self.rung + 2, 0.4);
            return self.rung + if two { 2 } else { usize::from(fits(self.rung + 1, 0.8)) };
        }
        if held > 0.05 {
            return self.rung;
        }
        if starved >= 0.1 && packing >= 0.2 && self.rung > 0 && !rests(self.rung - 1) {
            return self.rung - 1;
        }
        if share(seen.idle) >= 0.5 {
            return if self.rung < FIRST { self.rung + 1 } else { self.rung.max(FIRST + 1) - 1 };
        }
        self.rung
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pump, a packer and a link in a row, in MB a second of raw content; what is left of it at each rung.
    struct Line {
        reads: f64,
        /// Of level 1.
        packs: f64,
        left: [f64; RUNGS.len()],
        link: f64,
    }

    /// MB.
    const QUEUE: f64 = 8.0;
    const SYSTEM: [f64; RUNGS.len()] = [1.0, 0.5, 0.43, 0.37, 0.34, 0.32, 0.31, 0.3];
    const DATABASE: [f64; RUNGS.len()] = [1.0, 0.08, 0.065, 0.052, 0.046, 0.044, 0.042, 0.04];

    impl Line {
        fn packs_at(&self, rung: usize) -> f64 {
            if rung == 0 { f64::INFINITY } else { self.packs / RUNGS[rung].1 }
        }

        /// The pump's own speed, and the link's in the same unit.
        fn speeds(&self, rung: usize) -> (f64, f64) {
            (1.0 / (1.0 / self.reads + 1.0 / self.packs_at(rung)), self.link / self.left[rung])
        }

        fn through(&self, rung: usize) -> f64 {
            let (pump, link) = self.speeds(rung);
            pump.min(link)
        }

        /// A window in which a queue of 8 MB on the wire, with `queued` in it, runs full or empty.
        fn seen(&self, rung: usize, queued: &mut f64) -> Seen {
            let wall = WINDOW.as_secs_f64();
            let (pump, link) = self.speeds(rung);
            let (fills, drains) = (pump * self.left[rung], self.link);
            // Until it is full or empty, both go at their own speed.
            let left = if fills > drains { (QUEUE - *queued) / (fills - drains) } else { *queued / (drains - fills).max(1e-9) };
            let free = left.clamp(0.0, wall);
            *queued = (*queued + free * (fills - drains)).clamp(0.0, QUEUE);
            let then = pump.min(link);
            let raw = free * pump + (wall - free) * then;
            let part = |seconds: f64| Duration::from_secs_f64(seconds.max(0.0));
            Seen {
                wall: WINDOW,
                held: part((wall - free) * (1.0 - then / pump)),
                idle: Duration::ZERO,
                starved: part((wall - free) * (1.0 - then / link)),
                packing: part(raw / self.packs_at(rung)),
                raw: (raw * 1e6) as u64,
            }
        }
    }

    fn check(line: &Line, at_least: f64) {
        let (mut levels, mut queued) = (Levels::default(), 0.0);
        let mut passed = Vec::new();
        for _ in 0..400 {
            passed.push(line.through(levels.rung));
            let seen = line.seen(levels.rung, &mut queued);
            levels.go_on(seen, true);
        }
        let best = (0..RUNGS.len()).map(|rung| line.through(rung)).fold(0.0, f64::max);
        let mean = passed[20..].iter().sum::<f64>() / 380.0;
        assert!(mean >= at_least * best, "{mean:.1} of {best:.1} MB/s, at the end rung {}", levels.rung);
    }

    #[test]
    fn the_level_finds_what_link_and_processor_allow() {
        for link in [0.25, 1.25, 12.5, 125.0, 1250.0] {
            check(&Line { reads: 400.0, packs: 260.0, left: SYSTEM, link }, 0.95);
            check(&Line { reads: 900.0, packs: 1060.0, left: DATABASE, link }, 0.9);
            check(&Line { reads: 60.0, packs: 26.0, left: SYSTEM, link }, 0.95);
        }
    }

    #[test]
    fn what_the_server_writes_is_packed_lightly_and_a_quiet_stream_as_at_first() {
        let ms = Duration::from_millis;
        let second = |held: u64, idle: u64, packing: u64| Seen {
            wall: ms(1000),
            held: ms(held),
            idle: ms(idle),
            starved: ms(idle),
            packing: ms(packing),
            raw: 1,
        };
        let mut levels = Levels::default();
        for _ in 0..20 {
            levels.go_on(second(900, 0, 20), true);
        }
        assert_eq!(levels.level(), 9);
        for _ in 0..20 {
            levels.go_on(second(900, 0, 20), false);
        }
        assert_eq!(levels.level(), 3);
        levels.rung = 0;
        for _ in 0..20 {
            levels.go_on(second(0, 950, 20), false);
        }
        assert_eq!(levels.level(), RUNGS[FIRST].0);
    }

    #[test]
    fn a_decision_is_of_one_window() {
        let mut levels = Levels::default();
        let ms = Duration::from_millis;
        levels.waited(ms(150), true);
        assert!(!levels.packed((1, ms(1)), ms(200), ms(50), true));
        assert!(levels.packed((1, ms(1)), ms(300), ms(50), true));
        let risen = levels.level();
        assert!(risen > LEVEL_FIRST);
        assert!(levels.packed((5, ms(1)), ms(300), ms(50), true), "what held it up before counts no more");
        assert_eq!(levels.level(), risen);
    }
}
