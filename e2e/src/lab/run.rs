//! One run of the lab: its artifacts folder, and a short scratch folder for sockets.
//!
//! Artifacts (serial consoles, logs, manifests) stay after a failure, and the folder is named in the run's last line. After a
//! success they go, unless `STANDIN_KEEP_ARTIFACTS` is set.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

/// A run by name, such as `e2e-smoke`.
pub struct Run {
    name: String,
    artifacts: PathBuf,
    scratch: PathBuf,
    begun: Instant,
}

impl Run {
    /// Makes the folders. Artifacts go to `$STANDIN_ARTIFACTS`, else to `target/lab`.
    pub fn new(name: &str) -> Result<Run> {
        let stamp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let unique = format!("{name}-{stamp}-{}", std::process::id());
        let base = std::env::var_os("STANDIN_ARTIFACTS").map_or_else(|| PathBuf::from("target/lab"), PathBuf::from);
        let artifacts = std::path::absolute(base)?.join(&unique);
        fs::create_dir_all(&artifacts).with_context(|| format!("creating {}", artifacts.display()))?;
        // A UNIX socket's path has at most 107 bytes, which a build folder easily exceeds.
        let scratch = std::env::temp_dir().join(format!("sl-{}-{stamp}", std::process::id()));
        fs::create_dir_all(&scratch)?;
        Ok(Run { name: name.to_owned(), artifacts, scratch, begun: Instant::now() })
    }

    /// Where everything goes that someone may want to read after a failure.
    pub fn artifacts(&self) -> &Path {
        &self.artifacts
    }

    /// A folder with a short path; it goes with the run.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Prints a line of progress with the run's seconds in front.
    pub fn say(&self, text: &str) {
        eprintln!("[{:6.1}] {text}", self.begun.elapsed().as_secs_f64());
    }

    /// Ends the run and leaves both folders, for a guest that outlives it.
    pub fn leave(self) {
        std::mem::forget(self);
    }

    /// The run's closing line, and the status that matches it.
    pub fn finish(self, result: Result<String>) -> ExitCode {
        let seconds = self.begun.elapsed().as_secs();
        match result {
            Ok(what) => {
                if std::env::var_os("STANDIN_KEEP_ARTIFACTS").is_none() {
                    fs::remove_dir_all(&self.artifacts).ok();
                }
                println!("{}: PASS {what} ({seconds} s)", self.name);
                ExitCode::SUCCESS
            }
            Err(error) => {
                println!("{}: FAIL {error:#} ({seconds} s; artifacts in {})", self.name, self.artifacts.display());
                ExitCode::FAILURE
            }
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.scratch).ok();
    }
}
