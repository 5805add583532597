//! `cargo xtask kernels`: capture on every kernel that we say we support, with voluntary and with full preemption, on every file system.
//!
//! Each kernel is booted with a small guest in memory (`guest`), which runs the capture probe: writers of every kind, of which the
//! replay of what was captured must be equal byte by byte; containers, whose whiteouts are declared and never silent; calls that no record tells, whose nodes are declared
//! lost; housekeeping, which must send
//! nothing. What the guest says on its console is read by `report`.

mod guest;
mod kernel;
mod report;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::lab::{Run, command};
use kernel::Kernel;
use report::Row;

#[derive(Args)]
pub struct KernelsArgs {
    /// Kernels by the beginning of their version, such as 6.1, which is not 6.12; all of them without it.
    #[arg(long)]
    only: Option<String>,
    /// Only this file system.
    #[arg(long)]
    fs: Option<String>,
    /// Only this preemption mode.
    #[arg(long)]
    preempt: Option<String>,
    /// Write the rows as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// The mode is a boot option of each of these kernels.
const PREEMPTION: &[&str] = &["voluntary", "full"];
/// Three file systems, three cases: it took five minutes on two cores that were busy otherwise.
const LIMIT: Duration = Duration::from_secs(30 * 60);

pub fn run(args: &KernelsArgs) -> Result<ExitCode> {
    command::heed_interrupts()?;
    let run = Run::new("kernels")?;
    let done = all(&run, args);
    Ok(run.finish(done))
}

/// Whether the wanted version is the name's, or the beginning of it that ends where a number does.
fn is_version(name: &str, wanted: &str) -> bool {
    name.strip_prefix(wanted).is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
}

fn all(run: &Run, args: &KernelsArgs) -> Result<String> {
    let named = |kernel: &&Kernel| args.only.as_deref().is_none_or(|only| is_version(&kernel.name, only));
    let kernels: Vec<&Kernel> = kernel::ALL.iter().filter(named).collect();
    let modes: Vec<&str> = PREEMPTION.iter().copied().filter(|mode| args.preempt.as_deref().is_none_or(|only| only == *mode)).collect();
    ensure!(!kernels.is_empty() && !modes.is_empty(), "there is no such kernel or mode");
    let own = std::env::current_exe()?;
    let probe = own.parent().context("the lab has no folder")?.join("examples/standin-capture-probe");
    let mut rows = Vec::new();
    for kernel in &kernels {
        let files = kernel.files()?;
        let initramfs = guest::initramfs(run, &files, &probe)?;
        for mode in &modes {
            let name = format!("{}-{mode}", kernel.name);
            run.say(&format!("booting {name}"));
            let only = args.fs.as_deref().map_or(String::new(), |only| format!(" standin.only={only}"));
            let console = guest::boot(run, &name, &files, &initramfs, &format!("preempt={mode}{only}"), LIMIT)?;
            let found = report::rows(kernel.name, mode, &console).with_context(|| name.clone())?;
            found.iter().for_each(|row| run.say(&row.to_string()));
            rows.extend(found);
        }
    }
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_string_pretty(&rows)?).with_context(|| format!("writing {}", path.display()))?;
    }
    print!("{}", report::table(&rows));
    let failed: Vec<String> = rows.iter().filter(|row| !row.pass).map(Row::name).collect();
    ensure!(failed.is_empty(), "{} of {} cases failed: {}", failed.len(), rows.len(), failed.join(", "));
    let names: Vec<&str> = kernels.iter().map(|kernel| kernel.name).collect();
    Ok(format!("{} cases on {} ({} preemption)", rows.len(), names.join(" and "), modes.join(" and ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_no_other_that_begins_alike() {
        assert!(is_version("6.12", "6.12"));
        assert!(is_version("6.1.0-13-cloud", "6.1"));
        assert!(!is_version("6.12", "6.1"));
        assert!(!is_version("6.1", "6.12"));
    }
}
