//! The machine that a benchmark ran on: speeds hold for it alone, ratios travel.

use serde::Serialize;
use std::fs;
use std::path::Path;
use std::process::Command;

#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    pub kernel: String,
    pub processor: String,
    pub processors: usize,
    pub memory_mib: u64,
    /// Where the benchmark's disks lie.
    pub file_system: String,
    /// Runnable tasks in the minute before: a busy machine shows here.
    pub load_before: f64,
    /// MB/s of sequential writing with fdatasync, into the benchmark's folder.
    pub disk_write_mb_s: f64,
    /// First lines of what the peers say of their versions.
    pub peers: Vec<String>,
}

impl Facts {
    pub fn read(folder: &Path) -> Facts {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map_or("", |(_, value)| value).trim().to_owned()
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse::<u64>().unwrap_or_default();
        let peers = [["rsync", "--version"], ["ssh", "-V"], ["tar", "--version"], ["zstd", "--version"]];
        Facts {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: field(&read("/proc/cpuinfo"), "model name"),
            processors: std::thread::available_parallelism().map_or(1, |count| count.get()),
            memory_mib: memory / 1024,
            file_system: said(&["findmnt", "-n", "-o", "FSTYPE,SOURCE", "-T", &folder.display().to_string()]),
            load_before: read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default(),
            disk_write_mb_s: disk_write(folder).unwrap_or_default(),
            peers: peers.iter().map(|words| said(words)).collect(),
        }
    }
}

fn said(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).output();
    // ssh tells its version where others complain.
    let text = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().trim().to_owned()
}

fn disk_write(folder: &Path) -> std::io::Result<f64> {
    use std::io::Write;
    const BYTES: usize = 256 << 20;
    let path = folder.join("speed");
    let mut file = fs::File::create(&path)?;
    let piece = vec![0x5a; 1 << 20];
    let begun = std::time::Instant::now();
    for _ in 0..BYTES >> 20 {
        file.write_all(&piece)?;
    }
    file.sync_data()?;
    let seconds = begun.elapsed().as_secs_f64();
    fs::remove_file(&path)?;
    Ok(BYTES as f64 / 1e6 / seconds)
}
