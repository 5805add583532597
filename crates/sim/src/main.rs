//! Simulation: the product's source core against a virtual source, a virtual replica and a virtual clock, with faults, from one seed.
//!
//! `standin-sim --seeds N` runs N seeds, `--seed S` replays one and prints what happened; `--mutants` seeds known bugs and expects each to be
//! caught. The pump, the mirror, the segment format, the queue and the journal are the product's own; the source, the replica and the checker are
//! written apart from it. The promise is checked after every item: while the replica is called consistent, its tree is one that the source went
//! through, and never an earlier one than before.

mod hunt;
mod mutant;
mod random;
mod reader;
mod replica;
mod run;
mod seeds;
mod source;
mod target;
mod totals;
mod trace;
mod tree;
mod verify;

use clap::Parser;
use mutant::Mutant;
use std::process::ExitCode;

/// The rarest of the known bugs needs some two thousand.
const HUNT_SEEDS: u64 = 4000;

#[derive(Parser)]
struct Arguments {
    /// How many seeds to run; with --mutants, how many each mutant gets at most.
    #[arg(long, default_value_t = HUNT_SEEDS)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Replay just this one, and print what happens.
    #[arg(long)]
    seed: Option<u64>,
    /// Seeds that run side by side; as many as there are processors unless said.
    #[arg(long)]
    threads: Option<usize>,
    /// Seed each of thirteen known bugs, and expect every one to be caught.
    #[arg(long, conflicts_with_all = ["seed", "mutant"])]
    mutants: bool,
    /// Run with this known bug.
    #[arg(long)]
    mutant: Option<Mutant>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    seeds::keep_panics();
    match run(&arguments) {
        Ok(what) => {
            println!("sim: PASS {what}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("sim: FAIL {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<String, String> {
    let Arguments { first, seeds: count, mutant, .. } = *arguments;
    let threads = arguments.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    if arguments.mutants {
        return hunt::hunt(first, count, threads);
    }
    let result = match arguments.seed {
        Some(seed) => {
            trace::switch_on();
            seeds::one(seed, mutant).map(|totals| format!("seed {seed}: {totals}"))
        }
        None => seeds::many(first, count, threads, mutant).map(|totals| format!("{count} seeds from {first}: {totals}")),
    };
    result.map_err(|failure| {
        let with = mutant.map_or_else(String::new, |mutant| format!(" --mutant {}", mutant.name()));
        format!("seed {0}: {1} (replay: cargo xtask sim --seed {0}{with})", failure.seed, failure.why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The short form; `cargo xtask sim --seeds 10000` is the long one.
    #[test]
    fn seeds_keep_the_promise() {
        match seeds::many(1, 300, 2, None) {
            Ok(totals) => println!("sim: PASS 300 seeds: {totals}"),
            Err(failure) => panic!("{failure:?}"),
        }
    }

    #[test]
    fn every_mutant_is_caught() {
        match hunt::hunt(1, HUNT_SEEDS, 2) {
            Ok(what) => println!("sim: PASS {what}"),
            Err(why) => panic!("{why}"),
        }
    }
}
