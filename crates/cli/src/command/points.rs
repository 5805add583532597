//! `standin point …` and `standin job history`: states of a replica that are kept, and what lies where in a job's stream.

use super::lists::{rows, time};
use crate::args::{PointCommand, PointPolicy};
use crate::client::{Client, segment};
use crate::exit::Result;
use crate::render::{self, number, text};
use crate::size;
use serde_json::{Value, json};

pub fn run(client: &Client, command: PointCommand, as_json: bool) -> Result<()> {
    match command {
        PointCommand::List { job } => list(client, &job, as_json),
        PointCommand::Create { job, name } => create(client, &job, name.as_deref(), as_json),
        PointCommand::Remove { job, point } => remove(client, &job, &point, as_json),
        PointCommand::Policy(options) => policy(client, &options, as_json),
    }
}

fn path(job: &str) -> String {
    format!("/jobs/{}/points", segment(job))
}

fn list(client: &Client, job: &str, as_json: bool) -> Result<()> {
    let all = client.get(&path(job))?;
    if as_json {
        render::json(&all);
        return Ok(());
    }
    let row = |point: &Value| {
        let captured = point["captured_at"].as_i64().map_or("-".into(), time);
        let consistent = if point["consistent"] == true { "yes" } else { "no" };
        let copied = number(point, "/bytes_copied");
        vec![
            text(point, "/id"),
            text(point, "/name"),
            number(point, "/seq").to_string(),
            captured,
            time(point["taken_at"].as_i64().unwrap_or(0)),
            consistent.into(),
            if copied == 0 { "shared".into() } else { format!("copied {}", size::bytes(copied)) },
            format!("{} ms", number(point, "/held_ms")),
        ]
    };
    render::table(&["POINT", "NAME", "ITEM", "CAPTURED (UTC)", "TAKEN (UTC)", "CONSISTENT", "BLOCKS", "HELD"], &rows(&all["points"], row));
    println!("\n{}", describe(&all));
    if all["problem"].is_object() {
        println!(
            "last failure: {}: {}\n  next: {}",
            text(&all, "/problem/code"),
            text(&all, "/problem/cause"),
            text(&all, "/problem/next")
        );
    }
    Ok(())
}

fn describe(all: &Value) -> String {
    let every = all["interval_seconds"].as_u64().map_or("none by time".into(), |seconds| format!("every {}", size::seconds(seconds)));
    let cost = match all["shares_blocks"] == true {
        true => "blocks are shared, so a point costs what changes afterwards".to_owned(),
        false => {
            let most = number(all, "/policy/copy_bytes_max");
            format!("blocks cannot be shared, so a point is a whole copy, of at most {}; replication waits for it", size::bytes(most))
        }
    };
    let yes = |what: &str| if all["policy"][what] == true { "yes" } else { "no" };
    format!(
        "{every}, {} kept; at markers: {}, {} kept; before a resync: {}; {cost}",
        number(all, "/policy/keep_regular"),
        yes("at_markers"),
        number(all, "/policy/keep_markers"),
        yes("before_resync")
    )
}

fn create(client: &Client, job: &str, name: Option<&str>, as_json: bool) -> Result<()> {
    let point = client.post_slow(&path(job), &json!({"name": name}))?;
    if as_json {
        render::json(&point);
    } else {
        println!("{} at item {}", text(&point, "/id"), number(&point, "/seq"));
    }
    Ok(())
}

fn remove(client: &Client, job: &str, point: &str, as_json: bool) -> Result<()> {
    let answer = client.delete(&format!("{}/{}", path(job), segment(point)))?;
    if as_json {
        render::json(&answer);
    } else {
        println!("removed {}", text(&answer, "/removed"));
    }
    Ok(())
}

fn policy(client: &Client, options: &PointPolicy, as_json: bool) -> Result<()> {
    let mut policy = client.get(&path(&options.job))?["policy"].clone();
    let before = policy.clone();
    let mut set = |field: &str, value: Option<Value>| {
        if let Some(value) = value {
            policy[field] = value;
        }
    };
    set("interval_seconds", options.every.map(|seconds| json!(seconds)));
    set("keep_regular", options.keep.map(|count| json!(count)));
    set("at_markers", options.at_markers.map(|yes| json!(yes)));
    set("keep_markers", options.keep_markers.map(|count| json!(count)));
    set("before_resync", options.before_resync.map(|yes| json!(yes)));
    set("copy_bytes_max", options.copy_up_to.map(|bytes| json!(bytes)));
    if policy != before {
        client.put(&format!("/jobs/{}/point-policy", segment(&options.job)), &policy)?;
    }
    let all = client.get(&path(&options.job))?;
    if as_json {
        render::json(&all["policy"]);
    } else {
        println!("{}", describe(&all));
    }
    Ok(())
}

pub fn history(client: &Client, job: &str, as_json: bool) -> Result<()> {
    let history = client.get(&format!("/jobs/{}/history", segment(job)))?;
    if as_json {
        render::json(&history);
        return Ok(());
    }
    let row = |entry: &Value| {
        vec![
            number(entry, "/seq").to_string(),
            time(entry["at"].as_i64().unwrap_or(0)),
            entry["captured_at"].as_i64().map_or("-".into(), time),
            text(entry, "/kind"),
            text(entry, "/name"),
            text(entry, "/note"),
        ]
    };
    render::table(&["ITEM", "TIME (UTC)", "CAPTURED (UTC)", "WHAT", "NAME", "NOTE"], &rows(&history, row));
    Ok(())
}
