//! The commands and their options.

use crate::size;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

#[derive(Parser)]
#[command(
    name = "standin",
    version,
    about = "Protects servers by live replicas",
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused by the appliance, 4 appliance not reached."
)]
pub struct Cli {
    #[command(flatten)]
    pub connection: Connection,
    #[arg(long, global = true, value_enum, default_value = "text")]
    pub output: Output,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

#[derive(Args)]
pub struct Connection {
    /// The appliance's API, https://HOST:PORT
    #[arg(long, global = true, env = "STANDIN_URL")]
    pub url: Option<String>,
    /// File with the API token
    #[arg(long, global = true, env = "STANDIN_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// File with the appliance's CA certificate
    #[arg(long, global = true, env = "STANDIN_CA_FILE")]
    pub ca_file: Option<PathBuf>,
}

impl Cli {
    pub fn json(&self) -> bool {
        self.output == Output::Json
    }
}

#[derive(Subcommand)]
pub enum Command {
    /// Target hosts: processors, memory, storage.
    #[command(subcommand)]
    Host(ListCommand),
    /// Enrolled agents and their sources.
    #[command(subcommand)]
    Agent(ListCommand),
    /// Sources to protect.
    #[command(subcommand)]
    Source(SourceCommand),
    /// Protect a source: shows the protection summary, asks, and makes the job.
    Protect(Protect),
    /// All jobs with their status.
    Jobs,
    /// One job.
    #[command(subcommand)]
    Job(JobCommand),
    /// What all jobs together may take of the network.
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Recovery points: states of a replica that are kept.
    #[command(subcommand)]
    Point(PointCommand),
    /// Follow a job live.
    Watch {
        job: String,
        /// End when the job has reached this state, for scripts (protected, failed-over, …).
        #[arg(long)]
        until: Option<String>,
        /// Fail when that takes longer than so many seconds.
        #[arg(long)]
        timeout: Option<u64>,
    },
    /// Compare a job's replica with its live source, and wait for the result.
    Verify(Verify),
    /// Fail a job over to its replica, or take up a failover that failed behind the fence.
    Failover(Failover),
    /// Machines of jobs that have failed over.
    #[command(subcommand)]
    Machine(MachineCommand),
    /// Look at files as they are, also broken ones, on the machine where they lie. Needs no appliance.
    #[command(subcommand)]
    Debug(DebugCommand),
    /// Print a completion script.
    Completion { shell: clap_complete::Shell },
}

#[derive(Subcommand)]
pub enum ListCommand {
    List,
}

#[derive(Subcommand)]
pub enum SourceCommand {
    /// Install the agent over ssh, enrol it, and start it. The source is not rebooted.
    Add(SourceAdd),
}

#[derive(Args)]
pub struct SourceAdd {
    /// USER@HOST[:PORT]
    pub destination: String,
    /// The agent's program for the source
    #[arg(long, default_value = "standin-agent")]
    pub agent: PathBuf,
    /// Private key for ssh
    #[arg(long, short = 'i')]
    pub identity: Option<PathBuf>,
    #[arg(long, short = 'p')]
    pub port: Option<u16>,
    /// Further ssh options, as for ssh -o
    #[arg(long = "ssh-option", short = 'o')]
    pub options: Vec<String>,
    /// HOST:PORT of the appliance as the source reaches it; its own address otherwise
    #[arg(long)]
    pub appliance: Option<String>,
    /// Seconds to wait for the agent's first connection
    #[arg(long, default_value_t = 60)]
    pub timeout: u64,
}

#[derive(Args)]
pub struct Protect {
    /// Host name or agent id
    pub source: String,
    /// Mount point to protect; repeat; all that can be when absent
    #[arg(long = "volume")]
    pub volumes: Vec<String>,
    /// Glob of absolute paths to leave out; repeat
    #[arg(long = "exclude")]
    pub exclusions: Vec<String>,
    /// Replicate also what is left out by default (see the summary)
    #[arg(long)]
    pub no_default_exclusions: bool,
    /// Glob that is left out by default and is to be replicated; repeat
    #[arg(long = "no-exclude")]
    pub wanted: Vec<String>,
    /// Name of job and replica
    #[arg(long, default_value = "")]
    pub name: String,
    #[arg(long)]
    pub cpus: Option<u32>,
    #[arg(long, value_parser = size::parse)]
    pub memory: Option<u64>,
    /// MOUNT=SIZE on the replica; repeat
    #[arg(long = "disk-size", value_parser = size::parse_volume_size)]
    pub sizes: Vec<(String, u64)>,
    /// bios or uefi; as on the source when absent
    #[arg(long)]
    pub firmware: Option<String>,
    /// isolated, user, user:PORT, bridge:NAME or tap:NAME
    #[arg(long)]
    pub network: Option<String>,
    /// Show the protection summary only
    #[arg(long)]
    pub plan: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

#[derive(Subcommand)]
pub enum JobCommand {
    Show {
        job: String,
    },
    Pause {
        job: String,
    },
    Resume {
        job: String,
    },
    /// The last failover, step by step.
    Runbook {
        job: String,
    },
    /// What boot repair changed on the replica: all in which it differs from its source.
    BootRepair {
        job: String,
    },
    /// Verifications of the job, newest first, with what differed.
    Verifications {
        job: String,
    },
    /// Show or change what the job may take of the network, and which way its source's connection goes.
    Network(JobNetwork),
    /// Whether a path of the source is replicated, and by which rule not. It need not exist.
    Explain {
        job: String,
        path: String,
    },
    /// What happened to the job.
    Events {
        job: String,
    },
    /// What lies where in the job's stream: markers, recovery points, resyncs.
    History {
        job: String,
    },
}

#[derive(Subcommand)]
pub enum NetworkCommand {
    /// The limit, the calendar, and what each job gets of it.
    Show,
    /// Change them; they hold at once.
    Set(NetworkRule),
}

/// What is not given stays as it is.
#[derive(Args)]
pub struct NetworkRule {
    /// 10Mbit/s, 5GB/h, 20% of the link, or none; counts where no window holds
    #[arg(long)]
    pub limit: Option<String>,
    /// What the link can carry, for limits in per cent: 100Mbit/s, or none
    #[arg(long)]
    pub link: Option<String>,
    /// Time zone of the windows, such as Europe/Berlin
    #[arg(long)]
    pub zone: Option<String>,
    /// 'DAYS FROM-TO LIMIT', such as 'mon-fri 08:00-18:00 2Mbit/s'; repeat; the first that holds counts, and all before are replaced
    #[arg(long = "window", value_name = "WINDOW")]
    pub windows: Vec<String>,
    /// Remove all windows
    #[arg(long, conflicts_with = "windows")]
    pub no_windows: bool,
}

#[derive(Args)]
pub struct JobNetwork {
    pub job: String,
    #[command(flatten)]
    pub rule: NetworkRule,
    /// Address or interface of the source's to connect from, or any
    #[arg(long)]
    pub source: Option<String>,
    #[arg(long, value_parser = ["any", "ipv4", "ipv6"])]
    pub family: Option<String>,
    /// socks5://[USER:PASSWORD@]HOST:PORT, http://[USER:PASSWORD@]HOST:PORT, or none
    #[arg(long)]
    pub proxy: Option<String>,
    /// The source kernel's congestion control for the connection, such as bbr, or default
    #[arg(long)]
    pub congestion: Option<String>,
}

#[derive(Subcommand)]
pub enum PointCommand {
    List {
        job: String,
    },
    /// Keep the replica as it is now; it stays until it is removed.
    Create {
        job: String,
        /// 1 to 64 letters, digits, '.', '_' and '-'
        #[arg(long)]
        name: Option<String>,
    },
    Remove {
        job: String,
        /// Id or name
        point: String,
    },
    /// Show or change which points are taken and kept.
    Policy(PointPolicy),
}

#[derive(Args)]
pub struct PointPolicy {
    pub job: String,
    /// Seconds between regular points; 0 for none
    #[arg(long)]
    pub every: Option<u32>,
    /// Regular points to keep
    #[arg(long)]
    pub keep: Option<u32>,
    /// Whether a marker makes a point
    #[arg(long)]
    pub at_markers: Option<bool>,
    /// Points at markers to keep
    #[arg(long)]
    pub keep_markers: Option<u32>,
    /// Whether a consistent replica is kept before a resync changes it
    #[arg(long)]
    pub before_resync: Option<bool>,
    /// Where blocks cannot be shared: the most that is copied for one point; 0 for never
    #[arg(long, value_parser = size::parse)]
    pub copy_up_to: Option<u64>,
}

#[derive(Subcommand)]
pub enum MachineCommand {
    /// Start it when it is off, after a reboot of its host for example.
    Start {
        job: String,
        /// It may run beside its source, on your word: your name, and why
        #[arg(long, num_args = 2, value_names = ["NAME", "REASON"])]
        waive_fence: Option<Vec<String>>,
    },
}

#[derive(Args)]
pub struct Verify {
    pub job: String,
    /// Mirror again what differs, and compare it once more
    #[arg(long)]
    pub repair: bool,
    /// Most that the source reads in a second (64M otherwise)
    #[arg(long, value_parser = size::parse)]
    pub rate: Option<u64>,
    /// Do not wait for the result
    #[arg(long)]
    pub no_wait: bool,
    /// End the verification that runs
    #[arg(long, conflicts_with_all = ["repair", "rate", "every"])]
    pub stop: bool,
    /// Verify by itself from now on: every so many hours (24h) or days (7d), or off
    #[arg(long, value_parser = hours)]
    pub every: Option<u32>,
}

/// `24h` or `7d` in hours; 0 for `off`.
fn hours(text: &str) -> Result<u32, String> {
    let wrong = || format!("{text:?} is neither off nor a number of hours or days, such as 24h or 7d");
    if text == "off" {
        return Ok(0);
    }
    let (number, factor) = match (text.strip_suffix('h'), text.strip_suffix('d')) {
        (Some(number), _) => (number, 1),
        (_, Some(number)) => (number, 24),
        _ => return Err(wrong()),
    };
    let number: u32 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(factor).filter(|hours| *hours > 0).ok_or_else(wrong)
}

#[derive(Args)]
pub struct Failover {
    pub job: String,
    /// Show the runbook only
    #[arg(long)]
    pub plan: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Boot a recovery point (id or name), or `now` for the replica as it is; while a job is resyncing, its last consistent point is meant otherwise
    #[arg(long)]
    pub at: Option<String>,
    /// The source is off, on your word: your name, and why
    #[arg(long, num_args = 2, value_names = ["NAME", "REASON"])]
    pub waive_fence: Option<Vec<String>>,
}

#[derive(Subcommand)]
pub enum DebugCommand {
    /// An appliance's journal of a job: jobs/JOB/journal in its directory.
    #[command(subcommand)]
    Journal(JournalCommand),
    /// What an agent's queue has spilled to disk: queue in its directory.
    #[command(subcommand)]
    Queue(QueueCommand),
    /// Every job's watermarks, by the store, the journals and the node tables, and whether these contradict each other.
    Watermarks {
        /// The appliance's directory
        #[arg(default_value = "/var/lib/standin")]
        directory: PathBuf,
    },
    /// A replica's files.
    #[command(subcommand)]
    Replica(ReplicaCommand),
}

#[derive(Subcommand)]
pub enum JournalCommand {
    /// List every file, segment and problem.
    Dump {
        /// The journal, or one file of it
        path: PathBuf,
        /// Also every item
        #[arg(long)]
        items: bool,
    },
    /// Read everything and open every segment; tells only what is wrong.
    Verify {
        /// The journal, or one file of it
        path: PathBuf,
    },
    /// Items that are about something; all that is given must fit.
    Grep(Grep),
}

#[derive(Args)]
pub struct Grep {
    /// The journal, or one file of it
    pub path: PathBuf,
    /// Inode number, or a node as it is printed: vol0:12.00000001
    #[arg(long)]
    pub node: Option<String>,
    /// Part of a name, a link's target or an attribute's name
    #[arg(long)]
    pub name: Option<String>,
    /// Part of what is written
    #[arg(long)]
    pub content: Option<String>,
    /// Kind of operation; repeat
    #[arg(long = "kind", value_parser = crate::debug::KINDS)]
    pub kinds: Vec<String>,
    /// Item number, or FROM..TO
    #[arg(long, value_parser = crate::debug::parse_items)]
    pub items: Option<(u64, u64)>,
}

impl Grep {
    pub fn is_empty(&self) -> bool {
        self.node.is_none() && self.name.is_none() && self.content.is_none() && self.kinds.is_empty() && self.items.is_none()
    }
}

#[derive(Subcommand)]
pub enum QueueCommand {
    /// List every file, segment and problem.
    Dump {
        directory: PathBuf,
        /// Also every item
        #[arg(long)]
        items: bool,
    },
}

#[derive(Subcommand)]
pub enum ReplicaCommand {
    /// Compare two mounted trees: names, content, holes, owner, mode, modification time, attributes, hard links.
    Diff {
        left: PathBuf,
        right: PathBuf,
        /// Path without leading slash in which a difference is no matter, with * for anything; repeat
        #[arg(long)]
        allow: Vec<String>,
    },
}

#[cfg(test)]
mod tests {
    #[test]
    fn intervals() {
        for (text, expect) in [("off", Some(0)), ("24h", Some(24)), ("7d", Some(168)), ("0h", None), ("7", None), ("99999999999d", None)] {
            assert_eq!(super::hours(text).ok(), expect, "{text}");
        }
    }
}
