//! The suites that xtask starts: the workspace's tests, the simulator, and the lab's own commands.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::{process, setup, tidy};

/// Which programs a suite runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Profile {
    /// Built with the tests.
    Dev,
    /// What users get.
    Release,
}

/// Setup, tidy, tests, and a short main job on a real server. Each is told as it ends.
pub fn test(root: &Path) -> Result<String> {
    println!("setup: PASS {}", setup::run().context("setup")?);
    let tidied = tidy::run(root);
    match &tidied {
        Ok(what) => println!("tidy: PASS {what}"),
        // The tests are run all the same: a missing page must not hide a failing test.
        Err(error) => println!("tidy: FAIL {error:#}"),
    }
    let tested = unit_tests()?;
    let shown = short_main_job()?;
    ensure!(tidied.is_ok(), "tidy failed, see above ({tested})");
    Ok(format!("{tested}, tidy, {shown}"))
}

/// The short form of `cargo xtask e2e main-job`. It mounts disks, which only root may.
fn short_main_job() -> Result<String> {
    let (_, user, _) = process::collect(&["id", "-u"])?;
    if user.trim() != "0" {
        println!("main-job: SKIP mounting disks needs root");
        return Ok("1 skipped: main-job needs root".into());
    }
    ensure!(run_lab(Profile::Dev, &["main-job", "--short"])?, "main-job failed, see above");
    Ok("main-job".into())
}

/// Runs every test of the workspace with nextest if it is there. Returns the runner's own closing line.
fn unit_tests() -> Result<String> {
    let (nextest, _, _) = process::collect(&["cargo", "nextest", "--version"])?;
    let words: &[&str] = if nextest {
        &["cargo", "nextest", "run", "--workspace", "--no-fail-fast"]
    } else {
        &["cargo", "test", "--workspace", "--no-fail-fast"]
    };
    println!("test: {}", words.join(" "));
    let (done, out, error) = process::collect(words)?;
    let said = format!("{out}\n{error}");
    let closing = said.lines().filter(|line| line.trim_start().starts_with("Summary") || line.starts_with("test result:"));
    let closing: Vec<&str> = closing.map(str::trim).collect();
    if !done {
        println!("{said}");
        bail!("{} ({})", if closing.is_empty() { "the tests did not compile" } else { "tests failed" }, closing.join("; "));
    }
    closing.iter().for_each(|line| println!("{line}"));
    Ok(summary(&closing))
}

/// nextest's one line, or the sum of cargo test's many.
fn summary(closing: &[&str]) -> String {
    if let [only] = closing {
        return (*only).to_owned();
    }
    let count = |word: &str| -> u64 {
        let numbers = closing.iter().filter_map(|line| line.split(word).next()?.split_whitespace().last()?.parse::<u64>().ok());
        numbers.sum()
    };
    format!("{} tests passed, {} ignored", count(" passed"), count(" ignored"))
}

/// Runs the simulator, which prints the closing line itself. It is built like the tests, whose profile optimizes enough for it: a release build
/// would compile every dependency anew, which takes longer than ten thousand seeds.
pub fn sim(arguments: &[String]) -> Result<bool> {
    let mut words = vec!["cargo", "run", "--quiet", "--package", "standin-sim", "--"];
    words.extend(arguments.iter().map(String::as_str));
    Ok(process::run(&words).is_ok())
}

/// Runs a command of the lab after setup. The lab prints the closing line itself; an error here means that it could not.
///
/// The lab runs the release programs: they are what a user gets, and an emulated guest is slow enough without unoptimised ones.
pub fn lab(name: &str, before: &[&str], arguments: &[String]) -> Result<bool> {
    let failed = |error: &anyhow::Error| println!("{name}: FAIL {error:#}");
    println!("setup: PASS {}", setup::run().context("setup").inspect_err(failed)?);
    let words: Vec<&str> = before.iter().copied().chain(arguments.iter().map(String::as_str)).collect();
    run_lab(Profile::Release, &words).inspect_err(failed)
}

/// Like [`lab`], with the packages of the programs that we are measured against.
pub fn bench(arguments: &[String]) -> Result<bool> {
    let installed = setup::run_for_bench().context("setup").inspect_err(|error| println!("bench: FAIL {error:#}"))?;
    println!("setup: PASS {installed}");
    lab("bench", &["bench"], arguments)
}

/// Boots every supported kernel with the capture probe. Built like the tests: their profile optimizes enough for it.
pub fn kernels(arguments: &[String]) -> Result<bool> {
    let failed = |error: &anyhow::Error| println!("kernels: FAIL {error:#}");
    println!("setup: PASS {}", setup::run().context("setup").inspect_err(failed)?);
    process::run(&["cargo", "build", "--quiet", "--package", "standin-capture", "--example", "standin-capture-probe"])
        .inspect_err(failed)?;
    let words: Vec<&str> = std::iter::once("kernels").chain(arguments.iter().map(String::as_str)).collect();
    run_lab(Profile::Dev, &words).inspect_err(failed)
}

/// Builds the product's programs and the lab, which finds them beside its own, and runs it. False when it failed, and said why.
fn run_lab(profile: Profile, words: &[&str]) -> Result<bool> {
    let (name, folder) = if profile == Profile::Release { ("release", "release") } else { ("dev", "debug") };
    let began = Instant::now();
    let mut build = vec!["cargo", "build", "--quiet", "--profile", name];
    for package in ["standin-agent", "standin-appliance", "standin-cli", "standin-e2e"] {
        build.extend(["--package", package]);
    }
    process::run(&build)?;
    println!("build: PASS {name} programs in {} s", began.elapsed().as_secs());
    let own = format!("{}/{folder}/standin-e2e", std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".into()));
    let mut command = vec![own.as_str()];
    command.extend(words);
    Ok(process::run(&command).is_ok())
}

/// The status of a suite that has printed its own closing line.
pub fn closing(done: Result<bool>) -> ExitCode {
    if matches!(done, Ok(true)) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What a suite says that is only planned.
pub fn missing() -> Result<String> {
    bail!("not built yet")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_test_lines_are_summed() {
        let lines = ["test result: ok. 3 passed; 0 failed; 1 ignored", "test result: ok. 4 passed; 0 failed; 0 ignored"];
        assert_eq!(summary(&lines), "7 tests passed, 1 ignored");
    }
}
