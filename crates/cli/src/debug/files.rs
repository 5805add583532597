//! Journals and queues: their files, segments and items, and what is damaged.

use super::{Out, chain, found, operation};
use crate::exit::Result;
use serde_json::{Value, json};
use standin_journal::{Finding, JournalError, Problem, ProblemCause, Summary};
use standin_model::OpSeq;
use std::path::Path;

/// Whose files are looked at.
#[derive(Clone, Copy)]
pub struct View {
    name: &'static str,
    /// What a reader must not conclude from them.
    note: &'static str,
}

pub const JOURNAL: View = View { name: "journal", note: "a running appliance may be ahead of them" };
pub const QUEUE: View = View {
    name: "queue",
    note: "what waits in the agent's memory is not in them, and a restarted agent removes them and mirrors what changed",
};

pub fn dump(out: &mut Out, path: &Path, with_items: bool, view: View) -> Result<()> {
    heading(out, path, view)?;
    let mut summary = Summary::default();
    walk(path, |finding| {
        show(out, &finding)?;
        if let (true, Finding::Segment { items: Ok(items), .. }) = (with_items, &finding) {
            items.iter().try_for_each(|item| out.line(|| format!("    {}", operation::text(item)), || operation::json(item)))?;
        }
        summary.note(finding);
        Ok(())
    })?;
    finish(out, path, &summary, view)
}

pub fn verify(out: &mut Out, path: &Path) -> Result<()> {
    heading(out, path, JOURNAL)?;
    let mut summary = Summary::default();
    walk(path, |finding| {
        if matches!(finding, Finding::Problem(_)) {
            show(out, &finding)?;
        }
        summary.note(finding);
        Ok(())
    })?;
    for problem in summary.problems.iter().filter(|problem| matches!(problem.cause, ProblemCause::Content(_))) {
        show_problem(out, problem)?;
    }
    finish(out, path, &summary, JOURNAL)
}

/// Walks everything; the first error of `each` (a closed pipe) ends what is printed.
pub fn walk(path: &Path, mut each: impl FnMut(Finding) -> Result<()>) -> Result<()> {
    let mut result = Ok(());
    let walked = standin_journal::dump(path, |finding| {
        if result.is_ok() {
            result = each(finding);
        }
    });
    walked.map_err(|error| cannot_look(path, &error))?;
    result
}

fn cannot_look(path: &Path, error: &JournalError) -> crate::exit::Failure {
    found(error.code(), chain(error), format!("ls -la {}", path.display()))
}

pub fn heading(out: &mut Out, path: &Path, view: View) -> Result<()> {
    let View { name, note } = view;
    out.line(
        || format!("{name} by the files in {}, as they are now; {note}", path.display()),
        || json!({"view": name, "path": path.to_string_lossy(), "note": note}),
    )
}

fn show(out: &mut Out, finding: &Finding) -> Result<()> {
    match finding {
        Finding::File { path, base, epoch, bytes } => out.line(
            || format!("file {} behind {base}, epoch {epoch}, {bytes} bytes", path.display()),
            || json!({"file": path.to_string_lossy(), "behind": base, "epoch": epoch, "bytes": bytes}),
        ),
        Finding::Segment { path, offset, header, durable_before, items } => {
            let (first, last, epoch) = (header.first_seq, header.last_seq, header.epoch);
            let content =
                items.as_ref().map_or_else(|error| format!("DOES NOT OPEN: {}", chain(error)), |items| format!("{} items", items.len()));
            let mark = durable_before.map_or("its mark is lost".to_owned(), |durable| format!("durable before it {durable}"));
            out.line(
                || format!("  at {offset}: {first} to {last}, epoch {epoch}, {content}, {} of {} bytes, {mark}", header.body_len, header.raw_len),
                || {
                    json!({
                        "segment": {"first": first, "last": last, "epoch": epoch, "body_bytes": header.body_len, "raw_bytes": header.raw_len,
                            "captured_from": header.first_captured_at, "captured_to": header.last_captured_at},
                        "path": path.to_string_lossy(), "offset": offset, "durable_before": durable_before,
                        "items": items.as_ref().ok().map(Vec::len), "error": items.as_ref().err().map(|error| chain(error)),
                    })
                },
            )
        }
        Finding::Problem(problem) => show_problem(out, problem),
    }
}

pub fn show_problem(out: &mut Out, problem: &Problem) -> Result<()> {
    out.line(|| problem_text(problem), || problem_json(problem))
}

pub fn problem_text(problem: &Problem) -> String {
    let kind = if problem.is_torn_tail { "torn end" } else { "DAMAGE" };
    let (path, offset, expected) = (problem.path.display(), problem.offset, problem.expected);
    let skipped = if problem.skipped_bytes > 0 { format!(", {} bytes skipped", problem.skipped_bytes) } else { String::new() };
    format!("  {kind} at {offset} of {path}: item {expected} was expected{skipped}: {}", chain(&problem.cause))
}

pub fn problem_json(problem: &Problem) -> Value {
    json!({
        "problem": if problem.is_torn_tail { "torn" } else { "damage" }, "path": problem.path.to_string_lossy(), "offset": problem.offset,
        "expected": problem.expected, "skipped_bytes": problem.skipped_bytes, "cause": chain(&problem.cause),
    })
}

pub fn totals_text(summary: &Summary) -> String {
    let position = |seq: Option<OpSeq>| seq.map_or("none".to_owned(), |seq| seq.to_string());
    let (first, last) = (position(summary.first), position(summary.last));
    format!(
        "{} files, {} bytes, {} segments, {} items from {first} to {last} can be read",
        summary.files, summary.bytes, summary.segments, summary.items
    )
}

pub fn status(summary: &Summary) -> &'static str {
    match (summary.damage_count, summary.problem_count) {
        (0, 0) => "sound",
        (0, _) => "torn",
        _ => "damaged",
    }
}

pub fn totals_json(summary: &Summary) -> Value {
    json!({
        "status": status(summary), "problems": summary.problem_count, "files": summary.files, "bytes": summary.bytes, "segments": summary.segments,
        "items": summary.items, "first": summary.first, "last": summary.last,
    })
}

/// The last line, and the status.
pub fn finish(out: &mut Out, path: &Path, summary: &Summary, view: View) -> Result<()> {
    let said = match status(summary) {
        "sound" => "sound".to_owned(),
        "torn" => "sound but for a torn end, which a crash leaves and opening cuts off".to_owned(),
        _ => format!("DAMAGED in {} places", summary.damage_count),
    };
    out.line(|| format!("status: {said}; {}", totals_text(summary)), || totals_json(summary))?;
    if summary.is_sound() {
        return Ok(());
    }
    let next = if view.name == JOURNAL.name {
        format!("standin debug journal dump {}", path.display())
    } else {
        "systemctl restart standin-agent".into()
    };
    Err(found("STANDIN-E2001", format!("the {} is damaged in {} places", view.name, summary.damage_count), next))
}
