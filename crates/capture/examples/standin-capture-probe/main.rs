//! Captures a volume while a command writes to it, replays the operations into memory, and compares the result with the volume.
//!
//! `standin-capture-probe capture MOUNT COMMAND…` runs the comparison; `standin-capture-probe write DIRECTORY` makes every kind of write. Meant for a
//! test VM with a freshly made file system. Exits with 1 when anything differs or was lost; with `DECLARED` set, what was declared lost may
//! differ, and nothing else. `housekeep MOUNT COMMAND…` exits with 1 when the command, which changes no content, made content to send.

mod opaque;
mod queued;
mod replay;
mod writes;

use standin_capture::{CaptureConfig, CaptureEvent, CaptureSource, CapturedVolume, EbpfCapture};
use standin_capture::{btf::Btf, facts::Facts};
use standin_model::{FileSystem, VolumeId};
use std::{
    path::Path,
    process::{Command, exit},
    time::{Duration, Instant},
};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [_, "write", directory] => {
            std::fs::create_dir_all(directory).expect("folder");
            writes::all(Path::new(directory));
        }
        [_, "write-simple", directory] => writes::simple(Path::new(directory)),
        [_, "write-unseen", directory] => opaque::all(Path::new(directory), false),
        [_, "write-unseen", directory, "exchange"] => opaque::all(Path::new(directory), true),
        [_, "allow-exchange", device] => opaque::allow_exchange(Path::new(device)),
        [_, "append", path, count] => queued::append(Path::new(path), count.parse().expect("a number")),
        [_, "facts"] => facts(Path::new("/sys/kernel/btf")),
        [_, "facts", directory] => facts(Path::new(directory)),
        [_, "idle", mount, seconds] => idle(Path::new(mount), seconds.parse().expect("seconds")),
        [_, "capture", mount, command @ ..] if !command.is_empty() => capture(Path::new(mount), command),
        [_, "housekeep", mount, command @ ..] if !command.is_empty() => housekeep(Path::new(mount), command),
        [_, "offers"] => offers(),
        _ => {
            eprintln!(
                "usage: standin-capture-probe capture MOUNT COMMAND… | housekeep MOUNT COMMAND… | write DIRECTORY | write-simple DIRECTORY | write-unseen DIRECTORY [exchange] | allow-exchange DEVICE | append FILE COUNT | offers | idle MOUNT SECONDS | facts [DIRECTORY]"
            );
            exit(2);
        }
    }
}

/// What the kernel whose type information lies in `directory` declares, and the verdict; for recording and for looking at a new kernel.
fn facts(directory: &Path) {
    let all = [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs];
    let read = |name: &str, base| {
        let bytes = std::fs::read(directory.join(name))?;
        Btf::parse(bytes, base).ok_or_else(|| std::io::Error::other("not BTF"))
    };
    let facts = Facts::gather(&all, &read).expect("type information");
    print!("{facts}");
    for file_system in all {
        match facts.check(&[file_system]) {
            Ok(_) => eprintln!("{}: can be captured", file_system.as_str()),
            Err(error) => eprintln!("{}: {}: {error}", file_system.as_str(), error.code()),
        }
    }
}

/// Which hooks this kernel has for each file system. Exits with 1 when one that is needed is missing.
fn offers() {
    let all = [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs];
    let facts = Facts::of_kernel(&all).expect("type information");
    let refused = all.iter().filter(|kind| facts.check(&[**kind]).inspect_err(|error| println!("  {error}")).is_err()).count();
    println!("RESULT {} of {} file systems can be captured", all.len() - refused, all.len());
    exit(i32::from(refused > 0));
}

/// What capture costs where nothing happens: waits as the agent's pump does, and tells memory and processor time.
fn idle(mount: &Path, seconds: u64) {
    let volume = CapturedVolume::of_mount_point(VolumeId(0), mount).expect("volume");
    let mut capture = EbpfCapture::start(&CaptureConfig::new(vec![volume])).expect("capture");
    let ticks = || {
        let stat = std::fs::read_to_string("/proc/self/stat").expect("stat");
        stat.split(' ').skip(13).take(2).map(|field| field.parse::<u64>().expect("ticks")).sum::<u64>()
    };
    let (begun, before, mut turns) = (Instant::now(), ticks(), 0u64);
    while begun.elapsed() < Duration::from_secs(seconds) {
        capture.barrier(&mut drop);
        capture.wait(Duration::from_millis(200)).expect("wait");
        turns += 1;
    }
    let used = (ticks() - before) as f64 / begun.elapsed().as_secs_f64();
    println!("IDLE {turns} turns, {used:.2} % of a processor, {} records", capture.stats().records);
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    status
        .lines()
        .filter(|line| line.starts_with("VmHWM") || line.starts_with("VmRSS") || line.starts_with("Rss"))
        .for_each(|l| println!("{l}"));
}

/// Starts capture of the file system at `mount`, or says why not.
fn start(mount: &Path) -> EbpfCapture {
    let volume = CapturedVolume::of_mount_point(VolumeId(0), mount).expect("volume");
    let mut config = CaptureConfig::new(vec![volume]);
    if let Some(bytes) = std::env::var("RING_BYTES").ok().and_then(|text| text.parse().ok()) {
        config.ring_bytes = bytes;
    }
    EbpfCapture::start(&config).unwrap_or_else(|error| {
        eprintln!("cannot start: {error}");
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            eprintln!("  because: {inner}");
            cause = inner.source();
        }
        exit(1);
    })
}

/// What housekeeping may send: names and times, and what a journal thread writes into no file at all.
const HOUSEKEEPING_BYTES_MAX: u64 = 4096;

fn housekeep(mount: &Path, command: &[&str]) {
    let mut capture = start(mount);
    let (mut bytes, mut operations, mut lost) = (0u64, 0u64, 0u64);
    let mut take = |event: CaptureEvent| match event {
        CaptureEvent::Operation { operation, .. } => {
            if std::env::var_os("TRACE").is_some() {
                println!("{}", format!("{operation:?}").chars().take(160).collect::<String>());
            }
            (bytes, operations) = (bytes + operation.content_len(), operations + 1);
        }
        CaptureEvent::Lost { node, range, reason } => {
            println!("  lost: {node} {range:?} {reason}");
            lost += 1;
        }
        CaptureEvent::LostEverything { reason } => {
            println!("  lost everything: {reason}");
            lost += 1;
        }
        CaptureEvent::DirectIo { .. } | CaptureEvent::Mapped { .. } | CaptureEvent::Changed { .. } => {}
    };
    let mut child = Command::new(command[0]).args(&command[1..]).spawn().expect("command");
    let status = loop {
        capture.wait(Duration::from_millis(100)).expect("wait");
        capture.drain(&mut take);
        if let Some(status) = child.try_wait().expect("child") {
            break status;
        }
    };
    capture.barrier(&mut take);
    println!("RESULT {}: {bytes} bytes of content in {operations} operations, {lost} lost", mount.display());
    exit(i32::from(bytes > HOUSEKEEPING_BYTES_MAX || lost > 0 || !status.success()));
}

fn capture(mount: &Path, command: &[&str]) {
    let begun = Instant::now();
    let mut capture = start(mount);
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
    let is_well = report.is_clean() || std::env::var_os("DECLARED").is_some() && report.silent == 0;
    exit(i32::from(!is_well || !status.success()));
}
