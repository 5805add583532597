//! `standin debug`: looks at files as they are, broken or not, on the machine where they lie. Needs no appliance, changes nothing, takes no lock.
//!
//! Each says whose view it prints, goes on behind damage, and ends with a line of status: exit code 0 when nothing is wrong (or both are equal), 1 when
//! something is. With `--output json` every finding is one line of JSON, and the status is the last.

mod files;
mod grep;
mod operation;
mod replica;
mod watermarks;

pub use grep::parse_items;
pub use operation::KINDS;

use crate::args::{DebugCommand, JournalCommand, QueueCommand, ReplicaCommand};
use crate::exit::{Failure, Problem, Result};
use std::error::Error;
use std::io::{self, StdoutLock, Write};

pub fn run(command: DebugCommand, json: bool) -> Result<()> {
    let mut out = Out { stdout: io::stdout().lock(), json };
    match command {
        DebugCommand::Journal(JournalCommand::Dump { path, items }) => files::dump(&mut out, &path, items, files::JOURNAL),
        DebugCommand::Journal(JournalCommand::Verify { path }) => files::verify(&mut out, &path),
        DebugCommand::Journal(JournalCommand::Grep(options)) => grep::grep(&mut out, &options),
        DebugCommand::Queue(QueueCommand::Dump { directory, items }) => files::dump(&mut out, &directory, items, files::QUEUE),
        DebugCommand::Watermarks { directory } => watermarks::watermarks(&mut out, &directory),
        DebugCommand::Replica(ReplicaCommand::Diff { left, right, allow }) => replica::diff(&mut out, &left, &right, &allow),
    }
}

/// Where findings go. A reader that has seen enough (`| head`) ends the command without a panic.
struct Out {
    stdout: StdoutLock<'static>,
    json: bool,
}

impl Out {
    /// One finding, as a line of text or of JSON.
    fn line(&mut self, text: impl FnOnce() -> String, json: impl FnOnce() -> serde_json::Value) -> Result<()> {
        let written = if self.json { writeln!(self.stdout, "{}", json()) } else { writeln!(self.stdout, "{}", text()) };
        Ok(written?)
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// Exit code 1, with what to do next.
fn found(code: &str, cause: String, next: String) -> Failure {
    Failure::Found(Problem { code: code.to_owned(), cause, next })
}
