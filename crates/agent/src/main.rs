//! `standin-agent`: enrol once, then run as a service.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use standin_agent::serve::Service;
use standin_agent::settings::{Bounds, Settings};
use std::path::PathBuf;

#[derive(Parser)]
#[command(name = "standin-agent", version, about = "Captures this server for its stand-in")]
struct Arguments {
    /// Where identity, settings and the spilled queue are kept.
    #[arg(long, global = true, default_value = "/var/lib/standin-agent")]
    state_dir: PathBuf,
    #[command(subcommand)]
    command: Command,
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
    },
    /// Serve the appliance until ended.
    Run {
        /// For this run, instead of the setting: MiB of memory that the kernel may be ahead of the agent, a power of two from 1 to 1024.
        #[arg(long)]
        ring_mib: Option<u32>,
    },
    /// Thaw what an agent that was killed in the middle of a failover has left frozen.
    Thaw,
    /// Print what this server is made of, as JSON.
    Inventory,
}

fn main() -> Result<()> {
    standin_agent::memory::limit();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .init();
    let arguments = Arguments::parse();
    match arguments.command {
        Command::Enrol { appliance, token, bounds } => {
            bounds.check()?;
            std::fs::create_dir_all(&arguments.state_dir).with_context(|| format!("cannot make {}", arguments.state_dir.display()))?;
            let hostname = standin_agent::inventory::read()?.hostname;
            let identity = standin_wire::enrol(&appliance, &token, &hostname, standin_wire::Timeouts::default())?;
            identity.save(&arguments.state_dir)?;
            Settings { appliance, bounds }.save(&arguments.state_dir)?;
            println!("enrolled as {}", identity.agent_id);
            Ok(())
        }
        Command::Run { ring_mib } => Service::new(&arguments.state_dir).run(ring_mib),
        Command::Thaw => {
            standin_agent::freeze::thaw_leftover(&arguments.state_dir);
            Ok(())
        }
        Command::Inventory => {
            println!("{}", serde_json::to_string_pretty(&standin_agent::inventory::read()?)?);
            Ok(())
        }
    }
}
