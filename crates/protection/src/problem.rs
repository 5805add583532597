//! A problem that an operator reads: a code with a page, the cause, and the next thing to do.

use serde::{Deserialize, Serialize};
use std::fmt;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `STANDIN-E4###`; the page is `docs/errors/E4###.md`.
    pub code: String,
    pub cause: String,
    pub next: String,
}

impl Problem {
    pub fn new(code: &str, cause: impl Into<String>, next: impl Into<String>) -> Problem {
        Problem { code: format!("STANDIN-{code}"), cause: cause.into(), next: next.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}. Next: {}", self.code, self.cause, self.next)
    }
}

impl std::error::Error for Problem {}
