//! What is gone, what has no name, and what nobody has met below what is excluded.

use super::*;
use crate::*;
use standin_model::*;
use std::collections::BTreeMap;

const ROOT: u64 = 2;
const OUT: u64 = 3;

fn id(inode: u64) -> NodeId {
    NodeId { volume: VolumeId(0), subvolume: 0, inode, generation: 1 }
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

/// Directories by inode, with the nodes that they name; numbers from 100 on are files, which exist without a name as well.
#[derive(Default)]
struct Disk {
    directories: BTreeMap<u64, BTreeMap<String, u64>>,
    open: Vec<u64>,
}

impl Disk {
    fn new() -> Disk {
        let mut disk = Disk::default();
        disk.directories.insert(ROOT, BTreeMap::from([("out".to_owned(), OUT), ("d".to_owned(), 4), ("file".to_owned(), 100)]));
        disk.directories.insert(OUT, BTreeMap::new());
        disk.directories.insert(4, BTreeMap::new());
        disk
    }

    fn links(&self, node: u64) -> u64 {
        self.directories.values().flat_map(|names| names.values()).filter(|named| **named == node).count() as u64
    }
}

impl SourceReader for Disk {
    fn list(&mut self, directory: NodeId) -> Result<Option<Vec<ListedEntry>>, ReadError> {
        let Some(names) = self.directories.get(&directory.inode) else { return Ok(None) };
        let entry = |(text, node): (&String, &u64)| ListedEntry {
            entry: DirectoryEntry {
                name: name(text),
                node: id(*node),
                kind: if *node < 100 { NodeKind::Directory } else { NodeKind::File },
                device: 0,
                target: vec![],
            },
            changed: Timestamp(0),
            links: self.links(*node),
            allocated: ByteLen(0),
        };
        Ok(Some(names.iter().map(entry).collect()))
    }
    fn parent(&mut self, node: NodeId) -> Result<Option<(NodeId, Name)>, ReadError> {
        if node.inode >= 100 {
            return Err(ReadError { action: "find the place of", node, cause: "not a directory".into() });
        }
        let place = |(parent, names): (&u64, &BTreeMap<String, u64>)| {
            names.iter().find(|(_, named)| **named == node.inode).map(|(text, _)| (id(*parent), name(text)))
        };
        Ok(self.directories.iter().find_map(place))
    }
    fn look(&mut self, node: NodeId) -> Result<Option<NodeFacts>, ReadError> {
        let links = if node.inode == ROOT { 1 } else { self.links(node.inode) };
        let kind = if node.inode < 100 { NodeKind::Directory } else { NodeKind::File };
        let attributes = Attributes { mode: 0, owner: 0, group: 0, modified: Timestamp(0) };
        let (accessed, changed, size) = (Timestamp(0), Timestamp(0), ByteLen(1));
        let facts = NodeFacts { kind, named: links > 0, links, attributes, accessed, changed, flags: 0, size, project: 0, xattrs: vec![] };
        Ok((links > 0 || self.open.contains(&node.inode)).then_some(facts))
    }
    fn read(&mut self, _: NodeId, _: u64, _: usize) -> Result<Option<Content>, ReadError> {
        Ok(Some(Content { chunks: vec![Chunk::Data { offset: 0, data: vec![7] }], next: 1, end: true }))
    }
}

struct Run {
    disk: Disk,
    mirror: Mirror,
}

impl Run {
    /// Everything is shown.
    fn new() -> Run {
        let rules = Exclusions::new(&["/out"]).unwrap();
        let mirror = Mirror::new(&[(id(ROOT), b"/".to_vec())], Scope::Everything, rules).alone();
        let mut run = Run { disk: Disk::new(), mirror };
        run.pass(&[]);
        run
    }

    fn pass(&mut self, nodes: &[u64]) -> Vec<Operation> {
        let nodes: Vec<NodeId> = nodes.iter().map(|inode| id(*inode)).collect();
        self.mirror.mark_lost(&nodes, Timestamp(1));
        let mut items = Vec::new();
        while self.mirror.step(&mut self.disk, 1 << 20, &mut items) != Step::Finished {}
        self.mirror.finished();
        items
    }

    fn concern(&mut self, node: u64, directory: Option<u64>, names: bool) -> Concern {
        let _ = self.mirror.place_unseen(id(directory.unwrap_or(node)), &mut self.disk);
        self.mirror.concern(id(node), directory.map(id), names)
    }
}

#[test]
fn what_is_gone_is_told_once_and_leaves_nothing_behind() {
    let mut run = Run::new();
    run.disk.directories.get_mut(&ROOT).unwrap().remove("file");
    let items = run.pass(&[ROOT, 100]);
    assert_eq!(items.iter().filter(|item| **item == Operation::Forget { node: id(100) }).count(), 1, "{items:?}");
    assert!(!run.mirror.is_owed(id(100)));
    assert!(run.mirror.stale.is_empty() && run.mirror.nameless.is_empty());
}

#[test]
fn a_node_without_a_name_concerns_nobody_until_it_gets_one() {
    let mut run = Run::new();
    run.disk.open.push(107);
    assert_eq!(run.concern(107, Some(4), false), Concern::Replica, "nobody has met it");
    run.pass(&[107]);
    assert_eq!(run.concern(107, Some(4), false), Concern::Nobody);
    run.disk.directories.get_mut(&4).unwrap().insert("named".into(), 107);
    // The name stamps it, here with a time that counts as changed.
    let items = run.pass(&[4, 107]);
    assert!(items.iter().any(|item| matches!(item, Operation::MirrorData { node, .. } if *node == id(107))), "{items:?}");
    assert_eq!(run.concern(107, Some(4), false), Concern::Replica);
}

#[test]
fn what_comes_below_the_excluded_is_nobodys_however_deep() {
    let mut run = Run::new();
    assert_eq!(run.concern(OUT, None, true), Concern::Below);
    assert_eq!(run.concern(4, None, true), Concern::Replica);
    // A directory in it that nobody has listed, one in that, and a file in the latter.
    run.disk.directories.get_mut(&OUT).unwrap().insert("new".into(), 20);
    run.disk.directories.insert(20, BTreeMap::from([("deep".to_owned(), 21)]));
    run.disk.directories.insert(21, BTreeMap::from([("t".to_owned(), 120)]));
    assert_eq!(run.concern(21, None, true), Concern::Below);
    assert_eq!(run.concern(20, None, true), Concern::Below);
    assert_eq!(run.concern(120, Some(21), false), Concern::ItsNames);
    run.mirror.exclude_unseen(id(120));
    assert_eq!(run.concern(120, Some(21), false), Concern::Nobody);
    // Outside nothing is hidden by that.
    run.disk.directories.get_mut(&4).unwrap().insert("new".into(), 30);
    run.disk.directories.insert(30, BTreeMap::new());
    assert_eq!(run.concern(30, None, true), Concern::Replica);
    assert_eq!(run.concern(100, Some(ROOT), false), Concern::Replica);
}

#[test]
fn what_moves_into_the_excluded_goes_with_all_that_is_below_it_and_comes_back() {
    let mut run = Run::new();
    run.disk.directories.insert(40, BTreeMap::from([("f".to_owned(), 140)]));
    run.disk.directories.get_mut(&4).unwrap().insert("tree".into(), 40);
    run.pass(&[4, 40, 140]);
    run.disk.directories.get_mut(&4).unwrap().remove("tree");
    run.disk.directories.get_mut(&OUT).unwrap().insert("tree".into(), 40);
    assert!(run.mirror.look_below(id(OUT), &mut run.disk).unwrap(), "the directory itself is replicated");
    run.pass(&[4]);
    assert_eq!(run.concern(40, None, true), Concern::Below);
    assert_eq!(run.concern(140, Some(40), false), Concern::Nobody);
    run.disk.directories.get_mut(&OUT).unwrap().remove("tree");
    run.disk.directories.get_mut(&4).unwrap().insert("back".into(), 40);
    let items = run.pass(&[4]);
    assert!(items.iter().any(|item| matches!(item, Operation::MirrorData { node, .. } if *node == id(140))), "{items:?}");
    assert_eq!(run.concern(140, Some(40), false), Concern::Replica);
}
