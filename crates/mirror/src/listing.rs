//! Directories in a walk: their listings, what rules leave out of them, and which children are to be visited.

use crate::places::join;
use crate::walk::{Mirror, Task, node_item};
use crate::{ListedEntry, ReadError, SourceReader};
use standin_model::{DirectoryEntry, NodeId, NodeKind, Operation};

/// A listing page holds this many entries: about 64 KiB on the wire, so that no item grows with the directory.
const LISTING_PAGE_ENTRIES: usize = 1024;

impl Mirror {
    pub(crate) fn list_again(&mut self, node: NodeId, reader: &mut impl SourceReader, out: &mut Vec<Operation>) -> Result<(), ReadError> {
        self.unlisted.remove(&node);
        // Where it is not shown itself, its visit lists it.
        if !self.is_shown(node) {
            return Ok(());
        }
        // A listing alone would leave the directory with a time of the replica's own, if the replica fails in the middle of it.
        let Some(facts) = reader.look(node)? else { return Ok(()) };
        out.push(node_item(node, &facts));
        self.list(node, true, false, reader, out)
    }

    /// Lists a directory and has its children visited as far as they are not shown. `send` puts the listing into the stream; `distrust` says
    /// that names may have come in unseen, so that also children count as unknown that have changed since.
    pub(crate) fn list(
        &mut self,
        node: NodeId,
        send: bool,
        distrust: bool,
        reader: &mut impl SourceReader,
        out: &mut Vec<Operation>,
    ) -> Result<(), ReadError> {
        self.find_place(node, reader)?;
        let path = self.path_of(node);
        let moved = self.reconsidered.contains(&node);
        if moved && !self.excluded.contains(&node) {
            self.hollow.remove(&node);
        }
        if self.hollow.contains(&node) || path.as_ref().is_some_and(|p| !p.is_empty() && self.exclusions.matches(p)) {
            self.hollow.insert(node);
            self.tasks.push_front(Task::Hollow { node });
            if send {
                out.push(Operation::MirrorDirectory { node, entries: Vec::new(), first: true, last: true });
            }
            return Ok(());
        }
        let Some(listed) = reader.list(node)? else { return Ok(()) };
        self.reconsidered.remove(&node);
        let kept: Vec<ListedEntry> = listed.into_iter().filter(|l| !self.leave_out(node, path.as_deref(), l)).collect();
        for listed in kept.iter().rev() {
            self.meet_shown_name(node, listed);
            if moved && listed.entry.kind == NodeKind::Directory {
                self.reconsider(listed.entry.node);
            }
            self.queue_child(listed, distrust || moved);
            if send && !self.is_shown(listed.entry.node) {
                self.announced.insert(listed.entry.node);
            }
        }
        if send {
            page_listing(node, kept, out);
        }
        Ok(())
    }

    fn leave_out(&mut self, parent: NodeId, path: Option<&[u8]>, listed: &ListedEntry) -> bool {
        let child = listed.entry.node;
        if listed.entry.kind == NodeKind::Directory {
            if self.put(child, parent, &listed.entry.name) {
                self.reconsider(child);
            }
            return false;
        }
        let out = path.is_some_and(|p| !self.exclusions.is_empty() && self.exclusions.matches(&join(p, &listed.entry.name)));
        if out {
            self.meet_excluded_name(parent, listed);
        }
        out
    }

    fn queue_child(&mut self, listed: &ListedEntry, distrust: bool) {
        let (node, directory) = (listed.entry.node, listed.entry.kind == NodeKind::Directory);
        self.unnamed.remove(&node);
        self.nameless.remove(&node);
        // While live, a node that the replica does not know has changed (been created, linked or moved) since the gap began.
        // The node that a rename leaves for overlayfs is announced by nobody.
        let unseen = distrust || is_whiteout(&listed.entry);
        if self.live && unseen && self.is_shown(node) && !self.unchanged(node, listed.changed) {
            self.make_stale(node);
        }
        if self.is_shown(node) {
            return;
        }
        let task = Task::Visit { node, directory, changed: listed.changed };
        if directory { self.tasks.push_back(task) } else { self.tasks.push_front(task) }
    }
}

fn is_whiteout(entry: &DirectoryEntry) -> bool {
    entry.kind == NodeKind::CharDevice && entry.device == 0
}

fn page_listing(node: NodeId, listed: Vec<ListedEntry>, out: &mut Vec<Operation>) {
    let mut entries: Vec<_> = listed.into_iter().map(|l| l.entry).collect();
    let mut first = true;
    loop {
        let rest = entries.split_off(entries.len().min(LISTING_PAGE_ENTRIES));
        let last = rest.is_empty();
        out.push(Operation::MirrorDirectory { node, entries, first, last });
        if last {
            return;
        }
        (entries, first) = (rest, false);
    }
}
