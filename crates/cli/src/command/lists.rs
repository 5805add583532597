//! Commands that ask once and print.

use crate::client::{Client, segment};
use crate::exit::Result;
use crate::render::{self, list, number, text};
use crate::size;
use serde_json::{Value, json};

pub fn rows(value: &Value, row: impl Fn(&Value) -> Vec<String>) -> Vec<Vec<String>> {
    value.as_array().map(|items| items.iter().map(row).collect()).unwrap_or_default()
}

pub fn hosts(client: &Client, as_json: bool) -> Result<()> {
    let hosts = client.get("/host")?;
    if as_json {
        render::json(&hosts);
        return Ok(());
    }
    let row = |host: &Value| {
        vec![
            text(host, "/name"),
            text(host, "/hypervisor"),
            text(host, "/host/cpus"),
            format!("{} of {}", size::bytes(number(host, "/host/memory_available_bytes")), size::bytes(number(host, "/host/memory_bytes"))),
            size::bytes(number(host, "/datastores/0/free_bytes")),
            list(host, "/machines").len().to_string(),
        ]
    };
    render::table(&["HOST", "HYPERVISOR", "CPUS", "MEMORY FREE", "DATASTORE FREE", "MACHINES"], &rows(&hosts, row));
    Ok(())
}

pub fn agents(client: &Client, as_json: bool) -> Result<()> {
    let agents = client.get("/agents")?;
    if as_json {
        render::json(&agents);
        return Ok(());
    }
    let row = |agent: &Value| {
        let connected = if agent["connected"] == true { "connected" } else { "disconnected" };
        let obstacles = list(agent, "/inventory/capture_obstacles").join("; ");
        vec![
            text(agent, "/id"),
            text(agent, "/inventory/hostname"),
            connected.into(),
            text(agent, "/inventory/os_name"),
            text(agent, "/version"),
            list(agent, "/jobs").join(" "),
            obstacles,
        ]
    };
    render::table(&["AGENT", "SOURCE", "STATUS", "SYSTEM", "VERSION", "JOBS", "OBSTACLES"], &rows(&agents, row));
    Ok(())
}

pub fn jobs(client: &Client, as_json: bool) -> Result<()> {
    let jobs = client.get("/jobs")?;
    if as_json {
        render::json(&jobs);
        return Ok(());
    }
    let row = |job: &Value| {
        vec![
            text(job, "/name"),
            text(job, "/source"),
            text(job, "/state"),
            flags(job),
            job["lag_seconds"].as_u64().map_or("-".into(), size::seconds),
            size::bytes(number(job, "/queue_bytes")),
            if job["failover_possible"] == true { "possible".into() } else { "-".into() },
        ]
    };
    render::table(&["JOB", "SOURCE", "STATE", "FLAGS", "RPO", "QUEUE", "FAILOVER"], &rows(&jobs, row));
    Ok(())
}

pub fn flags(job: &Value) -> String {
    let flags = job["flags"].as_array().cloned().unwrap_or_default();
    flags.iter().map(|flag| text(flag, "/flag")).collect::<Vec<_>>().join(" ")
}

pub fn job(client: &Client, name: &str, as_json: bool) -> Result<()> {
    let job = client.get(&format!("/jobs/{}", segment(name)))?;
    if as_json {
        render::json(&job);
        return Ok(());
    }
    let say = |label: &str, value: String| println!("{label:<14}{value}");
    say("job", format!("{} ({})", text(&job, "/name"), text(&job, "/id")));
    say("source", format!("{}, {}", text(&job, "/source"), text(&job, "/summary/system")));
    say("state", format!("{} {}", text(&job, "/state"), text(&job, "/reason")));
    for flag in job["flags"].as_array().cloned().unwrap_or_default() {
        say("flag", text(&flag, "/flag"));
        if flag["problem"].is_object() {
            say("", format!("{}: {}", text(&flag, "/problem/code"), text(&flag, "/problem/cause")));
            say("", format!("next: {}", text(&flag, "/problem/next")));
        }
    }
    let marks = ["captured", "queued", "sent", "received", "durable", "applied"];
    say("watermarks", marks.map(|mark| format!("{mark} {}", number(&job, &format!("/watermarks/{mark}")))).join(", "));
    say("RPO", job["lag_seconds"].as_u64().map_or("unknown".into(), size::seconds));
    if job["worker"]["power_cut_unverified"] == true {
        say(
            "power cut",
            "the source lost its power: what it overwrote in place just before left no trace, and a verification looks for it".into(),
        );
    }
    if job["mirror"]["running"] == true {
        say("mirror", super::watch::time_left(&job["mirror"]["left"]));
        for line in super::watch::volume_lines(&job["mirror"]) {
            say("", line);
        }
    }
    let room = match number(&job, "/impact/queue_bytes_max") {
        0 => String::new(),
        room => format!(", room for {} on the source's disk", size::bytes(room)),
    };
    say("queue", format!("{}{room}", size::bytes(number(&job, "/queue_bytes"))));
    say("journal", size::bytes(number(&job, "/journal_bytes")));
    say("changed/sent", format!("{} / {}", size::bytes(number(&job, "/bytes_changed")), size::bytes(number(&job, "/bytes_sent"))));
    let (patches, refused) = (number(&job, "/worker/patches"), number(&job, "/worker/patches_refused"));
    say("page delta", format!("{} spared; {patches} patches applied, {refused} refused", size::bytes(number(&job, "/bytes_spared"))));
    for line in capture(&job["capture"]) {
        say("capture", line);
    }
    if let Some(line) = impact(&job["impact"]) {
        say("impact", line);
    }
    for line in super::network::lines(&job["network"]) {
        say("network", line);
    }
    for pattern in list(&job, "/summary/exclusions") {
        say("left out", pattern);
    }
    let saved = |what: &str| number(&job, &format!("/left_out/{what}"));
    say(
        "saved",
        format!("{} in {} files, {} of changes", size::bytes(saved("bytes")), saved("nodes"), size::bytes(saved("bytes_changed"))),
    );
    say("boot repair", text(&job, "/boot/state"));
    say("worker", format!("pid {}, {} restarts", text(&job, "/worker/pid"), number(&job, "/worker/restarts")));
    Ok(())
}

/// What the agent takes from the source, and what it may.
fn impact(impact: &Value) -> Option<String> {
    let (cpu, cpu_max) = (number(impact, "/cpu_percent"), number(impact, "/cpu_percent_max"));
    let (read, read_max) = (number(impact, "/read_rate"), number(impact, "/read_rate_max"));
    let of = |limit: u64, text: String| if limit == 0 { String::new() } else { format!(" of {text}") };
    let rested = match number(impact, "/rested_ms") {
        0 => String::new(),
        rested => format!("; the limits held reading back for {} % of the last second", rested.min(1000) / 10),
    };
    impact.is_object().then(|| {
        format!(
            "{cpu} %{} of a processor, {} of memory, reads {}/s{}{rested}",
            of(cpu_max, format!("{cpu_max} %")),
            size::bytes(number(impact, "/memory_bytes")),
            size::bytes(read),
            of(read_max, format!("{}/s", size::bytes(read_max)))
        )
    })
}

/// How the source is captured, and what of it that costs.
fn capture(capture: &Value) -> Vec<String> {
    if capture["driver"].is_null() {
        return Vec::new();
    }
    let mut lines = vec![format!("{} ({})", text(capture, "/driver"), text(capture, "/promise"))];
    if capture["periodic"] == true {
        lines.push(format!("because {}", text(capture, "/because")));
        let at = capture["consistent_at"].as_i64().map_or("never yet".to_owned(), |at| format!("{} UTC", time(at)));
        lines.push(format!("last consistent {at}; {} nodes have changed since", number(capture, "/changed_nodes")));
        let stills = number(capture, "/stills");
        if stills > 0 {
            lines.push(format!("the source stood still {stills} times, for {} ms at most", number(capture, "/still_ms_max")));
        }
        if capture["trouble"].is_string() {
            lines.push(format!("not consistent now: {}", text(capture, "/trouble")));
        }
    }
    lines
}

pub fn explain(client: &Client, job: &str, path: &str, as_json: bool) -> Result<()> {
    let answer = client.get(&format!("/jobs/{}/explain?path={}", segment(job), segment(path)))?;
    if as_json {
        render::json(&answer);
    } else {
        println!("{}: {}", text(&answer, "/path"), text(&answer, "/words"));
    }
    Ok(())
}

pub fn change(client: &Client, job: &str, what: &str, as_json: bool) -> Result<()> {
    let answer = client.post(&format!("/jobs/{}/{what}", segment(job)), &json!({}))?;
    if as_json {
        render::json(&answer);
    } else {
        println!("{job}: {}", list(&answer, "/flags").join(" "));
    }
    Ok(())
}

pub fn boot_repair(client: &Client, job: &str, as_json: bool) -> Result<()> {
    let report = client.get(&format!("/jobs/{}/boot-repair", segment(job)))?;
    if as_json {
        render::json(&report);
        return Ok(());
    }
    println!("{}, kernel {}\n", text(&report, "/distribution"), text(&report, "/default_kernel"));
    let row = |change: &Value| vec![text(change, "/path"), text(change, "/what"), text(change, "/why")];
    render::table(&["PATH", "CHANGE", "WHY"], &rows(&report["changes"], row));
    for warning in list(&report, "/warnings") {
        println!("warning: {warning}");
    }
    Ok(())
}

pub fn events(client: &Client, job: &str, as_json: bool) -> Result<()> {
    let events = client.get(&format!("/jobs/{}/events", segment(job)))?;
    if as_json {
        render::json(&events);
        return Ok(());
    }
    let row =
        |event: &Value| vec![time(event["at"].as_i64().unwrap_or(0)), text(event, "/actor"), text(event, "/code"), text(event, "/text")];
    render::table(&["TIME (UTC)", "BY", "CODE", "WHAT"], &rows(&events, row));
    Ok(())
}

/// Nanoseconds since 1970 as `YYYY-MM-DD hh:mm:ss`; days to date after Howard Hinnant's `civil_from_days`.
pub fn time(nanoseconds: i64) -> String {
    let seconds = nanoseconds.div_euclid(1_000_000_000);
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", rest / 3600, rest % 3600 / 60, rest % 60)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_weaker_promise_is_said() {
        let ebpf = serde_json::json!({"driver": "ebpf", "promise": "every operation in its order", "periodic": false});
        assert_eq!(super::capture(&ebpf), ["ebpf (every operation in its order)"]);
        let told = serde_json::json!({"cpu_percent": 12, "read_rate": 5 << 20, "memory_bytes": 48 << 20});
        assert_eq!(super::impact(&told).unwrap(), "12 % of a processor, 48.0 MiB of memory, reads 5.0 MiB/s");
        let told =
            serde_json::json!({"cpu_percent": 9, "cpu_percent_max": 10, "read_rate": 1 << 20, "read_rate_max": 2 << 20, "rested_ms": 800});
        let said = "9 % of 10 % of a processor, 0 B of memory, reads 1.0 MiB/s of 2.0 MiB/s; the limits held reading back for 80 % of the last second";
        assert_eq!(super::impact(&told).unwrap(), said);
        assert!(super::impact(&serde_json::Value::Null).is_none());
        assert!(super::capture(&serde_json::Value::Null).is_empty());
        let mut fanotify = serde_json::json!({
            "driver": "fanotify", "promise": "periodic consistency", "periodic": true, "because": "no BTF", "changed_nodes": 3,
            "consistent_at": 1_709_210_096_000_000_000_i64, "stills": 2, "still_ms_max": 150, "trouble": "too much",
        });
        let lines = super::capture(&fanotify);
        assert_eq!(lines[0], "fanotify (periodic consistency)");
        assert!(lines[2].contains("2024-02-29 12:34:56") && lines[2].contains("3 nodes"), "{lines:?}");
        assert!(lines[3].contains("2 times, for 150 ms") && lines[4].ends_with("too much"), "{lines:?}");
        fanotify["consistent_at"] = serde_json::Value::Null;
        assert!(super::capture(&fanotify)[2].contains("never yet"));
    }

    #[test]
    fn times() {
        for (seconds, text) in [(0, "1970-01-01 00:00:00"), (1_709_210_096, "2024-02-29 12:34:56"), (-1, "1969-12-31 23:59:59")] {
            assert_eq!(super::time(seconds * 1_000_000_000), text);
        }
    }
}
