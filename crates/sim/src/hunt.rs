//! The check of the checker: every mutant must be caught within a bounded number of seeds, and the same seeds must be clean without it.

use crate::mutant::Mutant;
use crate::seeds::many;
use clap::ValueEnum;

/// Hunts every mutant from seed `first` on, in at most `seeds` of them; prints a line for each. The result is the closing line's end.
pub fn hunt(first: u64, seeds: u64, threads: usize) -> Result<String, String> {
    let mutants = Mutant::value_variants();
    let mut missed = Vec::new();
    let mut last = first;
    for mutant in mutants {
        match many(first, seeds, threads, Some(*mutant)) {
            Err(failure) => {
                last = last.max(failure.seed);
                println!("mutant {}: caught at seed {}: {}", mutant.name(), failure.seed, failure.why);
            }
            Ok(totals) => {
                last = first + seeds - 1;
                println!("mutant {}: not caught in {seeds} seeds: {totals}", mutant.name());
                missed.push(mutant.name());
            }
        }
    }
    // What also fires without a mutant has caught none.
    let count = last - first + 1;
    let clean = many(first, count, threads, None)
        .map_err(|failure| format!("seed {} fails without a mutant, so that nothing is shown: {}", failure.seed, failure.why))?;
    println!("without a mutant: seeds {first} to {last} are clean: {clean}");
    let caught = format!("{} of {} mutants caught", mutants.len() - missed.len(), mutants.len());
    if missed.is_empty() { Ok(caught) } else { Err(format!("{caught}; not within {seeds} seeds: {}", missed.join(", "))) }
}
