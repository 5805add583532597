//! The limit against a dumb count of bytes, under every lateness of a thread that is allowed for; and against a real clock.

use super::*;
use proptest::prelude::*;
use std::sync::Arc;
use std::thread;

const SECOND: u64 = 1_000_000_000;

/// Sends without end at `rate` for `seconds`, waking late by `late(n)` nanoseconds; returns (time, bytes) of every send.
fn run(rate: u64, seconds: u64, mut late: impl FnMut() -> u64) -> Vec<(u64, usize)> {
    let (mut bucket, mut now, mut sends) = (Bucket::default(), SECOND, Vec::new());
    let slice = slice_bytes(rate);
    while now < (seconds + 1) * SECOND {
        match bucket.take(now, slice, rate) {
            Some(wait) => now += wait + late(),
            None => sends.push((now, slice)),
        }
    }
    sends
}

/// The most and the least that went in any window of `span`, as parts of the rate.
fn extremes(sends: &[(u64, usize)], rate: u64, span: u64) -> (f64, f64) {
    let (mut most, mut least) = (0f64, f64::MAX);
    let allowed = rate as f64 / 8.0 * (span as f64 / SECOND as f64);
    let end = sends.last().unwrap().0;
    let (mut from, mut to, mut sum) = (0, 0, 0usize);
    // Windows that begin with a send hold the most; those that begin right behind one the least.
    while from < sends.len() && sends[from].0 + span < end {
        while to < sends.len() && sends[to].0 < sends[from].0 + span {
            sum += sends[to].1;
            to += 1;
        }
        most = most.max(sum as f64 / allowed);
        sum -= sends[from].1;
        let mut tail = to;
        let mut behind = sum;
        while tail < sends.len() && sends[tail].0 <= sends[from].0 + span {
            behind += sends[tail].1;
            tail += 1;
        }
        least = least.min(behind as f64 / allowed);
        from += 1;
    }
    (most, least)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Up to 10 ms of lateness at every wake, and 100 ms every now and then, as on a busy server.
    #[test]
    fn ten_seconds_are_exact_whatever_the_machine_does(rate in prop_oneof![1_000_000u64..20_000_000, 20_000_000u64..200_000_000], seed in any::<u64>()) {
        let (mut random, mut wakes) = (seed | 1, seed % 1200);
        let sends = run(rate, 24, || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            wakes += 1;
            random % 8_000_000 + if wakes % 1200 == 0 { 100_000_000 } else { 0 }
        });
        let (most, least) = extremes(&sends, rate, SECOND);
        // A second with the stall lacks its tenth.
        prop_assert!(most <= 1.05 && least >= 0.85, "any 1 s: {least}..{most}");
        let (most, least) = extremes(&sends, rate, 10 * SECOND);
        prop_assert!((0.98..=1.02).contains(&most) && (0.98..=1.02).contains(&least), "any 10 s: {least}..{most}");
    }

    /// Up to 10 ms of lateness at every wake.
    #[test]
    fn the_goal_is_met_over_every_second(rate in 1_000_000u64..200_000_000, late in 0u64..10_000_000) {
        let sends = run(rate, 6, || late);
        let (most, least) = extremes(&sends, rate, SECOND);
        prop_assert!((0.95..=1.05).contains(&most) && (0.95..=1.05).contains(&least), "any 1 s: {least}..{most}");
    }

    /// Whatever stalls there are, nothing is ever sent faster: a link that comes back brings no burst.
    #[test]
    fn no_stall_is_made_up_for(rate in 64_000u64..1_000_000_000, stalls in prop::collection::vec(0u64..3_000, 1..50)) {
        let mut stalls = stalls.into_iter().cycle();
        let sends = run(rate, 15, || stalls.next().unwrap() * 100_000);
        let slice = slice_bytes(rate) as f64 * 8.0 / rate as f64;
        for (span, allowed) in [(SECOND, 1.035 + slice), (10 * SECOND, 1.015 + slice / 10.0)] {
            let (most, _) = extremes(&sends, rate, span);
            prop_assert!(most <= allowed + 1e-6, "{most} of {allowed} in {span} ns");
        }
    }

    #[test]
    fn hostile_numbers_do_no_harm(due in any::<u64>(), rest in any::<u64>(), now in any::<u64>(), bytes in any::<usize>(), rate in any::<u64>()) {
        let mut bucket = Bucket { sustained: Due { at_ns: due, rest }, peak: Due { at_ns: rest, rest: due } };
        bucket.take(now, bytes, rate);
    }
}

#[test]
fn slices_are_a_hundredth_of_a_second() {
    for (rate, bytes) in [(64_000, 256), (1_000_000, 1250), (10_000_000, 12_500), (1_000_000_000, 65_536)] {
        assert_eq!(slice_bytes(rate), bytes, "{rate}");
    }
}

#[test]
fn a_change_takes_hold_in_the_middle_of_a_wait() {
    let pace = Arc::new(Pace::default());
    assert_eq!((pace.limit(), pace.wait(1 << 20)), (None, 1 << 20));
    pace.set_limit(Some(1));
    assert_eq!(pace.limit(), Some(BITS_PER_SECOND_MIN));
    // 64 kbit/s are 8 kB a second: this alone would take a minute.
    let sending = pace.clone();
    let began = Instant::now();
    let thread = thread::spawn(move || {
        let mut left = 500_000;
        while left > 0 {
            left -= sending.wait(left);
        }
    });
    thread::sleep(Duration::from_millis(200));
    pace.set_limit(None);
    thread.join().unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn the_rate_is_that_of_the_last_seconds() {
    let pace = Pace::default();
    pace.note(125_000);
    thread::sleep(Duration::from_millis(500));
    let rate = pace.rate();
    assert!((500_000..=2_000_000).contains(&rate), "{rate}");
    assert_eq!(pace.passed(), 125_000);
}
