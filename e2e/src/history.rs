//! Keeps what an appliance throws away of its journals while a suite runs, so that a difference can be traced to the items that made it.
//!
//! Hard links beside the journals hold their files; `standin debug journal grep` reads them like any others.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::command;

/// A journal's file is in use for longer.
const LOOK_EVERY: Duration = Duration::from_millis(300);
const COPY_LIMIT: Duration = Duration::from_secs(600);

/// Dropping it ends the keeping.
pub struct History {
    folder: PathBuf,
    ends: Arc<AtomicBool>,
    keeper: Option<JoinHandle<()>>,
}

impl History {
    /// Of all jobs of the appliance in this folder.
    pub fn keep(appliance: &Path) -> Result<History> {
        let folder = appliance.join("history");
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let ends = Arc::new(AtomicBool::new(false));
        let (jobs, kept, told) = (appliance.join("jobs"), folder.clone(), Arc::clone(&ends));
        let keeper = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                // While the datastore is full or its power is cut there is nothing to link.
                link_all(&jobs, &kept).ok();
                std::thread::sleep(LOOK_EVERY);
            }
        });
        Ok(History { folder, ends, keeper: Some(keeper) })
    }

    /// Copies the kept files and the replica's disk to where artifacts stay.
    pub fn save(&self, disk: &Path, artifacts: &Path) -> Result<()> {
        for (from, to) in [(self.folder.as_path(), "history"), (disk, "replica.raw")] {
            let to = artifacts.join(to);
            command::run(&["cp", "-r", "--sparse=always", &from.to_string_lossy(), &to.to_string_lossy()], COPY_LIMIT)?;
        }
        Ok(())
    }
}

fn link_all(jobs: &Path, kept: &Path) -> std::io::Result<()> {
    for job in fs::read_dir(jobs)?.flatten() {
        for file in fs::read_dir(job.path().join("journal"))?.flatten() {
            let to = kept.join(file.file_name());
            if !to.exists() {
                fs::hard_link(file.path(), to)?;
            }
        }
    }
    Ok(())
}

impl Drop for History {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(keeper) = self.keeper.take() {
            keeper.join().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_removed_is_kept() {
        let appliance = tempfile::tempdir().expect("a folder");
        let journal = appliance.path().join("jobs/a/journal");
        fs::create_dir_all(&journal).expect("a journal");
        fs::write(journal.join("1"), b"items").expect("a file of it");
        let history = History::keep(appliance.path()).expect("a keeper");
        while fs::read(appliance.path().join("history/1")).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        fs::remove_file(journal.join("1")).expect("it goes");
        let (disk, artifacts) = (appliance.path().join("disk.raw"), tempfile::tempdir().expect("a folder"));
        fs::write(&disk, b"disk").expect("a disk");
        history.save(&disk, artifacts.path()).expect("copies");
        assert_eq!(fs::read(artifacts.path().join("history/1")).expect("the file"), b"items");
        assert_eq!(fs::read(artifacts.path().join("replica.raw")).expect("the disk"), b"disk");
    }
}
