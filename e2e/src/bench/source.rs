//! A source without kernel capture: the agent's own service, on a host whose only volume is a benchmark's set, and where nothing changes.
//!
//! Pump, mirror, reader, queue, sealer, TLS and session are the product's. What is left out is what this machine's kernel may not have:
//! the capture of changes. The process runs with the set as its root, so that the volume of `/` is the set.

use std::io;
use std::os::unix::fs::chroot;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Args;
use standin_agent::host::Host;
use standin_agent::serve::Service;
use standin_agent::settings::Driver;
use standin_capture::{CaptureConfig, CaptureSource, CaptureStats, Sink};
use standin_model::{ByteLen, FileSystem, Firmware, Inventory, Volume};

/// Where the agent's state is in the set, by a mount that only this process has.
pub const STATE: &str = "/run/standin-agent";
/// What the appliance calls the source and its job.
pub const NAME: &str = "bench";

#[derive(Args, Clone, Debug)]
pub struct SourceArgs {
    /// The set's mount point.
    pub root: PathBuf,
    pub uuid: String,
}

/// Serves its appliance until it is ended. Prints when a stream starts, in nanoseconds since 1970.
pub fn run(args: &SourceArgs) -> Result<ExitCode> {
    standin_agent::memory::limit();
    tracing_subscriber::fmt().with_env_filter("info").with_writer(io::stderr).init();
    chroot(&args.root).with_context(|| format!("entering {}", args.root.display()))?;
    std::env::set_current_dir("/")?;
    let service = Service::new(Path::new(STATE), Path::new("/run/standin-agent/control"));
    service.on(QuietHost { uuid: args.uuid.clone() }).run(None)?;
    Ok(ExitCode::SUCCESS)
}

struct QuietHost {
    uuid: String,
}

impl Host for QuietHost {
    fn inventory(&self) -> Result<Inventory> {
        let facts = rustix::fs::statvfs("/")?;
        let size = super::disk::DISK_BYTES.max(facts.f_blocks * facts.f_frsize);
        let inventory = inventory(&self.uuid, (facts.f_blocks - facts.f_bfree) * facts.f_frsize, facts.f_files - facts.f_ffree);
        Ok(with_size(inventory, size))
    }

    fn capture(&self, _: &CaptureConfig, _: Driver) -> Result<Box<dyn CaptureSource + Send>> {
        println!("{}", SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos());
        Ok(Box::new(Quiet))
    }
}

/// A server whose only volume is an ext4 of the bench.
pub fn inventory(uuid: &str, bytes_used: u64, nodes_used: u64) -> Inventory {
    let volume = Volume {
        mount_point: "/".into(),
        device: "/dev/bench".into(),
        file_system: Some(FileSystem::Ext4),
        file_system_name: "ext4".into(),
        uuid: uuid.into(),
        label: String::new(),
        size: ByteLen(super::disk::DISK_BYTES),
        used: ByteLen(bytes_used),
        nodes_used,
        extra_subvolumes: 0,
        partition_uuid: None,
        subvolume: None,
        features: Vec::new(),
        capture_obstacle: None,
    };
    Inventory {
        hostname: NAME.into(),
        os_name: "a benchmark's set".into(),
        kernel_release: "6.1.0".into(),
        architecture: "x86_64".into(),
        firmware: Firmware::Bios,
        cpus: 1,
        memory: ByteLen(512 << 20),
        volumes: vec![volume],
        swaps: Vec::new(),
        system_partition: None,
        network_cards: Vec::new(),
        capture_obstacles: Vec::new(),
        periodic: None,
    }
}

fn with_size(mut inventory: Inventory, size: u64) -> Inventory {
    inventory.volumes.iter_mut().for_each(|volume| volume.size = ByteLen(size));
    inventory
}

/// Nothing ever happens.
pub struct Quiet;

impl CaptureSource for Quiet {
    fn drain(&mut self, _: Sink<'_>) {}
    fn barrier(&mut self, _: Sink<'_>) {}
    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        std::thread::sleep(timeout);
        Ok(())
    }
    fn stats(&self) -> CaptureStats {
        CaptureStats::default()
    }
    fn pending_mapped(&self) -> usize {
        0
    }
    fn flush_mapped(&mut self, _: Duration) -> usize {
        0
    }
}
