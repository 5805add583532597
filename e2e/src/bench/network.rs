//! Two network namespaces with one link between them: the source's and the target's. The host's own network is not touched.
//!
//! A local link is a pair of virtual Ethernet devices. A slow one is two tunnel devices with a forwarder between them, which keeps rate, delay and
//! loss (see `forward`), because not every kernel has a queue that does. Both ends are equal to every program, ours and its peers.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::forward::ForwardArgs;
use crate::lab::command;

pub const SOURCE_ADDRESS: &str = "10.77.0.1";
pub const TARGET_ADDRESS: &str = "10.77.0.2";
pub const DEVICE: &str = "bench0";
const LIMIT: Duration = Duration::from_secs(20);

static COUNT: AtomicU32 = AtomicU32::new(0);

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Link {
    Local,
    /// Bits a second each way, milliseconds each way, and the share of packets that are lost.
    Slow {
        bits: u64,
        delay_ms: u64,
        loss: f64,
    },
}

pub struct Network {
    source: String,
    target: String,
    forwarder: Option<Child>,
}

impl Network {
    pub fn new(link: Link) -> Result<Network> {
        let unique = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut network = Network { source: format!("sbs{unique}"), target: format!("sbt{unique}"), forwarder: None };
        for name in [&network.source, &network.target] {
            run(&["ip", "netns", "add", name])?;
        }
        match link {
            Link::Local => {
                let (source, target) = (&network.source, &network.target);
                run(&["ip", "-n", source, "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", target])?;
            }
            Link::Slow { bits, delay_ms, loss } => network.forwarder = Some(network.forward(bits, delay_ms, loss)?),
        }
        for (name, address) in [(&network.source, SOURCE_ADDRESS), (&network.target, TARGET_ADDRESS)] {
            run(&["ip", "-n", name, "address", "add", &format!("{address}/24"), "dev", DEVICE])?;
            for device in ["lo", DEVICE] {
                run(&["ip", "-n", name, "link", "set", device, "up"])?;
            }
        }
        Ok(network)
    }

    fn forward(&self, bits: u64, delay_ms: u64, loss: f64) -> Result<Child> {
        let arguments =
            ForwardArgs { source: self.source.clone(), target: self.target.clone(), device: DEVICE.into(), bits, delay_ms, loss };
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(std::env::current_exe()?).args(arguments.words());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting the forwarder")?;
        let line = super::first_line(&mut child)?;
        ensure!(line == "ready", "the forwarder did not start: it said {line:?}");
        Ok(child)
    }

    /// A command that runs where the source is.
    pub fn source<S: AsRef<std::ffi::OsStr>>(&self, words: &[S]) -> Command {
        inside(&self.source, words)
    }

    /// A command that runs where the target is.
    pub fn target<S: AsRef<std::ffi::OsStr>>(&self, words: &[S]) -> Command {
        inside(&self.target, words)
    }

    /// Takes the link away for a while. What is on its way is lost, and nobody is told.
    pub fn cut(&self, lasts: Duration) -> Result<()> {
        let link = |state: &str| run(&["ip", "-n", &self.target, "link", "set", DEVICE, state]).map(drop);
        link("down")?;
        let paused = command::pause(lasts);
        link("up")?;
        paused
    }

    pub fn source_namespace(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.source)
    }

    /// Whether packets have Ethernet's header.
    pub fn is_ethernet(&self) -> bool {
        self.forwarder.is_none()
    }

    /// Bytes that have left the source, with their headers, and those that came to it.
    pub fn bytes(&self) -> Result<Traffic> {
        let said = run(&["ip", "-n", &self.source, "-s", "-j", "link", "show", DEVICE])?;
        let links: Value = serde_json::from_str(&said).context("reading what ip says")?;
        let count = |way: &str| links[0]["stats64"][way]["bytes"].as_u64().with_context(|| format!("ip tells no {way} bytes"));
        Ok(Traffic { sent: count("tx")?, received: count("rx")? })
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    pub sent: u64,
    pub received: u64,
}

impl Traffic {
    pub fn since(self, before: Traffic) -> Traffic {
        Traffic { sent: self.sent - before.sent, received: self.received - before.received }
    }
}

fn inside<S: AsRef<std::ffi::OsStr>>(namespace: &str, words: &[S]) -> Command {
    let mut command = Command::new("nsenter");
    // What this process leaves behind when it is killed would hold the namespace.
    command.arg(format!("--net=/run/netns/{namespace}")).args(["--", "setpriv", "--pdeathsig", "TERM", "--"]).args(words);
    command
}

fn run(words: &[&str]) -> Result<String> {
    command::run(words, LIMIT)
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(mut forwarder) = self.forwarder.take() {
            forwarder.kill().ok();
            forwarder.wait().ok();
        }
        for name in [&self.source, &self.target] {
            run(&["ip", "netns", "delete", name]).ok();
        }
    }
}
