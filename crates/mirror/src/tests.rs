//! The walk against a tiny in-memory source that changes between steps.

use super::*;
use standin_model::*;
use std::collections::{BTreeMap, BTreeSet};

fn id(inode: u64) -> NodeId {
    NodeId { volume: VolumeId(0), subvolume: 0, inode, generation: 1 }
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

#[derive(Default)]
struct Tiny {
    directories: BTreeMap<u64, Vec<(String, u64)>>,
    files: BTreeMap<u64, Vec<u8>>,
    changed: BTreeMap<u64, i64>,
    whiteouts: BTreeSet<u64>,
}

impl Tiny {
    fn changed(&self, node: u64) -> Timestamp {
        Timestamp(self.changed.get(&node).copied().unwrap_or(0))
    }
    fn links(&self, node: u64) -> u64 {
        self.directories.values().flatten().filter(|(_, named)| *named == node).count() as u64
    }
    fn kind(&self, node: u64) -> NodeKind {
        match node {
            _ if self.directories.contains_key(&node) => NodeKind::Directory,
            _ if self.whiteouts.contains(&node) => NodeKind::CharDevice,
            _ => NodeKind::File,
        }
    }
}

impl SourceReader for Tiny {
    fn list(&mut self, directory: NodeId) -> Result<Option<Vec<ListedEntry>>, ReadError> {
        let entry = |(n, node): &(String, u64)| ListedEntry {
            entry: DirectoryEntry { name: name(n), node: id(*node), kind: self.kind(*node), device: 0, target: vec![] },
            changed: self.changed(*node),
            links: self.links(*node),
            allocated: ByteLen(0),
        };
        Ok(self.directories.get(&directory.inode).map(|entries| entries.iter().map(entry).collect()))
    }
    fn look(&mut self, node: NodeId) -> Result<Option<NodeFacts>, ReadError> {
        let size = ByteLen(self.files.get(&node.inode).map_or(0, |f| f.len() as u64));
        let attributes = Attributes { mode: 0o644, owner: 0, group: 0, modified: Timestamp(0) };
        let known = self.links(node.inode) > 0 || self.directories.contains_key(&node.inode);
        let changed = self.changed(node.inode);
        Ok(known.then(|| NodeFacts {
            kind: self.kind(node.inode),
            named: true,
            links: self.links(node.inode),
            attributes,
            accessed: Timestamp(0),
            changed,
            flags: 0,
            project: 0,
            size,
            xattrs: vec![],
        }))
    }
    fn read(&mut self, node: NodeId, offset: u64, budget: usize) -> Result<Option<Content>, ReadError> {
        let Some(file) = self.files.get(&node.inode) else { return Ok(None) };
        let end = (offset as usize + budget).min(file.len());
        let data = file[offset as usize..end].to_vec();
        Ok(Some(Content { chunks: vec![Chunk::Data { offset, data }], next: end as u64, end: end == file.len() }))
    }
}

fn tiny() -> Tiny {
    let mut source = Tiny::default();
    source.directories.insert(2, vec![("a".into(), 10), ("d".into(), 20)]);
    source.directories.insert(20, vec![("b".into(), 11), ("twin".into(), 10)]);
    source.files.insert(10, b"aaaaaaaaaa".to_vec());
    source.files.insert(11, b"bbbb".to_vec());
    source
}

fn mirror(scope: Scope, exclude: &[&str]) -> Mirror {
    Mirror::new(&[(id(2), b"/".to_vec())], scope, Exclusions::new(exclude).unwrap())
}

fn run(mirror: &mut Mirror, source: &mut Tiny) -> Vec<Operation> {
    let mut out = Vec::new();
    while mirror.step(source, 4, &mut out) == Step::More {}
    out
}

fn data_of(items: &[Operation], node: u64) -> Vec<u8> {
    items
        .iter()
        .flat_map(|i| {
            if let Operation::MirrorData { node: n, data, .. } = i { if n.inode == node { data.clone() } else { vec![] } } else { vec![] }
        })
        .collect()
}

#[test]
fn everything_is_shown_once() {
    let items = run(&mut mirror(Scope::Everything, &[]), &mut tiny());
    assert_eq!(data_of(&items, 10), b"aaaaaaaaaa", "a hard link is read once");
    assert_eq!(data_of(&items, 11), b"bbbb");
}

#[test]
fn operations_on_nodes_not_shown_wait_for_the_walk() {
    let (mut source, mut m) = (tiny(), mirror(Scope::Everything, &[]));
    let write = |node, offset| Operation::Write { node: id(node), offset: ByteOffset(offset), data: vec![1] };
    assert_eq!(m.admit(&write(10, 0)), Admission::Drop);
    let mut out = Vec::new();
    while data_of(&out, 10).is_empty() {
        m.step(&mut source, 4, &mut out);
    }
    assert_eq!(m.admit(&write(10, 0)), Admission::Pass, "behind the frontier");
    assert_eq!(m.admit(&write(10, 9)), Admission::Drop, "ahead of the frontier, read later");
    run(&mut m, &mut source);
    assert_eq!(m.admit(&write(10, 9)), Admission::Pass);
}

#[test]
fn a_resync_sends_only_what_changed() {
    let mut source = tiny();
    source.changed.insert(11, 500);
    let items = run(&mut mirror(Scope::ChangedSince(Timestamp(400)), &[]), &mut source);
    assert_eq!((data_of(&items, 10).len(), data_of(&items, 11).len()), (0, 4));
}

#[test]
fn a_distrusted_file_is_read_though_its_time_is_old_and_only_if_it_is_not_excluded() {
    for (exclude, content) in [(&[][..], b"bbbb".to_vec()), (&["/d"][..], vec![])] {
        let (mut source, mut m) = (tiny(), mirror(Scope::ChangedSince(Timestamp(400)), exclude));
        m.distrust([id(11), id(77)]);
        let items = run(&mut m, &mut source);
        assert_eq!((data_of(&items, 10).len(), data_of(&items, 11)), (0, content));
        assert!(!items.iter().any(|item| item.node() == Some(id(77))));
        m.finished();
    }
}

#[test]
fn excluded_contents_never_appear() {
    let (mut source, mut m) = (tiny(), mirror(Scope::Everything, &["/d"]));
    let items = run(&mut m, &mut source);
    assert!(data_of(&items, 11).is_empty());
    m.finished();
    let attributes = Attributes { mode: 0, owner: 0, group: 0, modified: Timestamp(0) };
    let create = Operation::Create { parent: id(20), name: name("new"), node: id(30), attributes };
    assert_eq!(m.admit(&create), Admission::Drop);
    assert_eq!(m.admit(&Operation::SetMode { node: id(30), mode: 0 }), Admission::Drop);
    assert_eq!(m.admit(&Operation::SetMode { node: id(11), mode: 0 }), Admission::Drop);
}

#[test]
fn a_node_moved_into_the_shown_part_is_listed_again() {
    let (mut source, mut m) = (tiny(), mirror(Scope::Everything, &[]));
    let mut out = Vec::new();
    m.step(&mut source, 1, &mut out);
    source.directories.get_mut(&20).unwrap().retain(|(n, _)| n != "b");
    source.directories.get_mut(&2).unwrap().push(("b2".into(), 11));
    let rename = Operation::Rename {
        parent: id(20),
        name: name("b"),
        node: id(11),
        new_parent: id(2),
        new_name: name("b2"),
        mode: RenameMode::Replace,
        victim: None,
    };
    assert_eq!(m.admit(&rename), Admission::Drop, "the old directory is not shown yet");
    let items = run(&mut m, &mut source);
    let relisted = items.iter().any(|i| matches!(i, Operation::MirrorDirectory { node, entries, .. } if node.inode == 2 && entries.iter().any(|e| e.name == name("b2"))));
    assert!(relisted);
    assert_eq!(data_of(&items, 11), b"bbbb");
}

#[test]
fn what_a_rename_leaves_behind_is_shown_and_nothing_else() {
    let (mut source, mut m) = (tiny(), mirror(Scope::Everything, &[]));
    source.directories.get_mut(&20).unwrap().push(("old".into(), 40));
    source.whiteouts.insert(40);
    run(&mut m, &mut source);
    m.finished();
    // So that only what is new can be unknown.
    m.mark_dirty([], Timestamp(400));
    run(&mut m, &mut source);
    m.finished();
    source.whiteouts.insert(41);
    source.changed.extend([(41, 500), (11, 500), (10, 500)]);
    *source.directories.get_mut(&20).unwrap() = vec![("c".into(), 11), ("b".into(), 41), ("twin".into(), 10), ("old".into(), 40)];
    let (parent, new_parent) = (id(20), id(20));
    let mode = RenameMode::Whiteout;
    let rename = Operation::Rename { parent, name: name("b"), node: id(11), new_parent, new_name: name("c"), mode, victim: None };
    assert_eq!(m.admit(&rename), Admission::Pass);
    let shown: Vec<NodeId> = run(&mut m, &mut source)
        .into_iter()
        .filter_map(|item| if let Operation::MirrorNode { node, .. } = item { Some(node) } else { None })
        .collect();
    assert_eq!(shown, [id(20), id(41)]);
}

#[test]
fn a_dirty_node_is_shown_again_while_live() {
    let (mut source, mut m) = (tiny(), mirror(Scope::Everything, &[]));
    run(&mut m, &mut source);
    m.finished();
    m.mark_dirty([id(11)], Timestamp(0));
    assert_eq!(data_of(&run(&mut m, &mut source), 11), b"bbbb");
}

#[test]
fn an_unnamed_file_whose_name_is_excluded_is_forgotten() {
    let attributes = Attributes { mode: 0, owner: 0, group: 0, modified: Timestamp(0) };
    let (mut source, mut m) = (tiny(), mirror(Scope::Everything, &["/d"]));
    run(&mut m, &mut source);
    m.finished();
    assert_eq!(m.admit(&Operation::CreateUnnamed { node: id(30), attributes }), Admission::Pass);
    let link = Operation::Link { parent: id(20), name: name("new"), node: id(30) };
    assert_eq!(m.admit(&link), Admission::Instead(vec![Operation::Forget { node: id(30) }]));
    assert_eq!(m.admit(&Operation::SetMode { node: id(30), mode: 0 }), Admission::Drop);
}

fn moved(node: u64, parent: u64, new_parent: u64) -> Operation {
    let (name, new_name) = (name("sub"), name("sub"));
    let (parent, new_parent) = (id(parent), id(new_parent));
    Operation::Rename { parent, name, node: id(node), new_parent, new_name, mode: RenameMode::Replace, victim: None }
}

/// With `/d/sub/deep/file`, and a temporary file beside `deep`.
fn with_a_tree_below_d() -> Tiny {
    let mut source = tiny();
    source.directories.get_mut(&20).unwrap().push(("sub".into(), 21));
    source.directories.insert(21, vec![("x.tmp".into(), 12), ("deep".into(), 23)]);
    source.directories.insert(23, vec![("file".into(), 14)]);
    source.files.insert(12, b"tttt".to_vec());
    source.files.insert(14, b"ffff".to_vec());
    source
}

fn take_out(source: &mut Tiny) {
    source.directories.get_mut(&20).unwrap().retain(|(name, _)| name != "sub");
    source.directories.get_mut(&2).unwrap().push(("sub".into(), 21));
}

#[test]
fn rules_hold_below_a_directory_that_comes_out_of_an_excluded_one() {
    let (mut source, mut m) = (with_a_tree_below_d(), mirror(Scope::Everything, &["/d", "/**/x.tmp"]));
    run(&mut m, &mut source);
    m.finished();
    take_out(&mut source);
    m.admit(&moved(21, 20, 2));
    let items = run(&mut m, &mut source);
    assert_eq!((data_of(&items, 14), data_of(&items, 12)), (b"ffff".to_vec(), vec![]));
}

#[test]
fn what_goes_in_and_comes_out_again_is_shown() {
    let (mut source, mut m) = (with_a_tree_below_d(), mirror(Scope::Everything, &["/d"]));
    run(&mut m, &mut source);
    m.finished();
    take_out(&mut source);
    m.admit(&moved(21, 20, 2));
    m.admit(&moved(21, 2, 20));
    m.admit(&moved(21, 20, 2));
    let items = run(&mut m, &mut source);
    assert_eq!((data_of(&items, 14), data_of(&items, 12)), (b"ffff".to_vec(), b"tttt".to_vec()));
    assert_eq!(m.admit(&Operation::SetMode { node: id(23), mode: 0 }), Admission::Pass);
}
