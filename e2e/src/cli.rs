//! The lab's commands.

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::bench::{self, BenchArgs, ForwardArgs, SourceArgs, WanArgs};
use crate::churn::{self, ChurnArgs};
use crate::compare::{self, Log};
use crate::databases;
use crate::databases::witness::{self, WitnessArgs};
use crate::demo::{self, DemoArgs};
use crate::exact::{self, ExactArgs};
use crate::grow;
use crate::kernels::{self, KernelsArgs};
use crate::lab::vm::{BOOT_LIMIT, DiskBus, NetworkCard, free_port};
use crate::lab::{Combo, Content, FileSystem, Firmware, Image, Run, Vm, VmOptions, image};
use crate::main_job::{self, MainJobArgs};
use crate::selftest;

#[derive(Parser)]
#[command(name = "standin-e2e", about = "Standin's VM lab")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Disk images of guests.
    #[command(subcommand)]
    Image(ImageCommand),
    /// Guests.
    #[command(subcommand)]
    Vm(VmCommand),
    /// Compares the volumes of two raw disk images that no VM runs from.
    Compare(CompareArgs),
    /// Tests the lab itself: a power cut under load, a second boot, and a comparison that must find what was changed.
    Selftest(ComboArgs),
    /// The main job, shown step by step.
    Demo(DemoArgs),
    /// The main job on every kind of source, with the kill test.
    MainJob(MainJobArgs),
    /// Exact replication under churn and faults, on every file system.
    Exact(ExactArgs),
    /// The mirror over a slow link that loses packets and goes away, under a calendar of limits.
    Wan(WanArgs),
    /// Capture on every supported kernel: exact, and free where nothing changes.
    Kernels(KernelsArgs),
    /// Benchmarks against rsync and tar, in one run with them.
    Bench(BenchArgs),
    /// A source without capture, for benchmarks.
    #[command(hide = true)]
    BenchSource(SourceArgs),
    /// A file that changes when it is told to, for benchmarks.
    #[command(hide = true)]
    BenchBeat { file: PathBuf },
    /// A slow link, for benchmarks.
    #[command(hide = true)]
    BenchForward(ForwardArgs),
    /// Random file system operations in a folder; runs inside a guest.
    Churn(ChurnArgs),
    /// Makes a partition of a live disk reach to the disk's end; runs inside a guest.
    #[command(hide = true)]
    GrowPartition { device: PathBuf, number: u32 },
    /// Clients of three databases that say what was confirmed to them; runs inside a guest.
    #[command(hide = true)]
    Witness(WitnessArgs),
    /// Starts the databases of a raw disk image that no machine runs from, lets their checkers look, and prints what they hold.
    Databases { disk: PathBuf },
    /// Joins standard input and output with a TCP port; QEMU runs it for a guest's connection to the host.
    #[command(hide = true)]
    Pipe { address: String },
}

#[derive(Subcommand)]
enum ImageCommand {
    /// Builds the image if the cache does not have it, and prints its path.
    Build(ComboArgs),
}

#[derive(Subcommand)]
enum VmCommand {
    /// Boots a guest from a fresh overlay on its image and waits for ssh.
    Boot(BootArgs),
}

#[derive(Args, Clone, Copy)]
struct ComboArgs {
    #[arg(long, value_enum, default_value_t = Firmware::Bios)]
    firmware: Firmware,
    #[arg(long, value_enum, default_value_t = FileSystem::Ext4)]
    fs: FileSystem,
    /// The file system of a second volume at /var/lib/postgresql.
    #[arg(long, value_enum)]
    data: Option<FileSystem>,
    #[arg(long, value_enum, default_value_t = Content::Server)]
    content: Content,
}

#[derive(Args)]
struct BootArgs {
    #[command(flatten)]
    combo: ComboArgs,
    /// Leave the guest running and print how to reach it.
    #[arg(long)]
    keep: bool,
    /// Ports of this machine's loopback that the guest may reach at 10.0.2.100.
    #[arg(long)]
    host_port: Vec<u16>,
    #[arg(long, value_enum, default_value_t = DiskBus::VirtioBlk)]
    bus: DiskBus,
    #[arg(long, value_enum, default_value_t = NetworkCard::Virtio)]
    card: NetworkCard,
    #[arg(long, default_value_t = 1024)]
    memory_mib: u32,
}

#[derive(Args)]
struct CompareArgs {
    left: PathBuf,
    right: PathBuf,
    /// Apply the file systems' logs, on sparse copies of the disks.
    #[arg(long)]
    replay: bool,
    /// Paths that may differ; `*` stands for any characters.
    #[arg(long)]
    allow: Vec<String>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

impl From<ComboArgs> for Combo {
    fn from(args: ComboArgs) -> Combo {
        Combo { firmware: args.firmware, root: args.fs, data: args.data }
    }
}

impl Cli {
    pub fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Image(ImageCommand::Build(combo)) => {
                let built = Image::build_with(combo.into(), combo.content)?;
                println!("{} ({} MiB stored)", built.disk.path.display(), image::stored_mib(&built.disk.path));
                Ok(ExitCode::SUCCESS)
            }
            Command::Vm(VmCommand::Boot(args)) => boot(args),
            Command::Compare(args) => compare_disks(args),
            Command::Selftest(combo) => {
                let run = Run::new("selftest")?;
                let done = selftest::run(&run, combo.into());
                Ok(run.finish(done))
            }
            Command::Demo(args) => demo::run(&args),
            Command::MainJob(args) => main_job::run(&args),
            Command::Exact(args) => exact::run(&args),
            Command::Wan(args) => bench::wan(&args),
            Command::Kernels(args) => kernels::run(&args),
            Command::Bench(args) => bench::run(&args),
            Command::BenchSource(args) => bench::source(&args),
            Command::BenchBeat { file } => bench::serve_beats(&file).map(|()| ExitCode::SUCCESS),
            Command::BenchForward(args) => bench::forward(&args),
            Command::Churn(args) => churn::run(&args).map(|()| ExitCode::SUCCESS),
            Command::GrowPartition { device, number } => grow::partition(&device, number).map(|()| ExitCode::SUCCESS),
            Command::Witness(args) => witness::run(&args).map(|()| ExitCode::SUCCESS),
            Command::Databases { disk } => {
                databases::disk(&disk, &std::env::temp_dir())?.iter().for_each(|found| println!("{found:?}"));
                Ok(ExitCode::SUCCESS)
            }
            Command::Pipe { address } => pipe(&address),
        }
    }
}

fn boot(args: BootArgs) -> Result<ExitCode> {
    let run = Run::new("vm-boot")?;
    let keep = args.keep;
    let booted = boot_in(&run, args);
    if keep && booted.is_ok() {
        run.leave();
        println!("vm-boot: PASS the guest is left running");
        return Ok(ExitCode::SUCCESS);
    }
    Ok(run.finish(booted))
}

fn boot_in(run: &Run, args: BootArgs) -> Result<String> {
    let built = Image::build_with(args.combo.into(), args.combo.content)?;
    let folder = if args.keep { std::env::temp_dir() } else { run.scratch().to_owned() };
    let disk = built.disk.overlay(folder.join(format!("standin-guest-{}.qcow2", free_port()?)))?;
    let mut options = VmOptions::new("guest", built.combo.firmware, vec![disk.clone()]);
    (options.keep, options.host_ports, options.bus, options.card) = (args.keep, args.host_port, args.bus, args.card);
    options.memory_mib = args.memory_mib;
    let mut vm = Vm::start(run, options)?;
    vm.wait_for_ssh(BOOT_LIMIT)?;
    run.say(&format!("{} answers ssh after {:.1} s", built.combo.name(), vm.age().as_secs_f64()));
    if args.keep {
        println!("{}\nend it with: kill {} && rm {}", vm.ssh_command(), vm.pid(), disk.path.display());
        return Ok("the guest is left running".into());
    }
    let kernel = vm.ssh("uname -r && systemctl is-system-running --wait; findmnt -t ext4,xfs,btrfs,vfat; swapon --show")?;
    run.say(&format!("the guest says:\n{kernel}"));
    Ok(format!("{} booted", built.combo.name()))
}

fn compare_disks(args: CompareArgs) -> Result<ExitCode> {
    let log = if args.replay { Log::Replayed } else { Log::Ignored };
    let report = compare::disks(&args.left, &args.right, log, &args.allow)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        for one in &report.differences {
            println!("partition {} {}: {}: {} | {}", one.volume, one.path, one.what, one.left, one.right);
        }
    }
    let (found, allowed) = (report.differences.len(), report.allowed);
    if found > 0 {
        println!("compare: FAIL {found} differences in {} entries ({allowed} allowed)", report.entries);
        return Ok(ExitCode::FAILURE);
    }
    println!("compare: PASS {} entries are equal ({allowed} allowed differences)", report.entries);
    Ok(ExitCode::SUCCESS)
}

/// Copies both ways until either side ends. The sockets are closed by the process's end.
fn pipe(address: &str) -> Result<ExitCode> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    stream.set_nodelay(true)?;
    let mut outward = stream.try_clone()?;
    std::thread::spawn(move || {
        std::io::copy(&mut std::io::stdin().lock(), &mut outward).ok();
        outward.shutdown(std::net::Shutdown::Write).ok();
    });
    let mut inward = std::io::stdout();
    let mut buffer = vec![0u8; 64 << 10];
    loop {
        use std::io::{Read, Write};
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(ExitCode::SUCCESS);
        }
        inward.write_all(&buffer[..count])?;
        inward.flush()?;
    }
}
