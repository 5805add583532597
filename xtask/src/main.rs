//! `cargo xtask`: the project's only script. Each suite prints one closing line, `NAME: PASS …` or `NAME: FAIL why`, and its exit
//! status says the same.

mod fuzz;
mod process;
mod setup;
mod suites;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, tests and shows Standin")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Installs the Debian packages that building and testing need.
    Setup,
    /// Protects a live server, fails over, and shows that its replica lost nothing.
    Demo {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Setup, tidy, every test, and a short main job on a real server in a VM.
    Test,
    /// Checks the rules that the compiler does not: layers, files, names, error pages.
    Tidy,
    /// Runs the simulator; `--mutants` seeds thirteen known bugs, and each has to be caught.
    Sim {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Runs a parser's fuzz target under libFuzzer; lists the targets without one.
    Fuzz {
        /// CRATE/TARGET
        target: Option<String>,
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Capture on every supported kernel: `kernels [--only 6.12] [--json FILE]`.
    Kernels {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The lab: disk images, guests, comparisons, suites on real guests.
    E2e {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measures the goals side by side with rsync and tar: `bench [NAME...] [--json FILE] [--short]`.
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Release packages.
    Dist,
}

fn main() -> ExitCode {
    let root = root();
    // Everything below names files from the workspace's root, wherever the command was typed.
    if let Err(error) = std::env::set_current_dir(&root) {
        eprintln!("error: {}: {error}", root.display());
        return ExitCode::FAILURE;
    }
    let (name, done) = match Cli::parse().command {
        Command::Setup => ("setup", setup::run()),
        Command::Tidy => ("tidy", tidy::run(&root)),
        Command::Test => ("test", suites::test(&root)),
        Command::Demo { arguments } => return suites::closing(suites::lab("demo", &["demo"], &arguments)),
        Command::E2e { arguments } => return suites::closing(suites::lab("e2e", &[], &arguments)),
        Command::Sim { arguments } => return suites::closing(suites::sim(&arguments)),
        Command::Fuzz { target, seconds } => ("fuzz", fuzz::run(&root, target.as_deref(), seconds)),
        Command::Kernels { arguments } => return suites::closing(suites::kernels(&arguments)),
        Command::Bench { arguments } => return suites::closing(suites::bench(&arguments)),
        Command::Dist => ("dist", suites::missing()),
    };
    close(name, done)
}

/// Prints the suite's closing line.
fn close(name: &str, done: anyhow::Result<String>) -> ExitCode {
    match done {
        Ok(what) => {
            println!("{name}: PASS {what}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{name}: FAIL {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's root: this crate's folder is one below it.
fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}
