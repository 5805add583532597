//! Wants: nodes that the stream names and the replica lacks. The agent is asked to mirror them again, and until it has, the replica is
//! not consistent.
//!
//! A want is open until the node comes (`MirrorNode`; for a directory also the last page of a whole listing behind it, since a listing comes by itself
//! too) or a `Forget` of it; the agent sends `Forget` for a wanted node that is no more.
//! Its content comes behind it, and until the next `Consistent` the want is *answered* only: where another stream starts before, the agent that knew of it
//! is gone, and it is open again.
//! Wants are saved with marks and offered again after a restart and with each `Consistent`. During redo a missing node is a *suspect* only, because a later item of
//! the redo may be what removed it; at the end of redo the remaining suspects become wants.

use super::fds::Fd;
use super::handle::Handle;
use super::table::{Entry, fact};
use super::{Applier, Done, Redo};
use crate::apply::error::{ApplyError, is_fatal};
use rustix::fd::OwnedFd;
use rustix::fs::OFlags;
use rustix::io::Errno;
use standin_model::{Marker, NodeId, NodeKind, OpSeq};
use std::time::Duration;

/// More open wants than this want everything: then the agent mirrors all of it again.
pub const WANTED_MAX: usize = 65_536;

impl Applier {
    /// Nodes to ask the agent for, since the last call. After `open`, all that are still outstanding.
    pub fn take_wants(&mut self) -> Vec<NodeId> {
        std::mem::take(&mut self.fresh_wants)
    }

    pub(super) fn want(&mut self, node: NodeId) {
        if self.wanted.len() + self.answered.len() >= WANTED_MAX && !self.wanted.contains(&node) {
            return self.want_everything("too many nodes are missing or differ");
        }
        if self.wanted.insert(node) {
            self.half_wanted.remove(&node);
            self.answered.remove(&node);
            tracing::info!(%node, applied = %self.applied, "node is missing or differs on the replica, wanted");
            self.fresh_wants.push(node);
            self.unmarked = true;
        }
    }

    /// What is still wanted behind a `Consistent` has not been answered before it: the agent may have heard of it later, and then it comes twice; or the answer
    /// was lost with a queue that was full.
    fn offer_wants_again(&mut self) {
        self.fresh_wants = self.wanted.iter().copied().collect();
    }

    fn want_everything(&mut self, reason: &str) {
        if !std::mem::replace(&mut self.state.everything_wanted, true) {
            tracing::warn!(applied = %self.applied, reason, "everything has to be mirrored again");
            self.unmarked = true;
        }
    }

    /// Where the source's kernel is another one, what it may have lost is wanted; a mirror of everything shows that anyway.
    fn stream_started(&mut self, seq: OpSeq, boot: u64, everything: bool) {
        let before = self.source_boot.replace(boot);
        let answered = std::mem::take(&mut self.answered);
        if !everything {
            answered.into_iter().for_each(|node| self.want(node));
        }
        if everything || before.is_none_or(|before| before == boot) {
            return;
        }
        let (nodes, more) = self.unsettled.take();
        if more || !nodes.is_empty() {
            self.state.power_cut = Some(seq);
        }
        tracing::info!(nodes = nodes.len(), more, "the source has started again; what was not on its disks is compared");
        // Also during redo: nothing that comes later in it can know what the source lost.
        nodes.into_iter().for_each(|node| self.want(node));
        if more {
            self.want_everything("more changed than is listed since the source's disks were last synced");
        }
    }

    /// A verification that began after the source's power cut has found the replica right, or made it so.
    pub fn power_cut_is_verified(&mut self, power_cut: OpSeq) {
        if self.state.power_cut == Some(power_cut) {
            self.state.power_cut = None;
            self.unmarked = true;
        }
    }

    /// The node has come, and its content will. A directory's is its listing, whose children are nodes of their own.
    pub(super) fn answered(&mut self, node: NodeId) {
        let was_suspect = self.suspects.contains(&node);
        if self.satisfied(node) || was_suspect {
            self.answered.insert(node);
        }
    }

    /// The node has come, or is no more. Returns whether it was wanted.
    pub(super) fn satisfied(&mut self, node: NodeId) -> bool {
        self.suspects.remove(&node);
        let was_wanted = self.wanted.remove(&node);
        if was_wanted {
            self.fresh_wants.retain(|fresh| *fresh != node);
        }
        was_wanted
    }

    /// A whole listing of the directory has come.
    pub(super) fn listed(&mut self, node: NodeId) {
        self.suspects.remove(&node);
        if self.half_wanted.remove(&node) {
            self.satisfied(node);
        }
    }

    /// An operation needs a node that is not there. One that lost a name may be gone, as it should be.
    pub(super) fn missing(&mut self, node: NodeId) {
        if !self.table.get(node).is_some_and(|entry| entry.has(fact::UNLINKED)) {
            self.doubt(node);
        }
    }

    /// The node is not, or may not be, as the stream has it.
    pub(super) fn doubt(&mut self, node: NodeId) {
        if self.redoing() {
            self.suspects.insert(node);
        } else {
            self.want(node);
        }
    }

    /// A name could not be given because its node is missing: when the node comes, only a listing of the directory can name it.
    pub(super) fn unplaced(&mut self, node: NodeId, parent: NodeId) {
        if self.redoing() {
            self.unplaced.push((node, parent));
        } else {
            self.want(parent);
        }
    }

    /// The stream took a name from the node; it need not exist any more.
    pub(super) fn lost_a_name(&mut self, node: NodeId) {
        self.table.set_fact(node, fact::UNLINKED, true);
        // A descriptor would keep the space of a destroyed file.
        self.open.remove(node);
    }

    /// An open descriptor of the node, if it exists. Says nothing to anybody if not.
    pub(super) fn alive(&mut self, node: NodeId) -> Result<Option<Fd>, ApplyError> {
        if let Some(fd) = self.open.get(node) {
            return Ok(Some(fd));
        }
        let Some(entry) = self.table.get(node) else { return Ok(None) };
        let flags = super::volume::open_flags(entry.kind);
        let handle = entry.handle;
        let volume = self.volumes.find(node.volume).ok_or(ApplyError::UnknownVolume { node })?;
        match open_patiently(&handle, &volume.mount, flags) {
            Ok(fd) => {
                let fd = Fd::new(fd);
                self.keep_open(node, fd.clone())?;
                Ok(Some(fd))
            }
            Err(Errno::STALE | Errno::NOENT) => Ok(None),
            Err(source) => Err(ApplyError::Volume { volume: node.volume, doing: "opening a node by handle", source }),
        }
    }

    pub(super) fn keep_open(&mut self, node: NodeId, fd: Fd) -> Done {
        match self.open.insert(node, fd) {
            Some((evicted, fd)) => self.set_times_before_close(evicted, &fd),
            None => Ok(()),
        }
    }

    /// An open descriptor of a node that the operation needs, or `None` after having reported it.
    pub(super) fn need(&mut self, node: NodeId) -> Result<Option<Fd>, ApplyError> {
        let fd = self.alive(node)?;
        if fd.is_none() {
            self.missing(node);
        }
        Ok(fd)
    }

    /// Like `need`, for a node that must be a directory.
    pub(super) fn need_directory(&mut self, node: NodeId) -> Result<Option<Fd>, ApplyError> {
        match self.table.get(node) {
            Some(entry) if entry.kind != NodeKind::Directory => {
                self.want(node);
                Ok(None)
            }
            _ => {
                let fd = self.need(node)?;
                if fd.is_none() && !self.redoing() && !self.is_unlinked(node) {
                    // When it comes, only a listing of the directory above can name it.
                    self.table.parent(node).into_iter().for_each(|parent| self.want(parent));
                }
                Ok(fd)
            }
        }
    }

    /// Sorts a failure: the disk's own stops the applier, any other makes this node wanted.
    pub(super) fn settle<T>(&mut self, node: NodeId, doing: &'static str, result: Result<T, Errno>) -> Result<Option<T>, ApplyError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(source) if is_fatal(source) => Err(ApplyError::Volume { volume: node.volume, doing, source }),
            Err(errno) => {
                tracing::warn!(%node, doing, %errno, "operation failed on the replica");
                self.counters.operations_failed += 1;
                self.want(node);
                Ok(None)
            }
        }
    }

    pub(super) fn marker(&mut self, seq: OpSeq, marker: &Marker) -> Done {
        if *marker == Marker::ResyncStarted {
            self.forget_unnamed()?;
        }
        if *marker == Marker::Consistent && !self.redoing() {
            self.want_hollow()?;
            self.offer_wants_again();
        }
        match marker {
            Marker::Consistent => self.answered.clear(),
            Marker::StreamStarted { boot, everything } => self.stream_started(seq, *boot, *everything),
            Marker::Settled { through } => self.unsettled.settle(*through),
            _ => {}
        }
        self.state.wanted = self.wanted.len() as u64;
        match self.state.apply(seq, marker) {
            true if self.redoing() => self.bury_limbo(),
            true => self.purge_if_whole(),
            false => Ok(()),
        }
    }

    /// No walk meets a file without a name, so that whatever such a file misses in a resync would never come. The agent shows it anew when
    /// it gets a name.
    fn forget_unnamed(&mut self) -> Done {
        let unnamed: Vec<NodeId> = self.table.iter().filter(|(_, entry)| entry.has(fact::UNNAMED)).map(|(node, _)| node).collect();
        unnamed.into_iter().try_for_each(|node| self.forget(node))
    }

    /// Placeholders that stayed empty are content that the agent took for known; unless another node has taken their only name since.
    fn want_hollow(&mut self) -> Done {
        if self.table.hollow_count() == 0 {
            return Ok(());
        }
        let nodes: Vec<_> = self.table.iter().filter(|(_, entry)| entry.has(fact::HOLLOW)).map(|(node, entry)| (node, *entry)).collect();
        for (node, entry) in nodes {
            let gone = self.lies_in_limbo_only(node, &entry) || self.alive(node)?.is_none();
            if !gone {
                self.want(node);
            } else if !entry.has(fact::UNLINKED) {
                // Should it be heard of again, it is a node that the replica does not know.
                self.open.remove(node);
                self.table.remove(node);
            }
        }
        Ok(())
    }

    fn lies_in_limbo_only(&self, node: NodeId, entry: &Entry) -> bool {
        let Some(limbo) = self.volumes.find(node.volume).and_then(|volume| volume.limbo.as_ref()) else { return false };
        let name = super::place::limbo_name('l', &entry.handle);
        rustix::fs::statat(limbo, name.as_str(), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| entry.kind == NodeKind::Directory || stat.st_nlink == 1)
    }

    pub(super) fn end_redo_if_reached(&mut self) -> Done {
        if !matches!(self.redo, Redo::Through(end) if end <= self.applied) {
            return Ok(());
        }
        self.redo = Redo::Done;
        for (node, parent) in std::mem::take(&mut self.unplaced) {
            if self.alive(node)?.is_some() || !self.is_unlinked(node) {
                self.want(parent);
            }
        }
        for node in std::mem::take(&mut self.suspects) {
            if self.alive(node)?.is_some() { self.want(node) } else { self.missing(node) }
        }
        self.prove()?;
        if self.state.consistent_at.is_some() && !self.state.resync_running {
            self.want_hollow()?;
        }
        self.purge_after_redo()
    }

    fn is_unlinked(&self, node: NodeId) -> bool {
        self.table.get(node).is_some_and(|entry| entry.has(fact::UNLINKED))
    }
}

/// Opens by handle. The kernel may answer ENOMEM for a moment while it reclaims inodes; seen on a busy host with memory to spare.
/// 50 attempts of 10 ms bound the wait by half a second; then the caller stops with a retryable error.
fn open_patiently(handle: &Handle, mount: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    for _ in 0..50 {
        match handle.open(mount, flags) {
            Err(Errno::NOMEM) => std::thread::sleep(Duration::from_millis(10)),
            other => return other,
        }
    }
    handle.open(mount, flags)
}
