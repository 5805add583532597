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
    let waiver = options.waive_fence.as_ref().and_then(|words| Some(json!({"name": words.first()?, "reason": words.get(1)?})));
    let request = json!({"waiver": waiver, "at": options.at});
    // A failover that failed behind the fence is taken up; there is nothing to plan.
    let last = client.get(&format!("{path}/runbook")).ok();
    let resuming = last.is_some_and(|run| text(&run, "/state/state") == "failed");
    if resuming {
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
