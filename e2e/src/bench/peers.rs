//! What administrators use today, run on the same sets over the same link: rsync by its daemon and over ssh, tar through a pipe.
//!
//! A peer copies what we copy: hard links, ACLs and other extended attributes, numeric owners. It ends with its last byte in the page cache; how
//! long the disk takes then is measured and told, but not counted against us.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::disk::Disk;
use super::network::{Network, TARGET_ADDRESS};
use super::{Measured, children_seconds};
use crate::lab::command;

const LIMIT: Duration = Duration::from_secs(1200);
const START_LIMIT: Duration = Duration::from_secs(20);
const RSYNC_PORT: u16 = 8730;
const SSH_PORT: u16 = 8722;
const PIPE_PORT: u16 = 8731;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The daemon, with further options.
    Rsync(&'static [&'static str]),
    RsyncSsh,
    /// tar through a TCP connection; compressed at a level of zstd.
    Tar(Option<u8>),
}

impl Peer {
    pub fn name(self) -> String {
        match self {
            Peer::Rsync([]) => "rsync daemon".into(),
            Peer::Rsync(options) => format!("rsync daemon {}", options.join(" ")),
            Peer::RsyncSsh => "rsync over ssh".into(),
            Peer::Tar(None) => "tar".into(),
            Peer::Tar(Some(level)) => format!("tar, zstd -{level}"),
        }
    }
}

/// What the peers need besides a link: the daemons' settings and keys.
pub struct Peers {
    folder: PathBuf,
}

impl Peers {
    pub fn prepare(folder: &Path) -> Result<Peers> {
        fs::create_dir_all(folder)?;
        fs::create_dir_all("/run/sshd")?;
        for key in ["host_key", "user_key"] {
            let path = folder.join(key);
            fs::remove_file(&path).ok();
            command::run(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", &path.display().to_string()], START_LIMIT)?;
        }
        let at = folder.display();
        let settings = format!(
            "Port {SSH_PORT}\nListenAddress {TARGET_ADDRESS}\nHostKey {at}/host_key\nAuthorizedKeysFile {at}/user_key.pub\n\
             PermitRootLogin yes\nStrictModes no\nUsePAM no\nPidFile none\n"
        );
        fs::write(folder.join("sshd_config"), settings)?;
        Ok(Peers { folder: folder.to_owned() })
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Copies `set` to an empty `target`, or over what an earlier copy has left there.
    pub fn copy(&self, peer: Peer, network: &Network, set: &Path, target: &Disk) -> Result<Measured> {
        let before = network.bytes()?;
        let mut server = self.serve(peer, network, target)?;
        let source_before = children_seconds()?;
        let begun = Instant::now();
        let words = self.send(peer, set, target);
        command::checked(&mut network.source(&words), LIMIT).with_context(|| peer.name())?;
        let source_after = children_seconds()?;
        if matches!(peer, Peer::Tar(_)) {
            let status = command::wait(&mut server, LIMIT)?;
            ensure!(status.is_some_and(|status| status.success()), "{}: the receiving side failed", peer.name());
        }
        let seconds = begun.elapsed().as_secs_f64();
        let traffic = network.bytes()?.since(before);
        command::end(&mut server, START_LIMIT);
        let target_processor = children_seconds()? - source_after;
        let synced = Some(seconds + target.sync()?);
        Ok(Measured { seconds, source_processor: source_after - source_before, target_processor, traffic, stream_bytes: None, synced })
    }

    /// The target's side, ready to take what comes.
    fn serve(&self, peer: Peer, network: &Network, target: &Disk) -> Result<Child> {
        let root = target.root().display();
        let words: Vec<String> = match peer {
            Peer::Rsync(_) => {
                let settings = format!(
                    "port = {RSYNC_PORT}\naddress = {TARGET_ADDRESS}\nuid = root\ngid = root\nuse chroot = no\nreverse lookup = no\n[target]\npath = {root}\nread only = no\n"
                );
                fs::write(self.folder.join("rsyncd.conf"), settings)?;
                ["rsync", "--daemon", "--no-detach", "--config", &self.path("rsyncd.conf")].map(str::to_owned).into()
            }
            Peer::RsyncSsh => ["/usr/sbin/sshd", "-D", "-e", "-f", &self.path("sshd_config")].map(str::to_owned).into(),
            Peer::Tar(level) => {
                let unpack = if level.is_some() { "| zstd -d -q" } else { "" };
                let script = format!(
                    "socat -u TCP-LISTEN:{PIPE_PORT},bind={TARGET_ADDRESS},reuseaddr STDOUT {unpack} | tar -x --xattrs --acls --numeric-owner -C \"$0\""
                );
                vec!["bash".into(), "-o".into(), "pipefail".into(), "-c".into(), script, root.to_string()]
            }
        };
        let log = fs::File::options().create(true).append(true).open(self.folder.join("peers.log"))?;
        let child = network.target(&words).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let child = child.with_context(|| format!("starting {}", words[0]))?;
        let port = match peer {
            Peer::Rsync(_) => RSYNC_PORT,
            Peer::RsyncSsh => SSH_PORT,
            Peer::Tar(_) => PIPE_PORT,
        };
        let deadline = Instant::now() + START_LIMIT;
        // Looked at from outside: socat takes one connection only.
        let listens = format!("sport = :{port}");
        while command::checked(&mut network.target(&["ss", "-Htln", &listens]), START_LIMIT)?.trim().is_empty() {
            ensure!(Instant::now() < deadline, "{}: nobody listens; see {}", peer.name(), self.path("peers.log"));
            command::pause(Duration::from_millis(20))?;
        }
        Ok(child)
    }

    fn send(&self, peer: Peer, set: &Path, target: &Disk) -> Vec<String> {
        let from = format!("{}/", set.display());
        let rsync = ["rsync", "-aHAX", "--numeric-ids"].map(str::to_owned);
        match peer {
            Peer::Rsync(options) => {
                let to = format!("rsync://{TARGET_ADDRESS}:{RSYNC_PORT}/target/");
                rsync.into_iter().chain(options.iter().map(|option| (*option).to_owned())).chain([from, to]).collect()
            }
            Peer::RsyncSsh => {
                let ssh = format!(
                    "ssh -p {SSH_PORT} -i {} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
                    self.path("user_key")
                );
                let to = format!("root@{TARGET_ADDRESS}:{}/", target.root().display());
                rsync.into_iter().chain(["-e".to_owned(), ssh, from, to]).collect()
            }
            Peer::Tar(level) => {
                let pack = level.map(|level| format!("| zstd -q -{level}")).unwrap_or_default();
                let script =
                    format!("tar -c --xattrs --acls --numeric-owner -C \"$0\" . {pack} | socat -u STDIN TCP:{TARGET_ADDRESS}:{PIPE_PORT}");
                vec!["bash".into(), "-o".into(), "pipefail".into(), "-c".into(), script, from]
            }
        }
    }
}

/// Seconds that local tar takes to unpack `archive` into an empty `target`.
pub fn unpack(archive: &Path, target: &Disk) -> Result<f64> {
    let begun = Instant::now();
    let words = [
        "tar",
        "-x",
        "--xattrs",
        "--acls",
        "--numeric-owner",
        "-f",
        &archive.display().to_string(),
        "-C",
        &target.root().display().to_string(),
    ];
    command::run(&words, LIMIT)?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Packs `set` for [`unpack`].
pub fn pack(set: &Path, archive: &Path) -> Result<()> {
    let words =
        ["tar", "-c", "--xattrs", "--acls", "--numeric-owner", "-f", &archive.display().to_string(), "-C", &set.display().to_string(), "."];
    command::run(&words, LIMIT).map(drop)
}

/// What differs between a set and its copy, by content: one line each, as rsync tells it.
pub fn differences(set: &Path, copy: &Path) -> Result<Vec<String>> {
    let (from, to) = (format!("{}/", set.display()), format!("{}/", copy.display()));
    let own = ["--exclude=/.standin-limbo", "--exclude=/lost+found"];
    let words = ["rsync", "-naHAXci", "--numeric-ids", "--delete"].into_iter().chain(own).chain([from.as_str(), to.as_str()]);
    let said = command::run(&words.collect::<Vec<_>>(), LIMIT)?;
    Ok(said.lines().map(str::to_owned).collect())
}
