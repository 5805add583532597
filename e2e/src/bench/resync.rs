//! A resync after an agent that ended in good order: what it sends for what has changed meanwhile, and what it reads for that.
//!
//! The set is a server's: small files, and a few large ones as databases have them. Nothing in it can be compressed, so that what is sent is what was
//! changed and nothing flatters it. Half of the changes are whole small files, half are pages at random places of some of the large ones.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::disk::Disk;
use super::mirror::check_replica;
use super::network::{Link, Network};
use super::ours::Ours;
use super::report::{Figure, Goal, Line, Sense};
use super::{Bench, say, settle};
use crate::lab::command;
use crate::random::Random;

const MB: f64 = 1e6;
/// With the set's room for what is changed, and the file system's own.
const DISK_BYTES: u64 = 28 << 30;
/// The short form has a thirty-second of each.
const SHORT: u64 = 32;
const SMALL_FILES: u64 = 200_000;
/// Of 1 to 99 KB: 10 GB in all.
const SMALL_BYTES_MAX: u64 = 100_000;
const SMALL_IN_FOLDER: u64 = 250;
const LARGE_FILES: u64 = 20;
const LARGE_BYTES: u64 = 512 << 20;
/// Large files that pages change in.
const LARGE_CHANGED: u64 = 8;
/// A page of a database.
const PAGE: u64 = 16 << 10;
/// A resync reads what changed up to a minute before the replica was last whole, because change times are stamped late. The set is older than that.
const CALM: Duration = Duration::from_secs(65);

/// What changed, and what has to be read to find it.
#[derive(Default)]
struct Changes {
    bytes: u64,
    /// Content of the files that changed.
    files_bytes: u64,
    files: u64,
    pages: u64,
}

struct Server {
    root: PathBuf,
    random: Random,
    small: u64,
    large: u64,
    large_bytes: u64,
    bytes: u64,
}

impl Server {
    fn make(root: &Path, seed: u64, part: u64) -> Result<Server> {
        let random = Random(seed ^ 0x7265_7379_6e63);
        let (small, large_bytes) = (SMALL_FILES / part, LARGE_BYTES / part / PAGE * PAGE);
        let mut server = Server { root: root.to_owned(), random, small, large: LARGE_FILES, large_bytes, bytes: 0 };
        for folder in ["proc", "run", "run/standin-agent", "small", "large"] {
            server.folder(folder)?;
        }
        for number in 0..server.small {
            if number % SMALL_IN_FOLDER == 0 {
                server.folder(&format!("small/{}", number / SMALL_IN_FOLDER))?;
            }
            server.bytes += server.write_small(number)?;
        }
        let mut piece = vec![0; 1 << 20];
        for number in 0..server.large {
            let file = File::create(server.large_path(number))?;
            let mut at = 0;
            while at < server.large_bytes {
                let len = (server.large_bytes - at).min(piece.len() as u64);
                server.random.fill(&mut piece[..len as usize]);
                file.write_all_at(&piece[..len as usize], at)?;
                at += len;
            }
            server.bytes += at;
        }
        Ok(server)
    }

    fn folder(&self, path: &str) -> Result<()> {
        fs::create_dir(self.root.join(path)).with_context(|| format!("making {path}"))
    }

    fn large_path(&self, number: u64) -> PathBuf {
        self.root.join(format!("large/{number}"))
    }

    fn write_small(&mut self, number: u64) -> Result<u64> {
        let path = self.root.join(format!("small/{}/{number}", number / SMALL_IN_FOLDER));
        let mut content = vec![0; (1000 + self.random.below(SMALL_BYTES_MAX - 2000)) as usize];
        self.random.fill(&mut content);
        fs::write(&path, &content).with_context(|| format!("writing {}", path.display()))?;
        Ok(content.len() as u64)
    }

    /// A hundredth of the bytes: a quarter in new small files, a quarter in small files that are written anew, half in pages of large ones.
    fn change(&mut self) -> Result<Changes> {
        let mut changes = Changes::default();
        let goal = self.bytes / 100;
        let mut next = self.small.next_multiple_of(SMALL_IN_FOLDER);
        while changes.bytes < goal / 4 {
            if next % SMALL_IN_FOLDER == 0 {
                self.folder(&format!("small/{}", next / SMALL_IN_FOLDER))?;
            }
            changes.bytes += self.write_small(next)?;
            changes.files += 1;
            next += 1;
        }
        // Files that lie side by side, as those of one program do that was updated.
        let mut next = self.random.below(self.small / 2);
        while changes.bytes < goal / 2 {
            changes.bytes += self.write_small(next)?;
            changes.files += 1;
            next += 1;
        }
        changes.files_bytes = changes.bytes;
        let (mut pages, mut page) = (std::collections::BTreeSet::new(), vec![0; PAGE as usize]);
        while changes.bytes < goal {
            let (number, at) = (self.random.below(LARGE_CHANGED), self.random.below(self.large_bytes / PAGE) * PAGE);
            if pages.insert((number, at)) {
                self.random.fill(&mut page);
                File::options().write(true).open(self.large_path(number))?.write_all_at(&page, at)?;
                changes.bytes += PAGE;
                changes.pages += 1;
            }
        }
        changes.files_bytes += LARGE_CHANGED * self.large_bytes;
        Ok(changes)
    }
}

pub fn measure(bench: &Bench) -> Result<Line> {
    let disk = Disk::of_size(&bench.folder, "set-resync", DISK_BYTES)?;
    let mut server = Server::make(disk.root(), bench.options.seed, if bench.options.short { SHORT } else { 1 })?;
    disk.sync()?;
    say(&format!("set resync: {} small files, {} large ones, {:.1} MB", server.small, server.large, server.bytes as f64 / MB));
    let network = Network::new(Link::Local)?;
    let mut ours = Ours::start(&network, &bench.folder.join("ours"), &disk)?;
    settle()?;
    command::pause(CALM)?;
    let first = ours.mirror()?;
    say(&format!("ours: mirrored in {:.1} s", first.seconds));
    let left = ours.leave()?;
    let changes = server.change()?;
    disk.sync()?;
    say(&format!("changed: {} files, {} pages, {:.1} MB", changes.files, changes.pages, changes.bytes as f64 / MB));
    let (resync, read_bytes) = ours.come_back(&disk, left)?;
    let replica = ours.stop()?;
    check_replica(&bench.folder, &disk, &replica)?;
    let (sent, changed, read) = (resync.traffic.sent as f64 / MB, changes.bytes as f64 / MB, read_bytes as f64 / MB);
    let (files, set) = (changes.files_bytes as f64 / MB, server.bytes as f64 / MB);
    let goals = vec![
        Goal::ratio("on the wire against what changed", "MB", sent, changed, Sense::AtMost, 1.05),
        // Each file that changed once, what differs in it twice more.
        Goal::ratio("read against the files that changed", "MB", read, files, Sense::AtMost, 1.15),
    ];
    let figures = [
        ("the set", "MB", set),
        ("changed, of the set", "", changed / set),
        ("read on the source, of the set", "", read / set),
        ("seconds until the replica is equal again", "s", resync.seconds),
        ("source's processor", "s", resync.source_processor),
        ("came back on the wire", "KB", resync.traffic.received as f64 / 1e3),
        ("mirror of everything before: seconds", "s", first.seconds),
    ];
    let figures = figures.into_iter().map(|(what, unit, value)| Figure { what: what.into(), unit, value }).collect();
    Ok(Line::new("resync", 1, goals, figures))
}
