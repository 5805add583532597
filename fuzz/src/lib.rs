//! What the fuzz targets of all rooms share: how long they run, damage made from a script of bytes, a bound for memory, and the committed seeds.
//!
//! A target lies beside its parser (`fuzz.rs`), because most parsers are private, and takes bytes: `check!` feeds it the corpus in
//! `__fuzz__/<target>/corpus`, the inputs that once failed (`crashes`), and random ones for [`TIME`]. `cargo xtask fuzz` runs the same target under
//! libFuzzer. Only development depends on this crate.

mod script;

pub use bolero::check;
pub use script::{Script, edited};

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::Duration;

/// Of random inputs for one target in an ordinary test run: some twenty targets on two processors stay below half a minute. Longer where
/// `BOLERO_RANDOM_TEST_TIME_MS` says so.
pub const TIME: Duration = Duration::from_millis(1500);

/// Runs the parser, and fails where more than `bytes_max` of the heap were in use at once on top of what was in use before.
pub fn within<T>(bytes_max: usize, run: impl FnOnce() -> T) -> T {
    let mut outcome = None;
    // A panic must not leave the counter's frame behind: the engine catches it and runs smaller inputs.
    let used = allocation_counter::measure(|| outcome = Some(catch_unwind(AssertUnwindSafe(run))));
    let value = match outcome {
        Some(Ok(value)) => value,
        Some(Err(panic)) => resume_unwind(panic),
        None => unreachable!("measure runs what it is given"),
    };
    assert!(used.bytes_max <= bytes_max as u64, "{} bytes of the heap were used, {bytes_max} are allowed", used.bytes_max);
    value
}

/// Compares the seeds of a target, which are real encodings, with the committed corpus below `folder`; each must be there under its name, as it was
/// written by whatever version made it. With `STANDIN_FUZZ_SEEDS=write` the missing ones are written. Returns what is committed.
pub fn seeds(folder: &str, target: &str, seeds: &[(&str, Vec<u8>)]) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(folder).join("__fuzz__").join(target).join("corpus");
    let write = std::env::var_os("STANDIN_FUZZ_SEEDS").is_some_and(|value| value == "write");
    let committed = seeds.iter().map(|(name, bytes)| {
        let path = folder.join(name);
        if write && !path.exists() {
            std::fs::create_dir_all(&folder).expect("the corpus has a directory");
            std::fs::write(&path, bytes).expect("a seed can be written");
        }
        let committed = std::fs::read(&path);
        (name.to_string(), committed.unwrap_or_else(|error| panic!("{}: {error}; STANDIN_FUZZ_SEEDS=write makes it", path.display())))
    });
    committed.collect()
}

/// Whether a coverage-guided engine runs: it learns checksums from comparisons, so a changed input that is accepted may be a forged one.
pub fn is_guided() -> bool {
    cfg!(fuzzing)
}
