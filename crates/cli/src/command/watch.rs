//! `standin watch`: mirror progress with rate and time left, then how far behind the replica is.

use crate::client::{Client, segment};
use crate::exit::{Failure, Result};
use crate::render::{number, text};
use crate::size;
use serde_json::Value;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The rate is a mean over the last so many looks, so that it does not jump.
const RATE_LOOKS: usize = 10;

pub fn watch(client: &Client, job: &str, until: Option<&str>, timeout: Option<u64>, as_json: bool) -> Result<()> {
    let began = Instant::now();
    let terminal = std::io::stdout().is_terminal();
    let mut history: Vec<(Instant, u64)> = Vec::new();
    let mut last = String::new();
    // Once the mirror is through: what was changed and sent before this watch began to count.
    let mut counted_from: Option<(u64, u64)> = None;
    loop {
        let view = client.get(&format!("/jobs/{}", segment(job)))?;
        history.push((Instant::now(), number(&view, "/mirror/bytes")));
        if history.len() > RATE_LOOKS {
            history.remove(0);
        }
        if as_json {
            println!("{view}");
        } else {
            let line = if is_mirroring(&view) { mirror_line(&view, rate(&history)) } else { live_line(&view, &mut counted_from) };
            show(&line, &mut last, terminal)?;
        }
        let state = text(&view, "/state");
        let reached = until.map_or(state == "failed-over", |until| state == until);
        if reached {
            if terminal && !as_json {
                println!();
            }
            return Ok(());
        }
        if timeout.is_some_and(|limit| began.elapsed().as_secs() >= limit) {
            return Err(Failure::Failed(format!("{job} is {state} after {} s: {last}", began.elapsed().as_secs())));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// On a terminal one line that changes; otherwise a line whenever something changed.
fn show(line: &str, last: &mut String, terminal: bool) -> Result<()> {
    if terminal {
        print!("\r\x1b[K{line}");
        std::io::stdout().flush()?;
    } else if line != last {
        println!("{line}");
    }
    *last = line.to_owned();
    Ok(())
}

fn rate(history: &[(Instant, u64)]) -> u64 {
    let (Some((from, low)), Some((to, high))) = (history.first(), history.last()) else { return 0 };
    let seconds = to.duration_since(*from).as_secs_f64();
    if seconds > 0.0 { (high.saturating_sub(*low) as f64 / seconds) as u64 } else { 0 }
}

fn is_mirroring(view: &Value) -> bool {
    view.pointer("/mirror/running") == Some(&Value::Bool(true)) || text(view, "/state") == "mirroring"
}

fn heading(view: &Value) -> String {
    let flags = super::lists::flags(view);
    let flags = if flags.is_empty() { flags } else { format!(" [{flags}]") };
    format!("{}{flags}", text(view, "/state"))
}

fn mirror_line(view: &Value, rate: u64) -> String {
    let (done, all) = (number(view, "/mirror/bytes"), number(view, "/mirror/bytes_expected"));
    let (files, files_all) = (number(view, "/mirror/nodes"), number(view, "/mirror/nodes_expected"));
    format!(
        "{}: {} of {}, {files} of {files_all} files, {}/s, {}",
        heading(view),
        size::bytes(done),
        size::bytes(all),
        size::bytes(rate),
        time_left(&view["mirror"]["left"])
    )
}

/// What is likely, and the band around it.
pub fn time_left(left: &Value) -> String {
    let Some(likely) = left["likely"].as_u64() else { return "time left not known yet".into() };
    let most = left["most"].as_u64().map_or("or longer: it stood still".into(), |most| format!("to {}", size::seconds(most)));
    format!("{} left ({} {most})", size::seconds(likely), size::seconds(number(left, "/least")))
}

/// A mirror's volumes, one a line; none while none runs.
pub fn volume_lines(mirror: &Value) -> Vec<String> {
    let volumes = mirror["volumes"].as_array().map_or(&[][..], Vec::as_slice);
    let line = |volume: &Value| {
        let bytes = |what: &str| size::bytes(number(volume, what));
        let (files, of) = (number(volume, "/nodes"), number(volume, "/nodes_expected"));
        let left = time_left(&volume["left"]);
        format!("{}: {} of {}, {files} of {of} files, {left}", text(volume, "/mount_point"), bytes("/bytes"), bytes("/bytes_expected"))
    };
    volumes.iter().map(line).collect()
}

/// Replication's own bytes: those of the mirror, and of the time before this watch, are taken off.
fn live_line(view: &Value, counted_from: &mut Option<(u64, u64)>) -> String {
    let (changed, sent) = (number(view, "/bytes_changed"), number(view, "/bytes_sent"));
    let (changed_before, sent_before) = *counted_from.get_or_insert((changed, sent));
    let (changed, sent) = (changed.saturating_sub(changed_before), sent.saturating_sub(sent_before));
    let share = (sent * 100).checked_div(changed).map_or(String::new(), |percent| format!(" ({percent} %)"));
    let behind = view["lag_seconds"].as_u64().map_or("unknown".into(), size::seconds);
    let queue = size::bytes(number(view, "/queue_bytes"));
    format!("{}: RPO {behind}, queue {queue}, changed {}, sent {}{share}", heading(view), size::bytes(changed), size::bytes(sent))
}
