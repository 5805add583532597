//! `standin verify` and `standin job verifications`: is the replica what its source is?

use super::lists::time;
use crate::args::Verify;
use crate::client::{Client, segment};
use crate::exit::{Failure, Result};
use crate::render::{self, number, text};
use crate::size;
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_millis(500);

pub fn verify(client: &Client, options: &Verify, as_json: bool) -> Result<()> {
    let job = segment(&options.job);
    let path = format!("/jobs/{job}/verify");
    if options.stop {
        let answer = client.delete(&path)?;
        say(as_json, &answer, &format!("{}: no verification runs any more", options.job));
        return Ok(());
    }
    let rate = options.rate.unwrap_or(0);
    if let Some(hours) = options.every {
        let answer = client.put(&format!("{path}/schedule"), &json!({"every_hours": hours, "repair": options.repair, "rate": rate}))?;
        let words = if hours == 0 { "is not verified by itself".into() } else { format!("is verified every {hours} h") };
        say(as_json, &answer, &format!("{} {words}", options.job));
        return Ok(());
    }
    let begun = client.post(&path, &json!({"repair": options.repair, "rate": rate}))?;
    if options.no_wait {
        say(as_json, &begun, &format!("{} is being verified; look with: standin job verifications {}", options.job, options.job));
        return Ok(());
    }
    let record = wait(client, &job, &begun, as_json)?;
    if as_json {
        render::json(&record);
    } else {
        print(&record, &client.get(&format!("/jobs/{job}"))?);
    }
    match text(&record, "/state").as_str() {
        "equal" | "repaired" => Ok(()),
        "different" => {
            let next = if options.repair {
                format!("Next: standin job verifications {}", options.job)
            } else {
                format!("Next: standin verify {} --repair", options.job)
            };
            Err(Failure::Failed(format!("STANDIN-E4073: the replica differs from its source. {next}")))
        }
        _ => Err(Failure::Failed(format!("the verification was interrupted: {}", text(&record, "/reason")))),
    }
}

fn say(as_json: bool, answer: &Value, words: &str) {
    if as_json {
        render::json(answer);
    } else {
        println!("{words}");
    }
}

/// Follows the verification to its end. A connection that ends for a moment is no reason to give up: the appliance goes on.
fn wait(client: &Client, job: &str, begun: &Value, as_json: bool) -> Result<Value> {
    let terminal = std::io::stdout().is_terminal() && !as_json;
    loop {
        let history = client.get(&format!("/jobs/{job}/verifications"))?;
        let ours = |record: &&Value| record["started"] == begun["started"];
        let record = history["verifications"].as_array().into_iter().flatten().find(ours).cloned();
        let record = record.ok_or_else(|| Failure::Failed("the job's history does not have the verification any more".into()))?;
        if text(&record, "/state") != "running" {
            if terminal {
                print!("\r\x1b[K");
            }
            return Ok(record);
        }
        if terminal {
            let view = client.get(&format!("/jobs/{job}"))?;
            let stage = text(&view, "/verification/record/stage");
            let (nodes, bytes) = (number(&view, "/verification/nodes"), number(&view, "/verification/bytes"));
            let of = (number(&view, "/mirror/nodes_expected"), number(&view, "/mirror/bytes_expected"));
            print!("\r\x1b[K{stage}: {} of about {}, {nodes} of about {} nodes", size::bytes(bytes), size::bytes(of.1), of.0);
            std::io::stdout().flush()?;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn seconds(record: &Value) -> u64 {
    let (from, to) = (record["started"].as_i64().unwrap_or(0), record["ended"].as_i64().unwrap_or(0));
    u64::try_from(to.saturating_sub(from) / 1_000_000_000).unwrap_or(0)
}

fn print(record: &Value, job: &Value) {
    let say = |label: &str, value: String| println!("{label:<14}{value}");
    say("result", format!("{} {}", text(record, "/state"), text(record, "/reason")));
    say(
        "compared",
        format!(
            "{} nodes, {} of content in {}",
            number(record, "/nodes"),
            size::bytes(number(record, "/bytes")),
            size::seconds(seconds(record))
        ),
    );
    let (busy, bytes) = (number(record, "/busy_nodes"), number(record, "/busy_bytes"));
    if busy > 0 {
        say("busy", format!("{busy} nodes with {} not compared: they never stood still", size::bytes(bytes)));
    }
    if number(record, "/unread_nodes") > 0 {
        say("unread", format!("{} nodes could not be read on the source", number(record, "/unread_nodes")));
    }
    if number(record, "/differences") > 0 {
        say("differences", number(record, "/differences").to_string());
        mismatches(record, job);
    }
}

fn mismatches(record: &Value, job: &Value) {
    for mismatch in record["mismatches"].as_array().into_iter().flatten() {
        let at =
            mismatch["offset"].as_u64().map_or(String::new(), |offset| format!(" at {offset}, in {} bytes", number(mismatch, "/bytes")));
        println!("  {}: {}{at}", text(mismatch, "/node"), text(mismatch, "/what"));
        if let Some(words) = find_words(&text(mismatch, "/node"), &job["summary"]["volumes"]) {
            println!("      its names, on the source: {words}");
        }
    }
}

/// How an administrator finds a node's names: `VOLUME:INODE.GENERATION`, on btrfs `VOLUME:SUBVOLUME/INODE.GENERATION`.
fn find_words(node: &str, volumes: &Value) -> Option<String> {
    let (volume, rest) = node.split_once(':')?;
    let number: usize = volume.strip_prefix("vol")?.parse().ok()?;
    let mount_point = volumes[number]["mount_point"].as_str()?;
    let id = rest.split_once('.')?.0;
    Some(match id.rsplit_once('/') {
        // Inode numbers repeat in each subvolume.
        Some((subvolume, inode)) => {
            format!("btrfs inspect-internal inode-resolve {inode} {mount_point}   (or where subvolume {subvolume} is mounted)")
        }
        None => format!("find {mount_point} -xdev -inum {id}"),
    })
}

pub fn list(client: &Client, job: &str, as_json: bool) -> Result<()> {
    let history = client.get(&format!("/jobs/{}/verifications", segment(job)))?;
    if as_json {
        render::json(&history);
        return Ok(());
    }
    match history["schedule"]["every_hours"].as_u64() {
        Some(hours) => println!("verified every {hours} h{}", if history["schedule"]["repair"] == true { ", with repair" } else { "" }),
        None => println!("not verified by itself; do so with: standin verify {job} --every 7d"),
    }
    println!();
    let all = history["verifications"].as_array().cloned().unwrap_or_default();
    let row = |record: &Value| {
        vec![
            time(record["started"].as_i64().unwrap_or(0)),
            text(record, "/actor"),
            format!("{} {}", text(record, "/state"), text(record, "/reason")).trim().to_owned(),
            if record["ended"].is_null() { "-".into() } else { size::seconds(seconds(record)) },
            number(record, "/nodes").to_string(),
            size::bytes(number(record, "/bytes")),
            number(record, "/differences").to_string(),
            format!("{} ({})", number(record, "/busy_nodes"), size::bytes(number(record, "/busy_bytes"))),
        ]
    };
    let head = ["VERIFIED (UTC)", "BY", "RESULT", "TOOK", "NODES", "CONTENT", "DIFFERENCES", "BUSY"];
    render::table(&head, &all.iter().map(row).collect::<Vec<_>>());
    if let Some(newest) = all.iter().find(|record| number(record, "/differences") > 0) {
        println!("\nwhat differed at {}:", time(newest["started"].as_i64().unwrap_or(0)));
        mismatches(newest, &client.get(&format!("/jobs/{}", segment(job)))?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_found_in_its_volume() {
        let volumes = json!([{"mount_point": "/"}, {"mount_point": "/srv"}]);
        assert_eq!(find_words("vol1:77.0000000a", &volumes).unwrap(), "find /srv -xdev -inum 77");
        assert!(
            find_words("vol0:256/77.00000000", &volumes)
                .unwrap()
                .starts_with("btrfs inspect-internal inode-resolve 77 /   (or where subvolume 256")
        );
        assert_eq!(find_words("vol2:77.0000000a", &volumes), None);
        assert_eq!(find_words("77", &volumes), None);
    }
}
