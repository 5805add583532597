//! Names and attributes: announcements paired with what was stashed at the entry of the same call.

use super::{Assembler, Rename, attributes_of, same};
use crate::{
    CaptureEvent, LossReason, Sink,
    record::{FLAG_UNREAD, Kind, NAME_BYTES, RawNode, Record},
};
use standin_model::{Name, NodeId, NodeKind, Operation, RenameMode, Timestamp};

/// FS_SYNC_FL, NODUMP, NOATIME, JOURNAL_DATA, DIRSYNC, NOCOW, PROJINHERIT.
const INHERITABLE: u32 = 0x8 | 0x40 | 0x80 | 0x4000 | 0x1_0000 | 0x80_0000 | 0x2000_0000;

impl Assembler {
    pub(super) fn stash(&mut self, record: &Record<'_>) {
        let task = self.task(record);
        match record.kind {
            Kind::RenameEnter => {
                let rename = || {
                    Some(Rename {
                        node: record.node,
                        parent: record.parent,
                        new_parent: record.payload_node(0)?,
                        victim: record.payload_node(32).filter(|victim| victim.inode != 0),
                        flags: record.extra,
                        name: record.text(64, NAME_BYTES)?.to_vec(),
                        new_name: record.text(64 + NAME_BYTES, NAME_BYTES)?.to_vec(),
                    })
                };
                task.rename = rename();
                task.second_rename = false;
            }
            Kind::SymlinkEnter => task.symlink = record.text(0, record.payload.len()).map(|target| (record.parent, target.to_vec())),
            Kind::XattrEnter => {
                let value =
                    usize::try_from(record.length).ok().and_then(|length| record.payload.get(NAME_BYTES..NAME_BYTES.checked_add(length)?));
                let name = record.text(0, NAME_BYTES).filter(|_| record.flags & FLAG_UNREAD == 0);
                task.xattr = Some((record.node, name.zip(value).map(|(name, value)| (name.to_vec(), Some(mended(name, value))))));
            }
            Kind::XattrRemoveEnter => task.xattr = Some((record.node, record.text(0, NAME_BYTES).map(|name| (name.to_vec(), None)))),
            _ => task.accessed = Some((record.node, Timestamp(record.extra as i64))),
        }
    }

    pub(super) fn name(&mut self, record: &Record<'_>, id: impl Fn(RawNode) -> NodeId, sink: Sink<'_>) {
        let (parent, node) = (id(record.parent), id(record.node));
        let attributes = attributes_of(record);
        let touched = [Some((parent, record.parent.mtime)), Some((node, record.node.mtime))];
        if record.kind == Kind::Unnamed {
            self.emit(Operation::CreateUnnamed { node, attributes }, [touched[1], None], sink);
            return self.inherited(record, node, sink);
        }
        let lost = |node, reason| CaptureEvent::Lost { node, range: (0, u64::MAX), reason };
        let (Some(name), Some(kind)) = (record.text(0, NAME_BYTES).and_then(|text| Name::new(text).ok()), record.node.kind()) else {
            sink(lost(parent, LossReason::BadRecord));
            return sink(lost(node, LossReason::BadRecord));
        };
        let device = u64::from(record.rdev >> 20) << 32 | u64::from(record.rdev & 0xf_ffff);
        let operation = match (record.kind, kind) {
            (Kind::Link, _) => Operation::Link { parent, name, node },
            (Kind::Delete, NodeKind::Directory) => Operation::Rmdir { parent, name, node },
            (Kind::Delete, _) => Operation::Unlink { parent, name, node },
            (_, NodeKind::File) => Operation::Create { parent, name, node, attributes },
            (_, NodeKind::Directory) => Operation::Mkdir { parent, name, node, attributes },
            (_, NodeKind::Symlink) => match self.task(record).symlink.take() {
                Some((entered, target)) if same(&entered, &record.parent) && !target.is_empty() => {
                    Operation::Symlink { parent, name, node, target, attributes }
                }
                _ => return sink(lost(parent, LossReason::Unpaired)),
            },
            (_, kind) => Operation::Mknod { parent, name, node, kind, device, attributes },
        };
        // A snapshot of btrfs, whose root comes with all that is in it.
        let snapshot = kind == NodeKind::Directory && record.node.root != record.parent.root;
        let early = record.kind == Kind::Create && (kind == NodeKind::File || snapshot) && record.size != 0;
        self.emit(operation, touched, sink);
        if record.kind == Kind::Create && matches!(kind, NodeKind::File | NodeKind::Directory) {
            self.inherited(record, node, sink);
        }
        if record.kind == Kind::Delete && kind == NodeKind::File && record.nlink == 0 {
            self.unname(node);
        }
        if early {
            // Or visible to others before it was announced, and written to: those writes came to a node that nobody knew.
            sink(lost(node, LossReason::UsedBeforeCreation));
        }
    }

    /// What a new node has from its directory, which nothing else tells.
    fn inherited(&mut self, record: &Record<'_>, node: NodeId, sink: Sink<'_>) {
        let (flags, project) = (record.extra as u32, (record.extra >> 32) as u32);
        if flags & INHERITABLE != 0 {
            self.emit(Operation::SetFlags { node, flags }, [None; 2], sink);
        }
        if project != 0 {
            self.emit(Operation::SetProject { node, project }, [None; 2], sink);
        }
    }

    pub(super) fn rename(&mut self, record: &Record<'_>, id: impl Fn(RawNode) -> NodeId, sink: Sink<'_>) {
        let task = self.task(record);
        // A new `..` is a change of the directory itself to some file systems.
        let moved_directory = (record.node.kind() == Some(NodeKind::Directory)).then(|| id(record.node));
        if std::mem::take(&mut task.second_rename) {
            return moved_directory.into_iter().for_each(|directory| self.touch(record, directory, sink));
        }
        let entered = task.rename.take().filter(|rename| same(&rename.node, &record.node) && same(&rename.parent, &record.parent));
        let operation = entered.as_ref().and_then(|rename| {
            let mode = match rename.flags & 7 {
                0 => RenameMode::Replace,
                1 => RenameMode::NoReplace,
                2 => RenameMode::Exchange,
                _ => RenameMode::Whiteout,
            };
            Some(Operation::Rename {
                parent: id(rename.parent),
                name: Name::new(rename.name.clone()).ok()?,
                node: id(rename.node),
                new_parent: id(rename.new_parent),
                new_name: Name::new(rename.new_name.clone()).ok()?,
                mode,
                victim: rename.victim.map(&id),
            })
        });
        let (Some(rename), Some(operation)) = (entered, operation) else {
            // The new place is unknown until its directory is named, right after this.
            task.rename_lost = true;
            for raw in [record.parent, record.node] {
                sink(CaptureEvent::Lost { node: id(raw), range: (0, u64::MAX), reason: LossReason::Unpaired });
            }
            return;
        };
        task.second_rename = rename.flags & 2 != 0;
        task.moved_to = (!same(&rename.new_parent, &rename.parent)).then(|| id(rename.new_parent));
        let touched = [Some((id(record.parent), record.parent.mtime)), moved_directory.map(|node| (node, record.node.mtime))];
        // A whiteout that is left is a new node without an announcement of its own: whoever takes such a rename in looks at the old directory.
        self.emit(operation, touched, sink);
    }

    pub(super) fn attributes(&mut self, record: &Record<'_>, node: NodeId, sink: Sink<'_>) {
        let task = self.task(record);
        let xattr = task.xattr.take().filter(|(entered, ..)| same(entered, &record.node));
        let accessed = task.accessed.take().filter(|(entered, _)| same(entered, &record.node)).map(|(_, time)| time);
        let touched = [Some((node, record.node.mtime)), None];
        match xattr {
            Some((_, Some((name, Some(value))))) => self.emit(Operation::SetXattr { node, name, value }, touched, sink),
            Some((_, Some((name, None)))) => self.emit(Operation::RemoveXattr { node, name }, touched, sink),
            Some((_, None)) => sink(CaptureEvent::Lost { node, range: (0, u64::MAX), reason: LossReason::Unread }),
            None => {}
        }
        // Always all of it: an ACL changes the mode, and a change of owner clears set-id bits. Owner first for the same reason.
        self.emit(Operation::SetOwner { node, owner: record.uid, group: record.gid }, [None; 2], sink);
        if record.node.kind() != Some(NodeKind::Symlink) {
            self.emit(Operation::SetMode { node, mode: record.node.mode & 0o7777 }, touched, sink);
        }
        if accessed.is_some() {
            self.emit(Operation::SetTimes { node, accessed, modified: Some(record.node.mtime) }, touched, sink);
        }
    }

    pub(super) fn moved_to(&mut self, record: &Record<'_>, directory: NodeId, sink: Sink<'_>) {
        let task = self.task(record);
        let is_other = task.moved_to.take() == Some(directory);
        // An entry that is still there means that its announcement found no room in the ring.
        let is_lost = std::mem::take(&mut task.rename_lost) | task.rename.take().is_some();
        if is_other {
            self.touch(record, directory, sink);
        }
        if is_lost {
            sink(CaptureEvent::Lost { node: directory, range: (0, u64::MAX), reason: LossReason::Unpaired });
        }
    }
}

/// An ACL as it is in the kernel, as the attribute's value that it is told with: entries without an id (all but those of a named user or group) have
/// whatever was there before.
fn mended(name: &[u8], value: &[u8]) -> Vec<u8> {
    const USER: [u8; 2] = [2, 0];
    const GROUP: [u8; 2] = [8, 0];
    let mut value = value.to_vec();
    if name.starts_with(b"system.posix_acl_") {
        for entry in value.get_mut(4..).unwrap_or_default().chunks_exact_mut(8) {
            if entry[..2] != USER && entry[..2] != GROUP {
                entry[4..].fill(0xff);
            }
        }
    }
    value
}
