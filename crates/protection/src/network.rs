//! How much of the network a job or the whole appliance may take: a limit, a weekly calendar of other limits, and the division among jobs.
//!
//! A [`NetworkRule`] is what the operator wrote; [`NetworkRule::compile`] checks it and makes a [`NetworkPlan`], which says for any moment which limit
//! holds and when that changes next. [`divide`] splits the appliance's limit: jobs that replicate before jobs that mirror, each no more than it can use.
//! All limits count the bytes that a source hands to TCP, TLS included.

pub mod calendar;
pub mod divide;
pub mod rate;

pub use calendar::{CalendarPlan, Window};
pub use divide::{Claim, divide};
pub use rate::Limit;

use crate::Problem;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use standin_model::Timestamp;

/// Windows of one calendar; more cannot be read by anybody.
pub const WINDOWS_MAX: usize = 64;

/// As the operator wrote it, and as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkRule {
    /// `10Mbit/s`, `5GB/h`, `20%` of `link`, or `none`; empty is `none`.
    pub limit: String,
    /// What the link can carry, as a limit; needed where a limit is in per cent.
    pub link: String,
    /// Name of a time zone of the IANA database, in which the windows are meant; empty is UTC.
    pub zone: String,
    /// The first one that holds counts; where none does, `limit`.
    pub windows: Vec<Window>,
}

/// A rule that was checked.
#[derive(Clone, Debug)]
pub struct NetworkPlan {
    /// Bits a second outside of the windows; `None` for no limit.
    limit: Option<u64>,
    calendar: CalendarPlan,
}

/// What holds at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Bits a second; `None` for no limit.
    pub limit: Option<u64>,
    /// Place of the window in the rule, where one holds.
    pub window: Option<usize>,
}

impl NetworkRule {
    /// `zones` knows time zones by name.
    pub fn compile(&self, zones: impl Fn(&str) -> Option<TimeZone>) -> Result<NetworkPlan, Problem> {
        let link = match rate::parse(&self.link)? {
            Limit::Percent(_) => return Err(rate::bad(&self.link, "a link's own speed is not in per cent")),
            link => link.bits_per_second(None)?,
        };
        let limit = rate::parse(&self.limit)?.bits_per_second(link)?;
        let zone = match self.zone.as_str() {
            "" => TimeZone::UTC,
            name => zones(name).ok_or_else(|| {
                let cause = format!("there is no time zone {:?}", shortened(name));
                Problem::new("E4103", cause, "standin network set --zone Europe/Berlin   (a name of the IANA database, or UTC)")
            })?,
        };
        if self.windows.len() > WINDOWS_MAX {
            let cause = format!("{} windows are more than {WINDOWS_MAX}", self.windows.len());
            return Err(Problem::new("E4102", cause, "standin network show"));
        }
        let windows = self.windows.iter().map(|window| Ok((window.span()?, rate::parse(&window.limit)?.bits_per_second(link)?)));
        Ok(NetworkPlan { limit, calendar: CalendarPlan::new(zone, windows.collect::<Result<_, Problem>>()?) })
    }
}

impl NetworkPlan {
    pub fn at(&self, now: Timestamp) -> Held {
        match self.calendar.window_at(now) {
            Some((index, limit)) => Held { limit, window: Some(index) },
            None => Held { limit: self.limit, window: None },
        }
    }

    /// When something else begins to hold; `None` where it never does, or not within eight days.
    pub fn next_change(&self, now: Timestamp) -> Option<(Timestamp, Held)> {
        let held = self.at(now);
        let moments = self.calendar.moments_after(now);
        moments.into_iter().map(|moment| (moment, self.at(moment))).find(|(_, then)| *then != held)
    }
}

/// What was typed, short enough for an error.
fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests;
