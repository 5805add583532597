//! Programmes that xtask starts: their output goes straight to the terminal, or is collected where it is looked at.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Runs a programme to its end with this terminal; a status other than 0 is an error.
pub fn run(words: &[&str]) -> Result<()> {
    run_with(words, &[])
}

/// The same with further environment.
pub fn run_with(words: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let status = command(words).envs(environment.iter().copied()).status().with_context(|| format!("starting `{}`", words[0]))?;
    ensure!(status.success(), "`{}` ended with {status}", words.join(" "));
    Ok(())
}

/// Runs a programme and returns whether it succeeded, what it printed, and what it complained about.
pub fn collect(words: &[&str]) -> Result<(bool, String, String)> {
    let output = command(words).stdin(Stdio::null()).output().with_context(|| format!("starting `{}`", words[0]))?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok((output.status.success(), text(output.stdout), text(output.stderr)))
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}
