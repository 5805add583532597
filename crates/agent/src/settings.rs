//! What the agent keeps in its state directory besides its identity: where its appliance is, and what it may take from its server.

use crate::pump::Rhythm;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use standin_capture::CaptureConfig;
use standin_journal::QueueOptions;
use standin_model::NetworkPath;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// `host:port` of the appliance's agent listener, as seen from here.
    pub appliance: String,
    #[serde(default)]
    pub bounds: Bounds,
    /// Whose members may mark the stream, besides root.
    #[serde(default)]
    pub mark_group: Option<String>,
    /// How this agent reaches its appliance, unless the appliance has ordered another way since.
    #[serde(default)]
    pub network: NetworkPath,
}

/// How this server is captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// In the kernel, every operation in its order; not at all where that is not possible
    #[default]
    Ebpf,
    /// In the kernel where that is possible, and by fanotify elsewhere: the replica is then consistent only now and then
    Auto,
    /// By fanotify in any case
    Fanotify,
}

impl Driver {
    pub fn as_str(self) -> &'static str {
        match self {
            Driver::Ebpf => "ebpf",
            Driver::Auto => "auto",
            Driver::Fanotify => "fanotify",
        }
    }
}

/// What the agent may take from its server, in MiB.
///
/// Idle it needs the ring and about 12 MiB; while it mirrors or while the link is down, the queue's memory and about 20 MiB on top. With the
/// defaults: 32 + 12 = 44 MiB idle, 32 + 8 + 20 = 60 MiB at work; and the signatures in either, if there are any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[serde(default)]
pub struct Bounds {
    /// MiB of memory that the kernel may be ahead of the agent: a power of two from 1 to 1024
    #[arg(long, default_value_t = Bounds::default().ring_mib)]
    pub ring_mib: u32,
    /// MiB of memory for what waits for the link, from 1 to 16384
    #[arg(long, default_value_t = Bounds::default().queue_memory_mib)]
    pub queue_memory_mib: u32,
    /// MiB of disk for what waits for the link beyond that, up to 1048576; 0 for none
    #[arg(long, default_value_t = Bounds::default().queue_disk_mib)]
    pub queue_disk_mib: u32,
    /// Percent of one processor that the agent may take before what can wait, reading for a mirror or a verification, waits; 0 for no limit
    #[arg(long, default_value_t = Bounds::default().cpu_percent)]
    pub cpu_percent: u32,
    /// MiB a second that a mirror or a verification may read from this server's disks; 0 for no limit
    #[arg(long, default_value_t = Bounds::default().read_mib)]
    pub read_mib: u32,
    /// MiB of memory for signatures of files, by which rewritten pages are sent as what changed in them, up to 16384; 0 for none
    #[arg(long, default_value_t = Bounds::default().delta_memory_mib)]
    pub delta_memory_mib: u32,
    /// How this server is captured; anything but ebpf allows a weaker promise
    #[arg(long, value_enum, default_value_t = Bounds::default().driver)]
    pub driver: Driver,
    /// fanotify: seconds from one consistent state to the next, from 5 to 86400
    #[arg(long, default_value_t = Bounds::default().period_seconds)]
    pub period_seconds: u32,
    /// fanotify: milliseconds for which this server may stand still for one, up to 30000; 0 for never
    #[arg(long, default_value_t = Bounds::default().still_ms)]
    pub still_ms: u32,
}

const CPU_PERCENT_MIN: u32 = 5;

impl Default for Bounds {
    fn default() -> Self {
        let queue = QueueOptions::default();
        Bounds {
            ring_mib: CaptureConfig::RING_BYTES >> 20,
            queue_memory_mib: (queue.memory_bytes_max >> 20) as u32,
            queue_disk_mib: (queue.disk_bytes_max >> 20) as u32,
            cpu_percent: 0,
            read_mib: 0,
            // Signatures of 1.7 GB of files; of four times as much in their coarse form.
            delta_memory_mib: 64,
            driver: Driver::default(),
            period_seconds: 300,
            // What backup programs take for their snapshots, and less than what makes a client give up.
            still_ms: 2000,
        }
    }
}

impl Bounds {
    pub fn check(&self) -> Result<()> {
        let ring = CaptureConfig::RING_BYTES_MIN >> 20..=CaptureConfig::RING_BYTES_MAX >> 20;
        let is_good = self.ring_mib.is_power_of_two() && ring.contains(&self.ring_mib);
        anyhow::ensure!(is_good, "a ring of {} MiB is not a power of two from {} to {}", self.ring_mib, ring.start(), ring.end());
        anyhow::ensure!((1..=16 << 10).contains(&self.queue_memory_mib), "the queue's memory must be from 1 to 16384 MiB");
        anyhow::ensure!(self.queue_disk_mib <= 1 << 20, "the queue's disk must be at most 1048576 MiB");
        anyhow::ensure!(
            self.cpu_percent == 0 || self.cpu_percent >= CPU_PERCENT_MIN,
            "below {CPU_PERCENT_MIN} % of a processor no mirror ends"
        );
        anyhow::ensure!(self.cpu_percent <= 100_000, "{} % of a processor is more than any server has", self.cpu_percent);
        anyhow::ensure!(self.read_mib <= 1 << 20, "the disks may be read with at most 1048576 MiB a second");
        anyhow::ensure!(self.delta_memory_mib <= 16 << 10, "the memory for signatures must be at most 16384 MiB");
        anyhow::ensure!((5..=86_400).contains(&self.period_seconds), "the period must be from 5 to 86400 seconds");
        anyhow::ensure!(self.still_ms <= 30_000, "the server may stand still for at most 30000 milliseconds");
        Ok(())
    }

    pub fn rhythm(&self) -> Rhythm {
        Rhythm { period: i64::from(self.period_seconds) * 1_000_000_000, ..Rhythm::default() }
    }

    pub fn delta_bytes(&self) -> usize {
        (self.delta_memory_mib as usize) << 20
    }

    pub fn ring_bytes(&self) -> u32 {
        self.ring_mib << 20
    }

    pub fn queue(&self) -> QueueOptions {
        QueueOptions { memory_bytes_max: u64::from(self.queue_memory_mib) << 20, disk_bytes_max: u64::from(self.queue_disk_mib) << 20 }
    }
}

const FILE: &str = "settings.json";

impl Settings {
    pub fn load(directory: &Path) -> Result<Settings> {
        let path = directory.join(FILE);
        let text = std::fs::read(&path).with_context(|| {
            format!("cannot read {}; enrol first: standin-agent enrol --appliance HOST:PORT --token TOKEN", path.display())
        })?;
        Settings::parse(&text).with_context(|| format!("{} cannot be used", path.display()))
    }

    pub(crate) fn parse(text: &[u8]) -> Result<Settings> {
        let settings: Settings = serde_json::from_slice(text).context("it is damaged; enrol again")?;
        settings.bounds.check().context("it asks for what is not possible")?;
        settings.network.check().context("it asks for what is not possible")?;
        Ok(settings)
    }

    pub fn save(&self, directory: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        standin_journal::durable::write_atomically(&directory.join(FILE), &text).context("cannot save the agent's settings")
    }
}

/// Notices that somebody has changed the settings while the agent runs.
pub struct Watch {
    directory: PathBuf,
    seen: Option<SystemTime>,
}

impl Watch {
    pub fn new(directory: &Path) -> Watch {
        Watch { directory: directory.to_owned(), seen: None }
    }

    /// The bounds, where the file is another one than at the last look; what cannot be read changes nothing.
    pub fn look(&mut self) -> Option<Bounds> {
        let modified = std::fs::metadata(self.directory.join(FILE)).and_then(|file| file.modified()).ok()?;
        if self.seen.replace(modified) == Some(modified) {
            return None;
        }
        let settings = Settings::load(&self.directory);
        settings
            .inspect_err(|error| tracing::warn!(error = format!("{error:#}"), "the changed settings do not count"))
            .ok()
            .map(|s| s.bounds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_an_older_agent_get_the_defaults() {
        let settings: Settings = serde_json::from_str(r#"{"appliance":"a:1","bounds":{"ring_mib":64}}"#).unwrap();
        assert_eq!((settings.bounds.ring_mib, settings.bounds.queue_memory_mib), (64, 8));
        assert_eq!(settings.bounds.driver, Driver::Ebpf, "a weaker promise is allowed by nobody but the owner");
        let settings: Settings = serde_json::from_str(r#"{"appliance":"a:1"}"#).unwrap();
        assert_eq!(settings.bounds, Bounds::default());
        settings.bounds.check().unwrap();
    }

    #[test]
    fn bounds_have_bounds() {
        let good = Bounds::default();
        for bad in [
            Bounds { ring_mib: 48, ..good },
            Bounds { ring_mib: 0, ..good },
            Bounds { ring_mib: 1 << 11, ..good },
            Bounds { queue_memory_mib: 0, ..good },
            Bounds { queue_disk_mib: u32::MAX, ..good },
            Bounds { delta_memory_mib: (16 << 10) + 1, ..good },
            Bounds { period_seconds: 4, ..good },
            Bounds { still_ms: 30_001, ..good },
            Bounds { cpu_percent: 4, ..good },
            Bounds { read_mib: u32::MAX, ..good },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
