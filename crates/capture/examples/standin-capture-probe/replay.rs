//! A replica in memory: applies operations by node id, and compares itself with a real tree.

use crate::opaque;
use standin_capture::{CaptureEvent, handles};
use standin_model::{Attributes, Name, NodeId, NodeKind, Operation, RenameMode, Timestamp, VolumeId};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::OsString,
    fmt, fs,
    os::unix::ffi::OsStrExt,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

struct Node {
    kind: NodeKind,
    content: Vec<u8>,
    entries: BTreeMap<Vec<u8>, NodeId>,
    attributes: Attributes,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    device: u64,
    flags: u32,
    project: u32,
}

/// Inode flags that a user sets: sync, immutable, append, no dump, no access time, synchronous directory, no copy on write, project given on.
const FLAGS: u32 = 0x8 | 0x10 | 0x20 | 0x40 | 0x80 | 0x1_0000 | 0x80_0000 | 0x2000_0000;

#[derive(Default)]
pub struct Report {
    pub nodes: u64,
    pub bytes: u64,
    pub problems: u64,
    pub lost: u64,
    /// Problems of nodes that were not declared lost: what must never be.
    pub silent: u64,
    operations: BTreeMap<&'static str, u64>,
}

impl Report {
    pub fn is_clean(&self) -> bool {
        self.problems == 0 && self.lost == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} nodes, {} bytes compared, {} problems, {} lost, {} silent; {:?}",
            self.nodes, self.bytes, self.problems, self.lost, self.silent, self.operations
        )
    }
}

pub struct Tree {
    nodes: HashMap<NodeId, Node>,
    root: NodeId,
    report: Report,
    trace: bool,
    /// Declared lost: what differs there is no surprise.
    lost: HashSet<NodeId>,
    lost_everything: bool,
    /// In the root before capture began.
    earlier: HashSet<OsString>,
}

fn id_of(path: &Path) -> NodeId {
    let parent = fs::File::open(path.parent().unwrap_or(path)).expect("open parent");
    match path.file_name() {
        Some(name) => handles::node_id_at(&parent, Path::new(name), VolumeId(0)).expect("node id"),
        None => handles::node_id_of(&parent, VolumeId(0)).expect("node id"),
    }
}

fn root_of(mount: &Path) -> NodeId {
    handles::node_id_of(fs::File::open(mount).expect("open root"), VolumeId(0)).expect("root id")
}

impl Tree {
    /// Takes the mount's root as it is; what else is there already is ignored in the comparison.
    pub fn new(mount: &Path) -> Tree {
        let root = root_of(mount);
        let mut tree = Tree {
            nodes: HashMap::new(),
            root,
            report: Report::default(),
            trace: std::env::var_os("TRACE").is_some(),
            lost: HashSet::new(),
            lost_everything: false,
            earlier: fs::read_dir(mount).expect("read root").flatten().map(|entry| entry.file_name()).collect(),
        };
        let about = fs::metadata(mount).expect("stat root");
        tree.add(
            root,
            NodeKind::Directory,
            Attributes { mode: about.mode() & 0o7777, owner: about.uid(), group: about.gid(), modified: Timestamp(0) },
            0,
        );
        tree
    }

    fn add(&mut self, node: NodeId, kind: NodeKind, attributes: Attributes, device: u64) {
        let fresh =
            Node { kind, content: Vec::new(), entries: BTreeMap::new(), attributes, xattrs: BTreeMap::new(), device, flags: 0, project: 0 };
        self.nodes.insert(node, fresh);
    }

    fn problem(&mut self, text: String) {
        self.report.problems += 1;
        if self.report.problems <= 60 {
            println!("  problem: {text}");
        }
    }

    fn node(&mut self, node: NodeId, what: &str) -> Option<&mut Node> {
        if !self.nodes.contains_key(&node) {
            self.problem(format!("{what} of unknown {node}"));
        }
        self.nodes.get_mut(&node)
    }

    fn enter(&mut self, parent: NodeId, name: &Name, node: NodeId) {
        if let Some(directory) = self.node(parent, "entry") {
            directory.entries.insert(name.as_bytes().to_vec(), node);
        }
    }

    pub fn apply(&mut self, event: CaptureEvent) {
        if self.trace {
            println!("{}", format!("{event:?}").chars().take(230).collect::<String>());
        }
        match event {
            CaptureEvent::Operation { operation, touched } => {
                let forgotten = matches!(operation, Operation::Forget { .. });
                self.operate(operation);
                for (node, modified) in touched.into_iter().flatten() {
                    if let Some(node) = self.nodes.get_mut(&node).filter(|_| !forgotten) {
                        node.attributes.modified = modified;
                    }
                }
            }
            CaptureEvent::Lost { node, range, reason } => {
                self.report.lost += 1;
                self.lost.insert(node);
                if self.report.lost < 20 {
                    println!("  lost: {node} {range:?} {reason}");
                }
            }
            CaptureEvent::LostEverything { reason } => {
                self.report.lost += 1;
                self.lost_everything = true;
                println!("  lost everything: {reason}");
            }
            CaptureEvent::DirectIo { .. } | CaptureEvent::Mapped { .. } | CaptureEvent::Changed { .. } => {}
        }
    }

    fn operate(&mut self, operation: Operation) {
        use Operation::*;
        let kind = match &operation {
            Write { .. } => "Write",
            CloneRange { .. } => "CloneRange",
            Rename { .. } => "Rename",
            Link { .. } => "Link",
            Symlink { .. } | Mknod { .. } | Create { .. } | Mkdir { .. } | CreateUnnamed { .. } => "Create*",
            Unlink { .. } | Rmdir { .. } => "Remove*",
            Truncate { .. } => "Truncate",
            Zero { .. } | Punch { .. } | Allocate { .. } | Collapse { .. } | Insert { .. } => "Fallocate*",
            SetXattr { .. } | RemoveXattr { .. } => "Xattr*",
            _ => "other",
        };
        *self.report.operations.entry(kind).or_default() += 1;
        match operation {
            Create { parent, name, node, attributes } => (self.add(node, NodeKind::File, attributes, 0), self.enter(parent, &name, node)).1,
            Mkdir { parent, name, node, attributes } => {
                (self.add(node, NodeKind::Directory, attributes, 0), self.enter(parent, &name, node)).1
            }
            Symlink { parent, name, node, target, attributes } => {
                self.add(node, NodeKind::Symlink, attributes, 0);
                self.enter(parent, &name, node);
                self.nodes.get_mut(&node).expect("just added").content = target;
            }
            Mknod { parent, name, node, kind, device, attributes } => {
                (self.add(node, kind, attributes, device), self.enter(parent, &name, node)).1
            }
            CreateUnnamed { node, attributes } => self.add(node, NodeKind::File, attributes, 0),
            Link { parent, name, node } => {
                self.node(node, "link");
                self.enter(parent, &name, node);
            }
            Unlink { parent, name, node } | Rmdir { parent, name, node } => {
                let gone = self.node(parent, "removal").and_then(|directory| directory.entries.remove(name.as_bytes()));
                if gone != Some(node) {
                    self.problem(format!("removed {name} was {gone:?}, not {node}"));
                }
            }
            Rename { parent, name, node, new_parent, new_name, mode, victim } => {
                let gone = self.node(parent, "rename").and_then(|directory| directory.entries.remove(name.as_bytes()));
                let there =
                    self.node(new_parent, "rename").and_then(|directory| directory.entries.insert(new_name.as_bytes().to_vec(), node));
                if gone != Some(node) || there != victim {
                    self.problem(format!("rename {name}: was {gone:?} over {there:?}"));
                }
                if let (RenameMode::Exchange, Some(victim)) = (mode, victim) {
                    self.enter(parent, &name, victim);
                }
                if mode == RenameMode::Whiteout {
                    // Which node was left there only a listing tells, as the mirror knows.
                    self.lost.insert(parent);
                }
            }
            Forget { node } => {
                self.nodes.remove(&node);
            }
            SetMode { node, mode } => self.change(node, |n| n.attributes.mode = mode),
            SetOwner { node, owner, group } => self.change(node, |n| (n.attributes.owner, n.attributes.group) = (owner, group)),
            SetTimes { node, modified, .. } => self.change(node, |n| n.attributes.modified = modified.unwrap_or(n.attributes.modified)),
            SetXattr { node, name, value } => self.change(node, |n| drop(n.xattrs.insert(name, value))),
            RemoveXattr { node, name } => self.change(node, |n| drop(n.xattrs.remove(&name))),
            CloneRange { origin, origin_offset, node, offset, len } => {
                let start = origin_offset.0 as usize;
                let from: Vec<u8> = self
                    .node(origin, "clone")
                    .map(|n| n.content.iter().skip(start).take(len.0 as usize).copied().collect())
                    .unwrap_or_default();
                self.change(node, |n| put(&mut n.content, offset.0, &from));
            }
            Write { node, offset, data } => self.change(node, |n| put(&mut n.content, offset.0, &data)),
            Truncate { node, size } => self.change(node, |n| n.content.resize(size.0 as usize, 0)),
            Zero { node, offset, len, keep_size } => self.change(node, |n| zero(&mut n.content, offset.0, len.0, keep_size)),
            Punch { node, offset, len } => self.change(node, |n| zero(&mut n.content, offset.0, len.0, true)),
            Allocate { node, offset, len, keep_size } => self.change(node, |n| {
                let end = (offset.0 + len.0) as usize;
                if !keep_size && n.content.len() < end {
                    n.content.resize(end, 0);
                }
            }),
            Collapse { node, offset, len } => self.change(node, |n| drop(n.content.drain(offset.0 as usize..(offset.0 + len.0) as usize))),
            Insert { node, offset, len } => self.change(node, |n| {
                let tail = n.content.split_off(offset.0 as usize);
                n.content.resize((offset.0 + len.0) as usize, 0);
                n.content.extend(tail);
            }),
            SetFlags { node, flags } => self.change(node, |n| n.flags = flags),
            SetProject { node, project } => self.change(node, |n| n.project = project),
            MirrorDirectory { .. } | MirrorNode { .. } | MirrorData { .. } | MirrorDigests { .. } | MirrorHole { .. } => {
                self.problem("no capture event".into())
            }
            Patch { .. } | Marker(_) | Check(_) => self.problem("no capture event".into()),
        }
    }

    fn change(&mut self, node: NodeId, how: impl FnOnce(&mut Node)) {
        if let Some(node) = self.node(node, "change") {
            how(node);
        }
    }

    pub fn compare(mut self, mount: &Path) -> Report {
        self.compare_directory(mount, self.root);
        self.report
    }

    fn compare_directory(&mut self, path: &Path, id: NodeId) {
        let Some(mut expected) = self.nodes.get(&id).map(|node| node.entries.clone()) else { return };
        for entry in fs::read_dir(path).expect("read directory").flatten() {
            let (name, child) = (entry.file_name(), entry.path());
            match expected.remove(name.as_bytes()) {
                None if id == self.root && self.earlier.contains(&name) => {}
                Some(node) if node == id_of(&child) => self.compare_node(&child, node),
                other => {
                    self.report.silent += u64::from(!self.lost.contains(&id) && !self.lost_everything);
                    self.problem(format!("{} is {}, replica has {other:?}", child.display(), id_of(&child)));
                }
            }
        }
        for name in expected.keys() {
            self.report.silent += u64::from(!self.lost.contains(&id) && !self.lost_everything);
            self.problem(format!("{}/{} is not on the source", path.display(), name.escape_ascii()));
        }
    }

    fn compare_node(&mut self, path: &Path, id: NodeId) {
        let about = fs::symlink_metadata(path).expect("stat");
        let Some(node) = self.nodes.get(&id) else { return self.problem(format!("{} unknown", path.display())) };
        self.report.nodes += 1;
        let mut found = Vec::new();
        let mut check = |what: &str, real: String, ours: String| {
            if real != ours {
                found.push(format!("{}: {what} is {real}, replica has {ours}", path.display()));
            }
        };
        let kind = match about.mode() & 0o170000 {
            0o100000 => NodeKind::File,
            0o040000 => NodeKind::Directory,
            0o120000 => NodeKind::Symlink,
            0o020000 => NodeKind::CharDevice,
            0o060000 => NodeKind::BlockDevice,
            0o010000 => NodeKind::Fifo,
            _ => NodeKind::Socket,
        };
        check("kind", format!("{kind:?}"), format!("{:?}", node.kind));
        let a = node.attributes;
        check("owner", format!("{}:{}", about.uid(), about.gid()), format!("{}:{}", a.owner, a.group));
        if kind != NodeKind::Symlink {
            check("mode", format!("{:o}", about.mode() & 0o7777), format!("{:o}", a.mode));
        }
        check("mtime", (about.mtime() * 1_000_000_000 + about.mtime_nsec()).to_string(), a.modified.0.to_string());
        match kind {
            NodeKind::CharDevice | NodeKind::BlockDevice => {
                check(
                    "device",
                    format!("{:#x}", u64::from(libc::major(about.rdev())) << 32 | u64::from(libc::minor(about.rdev()))),
                    format!("{:#x}", node.device),
                );
            }
            NodeKind::Symlink => {
                check("target", format!("{:?}", fs::read_link(path).expect("target").as_os_str().as_bytes()), format!("{:?}", node.content))
            }
            NodeKind::File => {
                check("size", about.len().to_string(), node.content.len().to_string());
                let mut real = vec![0; about.len() as usize];
                fs::File::open(path).and_then(|file| file.read_exact_at(&mut real, 0)).expect("read");
                self.report.bytes += real.len() as u64;
                let wrong = real.iter().zip(&node.content).enumerate().filter(|(_, (a, b))| a != b).map(|(at, _)| at);
                let (first, count) = wrong.fold((None, 0u64), |(first, count), at| (first.or(Some(at)), count + 1));
                check("content", "equal".into(), first.map_or("equal".into(), |at| format!("{count} bytes wrong from {at}")));
            }
            _ => {}
        }
        if matches!(kind, NodeKind::File | NodeKind::Directory) {
            let file = fs::File::open(path).ok();
            let flags = file.as_ref().and_then(|file| rustix::fs::ioctl_getflags(file).ok()).map_or(0, |flags| flags.bits());
            check("flags", format!("{:#x}", flags & FLAGS), format!("{:#x}", node.flags & FLAGS));
            let project = file.as_ref().and_then(opaque::project).unwrap_or(0);
            check("project", project.to_string(), node.project.to_string());
            let mut names = vec![0; 65_536];
            let length = rustix::fs::llistxattr(path, &mut names).unwrap_or(0);
            let has = |name: &[u8]| names[..length].split(|byte| *byte == 0).any(|real| real == name);
            // An ACL that says no more than the mode is none.
            let extra: Vec<&Vec<u8>> = node.xattrs.keys().filter(|name| !has(name) && *name != b"system.posix_acl_access").collect();
            check("xattrs that are not there", String::new(), extra.iter().map(|name| name.escape_ascii().to_string()).collect());
            for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty() && !name.starts_with(b"trusted.SGI_ACL")) {
                let mut value = vec![0; 65_536];
                let size = rustix::fs::lgetxattr(path, name, &mut value).unwrap_or(0);
                check(
                    "xattr",
                    format!("{:?}", Some(&value[..size.min(64)])),
                    format!("{:?}", node.xattrs.get(name).map(|v| &v[..v.len().min(64)])),
                );
            }
        }
        let is_declared = self.lost.contains(&id) || self.lost_everything;
        for text in found {
            if !is_declared {
                self.report.silent += 1;
                println!("  SILENT: {text}");
            }
            self.problem(text);
        }
        if kind == NodeKind::Directory {
            self.compare_directory(path, id);
        }
    }
}

fn put(content: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + data.len());
    if content.len() < end {
        content.resize(end, 0);
    }
    content[start..end].copy_from_slice(data);
}

fn zero(content: &mut Vec<u8>, offset: u64, len: u64, keep_size: bool) {
    let end = (offset + len) as usize;
    if !keep_size && content.len() < end {
        content.resize(end, 0);
    }
    let (start, end) = ((offset as usize).min(content.len()), end.min(content.len()));
    content[start..end].fill(0);
}
