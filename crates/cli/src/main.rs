//! `standin`: the operator's command line. Everything it does goes through the appliance's REST API, but for the push-install over ssh and the
//! offline debuggers, which read files.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused by the appliance, 4 appliance not reached.

mod args;
mod client;
mod command;
mod config;
mod debug;
mod exit;
#[cfg(test)]
mod next_tests;
mod render;
mod size;

use args::{Cli, Command};
use clap::{CommandFactory, Parser};
use std::process::ExitCode;

fn main() -> ExitCode {
    // Ends quietly where what reads the output has gone, as in `standin jobs | head`.
    sigpipe::reset();
    let cli = Cli::parse();
    let json = cli.json();
    let result = match cli.command {
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "standin", &mut std::io::stdout());
            Ok(())
        }
        Command::Debug(command) => debug::run(command, json),
        command => config::resolve(&cli.connection).and_then(client::Client::new).and_then(|client| command::run(&client, command, json)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print(json);
            ExitCode::from(failure.code())
        }
    }
}
