//! Child processes with a time limit.
//!
//! Every programme that the lab starts can hang (a guest that does not boot, an ssh that waits), so nothing here waits without a
//! bound. Output is collected by threads, because a full pipe would stop the child. On failure the error carries the end of what
//! the programme said.
//!
//! ^C reaches every child of the terminal's process group, and every wait here: each ends with an error, and what the run has started is
//! ended on the way out.

use std::ffi::OsStr;
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often a child is asked whether it has ended. Short against everything that is started here.
const POLL: Duration = Duration::from_millis(10);

/// How long output is waited for after the child's end: a grandchild may hold the pipe open for ever.
const DRAIN: Duration = Duration::from_secs(2);

/// Set by SIGINT and SIGTERM once [`heed_interrupts`] was called.
static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on the first SIGINT or SIGTERM ends every wait with an error, and the second ends the process.
pub fn heed_interrupts() -> Result<()> {
    let flag = INTERRUPTED.get_or_init(Arc::default);
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(flag)).context("handling ^C")?;
        signal_hook::flag::register(signal, Arc::clone(flag)).context("handling ^C")?;
    }
    Ok(())
}

/// Why no wait can end well any more; the first reason stays.
static ABANDONED: OnceLock<String> = OnceLock::new();

/// From now on every wait ends with this error.
pub fn abandon(why: String) {
    ABANDONED.set(why).ok();
}

fn uninterrupted() -> Result<()> {
    if INTERRUPTED.get().is_some_and(|flag| flag.load(Ordering::Relaxed)) {
        bail!("interrupted");
    }
    if let Some(why) = ABANDONED.get() {
        bail!("{why}");
    }
    Ok(())
}

/// Sleeps between two looks at something.
pub fn pause(time: Duration) -> Result<()> {
    uninterrupted()?;
    std::thread::sleep(time);
    uninterrupted()
}

/// A seed for a run that nobody gave one.
pub fn fresh_seed() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    Ok(xxhash_rust::xxh3::xxh3_64(text.as_bytes()))
}

/// What a finished command left.
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// A command from words: the first is the programme.
pub fn command<S: AsRef<OsStr>>(words: &[S]) -> Command {
    let mut words = words.iter();
    let mut command = Command::new(words.next().expect("a command has at least one word"));
    command.args(words);
    command
}

/// Runs the words; an exit status other than 0 is an error. Returns standard output.
pub fn run<S: AsRef<OsStr>>(words: &[S], limit: Duration) -> Result<String> {
    checked(&mut command(words), limit)
}

/// Runs the command; an exit status other than 0 is an error. Returns standard output.
pub fn checked(command: &mut Command, limit: Duration) -> Result<String> {
    let output = collect(command, limit)?;
    if !output.status.success() {
        bail!("`{}` ended with {}: {}", shown(command), output.status, tail(&output));
    }
    Ok(output.stdout)
}

/// Runs the command to its end, whatever its status; only a time-out or a failure to start is an error.
pub fn collect(command: &mut Command, limit: Duration) -> Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting `{}`", shown(command)))?;
    let stdout = reader(child.stdout.take());
    let stderr = reader(child.stderr.take());
    let status = wait(&mut child, limit)?;
    if status.is_none() {
        child.kill().ok();
        child.wait().ok();
    }
    let take = |from: mpsc::Receiver<Vec<u8>>| {
        let bytes = from.recv_timeout(DRAIN).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let (stdout, stderr) = (take(stdout), take(stderr));
    match status {
        Some(status) => Ok(Output { status, stdout, stderr }),
        None => bail!("`{}` did not end within {} s: {}", shown(command), limit.as_secs(), last_lines(&stderr)),
    }
}

/// Waits for a child's end; `None` when the limit passes first.
pub fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().context("waiting for a child process")? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        if let Err(interrupted) = pause(POLL) {
            child.kill().ok();
            child.wait().ok();
            return Err(interrupted);
        }
    }
}

/// Tells a child to end, and ends it when it has not within the limit.
pub fn end(child: &mut Child, limit: Duration) {
    if let Some(pid) = rustix::process::Pid::from_raw(child.id() as i32) {
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
    }
    if !matches!(wait(child, limit), Ok(Some(_))) {
        child.kill().ok();
        child.wait().ok();
    }
}

fn reader(from: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    if let Some(mut from) = from {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).ok();
            sender.send(bytes).ok();
        });
    }
    receiver
}

fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text.chars().take(400).collect()
}

fn tail(output: &Output) -> String {
    let said = if output.stderr.trim().is_empty() { &output.stdout } else { &output.stderr };
    last_lines(said)
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().rev().take(12).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_tells_what_it_said() {
        let error = run(&["sh", "-c", "echo nothing works >&2; exit 3"], Duration::from_secs(5)).unwrap_err();
        assert!(error.to_string().contains("nothing works"), "{error}");
    }

    #[test]
    fn a_command_that_hangs_is_ended() {
        let begun = Instant::now();
        let error = run(&["sleep", "60"], Duration::from_millis(200)).unwrap_err();
        assert!(error.to_string().contains("did not end"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
