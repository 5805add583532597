//! Offline debuggers: read a job's files as they are, also broken ones and while the appliance runs. Nothing here repairs or locks anything.

use crate::layout::Layout;
use crate::store::Store;
use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use standin_journal::{Finding, Problem};
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub enum Debug {
    /// A journal's files, by themselves.
    #[command(subcommand)]
    Journal(JournalCommand),
    /// Every job's watermarks: what the store says, and what the journal's files say.
    Watermarks {
        #[arg(long, default_value = "/var/lib/standin")]
        dir: PathBuf,
    },
}

#[derive(Subcommand)]
pub enum JournalCommand {
    /// Read everything; fails when something is damaged.
    Verify { directory: PathBuf },
    /// List every file, segment and problem.
    Dump { directory: PathBuf },
}

pub fn run(command: Debug) -> Result<()> {
    match command {
        Debug::Journal(JournalCommand::Verify { directory }) => verify(&directory),
        Debug::Journal(JournalCommand::Dump { directory }) => {
            println!("by the files in {}, as they are now", directory.display());
            standin_journal::dump(&directory, |finding| println!("{}", described(&finding))).context("reading the journal")
        }
        Debug::Watermarks { dir } => watermarks(&dir),
    }
}

fn verify(directory: &Path) -> Result<()> {
    let summary = standin_journal::verify(directory).context("reading the journal")?;
    println!("by the files in {}, as they are now", directory.display());
    println!("{}", totals(&summary));
    for problem in &summary.problems {
        println!("{}", damage(problem));
    }
    ensure!(
        summary.is_sound(),
        "STANDIN-E2001: the journal is damaged. Next: standin-appliance debug journal dump {}",
        directory.display()
    );
    Ok(())
}

fn totals(summary: &standin_journal::Summary) -> String {
    let position = |seq: Option<standin_model::OpSeq>| seq.map_or("none".to_owned(), |seq| seq.to_string());
    let (first, last) = (position(summary.first), position(summary.last));
    format!(
        "{} files, {} bytes, {} segments, {} items from {first} to {last}",
        summary.files, summary.bytes, summary.segments, summary.items
    )
}

fn described(finding: &Finding) -> String {
    match finding {
        Finding::File { path, base, epoch, bytes } => format!("file {} behind {base}, epoch {epoch}, {bytes} bytes", path.display()),
        Finding::Segment { offset, header, durable_before, items, .. } => {
            let content = items.as_ref().map_or_else(|error| format!("does not open: {error}"), |items| format!("{} items", items.len()));
            let (first, last) = (header.first_seq, header.last_seq);
            format!("  at {offset}: {first} to {last}, epoch {}, {content}, durable before it {durable_before}", header.epoch)
        }
        Finding::Problem(problem) => damage(problem),
    }
}

fn damage(problem: &Problem) -> String {
    let kind = if problem.is_torn_tail { "torn end" } else { "DAMAGE" };
    let (path, offset, expected, skipped) = (problem.path.display(), problem.offset, problem.expected, problem.skipped_bytes);
    format!(
        "  {kind} at {offset} of {path}: item {expected} was expected, {skipped} bytes skipped: {}",
        crate::errors::chain(&problem.cause)
    )
}

fn watermarks(dir: &Path) -> Result<()> {
    let layout = Layout { dir: dir.to_owned(), datastore: PathBuf::new() };
    ensure!(Layout::store(dir).exists(), "there is no store in {}. Next: standin-appliance init --address HOST:PORT", dir.display());
    for (record, job, stream) in Store::open(&Layout::store(dir))?.jobs()? {
        println!("{} ({}), {}", record.name, record.id, job.state.name());
        println!(
            "  by the store: epoch {}, acknowledged {} or more, consistent {:?}",
            stream.epoch,
            stream.acknowledged,
            job.state.consistent()
        );
        if let Some(lost) = stream.lost_after {
            println!("  by the store: acknowledged items behind {lost} were lost; a resync is owed");
        }
        match standin_journal::verify(layout.journal(&record.id)) {
            Ok(summary) => {
                println!("  by the journal's files: {}", totals(&summary));
                summary.problems.iter().for_each(|problem| println!("{}", damage(problem)));
            }
            Err(error) => println!("  the journal cannot be read: {}", crate::errors::chain(&error)),
        }
    }
    Ok(())
}
