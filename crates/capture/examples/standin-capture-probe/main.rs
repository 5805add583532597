//! Captures a volume while a command writes to it, replays the operations into memory, and compares the result with the volume.
//!
//! `standin-capture-probe capture MOUNT COMMAND…` runs the comparison; `standin-capture-probe write DIRECTORY` makes every kind of write. Meant for a
//! test VM with a freshly made file system. Exits with 1 when anything differs or was lost.

mod replay;
mod writes;

use standin_capture::{CaptureConfig, CaptureEvent, CaptureSource, CapturedVolume, EbpfCapture};
use standin_model::VolumeId;
use std::{
    path::Path,
    process::{Command, exit},
    time::{Duration, Instant},
};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [_, "write", directory] => writes::all(Path::new(directory)),
        [_, "capture", mount, command @ ..] if !command.is_empty() => capture(Path::new(mount), command),
        _ => {
            eprintln!("usage: standin-capture-probe capture MOUNT COMMAND… | write DIRECTORY");
            exit(2);
        }
    }
}

fn capture(mount: &Path, command: &[&str]) {
    let volume = CapturedVolume::of_mount_point(VolumeId(0), mount).expect("volume");
    let mut config = CaptureConfig::new(vec![volume]);
    if let Some(bytes) = std::env::var("RING_BYTES").ok().and_then(|text| text.parse().ok()) {
        config.ring_bytes = bytes;
    }
    let begun = Instant::now();
    let mut capture = match EbpfCapture::start(&config) {
        Ok(capture) => capture,
        Err(error) => {
            eprintln!("cannot start: {error}");
            let mut cause = std::error::Error::source(&error);
            while let Some(inner) = cause {
                eprintln!("  because: {inner}");
                cause = inner.source();
            }
            exit(1);
        }
    };
    println!("attached {} hooks in {:.2} s", capture.stats().hooks.len(), begun.elapsed().as_secs_f64());
    let mut tree = replay::Tree::new(mount);
    let mut child = Command::new(command[0]).args(&command[1..]).spawn().expect("command");
    let mut flushed = Instant::now();
    let status = loop {
        capture.wait(Duration::from_millis(100)).expect("wait");
        capture.drain(&mut |event| tree.apply(event));
        if flushed.elapsed() > Duration::from_millis(500) {
            capture.flush_mapped(Duration::from_secs(1));
            flushed = Instant::now();
        }
        if let Some(status) = child.try_wait().expect("child") {
            break status;
        }
    };
    capture.drain(&mut |event| tree.apply(event));
    // Mapped writes arrive with the writeback that this asks for; no sync(2), which would hide a missing flush.
    let deadline = Instant::now() + Duration::from_secs(20);
    while capture.pending_mapped() > 0 && Instant::now() < deadline {
        capture.flush_mapped(Duration::ZERO);
        std::thread::sleep(Duration::from_millis(300));
        capture.drain(&mut |event| tree.apply(event));
    }
    let (before, records) = (Instant::now(), capture.stats().records);
    capture.barrier(&mut |event: CaptureEvent| tree.apply(event));
    println!(
        "barrier of {} records {:.2} ms, command {status}",
        capture.stats().records - records,
        before.elapsed().as_secs_f64() * 1000.0
    );
    let stats = capture.stats();
    println!(
        "records {} bytes {} operations {} lost {} everything {} marks {} held {}",
        stats.records, stats.bytes, stats.operations, stats.lost, stats.lost_everything, stats.mapped_marks, stats.held_bytes
    );
    let report = tree.compare(mount);
    println!("RESULT {}: {report}", mount.display());
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        status.lines().filter(|line| line.starts_with("VmHWM")).for_each(|line| println!("{line}"));
    }
    exit(i32::from(!report.is_clean() || !status.success()));
}
