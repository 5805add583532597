//! What a benchmark came to: goals with ours, the peer's, and whether they hold; as a table and as JSON.

use serde::Serialize;

use super::facts::Facts;

/// How a ratio has to lie to its goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sense {
    AtLeast,
    AtMost,
}

/// One goal of the table, measured.
#[derive(Clone, Debug, Serialize)]
pub struct Goal {
    /// Of what, and against whom.
    pub what: String,
    pub unit: &'static str,
    pub ours: f64,
    /// The peer's figure, or the unit that ours is divided by.
    pub peer: f64,
    pub ratio: f64,
    pub goal: f64,
    pub sense: Sense,
    pub pass: bool,
}

impl Goal {
    /// A goal on ours divided by the peer's.
    pub fn ratio(what: impl Into<String>, unit: &'static str, ours: f64, peer: f64, sense: Sense, goal: f64) -> Goal {
        let ratio = ours / peer;
        let pass = match sense {
            Sense::AtLeast => ratio >= goal,
            Sense::AtMost => ratio <= goal,
        };
        Goal { what: what.into(), unit, ours, peer, ratio, goal, sense, pass }
    }

    /// A goal on a figure of ours alone.
    pub fn figure(what: impl Into<String>, unit: &'static str, ours: f64, sense: Sense, goal: f64) -> Goal {
        Goal::ratio(what, unit, ours, 1.0, sense, goal)
    }
}

/// One name's result. The first goal is the one that its own `ours`, `peer`, `ratio` and `goal` repeat; `pass` says that all hold.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    pub name: String,
    pub ours: f64,
    pub peer: f64,
    pub ratio: f64,
    pub goal: f64,
    pub pass: bool,
    pub runs: usize,
    pub goals: Vec<Goal>,
    /// Everything else that was measured, for who wants to know why.
    pub figures: Vec<Figure>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    pub what: String,
    pub unit: &'static str,
    pub value: f64,
}

impl Line {
    pub fn new(name: &str, runs: usize, goals: Vec<Goal>, figures: Vec<Figure>) -> Line {
        let first = goals.first().expect("a line of the table has a goal");
        let (ours, peer, ratio, goal) = (first.ours, first.peer, first.ratio, first.goal);
        Line { name: name.into(), ours, peer, ratio, goal, pass: goals.iter().all(|goal| goal.pass), runs, goals, figures }
    }

    pub fn print(&self) {
        for goal in &self.goals {
            let sign = if goal.sense == Sense::AtLeast { "≥" } else { "≤" };
            let verdict = if goal.pass { "PASS" } else { "FAIL" };
            let (name, what, unit) = (&self.name, &goal.what, goal.unit);
            println!(
                "{name:<15} {what:<44} {:>9.3} {:>9.3} {unit:<5} {:>8.3} {sign} {:<6} {verdict}",
                goal.ours, goal.peer, goal.ratio, goal.goal
            );
        }
    }

    /// The figures behind the goals, one a line.
    pub fn print_figures(&self) {
        for figure in &self.figures {
            println!("    {:<58} {:>10.3} {}", figure.what, figure.value, figure.unit);
        }
    }
}

pub fn print_head() {
    println!("{:<15} {:<44} {:>9} {:>9} {:<5} {:>8}   {:<6}", "NAME", "GOAL", "OURS", "PEER", "", "RATIO", "GOAL");
}

#[derive(Serialize)]
pub struct Report<'a> {
    pub machine: &'a Facts,
    pub short: bool,
    pub seed: u64,
    /// One object for each name.
    pub results: &'a [Line],
}

/// The middle one; of an even number the lower of the two in the middle, so that it is a run that took place.
pub fn median<T: Clone>(all: &[T], of: impl Fn(&T) -> f64) -> T {
    let mut sorted = all.to_vec();
    sorted.sort_by(|a, b| of(a).total_cmp(&of(b)));
    sorted[(sorted.len() - 1) / 2].clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_passes_when_all_its_goals_do() {
        let good = Goal::ratio("a", "MB/s", 3.0, 2.0, Sense::AtLeast, 1.5);
        let bad = Goal::figure("b", "s", 3.1, Sense::AtMost, 3.0);
        assert!(good.pass && !bad.pass);
        assert!(Line::new("x", 1, vec![good.clone()], vec![]).pass);
        assert!(!Line::new("x", 1, vec![good, bad], vec![]).pass);
    }

    #[test]
    fn what_cannot_be_divided_does_not_pass() {
        assert!(!Goal::ratio("a", "s", 0.0, 0.0, Sense::AtMost, 1.0).pass);
        assert!(!Goal::ratio("a", "s", f64::NAN, 1.0, Sense::AtLeast, 1.0).pass);
    }

    #[test]
    fn the_median_is_one_of_them() {
        assert_eq!(median(&[5.0, 1.0, 9.0], |x| *x), 5.0);
        assert_eq!(median(&[5.0, 1.0, 9.0, 7.0], |x| *x), 5.0);
    }
}
