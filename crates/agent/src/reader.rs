//! Reads the live file systems for the mirror: by file handle, without updating access times, without leaving the volume.
//!
//! Everything answers "gone" for a node that no longer exists; the operation that removed it is in the stream. Nodes that have seen direct I/O
//! are read with O_DIRECT, because a page that another reader left in the cache may be older than what is on the disk.

use crate::nodes::Nodes;
use rustix::fs::{AtFlags, Dir, FileType, OFlags, Statx, StatxFlags};
use rustix::io::Errno;
use standin_mirror::{Content, ListedEntry, NodeFacts, ReadError, SourceReader};
use standin_model::{Attributes, ByteLen, DirectoryEntry, Name, NodeId, NodeKind, Timestamp};
use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

mod content;
mod xattr;

pub struct LinuxReader {
    nodes: Nodes,
    /// Nodes under direct I/O; bounded by the number of such files on a server, a few hundred.
    pub direct: HashSet<NodeId>,
    buffer: content::AlignedBuffer,
    open: Option<(NodeId, OwnedFd)>,
}

impl LinuxReader {
    pub fn new(nodes: Nodes) -> LinuxReader {
        LinuxReader { nodes, direct: HashSet::new(), buffer: content::AlignedBuffer::new(), open: None }
    }

    pub fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    fn open(&self, node: NodeId, flags: OFlags) -> Result<Option<OwnedFd>, Errno> {
        match self.nodes.open(node, flags | OFlags::CLOEXEC) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::STALE | Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

fn failed(action: &'static str, node: NodeId) -> impl Fn(Errno) -> ReadError {
    move |errno| ReadError { action, node, cause: errno.to_string() }
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

fn statx(directory: BorrowedFd<'_>, name: &[u8]) -> Result<Statx, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(directory, name, flags, StatxFlags::BASIC_STATS)
}

fn nanoseconds(seconds: i64, nanoseconds: u32) -> Timestamp {
    Timestamp(seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(nanoseconds)))
}

fn changed(facts: &Statx) -> Timestamp {
    nanoseconds(facts.stx_ctime.tv_sec, facts.stx_ctime.tv_nsec)
}

fn file_type(facts: &Statx) -> FileType {
    FileType::from_raw_mode(facts.stx_mode.into())
}

impl SourceReader for LinuxReader {
    fn list(&mut self, directory: NodeId) -> Result<Option<Vec<ListedEntry>>, ReadError> {
        let failed = failed("list", directory);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOATIME;
        let Some(fd) = self.open(directory, flags).map_err(&failed)? else { return Ok(None) };
        let mut listed = Vec::new();
        let mut entries = Dir::read_from(&fd).map_err(&failed)?;
        while let Some(entry) = entries.read() {
            let entry = entry.map_err(&failed)?;
            let Ok(name) = Name::new(entry.file_name().to_bytes()) else { continue };
            match self.look_up(directory, fd.as_fd(), name) {
                Ok(entry) => listed.extend(entry),
                Err(Errno::NOENT | Errno::STALE) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        Ok(Some(listed))
    }

    fn parent(&mut self, directory: NodeId) -> Result<Option<(NodeId, Name)>, ReadError> {
        let failed = failed("find the place of", directory);
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let Some(fd) = self.open(directory, flags).map_err(&failed)? else { return Ok(None) };
        if self.nodes.root(directory.volume) == Some(directory) {
            return Ok(None);
        }
        match self.name_above(directory, fd.as_fd()) {
            Ok(place) => Ok(Some(place)),
            // It moved or went meanwhile, which the stream tells.
            Err(Errno::NOENT | Errno::STALE) => Ok(None),
            Err(errno) => Err(failed(errno)),
        }
    }

    fn look(&mut self, node: NodeId) -> Result<Option<NodeFacts>, ReadError> {
        let failed = failed("look at", node);
        let Some(fd) = self.open(node, OFlags::PATH | OFlags::NOFOLLOW).map_err(&failed)? else { return Ok(None) };
        let facts = statx(fd.as_fd(), b"").map_err(&failed)?;
        let Some(kind) = kind_of(file_type(&facts)) else { return Ok(None) };
        let (flags, project) = match kind {
            NodeKind::File | NodeKind::Directory => self.inode_flags(node).unwrap_or_default(),
            _ => (0, 0),
        };
        Ok(Some(NodeFacts {
            kind,
            named: facts.stx_nlink > 0,
            links: facts.stx_nlink.into(),
            attributes: Attributes {
                mode: u32::from(facts.stx_mode) & 0o7777,
                owner: facts.stx_uid,
                group: facts.stx_gid,
                modified: nanoseconds(facts.stx_mtime.tv_sec, facts.stx_mtime.tv_nsec),
            },
            accessed: nanoseconds(facts.stx_atime.tv_sec, facts.stx_atime.tv_nsec),
            changed: changed(&facts),
            flags,
            project,
            size: ByteLen(if kind == NodeKind::File { facts.stx_size } else { 0 }),
            xattrs: xattr::all(fd.as_fd()).map_err(&failed)?,
        }))
    }

    fn read(&mut self, node: NodeId, offset: u64, budget: usize) -> Result<Option<Content>, ReadError> {
        let failed = failed("read", node);
        let direct = self.direct.contains(&node);
        let reusable = self.open.take().filter(|(open, _)| *open == node && !direct);
        let fd = match reusable {
            Some((_, fd)) => fd,
            None => {
                let flags = OFlags::RDONLY | OFlags::NOATIME | if direct { OFlags::DIRECT } else { OFlags::empty() };
                match self.open(node, flags).map_err(&failed)? {
                    Some(fd) => fd,
                    None => return Ok(None),
                }
            }
        };
        let content = content::read(fd.as_fd(), offset, budget, &mut self.buffer).map_err(&failed)?;
        if !content.end && !direct {
            self.open = Some((node, fd));
        }
        Ok(Some(content))
    }
}

impl LinuxReader {
    fn look_up(&self, directory: NodeId, fd: BorrowedFd<'_>, name: Name) -> Result<Option<ListedEntry>, Errno> {
        let facts = statx(fd, name.as_bytes())?;
        let Some(kind) = kind_of(file_type(&facts)) else { return Ok(None) };
        // The name may have changed hands between the two calls: the id decides, and the stream corrects the rest.
        let node = self.nodes.id_at(directory, fd, &name)?;
        let target = match kind {
            NodeKind::Symlink => rustix::fs::readlinkat(fd, name.as_bytes(), Vec::new())?.into_bytes(),
            _ => Vec::new(),
        };
        let device = match kind {
            NodeKind::CharDevice | NodeKind::BlockDevice => u64::from(facts.stx_rdev_major) << 32 | u64::from(facts.stx_rdev_minor),
            _ => 0,
        };
        Ok(Some(ListedEntry {
            entry: DirectoryEntry { name, node, kind, device, target },
            changed: changed(&facts),
            links: facts.stx_nlink.into(),
            allocated: ByteLen(facts.stx_blocks * 512),
        }))
    }

    fn name_above(&self, directory: NodeId, fd: BorrowedFd<'_>) -> Result<(NodeId, Name), Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let above = rustix::fs::openat(fd, "..", flags, rustix::fs::Mode::empty())?;
        let path = rustix::fs::readlink(descriptor_path(fd), Vec::new())?.into_bytes();
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let name = Name::new(name).map_err(|_| Errno::NOENT)?;
        let parent = self.nodes.find_in(above.as_fd(), directory.volume)?;
        // The path is only what the name was a moment ago.
        if self.nodes.id_at(parent, above.as_fd(), &name)? != directory {
            return Err(Errno::NOENT);
        }
        Ok((parent, name))
    }

    /// With the project.
    fn inode_flags(&self, node: NodeId) -> Option<(u32, u32)> {
        let fd = self.open(node, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOATIME).ok()??;
        let flags = rustix::fs::ioctl_getflags(&fd).ok()?;
        Some((flags.bits(), standin_inode::project::project(fd.as_fd()).unwrap_or(0)))
    }
}

impl crate::pump::PumpReader for LinuxReader {
    fn note_direct_io(&mut self, node: NodeId) {
        self.direct.insert(node);
    }
}

/// The path through which the kernel reaches exactly this open node, for calls that take no O_PATH descriptor.
pub(crate) fn descriptor_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
