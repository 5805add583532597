//! Simulation: the product's source core against a virtual source, a virtual replica and a virtual clock, with faults, from one seed.
//!
//! `standin-sim --seeds N` runs N seeds, `--seed S` replays one and prints what happened. The pump, the mirror, the segment format, the queue and
//! the journal are the product's own; the source, the replica and the checker are written apart from it. The promise is checked after every
//! item: while the replica is called consistent, its tree is one that the source went through, and never an earlier one than before.

mod random;
mod reader;
mod replica;
mod run;
mod source;
mod target;
mod totals;
mod trace;
mod tree;
mod verify;

use clap::Parser;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use totals::Totals;

#[derive(Parser)]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 200)]
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
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // A failed assertion inside the product is a finding like any other.
    std::panic::set_hook(Box::new(|panic| println!("{}", failure(trace::seed(), &panic.to_string()))));
    let result = match arguments.seed {
        Some(seed) => {
            trace::switch_on();
            one(seed).map(|totals| format!("seed {seed}: {totals}"))
        }
        None => {
            let threads = arguments.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
            many(arguments.first, arguments.seeds, threads)
                .map(|totals| format!("{} seeds from {}: {totals}", arguments.seeds, arguments.first))
        }
    };
    match result {
        Ok(what) => {
            println!("sim: PASS {what}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn failure(seed: u64, why: &str) -> String {
    format!("sim: FAIL seed {seed}: {why} (replay: cargo xtask sim --seed {seed})")
}

fn one(seed: u64) -> Result<Totals, String> {
    trace::begin(seed);
    run::run(seed).map_err(|why| failure(seed, &why))
}

/// Runs seeds on several threads; the error is the failure with the lowest seed that was found.
fn many(first: u64, count: u64, threads: usize) -> Result<Totals, String> {
    let next = AtomicU64::new(first);
    let totals = Mutex::new(Totals::default());
    let failed: Mutex<Option<(u64, String)>> = Mutex::new(None);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let stop = failed.lock().expect("nobody panics with it").as_ref().is_some_and(|(lowest, _)| *lowest < seed);
            if seed >= first + count || stop {
                return;
            }
            match one(seed) {
                Ok(figures) => totals.lock().expect("nobody panics with it").add(figures),
                Err(why) => {
                    let mut failed = failed.lock().expect("nobody panics with it");
                    if failed.as_ref().is_none_or(|(lowest, _)| seed < *lowest) {
                        *failed = Some((seed, why));
                    }
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    match failed.into_inner().expect("nobody panics with it") {
        Some((_, why)) => Err(why),
        None => Ok(totals.into_inner().expect("nobody panics with it")),
    }
}

#[cfg(test)]
mod tests {
    /// The short form; `cargo xtask sim --seeds 10000` is the long one.
    #[test]
    fn seeds_keep_the_promise() {
        match super::many(1, 300, 2) {
            Ok(totals) => println!("sim: PASS 300 seeds: {totals}"),
            Err(why) => panic!("{why}"),
        }
    }
}
