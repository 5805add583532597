//! Ways to fail, and the exit code of each.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Problem {
    pub code: String,
    pub cause: String,
    pub next: String,
}

#[derive(Debug)]
pub enum Failure {
    /// 1: something here, or on the way of a job.
    Failed(String),
    /// 1: what was looked for is damaged, or differs.
    Found(Problem),
    /// 2: the command makes no sense as given.
    Usage(String),
    /// 3: the appliance understood and refused.
    Refused(Vec<Problem>),
    /// 4: the appliance cannot be reached, or does not talk like one.
    Unreachable(String),
}

pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub fn code(&self) -> u8 {
        match self {
            Failure::Failed(_) | Failure::Found(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Refused(_) => 3,
            Failure::Unreachable(_) => 4,
        }
    }

    pub fn print(&self, json: bool) {
        if json {
            let problems = match self {
                Failure::Refused(problems) => problems.clone(),
                Failure::Found(problem) => vec![problem.clone()],
                Failure::Failed(text) | Failure::Usage(text) | Failure::Unreachable(text) => {
                    vec![Problem { code: String::new(), cause: text.clone(), next: String::new() }]
                }
            };
            return eprintln!("{}", serde_json::json!({"exit": self.code(), "problems": problems}));
        }
        match self {
            Failure::Refused(problems) => {
                problems.iter().for_each(tell);
            }
            Failure::Found(problem) => tell(problem),
            Failure::Failed(text) | Failure::Usage(text) | Failure::Unreachable(text) => eprintln!("{text}"),
        }
    }
}

fn tell(problem: &Problem) {
    eprintln!("{}: {}\n  next: {}", problem.code, problem.cause, problem.next);
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::Failed(error.to_string())
    }
}
