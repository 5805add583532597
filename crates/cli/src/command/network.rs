//! `standin network …` and `standin job network`: limits, calendars, and the way of a source's connection.
//!
//! Limits, days and times are the appliance's to understand; here they only find their places in the request.

use super::lists::{rows, time};
use crate::args::{JobNetwork, NetworkCommand, NetworkRule};
use crate::client::{Client, segment};
use crate::exit::{Failure, Result};
use crate::render::{self, number, text};
use serde_json::{Value, json};

pub fn run(client: &Client, command: NetworkCommand, as_json: bool) -> Result<()> {
    let mut view = client.get("/network")?;
    if let NetworkCommand::Set(options) = command
        && let Some(rule) = changed(&view["rule"], &options)?
    {
        view = client.put("/network", &rule)?;
    }
    if as_json {
        render::json(&view);
        return Ok(());
    }
    lines(&view).iter().for_each(|line| println!("{line}"));
    let row = |job: &Value| vec![text(job, "/job"), job["share"].as_u64().map_or("no limit".into(), bits), bits(number(job, "/rate"))];
    render::table(&["JOB", "MAY TAKE", "TAKES"], &rows(&view["jobs"], row));
    Ok(())
}

pub fn job(client: &Client, options: &JobNetwork, as_json: bool) -> Result<()> {
    let path = format!("/jobs/{}/network", segment(&options.job));
    let mut view = client.get(&path)?;
    let (rule, way) = (changed(&view["rule"], &options.rule)?, changed_way(&view["path"], options));
    if rule.is_some() || way.is_some() {
        view = client.put(&path, &json!({"rule": rule, "path": way}))?;
    }
    if as_json {
        render::json(&view);
    } else {
        lines(&view).iter().for_each(|line| println!("{line}"));
    }
    Ok(())
}

/// The rule with what was given in place; `None` where nothing was.
fn changed(before: &Value, options: &NetworkRule) -> Result<Option<Value>> {
    let mut rule = before.clone();
    for (field, value) in [("limit", &options.limit), ("link", &options.link), ("zone", &options.zone)] {
        if let Some(value) = value {
            rule[field] = json!(value);
        }
    }
    if !options.windows.is_empty() || options.no_windows {
        rule["windows"] = options.windows.iter().map(|text| window(text)).collect::<Result<Vec<_>>>()?.into();
    }
    Ok((rule != *before).then_some(rule))
}

/// `DAYS FROM-TO LIMIT`
fn window(text: &str) -> Result<Value> {
    let wrong = || Failure::Usage(format!("{text:?} is no window; write 'mon-fri 08:00-18:00 2Mbit/s'"));
    let (days, rest) = text.trim().split_once(' ').ok_or_else(wrong)?;
    let (times, limit) = rest.trim().split_once(' ').ok_or_else(wrong)?;
    let (from, to) = times.split_once('-').ok_or_else(wrong)?;
    Ok(json!({"days": days, "from": from, "to": to, "limit": limit.trim()}))
}

fn changed_way(before: &Value, options: &JobNetwork) -> Option<Value> {
    let choices = [
        ("source", &options.source, "any"),
        ("family", &options.family, "any"),
        ("proxy", &options.proxy, "none"),
        ("congestion", &options.congestion, "default"),
    ];
    if choices.iter().all(|(_, choice, _)| choice.is_none()) {
        return None;
    }
    let mut way = if before.is_object() { before.clone() } else { json!({}) };
    for (field, choice, nothing) in choices {
        if let Some(choice) = choice {
            way[field] = if choice == nothing { Value::Null } else { json!(choice) };
        }
    }
    Some(way)
}

/// What there is to say of a rule, and of a job's connection.
pub fn lines(view: &Value) -> Vec<String> {
    let limit = |value: &Value| value.as_u64().map_or("no limit".to_owned(), bits);
    let mut lines = vec![match view["window"].as_u64() {
        Some(index) => format!("{} by window {}", limit(&view["limit"]), window_text(&view["rule"]["windows"][index as usize])),
        None => limit(&view["limit"]),
    }];
    if let Some(at) = view.pointer("/next_change/at").and_then(Value::as_i64) {
        lines.push(format!("from {} UTC on: {}", time(at), limit(&view["next_change"]["limit"])));
    }
    if view["share"].is_u64() && view["share"] != view["limit"] {
        lines.push(format!("{} is its part of the appliance's limit now", limit(&view["share"])));
    }
    let zone = text(view, "/rule/zone");
    for window in view["rule"]["windows"].as_array().into_iter().flatten() {
        lines.push(format!("window {} ({})", window_text(window), if zone.is_empty() { "UTC" } else { &zone }));
    }
    for (field, value) in view["path"].as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
        lines.push(format!("{field} {}", value.as_str().unwrap_or_default()));
    }
    let agent = &view["agent"];
    if agent.is_object() {
        let (local, peer, congestion) = (text(agent, "/local"), text(agent, "/peer"), text(agent, "/congestion"));
        lines.push(format!(
            "sends {} from {local} to {peer} ({congestion}, {}), connection {}",
            bits(number(agent, "/rate")),
            match agent["level"].as_i64() {
                Some(0) => "not compressed".to_owned(),
                level => format!("zstd {}", level.unwrap_or(1)),
            },
            number(agent, "/connects")
        ));
        if agent["trouble"].is_object() {
            lines.push(format!("{}: {}", text(agent, "/trouble/code"), text(agent, "/trouble/cause")));
        }
    } else if view["share"].is_u64() {
        lines.push("the agent has not said yet that it keeps to the limit".into());
    }
    lines
}

fn window_text(window: &Value) -> String {
    format!("{} {}-{} {}", text(window, "/days"), text(window, "/from"), text(window, "/to"), text(window, "/limit"))
}

/// Bits a second as links are sold.
fn bits(value: u64) -> String {
    let mut value = value as f64;
    for unit in ["bit/s", "kbit/s", "Mbit/s"] {
        if value < 1000.0 {
            return format!("{} {unit}", rounded(value));
        }
        value /= 1000.0;
    }
    format!("{} Gbit/s", rounded(value))
}

fn rounded(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_find_their_places() {
        let expect = json!({"days": "mon-fri", "from": "08:00", "to": "18:00", "limit": "2 Mbit/s"});
        assert_eq!(window("mon-fri 08:00-18:00  2 Mbit/s").ok(), Some(expect));
        for bad in ["", "mon", "mon 08:00", "mon 0800 2Mbit/s"] {
            assert!(window(bad).is_err(), "{bad}");
        }
        assert_eq!(
            (bits(2_000_000), bits(64_500), bits(999), bits(1_250_000_000)),
            ("2 Mbit/s".into(), "64.5 kbit/s".into(), "999 bit/s".into(), "1.25 Gbit/s".into())
        );
    }

    #[test]
    fn only_what_is_given_changes() {
        let before = json!({"limit": "10Mbit/s", "link": "", "zone": "", "windows": []});
        let mut options = NetworkRule { limit: None, link: None, zone: None, windows: vec![], no_windows: false };
        assert_eq!(changed(&before, &options).ok(), Some(None));
        options.windows = vec!["daily 00:00-06:00 none".into()];
        let after = changed(&before, &options).ok().flatten().unwrap();
        assert_eq!((text(&after, "/limit"), text(&after, "/windows/0/to")), ("10Mbit/s".into(), "06:00".into()));
    }
}
