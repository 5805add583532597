//! From errors of the rooms to problems that an operator reads.

use standin_journal::JournalError;
use standin_protection::Problem;
use standin_wire::CaptureStatus;
use std::error::Error;

/// An error with everything behind it, in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

pub fn journal(error: &JournalError) -> Problem {
    Problem { code: error.code().into(), cause: chain(error), next: error.next_command().into() }
}

/// What is to be known of a source that tells only which nodes changed; `None` of any other.
pub fn periodic(capture: &CaptureStatus) -> Option<Problem> {
    let because = &capture.because;
    let cause = format!(
        "the source is captured by {}: its replica is a state of the source only now and then, and in between it is the last one; because {because}",
        capture.driver
    );
    let next = "boot a supported kernel on the source (see: standin-agent kernel), then there: standin-agent capture --driver ebpf";
    capture.periodic.then(|| Problem::new("E6008", cause, next))
}

/// For what should not happen: the store or the appliance itself.
pub fn internal(error: impl std::fmt::Display) -> Problem {
    Problem::new("E5001", format!("the appliance failed: {error}"), "journalctl -u standin-appliance")
}

/// Splits `STANDIN-E####: cause. Next: …` texts, which some rooms print in one; others get `code`.
pub fn coded(code: &str, error: &dyn Error, next: &str) -> Problem {
    let text = chain(error);
    match text.split_once(": ") {
        Some((own, cause)) if own.starts_with("STANDIN-E") => Problem { code: own.into(), cause: cause.into(), next: next.into() },
        _ => Problem::new(code, text, next),
    }
}
