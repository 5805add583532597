//! Rules against dumb oracles: every minute looked at for the calendar, and the laws that a division keeps.

use super::*;
use proptest::prelude::*;
use standin_model::BITS_PER_SECOND_MIN;

const MINUTE: i64 = 60_000_000_000;
const DAY: i64 = 24 * 60 * MINUTE;
/// Northern and southern daylight saving, half an hour of it, a skipped day, none.
const ZONES: [&str; 6] = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Asia/Kolkata", "UTC"];

fn zone(name: &str) -> Option<TimeZone> {
    TimeZone::get(name).ok()
}

fn rule(windows: &[(&str, &str, &str, &str)]) -> NetworkRule {
    let window = |(days, from, to, limit): &(&str, &str, &str, &str)| Window {
        days: (*days).into(),
        from: (*from).into(),
        to: (*to).into(),
        limit: (*limit).into(),
    };
    NetworkRule {
        limit: "10Mbit/s".into(),
        zone: "Europe/Berlin".into(),
        windows: windows.iter().map(window).collect(),
        ..Default::default()
    }
}

fn at(text: &str) -> Timestamp {
    Timestamp(text.parse::<jiff::Timestamp>().unwrap().as_nanosecond() as i64)
}

fn limit_at(rule: &NetworkRule, moment: &str) -> Option<u64> {
    rule.compile(zone).unwrap().at(at(moment)).limit
}

#[test]
fn limits_as_people_write_them() {
    for (text, bits) in [
        ("10Mbit/s", Some(10_000_000)),
        ("1.5 Mbit/s", Some(1_500_000)),
        ("64kbit/s", Some(64_000)),
        ("1Gbit/s", Some(1_000_000_000)),
        ("1MB/s", Some(8_000_000)),
        ("1MiB/s", Some(8_388_608)),
        ("4.5GB/h", Some(10_000_000)),
        ("none", None),
        ("", None),
    ] {
        assert_eq!(parse_bits(text, None), Ok(bits), "{text}");
    }
    assert_eq!(parse_bits("20%", Some(100_000_000)), Ok(Some(20_000_000)));
    assert_eq!(parse_bits("0.5%", Some(100_000_000)), Ok(Some(500_000)));
    assert_eq!(parse_bits("20%", None), Err("STANDIN-E4101".into()));
    for text in [
        "10",
        "10M",
        "Mbit/s",
        "-1Mbit/s",
        "1.2.3Mbit/s",
        "1e9bit/s",
        "0%",
        "101%",
        "0bit/s",
        "63kbit/s",
        "2Tbit/s",
        "999999999999999TB/h",
        "ü",
    ] {
        assert_eq!(parse_bits(text, Some(1_000_000_000)), Err("STANDIN-E4100".into()), "{text}");
    }
}

fn parse_bits(text: &str, link: Option<u64>) -> Result<Option<u64>, String> {
    rate::parse(text).and_then(|limit| limit.bits_per_second(link)).map_err(|problem| problem.code)
}

#[test]
fn bad_rules_say_what_is_wrong() {
    let code = |rule: &NetworkRule| rule.compile(zone).map(|_| ()).map_err(|problem| problem.code);
    for bad in [
        ("mon-fri", "08:00", "08:00", "none"),
        ("mon-fri", "24:00", "08:00", "none"),
        ("mon-fri", "8", "9:00", "none"),
        ("mon-fri", "08:60", "09:00", "none"),
        ("mon-fri", "08:00", "24:01", "none"),
        ("weekend", "08:00", "09:00", "none"),
        ("", "08:00", "09:00", "none"),
        ("mon-", "08:00", "09:00", "none"),
    ] {
        assert_eq!(code(&rule(&[bad])), Err("STANDIN-E4102".into()), "{bad:?}");
    }
    assert_eq!(code(&rule(&[("daily", "08:00", "09:00", "20%")])), Err("STANDIN-E4101".into()));
    assert_eq!(code(&NetworkRule { zone: "Mars/Olympus".into(), ..rule(&[]) }), Err("STANDIN-E4103".into()));
    assert_eq!(code(&NetworkRule { link: "50%".into(), ..rule(&[]) }), Err("STANDIN-E4100".into()));
    assert_eq!(code(&rule(&[("daily", "08:00", "09:00", "none"); WINDOWS_MAX + 1])), Err("STANDIN-E4102".into()));
    assert_eq!(code(&rule(&[("daily", "08:00", "09:00", "none"); WINDOWS_MAX])), Ok(()));
}

#[test]
fn windows_hold_by_the_clock_on_the_wall() {
    let office = rule(&[("mon-fri", "08:00", "18:00", "2Mbit/s"), ("fri-mon", "22:00", "06:00", "none")]);
    // 2026-03-27 is a Friday; Berlin is at +01:00 until Sunday the 29th, then at +02:00.
    for (moment, limit) in [
        ("2026-03-27T06:59:59Z", Some(10_000_000)),
        ("2026-03-27T07:00:00Z", Some(2_000_000)),
        ("2026-03-27T16:59:59Z", Some(2_000_000)),
        ("2026-03-27T17:00:00Z", Some(10_000_000)),
        ("2026-03-27T21:00:00Z", None),
        ("2026-03-28T05:00:00Z", Some(10_000_000)),
        ("2026-03-30T05:59:59Z", Some(10_000_000)),
        ("2026-03-30T06:00:00Z", Some(2_000_000)),
        // Monday's night belongs to Monday, Thursday's morning to nobody.
        ("2026-03-31T03:59:00Z", None),
        ("2026-04-02T03:59:00Z", Some(10_000_000)),
    ] {
        assert_eq!(limit_at(&office, moment), limit, "{moment}");
    }
}

#[test]
fn clocks_that_are_put_forward_and_back() {
    let night = rule(&[("sun", "02:30", "03:30", "1Mbit/s")]);
    let plan = night.compile(zone).unwrap();
    // 02:00 to 03:00 does not exist: the window begins at 03:00 summer time, which is 01:00 UTC, and takes half an hour.
    assert_eq!(plan.next_change(at("2026-03-29T00:00:00Z")).unwrap().0, at("2026-03-29T01:00:00Z"));
    assert_eq!(plan.next_change(at("2026-03-29T01:00:00Z")).unwrap().0, at("2026-03-29T01:30:00Z"));
    // 02:00 to 03:00 comes twice: the window is interrupted, and holds again.
    let changes = [("00:00", "00:30"), ("00:30", "01:00"), ("01:00", "01:30"), ("01:30", "02:30")];
    for (from, to) in changes {
        let next = plan.next_change(at(&format!("2026-10-25T{from}:00Z"))).unwrap().0;
        assert_eq!(next, at(&format!("2026-10-25T{to}:00Z")), "{from}");
    }
    let always = rule(&[("daily", "00:00", "24:00", "1Mbit/s")]).compile(zone).unwrap();
    assert_eq!((always.next_change(at("2026-10-25T00:00:00Z")), always.at(at("2026-10-25T00:00:00Z")).limit), (None, Some(1_000_000)));
}

fn window() -> impl Strategy<Value = Window> {
    let days = prop_oneof![Just("daily"), Just("mon-fri"), Just("sat,sun"), Just("sun"), Just("fri-mon"), Just("sun-mon"), Just("wed")];
    let limit = prop_oneof![Just("none"), Just("1Mbit/s"), Just("2Mbit/s")];
    (days, 0u16..1440, 0u16..=1440, limit).prop_filter_map("empty", |(days, from, to, limit)| {
        let text = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
        (from != to).then(|| Window { days: days.into(), from: text(from), to: text(to), limit: limit.into() })
    })
}

/// What holds at a moment, in the plainest words: the clock on the wall, every window written out as minutes of a week.
fn oracle(rule: &NetworkRule, moment: i64) -> Option<u64> {
    let zone = TimeZone::get(&rule.zone).unwrap();
    let wall = zone.to_datetime(jiff::Timestamp::from_nanosecond(moment.into()).unwrap());
    let names = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
    let now = i64::from(wall.weekday().to_monday_zero_offset()) * 1440 + i64::from(wall.hour()) * 60 + i64::from(wall.minute());
    for window in &rule.windows {
        let minute = |text: &str| text[..2].parse::<i64>().unwrap() * 60 + text[3..].parse::<i64>().unwrap();
        let listed: Vec<usize> = match window.days.as_str() {
            "daily" => (0..7).collect(),
            "mon-fri" => (0..5).collect(),
            "sat,sun" => vec![5, 6],
            "fri-mon" => vec![4, 5, 6, 0],
            "sun-mon" => vec![6, 0],
            one => vec![names.iter().position(|name| *name == one).unwrap()],
        };
        let length = (minute(&window.to) - minute(&window.from) + 1440) % 1440;
        let length = if window.from == "00:00" && window.to == "24:00" { 1440 } else { length };
        for day in listed {
            let begin = day as i64 * 1440 + minute(&window.from);
            // The week before reaches into this one.
            if (begin..begin + length).contains(&now) || (begin..begin + length).contains(&(now + 7 * 1440)) {
                return parse_bits(&window.limit, None).unwrap();
            }
        }
    }
    parse_bits(&rule.limit, None).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Two days around every kind of border, minute by minute: the limit, and that the next change is announced exactly.
    #[test]
    fn the_calendar_is_what_the_wall_clock_says(
        windows in prop::collection::vec(window(), 0..5),
        zone_index in 0..ZONES.len(),
        start in prop_oneof![Just("2026-03-28T12:00:00Z"), Just("2026-10-24T12:00:00Z"), Just("2026-11-01T00:00:00Z"), Just("2026-04-04T06:00:00Z"),
            Just("2026-09-05T20:00:00Z"), Just("2026-12-31T12:00:00Z"), Just("2026-06-14T12:00:00Z")],
        offset in 0i64..60,
    ) {
        let rule = NetworkRule { limit: "10Mbit/s".into(), zone: ZONES[zone_index].into(), windows, ..Default::default() };
        let plan = rule.compile(zone).unwrap();
        let start = at(start).0 + offset * 1_000_000_000;
        let mut next = plan.next_change(Timestamp(start)).map(|(when, _)| when);
        let mut before = plan.at(Timestamp(start));
        for minute in 1..2 * 1440 {
            let moment = start + minute * MINUTE;
            prop_assert_eq!(plan.at(Timestamp(moment)).limit, oracle(&rule, moment), "at {}", moment);
            let held = plan.at(Timestamp(moment));
            if next.is_some_and(|next| next.0 <= moment) {
                let change = next.unwrap();
                prop_assert!(change.0 > moment - MINUTE && plan.at(Timestamp(change.0 - 1)) == before && plan.at(change) != before);
                prop_assert_eq!(&plan.at(change), &held, "two borders in one minute do not occur");
                next = plan.next_change(Timestamp(moment)).map(|(when, _)| when);
            } else {
                prop_assert_eq!(&held, &before, "a change at {} was not announced", moment);
            }
            before = held;
        }
        prop_assert!(next.is_none_or(|next| next.0 > start + 2 * DAY - 2 * MINUTE));
    }

    #[test]
    fn a_division_keeps_its_laws(
        limit in 1_000_000u64..10_000_000_000,
        claims in prop::collection::vec(
            (prop::option::of(64_000u64..20_000_000_000), prop::option::of(0u64..20_000_000_000), any::<bool>())
                .prop_map(|(limit, demand, replicates)| Claim { limit, demand, replicates }), 1..15),
    ) {
        let shares: Vec<u64> = divide(Some(limit), &claims).into_iter().map(|share| share.unwrap()).collect();
        let kept = (limit / 20 / claims.len() as u64).max(BITS_PER_SECOND_MIN);
        prop_assert!(shares.iter().sum::<u64>() <= limit);
        for (claim, share) in claims.iter().zip(&shares) {
            prop_assert!(claim.limit.is_none_or(|most| *share <= most) && *share >= kept.min(claim.limit.unwrap_or(u64::MAX)));
        }
        // Nothing lies idle while somebody could have it.
        let could: u64 = claims.iter().map(|claim| claim.limit.unwrap_or(limit)).fold(0, u64::saturating_add);
        prop_assert!(shares.iter().sum::<u64>() + claims.len() as u64 >= limit.min(could));
        // Replication first: where one that replicates lacks something, those that mirror have only what everybody keeps.
        let lacks = |(claim, share): (&Claim, &u64)| *share + 1 < claim.demand.unwrap_or(u64::MAX).min(claim.limit.unwrap_or(u64::MAX)).min(limit);
        if claims.iter().zip(&shares).filter(|(claim, _)| claim.replicates).any(lacks) {
            let slack = claims.len() as u64;
            prop_assert!(claims.iter().zip(&shares).filter(|(claim, _)| !claim.replicates).all(|(_, share)| *share <= kept + slack));
        }
    }

    #[test]
    fn hostile_texts_are_refused_or_understood(text in ".{0,40}") {
        let _ = rate::parse(&text).map(|limit| limit.bits_per_second(Some(u64::MAX)));
        let window = Window { days: text.clone(), from: text.clone(), to: "10:00".into(), limit: text.clone() };
        let _ = NetworkRule { limit: text.clone(), link: text.clone(), zone: text, windows: vec![window] }.compile(|_| None);
    }
}

#[test]
fn without_a_limit_of_the_appliance_each_job_has_its_own() {
    let claim = Claim { limit: Some(5_000_000), ..Claim::default() };
    assert_eq!(divide(None, &[claim, Claim::default()]), [Some(5_000_000), None]);
    assert_eq!(divide(Some(1_000_000), &[]), []);
    // More jobs than the limit has room for: each the least there can be.
    assert!(divide(Some(100_000), &[Claim::default(); 3]).iter().all(|share| *share == Some(BITS_PER_SECOND_MIN)));
}
