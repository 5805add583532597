//! `standin debug watermarks`: what the store, the journal's files and the node table say about every job, and where they contradict each other.

use super::{Out, chain, files, found};
use crate::exit::{Failure, Result};
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use standin_journal::Summary;
use std::collections::BTreeMap;
use std::path::Path;

/// What the store says of a job, as JSON of its own columns: a store of another version, or a damaged row, still shows what is readable.
#[derive(Default)]
struct Stored {
    name: String,
    machine: Value,
    stream: Value,
}

pub fn watermarks(out: &mut Out, dir: &Path) -> Result<()> {
    let store = dir.join("store.sqlite");
    let mut jobs: BTreeMap<String, Option<Stored>> = directories(&dir.join("jobs"))?.into_iter().map(|id| (id, None)).collect();
    let mut damaged = 0u64;
    if jobs.is_empty() && !store.exists() {
        return Err(Failure::Usage(format!("there is neither a store nor a job in {}; name the appliance's directory", dir.display())));
    }
    out.line(
        || format!("by the files in {}, as they are now; a running appliance may be ahead of them", dir.display()),
        || json!({"view": "appliance", "path": dir.to_string_lossy()}),
    )?;
    match stored(&store) {
        Ok(found) => found.into_iter().for_each(|(id, stored)| drop(jobs.insert(id, Some(stored)))),
        Err(error) => {
            damaged += 1;
            out.line(
                || format!("DAMAGE: the store cannot be read: {}", chain(&error)),
                || json!({"problem": "store", "cause": chain(&error)}),
            )?;
        }
    }
    for (id, stored) in &jobs {
        damaged += job(out, dir, id, stored.as_ref())?;
    }
    let (status, count) = (if damaged == 0 { "sound" } else { "damaged" }, jobs.len());
    let said = if damaged == 0 { "sound".to_owned() } else { format!("DAMAGED in {damaged} places") };
    out.line(|| format!("status: {said}; {count} jobs"), || json!({"status": status, "jobs": count, "problems": damaged}))?;
    if damaged == 0 {
        return Ok(());
    }
    Err(found(
        "STANDIN-E2001",
        format!("{damaged} places are damaged, or contradict each other"),
        "standin debug journal verify DIRECTORY".into(),
    ))
}

/// Jobs by their folders, so that a lost store hides none.
fn directories(jobs: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(jobs) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let folders = entries.flatten().filter(|entry| entry.path().is_dir());
    Ok(folders
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| standin_model::JobId::parse(name).is_some())
        .collect())
}

/// Read-only, so that neither a lock of the appliance is waited for long nor a log written back.
fn stored(path: &Path) -> rusqlite::Result<BTreeMap<String, Stored>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(std::time::Duration::from_secs(2))?;
    let mut query = connection.prepare("SELECT id, name, machine, stream FROM job ORDER BY name")?;
    let rows = query.query_map([], |row| {
        let (machine, stream): (String, String) = (row.get(2)?, row.get(3)?);
        let parsed = |text: &str| serde_json::from_str(text).unwrap_or(Value::Null);
        Ok((row.get(0)?, Stored { name: row.get(1)?, machine: parsed(&machine), stream: parsed(&stream) }))
    })?;
    rows.collect()
}

/// Prints one job and returns how many things are wrong with it.
fn job(out: &mut Out, dir: &Path, id: &str, stored: Option<&Stored>) -> Result<u64> {
    let folder = dir.join("jobs").join(id);
    let journal = standin_journal::verify(folder.join("journal"));
    let table = standin_replica::apply::last_mark(&folder.join("nodes.redb"));
    let wrong = problems(stored, journal.as_ref().ok(), table.as_ref().ok().map(|mark| mark.applied.0));
    let damage = journal.as_ref().map_or(1, |summary| summary.damage_count) + wrong.len() as u64;
    if out.json {
        let journal = match &journal {
            Ok(summary) => {
                let mut totals = files::totals_json(summary);
                totals["problem_list"] = summary.problems.iter().map(files::problem_json).collect();
                totals
            }
            Err(error) => json!({"error": chain(error)}),
        };
        let table = match &table {
            Ok(mark) => json!({"applied": mark.applied, "state": mark.state}),
            Err(error) => json!({"error": chain(error)}),
        };
        let store = stored.map(|stored| json!({"name": stored.name, "machine": stored.machine, "stream": stored.stream}));
        out.line(String::new, || json!({"job": id, "store": store, "journal": journal, "replica": table, "wrong": wrong}))?;
        return Ok(damage);
    }
    let mut say = |text: String| out.line(|| text, || Value::Null);
    say(stored.map_or_else(|| format!("{id}, which the store does not know"), |stored| format!("{} ({id})", stored.name)))?;
    if let Some(Stored { stream, machine, .. }) = stored {
        let value = |key: &str| stream.get(key).map_or("unknown".to_owned(), Value::to_string);
        say(format!(
            "  by the store: epoch {}, acknowledged {} or more, state {}",
            value("epoch"),
            value("acknowledged"),
            machine["state"]["state"]
        ))?;
        if let Some(lost) = stream["lost_after"].as_u64() {
            say(format!("  by the store: acknowledged items behind {lost} were lost; a resync is owed"))?;
        }
    }
    match &journal {
        Ok(summary) => {
            say(format!("  by the journal's files: {}", files::totals_text(summary)))?;
            summary.problems.iter().try_for_each(|problem| say(files::problem_text(problem)))?;
        }
        Err(error) => say(format!("  DAMAGE: the journal cannot be read: {}", chain(error)))?,
    }
    match &table {
        Ok(mark) => say(format!("  by the node table: applied {}, consistent: {}", mark.applied, mark.state.is_consistent()))?,
        Err(error) => say(format!("  the node table cannot be read (a running worker has it open): {}", chain(error)))?,
    }
    wrong.iter().try_for_each(|wrong| say(format!("  DAMAGE: {wrong}")))?;
    Ok(damage)
}

/// `durable ≥ applied`, and nothing that was acknowledged is missing.
fn problems(stored: Option<&Stored>, journal: Option<&Summary>, applied: Option<u64>) -> Vec<String> {
    let mut wrong = Vec::new();
    let Some(last) = journal.filter(|summary| summary.files > 0).map(|summary| summary.last.map_or(0, |seq| seq.0)) else { return wrong };
    let acknowledged = stored.and_then(|stored| stored.stream["acknowledged"].as_u64()).unwrap_or(0);
    // A journal that was begun anew behind what was discarded is empty, and knows its end by its file's name only.
    let is_empty = journal.is_some_and(|summary| summary.segments == 0);
    if acknowledged > last && !is_empty {
        wrong.push(format!("the journal ends at {last}, but {acknowledged} was acknowledged; the appliance makes a resync when it starts"));
    }
    if applied.is_some_and(|applied| applied > last) && !is_empty {
        wrong.push(format!("the journal ends at {last}, but the replica has applied {}", applied.unwrap_or(0)));
    }
    wrong
}
