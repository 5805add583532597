//! Checks: compares the replica with what a verification read of the source, at the very place in the stream where that was true.
//!
//! A check holds up the stream for as long as its own reading takes: at most a megabyte of content, or 128 small nodes. That is the simplest way to compare a
//! node at its position, and needs no copy of anything; the source's reading rate bounds how much of the time it takes. During redo the replica is
//! ahead of the stream, and while a gap is open it is nothing that the source was; nothing is compared then, and the next pass has another look.
//!
//! Comparing changes nothing. A part of the disk that cannot be read is a difference like any other.

use super::fds::Fd;
use super::handle::Handle;
use super::volume::open_flags;
use super::{Applier, Done, LIMBO_NAME, ReplicaState, sys};
use rustix::fd::OwnedFd;
use rustix::fs::{Advice, AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use standin_model::check::{BLOCK_BYTES, ZEROS_BYTES_MAX};
use standin_model::*;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Kept until somebody takes them, which happens many times a second; the others are counted.
const DIFFERENCES_MAX: usize = 4 * 1024;
/// Behind the last check. A slow source sends one every few seconds.
const INDEX_KEPT: Duration = Duration::from_secs(600);

/// Something in which the replica is not what the source was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    pub suspect: Suspect,
    /// In words: `content`, `extended attributes`, …; empty where it is one of several nodes.
    pub what: String,
}

/// What checks of one pass came to, since the last time that somebody asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    pub run: u64,
    pub pass: u8,
    pub checks: u64,
    /// Content read of the replica.
    pub bytes: u64,
    pub differences: Vec<Difference>,
    /// Differences that did not fit, and nodes that the replica does not know; their directories differ as well.
    pub unnamed_differences: u64,
    /// What this pass did not compare, because of redo or a gap.
    pub not_compared: Vec<Suspect>,
    pub end: Option<PassEnd>,
}

impl Comparison {
    fn differs(&mut self, node: NodeId, range: Option<(ByteOffset, ByteLen)>, what: impl Into<String>) {
        if self.differences.len() < DIFFERENCES_MAX {
            self.differences.push(Difference { suspect: Suspect { node, range }, what: what.into() });
        } else {
            self.unnamed_differences += 1;
        }
    }
}

impl Applier {
    /// What checks came to since the last call, in their order.
    pub fn take_comparisons(&mut self) -> Vec<Comparison> {
        std::mem::take(&mut self.comparisons)
    }

    /// Has these nodes mirrored again; until they have come, the replica is not consistent.
    pub fn repair(&mut self, nodes: impl IntoIterator<Item = NodeId>) -> Done {
        // A descriptor would keep a file alive whose name somebody else has removed, and nothing can be given its name again.
        self.set_due_times()?;
        self.open.clear();
        for node in nodes {
            if self.volumes.find(node.volume).is_some() {
                self.doubt(node);
            }
        }
        Ok(())
    }

    pub(super) fn check(&mut self, check: &Check) -> Done {
        // Times are set late; here they count.
        self.set_due_times()?;
        let begins = self.comparisons.last().is_none_or(|last| (last.run, last.pass) != (check.run, check.pass) || last.end.is_some());
        if begins {
            self.comparisons.push(Comparison { run: check.run, pass: check.pass, ..Comparison::default() });
        }
        let mut found = self.comparisons.pop().expect("there is one by now");
        match &check.of {
            CheckOf::End(end) => {
                found.end = Some(end.clone());
                self.table.drop_index();
                self.checked_at = None;
            }
            of => {
                self.checked_at = Some(Instant::now());
                if self.is_comparable() {
                    found.checks += 1;
                    self.compare(of, &mut found);
                } else if found.not_compared.len() < DIFFERENCES_MAX {
                    found.checks += 1;
                    self.note_not_compared(of, &mut found);
                }
                // Beyond the bound a check is not counted, and so missed at the end.
            }
        }
        self.comparisons.push(found);
        Ok(())
    }

    /// Whether the replica claims to be what the source is at this item.
    fn is_comparable(&self) -> bool {
        !self.redoing() && self.wanted.is_empty() && ReplicaState { wanted: 0, ..self.state.clone() }.is_consistent()
    }

    /// A verification that was given up leaves its index behind.
    pub(super) fn forget_old_checks(&mut self) {
        if self.checked_at.is_some_and(|at| at.elapsed() > INDEX_KEPT) {
            self.checked_at = None;
            self.table.drop_index();
        }
    }

    fn note_not_compared(&mut self, of: &CheckOf, found: &mut Comparison) {
        match of {
            CheckOf::Nodes { volume, subvolume, inodes, .. } => {
                let known = inodes.iter().filter_map(|inode| self.table.find(*volume, *subvolume, *inode));
                found.not_compared.extend(known.collect::<Vec<_>>().into_iter().map(|node| Suspect { node, range: None }));
            }
            CheckOf::Node { node, .. } => found.not_compared.push(Suspect { node: *node, range: None }),
            CheckOf::Range { node, offset, len, .. } | CheckOf::Zeros { node, offset, len } => {
                found.not_compared.push(Suspect { node: *node, range: Some((*offset, *len)) });
            }
            CheckOf::End(_) => {}
        }
    }

    fn compare(&mut self, of: &CheckOf, found: &mut Comparison) {
        match of {
            CheckOf::Nodes { volume, subvolume, inodes, digest } => self.compare_nodes(*volume, *subvolume, inodes, *digest, found),
            CheckOf::Node { node, digest } => match self.digest_of(*node, found) {
                Err(errno) => found.differs(*node, None, unreadable(errno)),
                Ok(None) => found.differs(*node, None, "missing"),
                Ok(Some((mine, kind))) if mine != *digest => found.differs(*node, None, difference(digest, &mine, kind)),
                Ok(Some(_)) => {}
            },
            CheckOf::Range { node, offset, len, digest } => {
                let same = self.content_of(*node, *offset, *len, found).map(|content| content == Some(*digest));
                self.judge(*node, *offset, *len, same, found);
            }
            CheckOf::Zeros { node, offset, len } => {
                let same = self.is_zero(*node, *offset, *len, found);
                self.judge(*node, *offset, *len, same, found);
            }
            CheckOf::End(_) => {}
        }
    }

    fn judge(&mut self, node: NodeId, offset: ByteOffset, len: ByteLen, same: Result<bool, Errno>, found: &mut Comparison) {
        let range = Some((offset, len));
        match same {
            Ok(true) => {}
            Ok(false) => found.differs(node, range, "content"),
            Err(errno) => found.differs(node, range, unreadable(errno)),
        }
    }

    fn compare_nodes(&mut self, volume: VolumeId, subvolume: u64, inodes: &[u64], digest: Digest, found: &mut Comparison) {
        let mut members = Vec::with_capacity(inodes.len());
        let (mut unknown, mut unread) = (0, false);
        for inode in inodes {
            let Some(mut node) = self.table.find(volume, subvolume, *inode) else {
                unknown += 1;
                continue;
            };
            let mut mine = self.digest_of(node, found);
            if let (Ok(None), Some(other)) = (&mine, self.other_generation(node)) {
                (node, mine) = (other, self.digest_of(other, found));
            }
            match mine {
                Ok(Some((mine, _))) => members.push((node, mine)),
                Ok(None) | Err(_) => {
                    unread = true;
                    members.push((node, NodeDigest::default()));
                }
            }
        }
        if unknown == 0 && !unread && Digest::of_nodes(members.iter().map(|(node, mine)| (*node, mine))) == digest {
            return;
        }
        // A node that nobody here knows has no generation to ask for it by; the directory that should name it differs as well.
        found.unnamed_differences += unknown;
        for (node, _) in members {
            found.differs(node, None, "");
        }
    }

    /// The table may know several nodes of one inode number, of which the source has lost all but one in a power cut.
    fn other_generation(&mut self, dead: NodeId) -> Option<NodeId> {
        let others =
            self.table.iter().map(|(node, _)| node).filter(|node| NodeId { generation: dead.generation, ..*node } == dead && *node != dead);
        others.collect::<Vec<_>>().into_iter().find(|node| !matches!(self.open_for_check(*node), Ok(None)))
    }

    /// For reading only, and not kept open: a verification opens every node once.
    fn open_for_check(&mut self, node: NodeId) -> Result<Option<(Fd, NodeKind)>, Errno> {
        let Some(entry) = self.table.get(node).copied() else { return Ok(None) };
        if let Some(fd) = self.open.get(node) {
            return Ok(Some((fd, entry.kind)));
        }
        let Some(volume) = self.volumes.find(node.volume) else { return Ok(None) };
        let flags = open_flags(entry.kind) - OFlags::RDWR;
        match entry.handle.open(&volume.mount, flags) {
            Ok(fd) => Ok(Some((Arc::new(fd), entry.kind))),
            Err(Errno::STALE | Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn digest_of(&mut self, node: NodeId, found: &mut Comparison) -> Result<Option<(NodeDigest, NodeKind)>, Errno> {
        let Some((fd, _)) = self.open_for_check(node)? else { return Ok(None) };
        let stat = rustix::fs::fstat(&fd)?;
        let Some(kind) = kind_of(FileType::from_raw_mode(stat.st_mode)) else { return Ok(None) };
        let mut xattrs = Vec::new();
        for name in sys::list_xattrs(&fd)? {
            if let Some(value) = sys::get_xattr(&fd, &name)? {
                xattrs.push((name, value));
            }
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let content = match kind {
            NodeKind::File if size <= BLOCK_BYTES => {
                let bytes = read(&fd, 0, size)?;
                found.bytes += bytes.len() as u64;
                Digest::of_content(&bytes)
            }
            NodeKind::Directory => self.names_of(node, &fd)?,
            _ => Digest::default(),
        };
        let attributes = Digest::of_attributes(kind, &attributes_of(&stat), ByteLen(size));
        Ok(Some((NodeDigest { attributes, xattrs: Digest::of_xattrs(&mut xattrs), content }, kind)))
    }

    /// Names with the nodes that they lead to. A name that leads to what the table does not know leads to no node at all.
    fn names_of(&mut self, node: NodeId, directory: &Fd) -> Result<Digest, Errno> {
        let is_root = self.volumes.root_of(node.volume) == Some(node);
        // A descriptor of its own, because reading moves the position.
        let own = rustix::fs::openat(directory, ".", open_flags(NodeKind::Directory), Mode::empty())?;
        let mut entries = Vec::new();
        let mut scan = Dir::read_from(&own)?;
        while let Some(entry) = scan.read() {
            let entry = entry?;
            let bytes = entry.file_name().to_bytes();
            let Ok(name) = Name::new(bytes) else { continue };
            if is_root && bytes == LIMBO_NAME {
                continue;
            }
            entries.push(self.entry_of(node.volume, &own, name, entry.file_type())?);
        }
        Ok(Digest::of_names(&mut entries))
    }

    fn entry_of(&mut self, volume: VolumeId, directory: &OwnedFd, name: Name, listed: FileType) -> Result<DirectoryEntry, Errno> {
        let handle = Handle::of_name(directory, name.as_bytes())?;
        let nobody = NodeId { volume, subvolume: u64::MAX, inode: 0, generation: 0 };
        let node = self.table.node_of(volume, &handle).unwrap_or(nobody);
        let plain = matches!(listed, FileType::RegularFile | FileType::Directory | FileType::Fifo | FileType::Socket);
        let (mut kind, mut device, mut target) = (kind_of(listed), 0, Vec::new());
        if !plain {
            let stat = rustix::fs::statat(directory, name.as_bytes(), AtFlags::SYMLINK_NOFOLLOW)?;
            kind = kind_of(FileType::from_raw_mode(stat.st_mode));
            match kind {
                Some(NodeKind::Symlink) => target = rustix::fs::readlinkat(directory, name.as_bytes(), Vec::new())?.into_bytes(),
                Some(NodeKind::CharDevice | NodeKind::BlockDevice) => {
                    device = u64::from(rustix::fs::major(stat.st_rdev)) << 32 | u64::from(rustix::fs::minor(stat.st_rdev));
                }
                _ => {}
            }
        }
        Ok(DirectoryEntry { name, node, kind: kind.unwrap_or(NodeKind::File), device, target })
    }

    /// Digest of a range; `None` where the file does not reach that far, or is none.
    fn content_of(&mut self, node: NodeId, offset: ByteOffset, len: ByteLen, found: &mut Comparison) -> Result<Option<Digest>, Errno> {
        let Some((fd, NodeKind::File)) = self.open_for_check(node)? else { return Ok(None) };
        // Our agent never asks for more; whoever does gets no memory for it.
        if len.0 > BLOCK_BYTES {
            return Ok(None);
        }
        let bytes = read(&fd, offset.0, len.0)?;
        found.bytes += bytes.len() as u64;
        // The appliance's memory has better uses than a file that was read once.
        let _ = rustix::fs::fadvise(&fd, offset.0, NonZeroU64::new(len.0), Advice::DontNeed);
        Ok((bytes.len() as u64 == len.0).then(|| Digest::of_content(&bytes)))
    }

    fn is_zero(&mut self, node: NodeId, offset: ByteOffset, len: ByteLen, found: &mut Comparison) -> Result<bool, Errno> {
        let Some((fd, NodeKind::File)) = self.open_for_check(node)? else { return Ok(false) };
        let end = offset.0.saturating_add(len.0);
        let size = u64::try_from(rustix::fs::fstat(&fd)?.st_size).unwrap_or(0);
        if size < end || len.0 > ZEROS_BYTES_MAX {
            return Ok(false);
        }
        let mut at = offset.0;
        while at < end {
            at = match rustix::fs::seek(&fd, SeekFrom::Data(at)) {
                Ok(data) if data < end => data,
                Ok(_) | Err(Errno::NXIO) => return Ok(true),
                Err(errno) => return Err(errno),
            };
            let bytes = read(&fd, at, (end - at).min(BLOCK_BYTES))?;
            found.bytes += bytes.len() as u64;
            if bytes.is_empty() || bytes.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += bytes.len() as u64;
        }
        Ok(true)
    }
}

fn unreadable(errno: Errno) -> String {
    format!("cannot be read: {errno}")
}

/// Which parts differ, in words.
fn difference(source: &NodeDigest, replica: &NodeDigest, kind: NodeKind) -> String {
    let content = if kind == NodeKind::Directory { "names" } else { "content" };
    let parts = [
        (source.attributes != replica.attributes, "mode, owner, size or time"),
        (source.xattrs != replica.xattrs, "extended attributes"),
        (source.content != replica.content, content),
    ];
    parts.iter().filter(|(differs, _)| *differs).map(|(_, part)| *part).collect::<Vec<_>>().join(", ")
}

fn kind_of(file_type: FileType) -> Option<NodeKind> {
    Some(match file_type {
        FileType::RegularFile => NodeKind::File,
        FileType::Directory => NodeKind::Directory,
        FileType::Symlink => NodeKind::Symlink,
        FileType::CharacterDevice => NodeKind::CharDevice,
        FileType::BlockDevice => NodeKind::BlockDevice,
        FileType::Fifo => NodeKind::Fifo,
        FileType::Socket => NodeKind::Socket,
        _ => return None,
    })
}

fn attributes_of(stat: &Stat) -> Attributes {
    let modified = Timestamp(stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec as i64));
    Attributes { mode: stat.st_mode & 0o7777, owner: stat.st_uid, group: stat.st_gid, modified }
}

/// At most `len` bytes; fewer where the file ends.
pub(super) fn read(fd: &Fd, offset: u64, len: u64) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    let mut done = 0;
    while done < bytes.len() {
        let got = rustix::io::pread(fd, &mut bytes[done..], offset.saturating_add(done as u64))?;
        if got == 0 {
            break;
        }
        done += got;
    }
    bytes.truncate(done);
    Ok(bytes)
}
