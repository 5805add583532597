//! The weekly calendar: windows of local time, in which another limit holds.
//!
//! A window is meant by the clock on the wall of its time zone. When that clock is put forward, a window that would begin in the hour that is left out
//! begins with the hour behind it; when it is put back, a window in the hour that comes twice holds both times. A window whose end is not behind its
//! beginning runs over midnight and belongs to the day on which it begins.

use crate::Problem;
use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span};
use serde::{Deserialize, Serialize};
use standin_model::Timestamp;

const MINUTES_OF_DAY: u16 = 24 * 60;
/// How far ahead the next change is looked for: a week, and a day for windows over midnight.
const DAYS_AHEAD: i64 = 8;
/// Changes of a zone's clock that are looked at within that time; there are two a year.
const TRANSITIONS_MAX: usize = 8;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// As the operator wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// `mon-fri`, `sat,sun`, `daily`.
    pub days: String,
    /// `08:00`
    pub from: String,
    /// `18:30`; `24:00` is the day's end.
    pub to: String,
    /// As the rule's own limit.
    pub limit: String,
}

/// A window that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSpan {
    /// Bit 0 is Monday.
    days: u8,
    /// Minutes of the day.
    from: u16,
    to: u16,
}

fn bad(cause: String) -> Problem {
    Problem::new("E4102", cause, "standin network set --window 'mon-fri 08:00-18:00 2Mbit/s'")
}

impl Window {
    pub(super) fn span(&self) -> Result<WindowSpan, Problem> {
        let (from, to) = (minute(&self.from)?, minute(&self.to)?);
        if from == MINUTES_OF_DAY {
            return Err(bad("a window cannot begin at 24:00; write 00:00 of the day behind it".into()));
        }
        if from == to {
            return Err(bad(format!("a window from {} to {} is empty; a whole day is 00:00 to 24:00", self.from, self.to)));
        }
        Ok(WindowSpan { days: days(&self.days)?, from, to })
    }
}

fn days(text: &str) -> Result<u8, Problem> {
    let wrong = || bad(format!("{:?} are no days; write mon-fri, or sat,sun, or daily", super::shortened(text)));
    let number = |name: &str| DAYS.iter().position(|day| *day == name.trim().to_ascii_lowercase()).ok_or_else(wrong);
    if text.trim().eq_ignore_ascii_case("daily") {
        return Ok(0x7f);
    }
    let mut set = 0u8;
    for part in text.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        // `fri-mon` goes over the week's border.
        let count = (last + 7 - first) % 7;
        (0..=count).for_each(|step| set |= 1 << ((first + step) % 7));
    }
    Ok(set)
}

fn minute(text: &str) -> Result<u16, Problem> {
    let wrong = || bad(format!("{:?} is no time of the day; write 08:00, or 24:00 for its end", super::shortened(text)));
    let (hour, minute) = text.trim().split_once(':').ok_or_else(wrong)?;
    let two = |text: &str| text.len() <= 2 && !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !two(hour) || !two(minute) || minute.len() != 2 {
        return Err(wrong());
    }
    let (hour, minute): (u16, u16) = (hour.parse().map_err(|_| wrong())?, minute.parse().map_err(|_| wrong())?);
    let all = hour * 60 + minute;
    if minute < 60 && all <= MINUTES_OF_DAY { Ok(all) } else { Err(wrong()) }
}

impl WindowSpan {
    /// `day` is 0 on Monday.
    fn holds(&self, day: u8, minute: u16) -> bool {
        let on = |day: u8| self.days & (1 << (day % 7)) != 0;
        if self.from < self.to {
            on(day) && (self.from..self.to).contains(&minute)
        } else {
            (on(day) && minute >= self.from) || (on(day + 6) && minute < self.to)
        }
    }
}

/// The windows of a rule, in their time zone.
#[derive(Clone, Debug)]
pub struct CalendarPlan {
    zone: TimeZone,
    windows: Vec<(WindowSpan, Option<u64>)>,
}

impl CalendarPlan {
    pub(super) fn new(zone: TimeZone, windows: Vec<(WindowSpan, Option<u64>)>) -> CalendarPlan {
        CalendarPlan { zone, windows }
    }

    fn local(&self, now: Timestamp) -> DateTime {
        self.zone.to_datetime(instant(now))
    }

    /// The first window that holds, and its limit.
    pub fn window_at(&self, now: Timestamp) -> Option<(usize, Option<u64>)> {
        if self.windows.is_empty() {
            return None;
        }
        let local = self.local(now);
        let day = u8::try_from(local.weekday().to_monday_zero_offset()).unwrap_or(0);
        let minute = u16::try_from(i32::from(local.hour()) * 60 + i32::from(local.minute())).unwrap_or(0);
        let found = self.windows.iter().position(|(window, _)| window.holds(day, minute))?;
        self.windows.get(found).map(|(_, limit)| (found, *limit))
    }

    /// Moments behind `now` at which another window may begin to hold, in order: every border of a window on the days ahead, and every change
    /// of the zone's clock.
    pub fn moments_after(&self, now: Timestamp) -> Vec<Timestamp> {
        if self.windows.is_empty() {
            return Vec::new();
        }
        let mut moments = Vec::new();
        let today = self.local(now).date();
        for ahead in 0..=DAYS_AHEAD {
            let Ok(day) = today.checked_add(Span::new().days(ahead)) else { break };
            for border in self.windows.iter().flat_map(|(window, _)| [window.from, window.to]) {
                let midnight = day.to_datetime(Time::midnight());
                let Ok(border) = midnight.checked_add(SignedDuration::from_mins(border.into())) else { continue };
                // An hour that comes twice has the border twice; in one that is left out both are behind it or before it.
                let there = self.zone.to_ambiguous_timestamp(border);
                moments.extend([there.earlier(), there.later()].into_iter().flatten().map(timestamp));
            }
        }
        let end = now.0.saturating_add((DAYS_AHEAD + 1) * 86_400_000_000_000);
        let shifts = self.zone.following(instant(now)).take(TRANSITIONS_MAX).map(|shift| timestamp(shift.timestamp()));
        moments.extend(shifts.take_while(|at| at.0 <= end));
        moments.retain(|moment| *moment > now);
        moments.sort_unstable();
        moments.dedup();
        moments
    }
}

fn instant(at: Timestamp) -> jiff::Timestamp {
    jiff::Timestamp::from_nanosecond(at.0.into()).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}

fn timestamp(at: jiff::Timestamp) -> Timestamp {
    Timestamp(i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX))
}
