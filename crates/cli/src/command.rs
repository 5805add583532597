//! One module per command that does more than print a list.

mod failover;
mod lists;
mod network;
mod points;
mod protect;
mod source;
mod verify;
mod watch;

use crate::args::{Command, JobCommand, ListCommand, MachineCommand, SourceCommand};
use crate::client::Client;
use crate::exit::Result;

pub fn run(client: &Client, command: Command, json: bool) -> Result<()> {
    match command {
        Command::Host(ListCommand::List) => lists::hosts(client, json),
        Command::Agent(ListCommand::List) => lists::agents(client, json),
        Command::Source(SourceCommand::Add(options)) => source::add(client, &options, json),
        Command::Protect(options) => protect::protect(client, &options, json),
        Command::Jobs => lists::jobs(client, json),
        Command::Job(JobCommand::Show { job }) => lists::job(client, &job, json),
        Command::Job(JobCommand::Pause { job }) => lists::change(client, &job, "pause", json),
        Command::Job(JobCommand::Resume { job }) => lists::change(client, &job, "resume", json),
        Command::Job(JobCommand::Runbook { job }) => failover::show(client, &job, json),
        Command::Job(JobCommand::BootRepair { job }) => lists::boot_repair(client, &job, json),
        Command::Job(JobCommand::Explain { job, path }) => lists::explain(client, &job, &path, json),
        Command::Job(JobCommand::Events { job }) => lists::events(client, &job, json),
        Command::Job(JobCommand::History { job }) => points::history(client, &job, json),
        Command::Job(JobCommand::Network(options)) => network::job(client, &options, json),
        Command::Network(command) => network::run(client, command, json),
        Command::Point(command) => points::run(client, command, json),
        Command::Job(JobCommand::Verifications { job }) => verify::list(client, &job, json),
        Command::Verify(options) => verify::verify(client, &options, json),
        Command::Watch { job, until, timeout } => watch::watch(client, &job, until.as_deref(), timeout, json),
        Command::Machine(MachineCommand::Start { job, waive_fence }) => failover::start_machine(client, &job, waive_fence.as_deref(), json),
        Command::Failover(options) => failover::failover(client, &options, json),
        // They need no client, and never come here.
        Command::Debug(_) | Command::Completion { .. } => Ok(()),
    }
}
