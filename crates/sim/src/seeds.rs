//! Runs of many seeds on several threads. A failed assertion, in the product or here, is a finding like any other.

use crate::mutant::Mutant;
use crate::run;
use crate::totals::Totals;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// A seed that failed, and why.
#[derive(Clone, Debug)]
pub struct Failure {
    pub seed: u64,
    pub why: String,
}

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Panics are kept for whoever ran the seed, and not printed.
pub fn keep_panics() {
    std::panic::set_hook(Box::new(|panic| PANIC.set(panic.to_string())));
}

pub fn one(seed: u64, mutant: Option<Mutant>) -> Result<Totals, Failure> {
    let result = catch_unwind(AssertUnwindSafe(|| run::run(seed, mutant)));
    result.unwrap_or_else(|_| Err(PANIC.take())).map_err(|why| Failure { seed, why })
}

/// Runs `count` seeds; the error is the failure with the lowest seed that was found.
pub fn many(first: u64, count: u64, threads: usize, mutant: Option<Mutant>) -> Result<Totals, Failure> {
    let next = AtomicU64::new(first);
    let totals = Mutex::new(Totals::default());
    let failed: Mutex<Option<Failure>> = Mutex::new(None);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let stop = failed.lock().expect("nobody panics with it").as_ref().is_some_and(|lowest| lowest.seed < seed);
            if seed >= first + count || stop {
                return;
            }
            match one(seed, mutant) {
                Ok(figures) => totals.lock().expect("nobody panics with it").add(figures),
                Err(failure) => {
                    let mut failed = failed.lock().expect("nobody panics with it");
                    if failed.as_ref().is_none_or(|lowest| seed < lowest.seed) {
                        *failed = Some(failure);
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
        Some(failure) => Err(failure),
        None => Ok(totals.into_inner().expect("nobody panics with it")),
    }
}
