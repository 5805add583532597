//! `standin-e2e`: the lab as a command. `cargo xtask` calls it; every suite ends with one line `NAME: PASS …` or `NAME: FAIL why`.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match standin_e2e::cli::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
