//! Limbo's end: destroying what has no name any more, once it is certain that nothing will ask for it.
//!
//! Certain means: a `Consistent` has closed every gap, or redo has ended with no resync running. At the end of redo a known node that
//! lies in limbo although the stream took no name from it is an anomaly: it is wanted and stays, rather than being lost silently.

use super::error::{ApplyError, is_fatal};
use super::handle::Handle;
use super::place::lookup;
use super::table::fact;
use super::volume::{LIMBO_NAME, open_flags};
use super::{Applier, Done};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, Mode};
use rustix::io::Errno;
use standin_model::{NodeId, NodeKind, OpSeq, VolumeId};
use std::collections::HashSet;

impl Applier {
    pub(super) fn purge_if_whole(&mut self) -> Done {
        if self.limbo_used && !self.careful() { self.purge(&HashSet::new()) } else { Ok(()) }
    }

    /// The purge at the end of redo. Keeps known nodes that should have a name, and wants them.
    pub(super) fn purge_after_redo(&mut self) -> Done {
        if self.careful() {
            return Ok(());
        }
        let lost = self.lost_in_limbo()?;
        let keep = lost.iter().map(|(_, handle)| *handle).collect();
        self.purge(&keep)?;
        self.limbo_used = !lost.is_empty();
        for (node, unlinked) in std::mem::take(&mut self.buried) {
            // Should it be heard of again, it is a node that the replica does not know.
            if !unlinked && self.alive(node)?.is_none() {
                self.table.remove(node);
            }
        }
        lost.into_iter().for_each(|(node, _)| self.want(node));
        Ok(())
    }

    /// Destroys what is in limbo and in no table: an attempt to apply made it since the last mark, and the attempt after that made it anew. Nobody can ask
    /// for it, and one more is left by each attempt, so that a replica that is full would fill up with them for ever.
    pub(super) fn drop_strangers(&mut self) -> Done {
        let mut found = HashSet::new();
        for volume in self.volumes.iter() {
            let failed = |source| ApplyError::Volume { volume: volume.id, doing: "reading limbo", source };
            collect(volume.limbo()?, volume.id, Which::All, &mut found).map_err(failed)?;
        }
        if found.is_empty() {
            return Ok(());
        }
        let known = self.table.iter().filter(|(node, entry)| found.contains(&(node.volume, entry.handle)));
        let keep: HashSet<Handle> = known.map(|(_, entry)| entry.handle).collect();
        for volume in self.volumes.iter() {
            let failed = |source| ApplyError::Volume { volume: volume.id, doing: "emptying limbo", source };
            empty(volume.limbo()?, &keep).map_err(failed)?;
        }
        Ok(())
    }

    /// A `Consistent` within redo: what is in limbo so far is gone on the source, unless a later item names it. The first time that this was
    /// applied, it was destroyed here; what the source's nameless file went through since need not be in the stream.
    pub(super) fn bury_limbo(&mut self) -> Done {
        for (node, _, unlinked) in self.nameless_in_limbo()? {
            self.lost_a_name(node);
            self.buried.entry(node).or_insert(unlinked);
        }
        Ok(())
    }

    /// Known nodes in limbo that have no other name and that the stream took no name from.
    fn lost_in_limbo(&mut self) -> Result<Vec<(NodeId, Handle)>, ApplyError> {
        let nameless = self.nameless_in_limbo()?.into_iter();
        Ok(nameless.filter(|(_, _, unlinked)| !unlinked).map(|(node, handle, _)| (node, handle)).collect())
    }

    /// Known nodes in limbo that have no other name, and whether the stream took one from them; but not files that have none on the source.
    fn nameless_in_limbo(&mut self) -> Result<Vec<(NodeId, Handle, bool)>, ApplyError> {
        let mut found = HashSet::new();
        for volume in self.volumes.iter() {
            let failed = |source| ApplyError::Volume { volume: volume.id, doing: "reading limbo", source };
            collect(volume.limbo()?, volume.id, Which::Nameless, &mut found).map_err(failed)?;
        }
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let nameless = self.table.iter().filter(|(node, entry)| found.contains(&(node.volume, entry.handle)) && !entry.has(fact::UNNAMED));
        Ok(nameless.map(|(node, entry)| (node, entry.handle, entry.has(fact::UNLINKED))).collect())
    }

    /// Empties limbo, except for nodes to keep and files that have no name on the source either.
    fn purge(&mut self, keep: &HashSet<Handle>) -> Done {
        let unnamed = self.table.iter().filter(|(_, entry)| entry.has(fact::UNNAMED)).map(|(_, entry)| entry.handle);
        let keep: HashSet<_> = unnamed.chain(keep.iter().copied()).collect();
        for volume in self.volumes.iter() {
            let failed = |source| ApplyError::Volume { volume: volume.id, doing: "emptying limbo", source };
            empty(volume.limbo()?, &keep).map_err(failed)?;
        }
        // What the stream still knows of it is missing from here on, and will be wanted.
        self.open.close_nameless();
        self.limbo_used = false;
        Ok(())
    }

    /// Makes the replica bootable as it stands: limbo is gone, immutable flags are set, times are the source's, all is on disk.
    /// Nothing can be applied afterwards; opening the applier again brings limbo back and goes on.
    pub fn finish(&mut self) -> Result<OpSeq, ApplyError> {
        self.mark()?;
        self.purge(&HashSet::new())?;
        self.open.clear();
        for volume in self.volumes.iter_mut() {
            let failed = |source| ApplyError::Volume { volume: volume.id, doing: "removing limbo", source };
            volume.limbo = None;
            remove_tree(&volume.mount, LIMBO_NAME).map_err(failed)?;
        }
        let roots: Vec<_> = self.volumes.iter().map(|volume| volume.root).collect();
        roots.into_iter().for_each(|root| self.touch(root));
        self.set_due_times()?;
        self.set_guards()?;
        self.mark_with_intent(None)?;
        self.open.clear();
        self.finished = true;
        Ok(self.marked)
    }
}

fn names(directory: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    let mut scan = Dir::read_from(directory)?;
    while let Some(entry) = scan.read() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

fn open_directory(directory: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(directory, name, open_flags(NodeKind::Directory), Mode::empty())
}

/// Removes what is below a directory but for some inodes; a directory that holds one of them stays as well. Returns whether all went.
fn empty(directory: impl AsFd, keep: &HashSet<Handle>) -> Result<bool, Errno> {
    let directory = directory.as_fd();
    let mut all_gone = true;
    for name in names(directory)? {
        all_gone &= remove(directory, &name, keep)?;
    }
    Ok(all_gone)
}

fn remove(directory: impl AsFd, name: &[u8], keep: &HashSet<Handle>) -> Result<bool, Errno> {
    let directory = directory.as_fd();
    if !keep.is_empty() && lookup(directory, name)?.is_some_and(|handle| keep.contains(&handle)) {
        return Ok(false);
    }
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    let below = open_directory(directory, name)?;
    if !empty(&below, keep)? {
        return Ok(false);
    }
    rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR)?;
    Ok(true)
}

/// Removes a name with everything below it.
pub(super) fn remove_tree(directory: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    match remove(directory, name, &HashSet::new()) {
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    All,
    /// What has no name elsewhere: directories, and others with one link.
    Nameless,
}

/// Inodes below `directory`.
fn collect(directory: impl AsFd, volume: VolumeId, which: Which, found: &mut HashSet<(VolumeId, Handle)>) -> Result<(), Errno> {
    let directory = directory.as_fd();
    for name in names(directory)? {
        let stat = rustix::fs::statat(directory, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)?;
        let is_directory = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory;
        if let Some(handle) = lookup(directory, &name)?
            && (which == Which::All || is_directory || stat.st_nlink == 1)
        {
            found.insert((volume, handle));
        }
        if is_directory {
            match open_directory(directory, &name) {
                Ok(below) => collect(below, volume, which, found)?,
                Err(errno) if is_fatal(errno) => return Err(errno),
                Err(_) => {}
            }
        }
    }
    Ok(())
}
