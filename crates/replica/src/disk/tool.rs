//! Running the host's own tools (mkfs, mtools, grub-mkimage) with a time limit and their error text kept.
//!
//! No shell is involved. Output is read by threads so that a tool that writes much never blocks on a full pipe, and is cut at a
//! bound so that a tool that writes without end costs no memory.

use super::DiskError;
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Bytes kept of a tool's error output; what operators read is in the last lines.
const STDERR_BYTES_MAX: usize = 64 << 10;
/// Longest wait for any tool. mkfs of a large sparse file takes seconds; this only catches a hang.
pub(crate) const TOOL_TIME_MAX: Duration = Duration::from_secs(600);

/// Runs a tool without input; gives its standard output.
pub(crate) fn run(command: &mut Command, package: &'static str) -> Result<Vec<u8>, DiskError> {
    run_with_input(command, package, Vec::new(), 1 << 20)
}

/// What a tool says about itself, on both outputs and whatever its exit code. For options that only print.
pub(crate) fn words(command: &mut Command, package: &'static str) -> Result<String, DiskError> {
    let shown = describe(command);
    let output =
        command.stdin(Stdio::null()).env("LC_ALL", "C").output().map_err(|source| not_started(command, shown, package, &source))?;
    Ok([output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat())
}

fn not_started(command: &Command, shown: String, package: &'static str, source: &std::io::Error) -> DiskError {
    match source.kind() {
        std::io::ErrorKind::NotFound => DiskError::ToolMissing { program: command.get_program().to_string_lossy().into_owned(), package },
        _ => DiskError::ToolFailed { command: shown, outcome: "not started".into(), stderr: source.to_string() },
    }
}

/// Runs a tool with `input` on its standard input; gives at most `output_max` bytes of its output.
pub(crate) fn run_with_input(
    command: &mut Command,
    package: &'static str,
    input: Vec<u8>,
    output_max: usize,
) -> Result<Vec<u8>, DiskError> {
    let shown = describe(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).env("LC_ALL", "C");
    let mut child = command.spawn().map_err(|source| not_started(command, shown.clone(), package, &source))?;
    let stdout = drain(child.stdout.take(), output_max);
    let stderr = drain(child.stderr.take(), STDERR_BYTES_MAX);
    let feeder = child.stdin.take().map(|mut stdin| std::thread::spawn(move || drop(stdin.write_all(&input))));
    let status = wait(&mut child, TOOL_TIME_MAX);
    let stdout = stdout.join().unwrap_or_default();
    let stderr = stderr.join().unwrap_or_default();
    if let Some(feeder) = feeder {
        let _ = feeder.join();
    }
    let outcome = match status {
        Some(status) if status.success() => return Ok(stdout),
        Some(status) => status.to_string(),
        None => format!("no end within {} s", TOOL_TIME_MAX.as_secs()),
    };
    let stderr = String::from_utf8_lossy(&stderr).trim().replace('\n', " | ");
    Err(DiskError::ToolFailed { command: shown, outcome, stderr })
}

/// Waits for the child; kills it when the time is over.
fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_micros(500);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => {}
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn drain(pipe: Option<impl Read + Send + 'static>, limit: usize) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        let Some(mut pipe) = pipe else { return kept };
        let mut chunk = vec![0u8; 64 << 10];
        while let Ok(count) = pipe.read(&mut chunk) {
            if count == 0 {
                break;
            }
            let room = limit.saturating_sub(kept.len());
            kept.extend_from_slice(&chunk[..count.min(room)]);
        }
        kept
    })
}

fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_input_and_failure() {
        let out = run_with_input(&mut Command::new("cat"), "coreutils", b"hello".to_vec(), 3).unwrap();
        assert_eq!(out, b"hel");
        let failed = run(Command::new("sh").args(["-c", "echo why >&2; exit 3"]), "dash").unwrap_err();
        assert!(failed.to_string().contains("why"), "{failed}");
        let missing = run(&mut Command::new("standin-no-such-tool"), "nothing").unwrap_err();
        assert_eq!(missing.code(), "STANDIN-E3006");
    }
}
