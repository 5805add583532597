//! Simulation: the product's source core against a virtual source, a virtual replica and a virtual clock, with faults, from one seed.
//!
//! `standin-sim --seeds N` runs N seeds, `--seed S` replays one and prints what happened. The pump, the mirror, the segment format, the queue and
//! the journal are the product's own; the source, the replica and the checker are written apart from it.

mod reader;
mod replica;
mod run;
mod source;

use clap::Parser;

#[derive(Parser)]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Replay just this one.
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    let (first, count) = arguments.seed.map_or((arguments.first, arguments.seeds), |seed| (seed, 1));
    let mut totals = run::Totals::default();
    for seed in first..first + count {
        // A failed assertion inside the product is a finding like any other; its message has been printed by then.
        let result = std::panic::catch_unwind(|| run::run(seed)).unwrap_or_else(|_| Err("panicked".to_owned()));
        match result {
            Ok(figures) => totals.add(figures),
            Err(why) => {
                println!("sim: FAIL seed {seed}: {why} (replay: cargo xtask sim --seed {seed})");
                return std::process::ExitCode::FAILURE;
            }
        }
    }
    println!("sim: PASS {count} seeds from {first}: {totals}");
    std::process::ExitCode::SUCCESS
}
