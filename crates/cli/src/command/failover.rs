//! `standin failover`: the runbook, the question, and the steps as they happen.

use crate::args::Failover;
use crate::client::{Client, segment};
use crate::exit::{Failure, Problem, Result};
use crate::render::{self, list, text};
use serde_json::{Value, json};
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_millis(200);

pub fn failover(client: &Client, options: &Failover, as_json: bool) -> Result<()> {
    let path = format!("/jobs/{}", segment(&options.job));
    let request = json!({"waiver": waiver(options.waive_fence.as_deref()), "at": options.at});
    // A failover that failed behind the fence is taken up; there is nothing to plan.
    let last = client.get(&format!("{path}/runbook")).ok();
    if let Some(run) = last.filter(|run| text(run, "/state/state") == "failed") {
        match as_json {
            true if options.plan => render::json(&run),
            true => {}
            false => left(&run).iter().for_each(|line| println!("{line}")),
        }
        if options.plan {
            return Ok(());
        }
        render::confirm("Take up the failover that failed?", options.yes)?;
    } else {
        let runbook = client.post(&format!("{path}/failover/plan"), &request)?;
        if options.plan && as_json {
            render::json(&runbook);
        } else if !as_json {
            print_runbook(&runbook);
        }
        if options.plan {
            return Ok(());
        }
        render::confirm("Fail over now?", options.yes)?;
    }
    client.post(&format!("{path}/failover"), &request)?;
    follow(client, &path, as_json)
}

fn waiver(words: Option<&[String]>) -> Option<Value> {
    words.and_then(|words| Some(json!({"name": words.first()?, "reason": words.get(1)?})))
}

/// `standin machine start`: what a reboot of the host has ended.
pub fn start_machine(client: &Client, job: &str, waive_fence: Option<&[String]>, as_json: bool) -> Result<()> {
    let answer = client.post(&format!("/jobs/{}/machine/start", segment(job)), &json!({"waiver": waiver(waive_fence)}))?;
    if as_json {
        render::json(&answer);
    } else {
        println!("{}", text(&answer, "/note"));
    }
    Ok(())
}

/// What taking up a failed run would do.
fn left(run: &Value) -> Vec<String> {
    let mut lines = vec![format!("The failover of {} failed: {}", text(run, "/runbook/job_name"), text(run, "/state/problem/cause"))];
    lines.push("Left to do:".into());
    for (index, state) in run["steps"].as_array().into_iter().flatten().enumerate().filter(|(_, state)| text(state, "/state") != "done") {
        let again = if text(state, "/state") == "failed" { " (failed)" } else { "" };
        lines.push(format!("  {}. {}{again}", index + 1, text(run, &format!("/runbook/steps/{index}/title"))));
    }
    lines
}

fn print_runbook(runbook: &Value) {
    println!("Failover summary: {} ({})\n", text(runbook, "/job_name"), text(runbook, "/mode"));
    for (index, step) in runbook["steps"].as_array().cloned().unwrap_or_default().iter().enumerate() {
        println!("  {}. {}\n     {}", index + 1, text(step, "/title"), text(step, "/detail"));
    }
    for warning in list(runbook, "/warnings") {
        println!("  warning: {warning}");
    }
    println!();
}

/// `standin job runbook`: what was planned and what became of it.
pub fn show(client: &Client, job: &str, as_json: bool) -> Result<()> {
    let run = client.get(&format!("/jobs/{}/runbook", segment(job)))?;
    if as_json {
        render::json(&run);
        return Ok(());
    }
    print_runbook(&run["runbook"]);
    let steps = run["steps"].as_array().cloned().unwrap_or_default();
    let ended = |state: &&Value| matches!(text(state, "/state").as_str(), "done" | "failed");
    for (index, state) in steps.iter().take_while(ended).enumerate() {
        print_step(index, &text(&run, &format!("/runbook/steps/{index}/title")), state);
    }
    println!("{}", text(&run, "/state/state"));
    Ok(())
}

/// Prints every step when it ends, until the run has.
fn follow(client: &Client, path: &str, as_json: bool) -> Result<()> {
    let mut printed = 0;
    loop {
        let run = client.get(&format!("{path}/runbook"))?;
        let steps = run["steps"].as_array().cloned().unwrap_or_default();
        while let Some(state) = steps.get(printed).filter(|state| matches!(text(state, "/state").as_str(), "done" | "failed")) {
            if !as_json {
                print_step(printed, &text(&run, &format!("/runbook/steps/{printed}/title")), state);
            }
            printed += 1;
        }
        match text(&run, "/state/state").as_str() {
            "running" => std::thread::sleep(LOOK_EVERY),
            "succeeded" => {
                let nanoseconds = run.pointer("/state/ended").and_then(Value::as_i64).unwrap_or(0) - run["started"].as_i64().unwrap_or(0);
                if as_json {
                    render::json(&run);
                } else {
                    println!("failed over in {:.1} s", nanoseconds as f64 / 1e9);
                }
                return Ok(());
            }
            state => {
                if as_json {
                    render::json(&run);
                }
                let problem = run.pointer("/state/problem").cloned().and_then(|value| serde_json::from_value::<Problem>(value).ok());
                let problem = problem.map(|p| format!("{}: {}\n  next: {}", p.code, p.cause, p.next)).unwrap_or_default();
                return Err(Failure::Failed(format!("the failover {state}: {problem}")));
            }
        }
    }
}

fn print_step(index: usize, title: &str, state: &Value) {
    let nanoseconds = state["ended"].as_i64().unwrap_or(0) - state["started"].as_i64().unwrap_or(0);
    let sign = if text(state, "/state") == "done" { "done" } else { "FAILED" };
    let note = if sign == "done" { text(state, "/note") } else { text(state, "/problem/cause") };
    println!("  {}. {title:<45} {sign:<6} {:>7.2} s  {note}", index + 1, nanoseconds as f64 / 1e9);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_run_shows_what_is_left() {
        let steps = json!([{"state": "done"}, {"state": "failed"}, {"state": "pending"}]);
        let titles = json!([{"title": "fence"}, {"title": "inject"}, {"title": "power on"}]);
        let run = json!({
            "runbook": {"job_name": "web1", "steps": titles}, "steps": steps, "state": {"state": "failed", "problem": {"cause": "no kernel"}},
        });
        let expected = ["The failover of web1 failed: no kernel", "Left to do:", "  2. inject (failed)", "  3. power on"];
        assert_eq!(left(&run), expected);
    }
}
