//! `standin-agent`: enrol once, then run as a service.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use standin_agent::serve::Service;
use standin_agent::settings::{Bounds, Driver, Settings};
use standin_agent::{control, driver};
use standin_model::{AddressFamily, NetworkPath};
use std::path::{Path, PathBuf};

#[derive(Parser)]
#[command(name = "standin-agent", version, about = "Captures this server for its stand-in")]
struct Arguments {
    /// Where identity, settings and the spilled queue are kept.
    #[arg(long, global = true, default_value = "/var/lib/standin-agent")]
    state_dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

/// How the appliance is reached; the appliance can order another way later.
#[derive(clap::Args)]
struct Network {
    /// Address of this server's to connect from, or the name of an interface.
    #[arg(long)]
    source: Option<String>,
    /// Use only addresses of one family.
    #[arg(long, value_parser = ["ipv4", "ipv6"])]
    family: Option<String>,
    /// socks5://[USER:PASSWORD@]HOST:PORT or http://[USER:PASSWORD@]HOST:PORT
    #[arg(long, env = "STANDIN_PROXY", hide_env_values = true)]
    proxy: Option<String>,
    /// The kernel's congestion control for the connection, such as bbr.
    #[arg(long)]
    congestion: Option<String>,
}

impl Network {
    fn path(self) -> Result<NetworkPath> {
        let family = self.family.map(|family| if family == "ipv4" { AddressFamily::Ipv4 } else { AddressFamily::Ipv6 });
        let path = NetworkPath { source: self.source, family, proxy: self.proxy, congestion: self.congestion };
        path.check()?;
        Ok(path)
    }
}

#[derive(Subcommand)]
enum Command {
    /// Make this agent known to an appliance, with a one-time token.
    Enrol {
        /// `host:port` of the appliance's agent listener.
        #[arg(long)]
        appliance: String,
        /// From `standin-appliance token enrolment`; `standin source add` asks for one by itself.
        #[arg(long)]
        token: String,
        #[command(flatten)]
        bounds: Bounds,
        /// Group whose members may mark the stream; only root otherwise.
        #[arg(long)]
        mark_group: Option<String>,
        #[command(flatten)]
        network: Network,
    },
    /// Serve the appliance until ended.
    Run {
        /// For this run, instead of the setting: MiB of memory that the kernel may be ahead of the agent, a power of two from 1 to 1024.
        #[arg(long)]
        ring_mib: Option<u32>,
        /// Local socket for `mark`.
        #[arg(long, default_value = control::SOCKET)]
        socket: PathBuf,
    },
    /// Name this point of the stream: what ended before is before it, what begins afterwards is behind it. Prints the item's number.
    Mark {
        /// 1 to 64 letters, digits, '.', '_' and '-'.
        name: String,
        /// Wait so many seconds until the marker survives a power cut of the appliance, and fail if it does not.
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=control::WAIT_SECONDS_MAX))]
        wait: u64,
        #[arg(long, default_value = control::SOCKET)]
        socket: PathBuf,
    },
    /// Thaw what an agent that was killed in the middle of a failover has left frozen.
    Thaw,
    /// Print what this server is made of, as JSON.
    Inventory,
    /// Print which of capture's hooks this kernel offers for each mounted file system, and why one is missing; fails when one is. Says last which driver a job
    /// gets.
    Kernel,
    /// Show or change how this server is captured, and what that may take; counts from the agent's next start.
    Capture {
        /// Anything but ebpf allows a weaker promise: by fanotify, the replica is consistent only now and then
        #[arg(long, value_enum)]
        driver: Option<Driver>,
        /// fanotify: seconds from one consistent state to the next, from 5 to 86400
        #[arg(long)]
        period_seconds: Option<u32>,
        /// fanotify: milliseconds for which this server may stand still for one, up to 30000; 0 for never
        #[arg(long)]
        still_ms: Option<u32>,
    },
    /// Show or change what a mirror or a verification may take from this server; counts at once.
    Limits {
        /// Percent of one processor that the agent may take before what can wait waits, from 5; 0 for no limit
        #[arg(long)]
        cpu_percent: Option<u32>,
        /// MiB a second that may be read from this server's disks; 0 for no limit
        #[arg(long)]
        read_mib: Option<u32>,
    },
}

/// What is not given stays as it is.
fn capture(state: &Path, asked: (Option<Driver>, Option<u32>, Option<u32>)) -> Result<()> {
    let mut settings = Settings::load(state)?;
    let now = settings.bounds;
    let (driver, period_seconds, still_ms) =
        (asked.0.unwrap_or(now.driver), asked.1.unwrap_or(now.period_seconds), asked.2.unwrap_or(now.still_ms));
    settings.bounds = Bounds { driver, period_seconds, still_ms, ..now };
    settings.bounds.check()?;
    println!("{}", driver::describe(&standin_agent::inventory::read()?, driver));
    println!("fanotify: a consistent state every {period_seconds} s at best; the server may stand still for {still_ms} ms for one");
    if settings.bounds != now {
        settings.save(state)?;
        println!("saved; next: systemctl restart standin-agent");
    }
    Ok(())
}

/// What is not given stays as it is. The running agent looks at its settings every second.
fn limits(state: &Path, cpu_percent: Option<u32>, read_mib: Option<u32>) -> Result<()> {
    let mut settings = Settings::load(state)?;
    let now = settings.bounds;
    settings.bounds = Bounds { cpu_percent: cpu_percent.unwrap_or(now.cpu_percent), read_mib: read_mib.unwrap_or(now.read_mib), ..now };
    settings.bounds.check()?;
    let said = |limit: u32, unit: &str| if limit == 0 { "no limit".to_owned() } else { format!("{limit} {unit}") };
    let bounds = settings.bounds;
    println!("processor: {}; disk reads: {}", said(bounds.cpu_percent, "% of one"), said(bounds.read_mib, "MiB/s"));
    println!(
        "memory: {} MiB ring and {} MiB queue; queue on disk: {} MiB",
        bounds.ring_mib, bounds.queue_memory_mib, bounds.queue_disk_mib
    );
    if bounds != now {
        settings.save(state)?;
        println!("saved; what the agent takes: standin job show JOB");
    }
    Ok(())
}

fn main() -> Result<()> {
    standin_agent::memory::limit();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .init();
    let arguments = Arguments::parse();
    match arguments.command {
        Command::Enrol { appliance, token, bounds, mark_group, network } => {
            bounds.check()?;
            let network = network.path()?;
            std::fs::create_dir_all(&arguments.state_dir).with_context(|| format!("cannot make {}", arguments.state_dir.display()))?;
            let hostname = standin_agent::inventory::read()?.hostname;
            let via = standin_wire::Via { path: network.clone(), ..Default::default() };
            let identity = standin_wire::enrol_via(&appliance, &token, &hostname, standin_wire::Timeouts::default(), &via)?;
            identity.save(&arguments.state_dir)?;
            standin_agent::network::forget(&arguments.state_dir);
            Settings { appliance, bounds, mark_group, network }.save(&arguments.state_dir)?;
            println!("enrolled as {}", identity.agent_id);
            Ok(())
        }
        Command::Run { ring_mib, socket } => {
            standin_agent::kernel::tell();
            Service::new(&arguments.state_dir, &socket).run(ring_mib)
        }
        Command::Mark { name, wait, socket } => {
            // A script reads this; it wants the code, not where in our program it came from.
            let marked = control::ask_mark(&socket, &name, wait).unwrap_or_else(|refusal| {
                eprintln!("{refusal}");
                std::process::exit(1)
            });
            println!("{name} is item {} of {}{}", marked.seq, marked.job, if marked.durable { ", durable on the appliance" } else { "" });
            Ok(())
        }
        Command::Thaw => {
            standin_agent::freeze::thaw_leftover(&arguments.state_dir);
            Ok(())
        }
        Command::Kernel => {
            let (text, is_whole) = standin_agent::kernel::describe();
            // Before it is enrolled, nobody has allowed anything.
            let bounds = Settings::load(&arguments.state_dir).map_or_else(|_| Bounds::default(), |settings| settings.bounds);
            print!("{text}");
            println!("{}", driver::describe(&standin_agent::inventory::read()?, bounds.driver));
            std::process::exit(i32::from(!is_whole));
        }
        Command::Capture { driver, period_seconds, still_ms } => capture(&arguments.state_dir, (driver, period_seconds, still_ms)),
        Command::Limits { cpu_percent, read_mib } => limits(&arguments.state_dir, cpu_percent, read_mib),
        Command::Inventory => {
            println!("{}", serde_json::to_string_pretty(&standin_agent::inventory::read()?)?);
            Ok(())
        }
    }
}
