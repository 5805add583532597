//! The border of what is excluded against a dumb oracle: after any operations, a node with a name outside is never taken for excluded.

use crate::*;
use standin_model::*;
use std::collections::{BTreeMap, BTreeSet};

const ROOT: u64 = 2;
/// Excluded by the rules below, as is every file named `t`.
const OUT: u64 = 3;

fn id(inode: u64) -> NodeId {
    NodeId { volume: VolumeId(0), subvolume: 0, inode, generation: 1 }
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

/// Directories by inode; what is no directory is a file.
#[derive(Clone)]
struct Disk {
    directories: BTreeMap<u64, BTreeMap<String, u64>>,
    clock: i64,
}

impl Disk {
    fn new() -> Disk {
        let root = BTreeMap::from([("out".to_owned(), OUT), ("d".to_owned(), 4), ("e".to_owned(), 5)]);
        let directories = [(ROOT, root), (OUT, BTreeMap::new()), (4, BTreeMap::new()), (5, BTreeMap::new())].into();
        Disk { directories, clock: 100 }
    }

    fn names(&self) -> impl Iterator<Item = (u64, &str, u64)> {
        self.directories.iter().flat_map(|(parent, names)| names.iter().map(move |(name, node)| (*parent, name.as_str(), *node)))
    }

    fn links(&self, node: u64) -> u64 {
        self.names().filter(|(_, _, named)| *named == node).count() as u64
    }

    fn path(&self, node: u64) -> String {
        match self.names().find(|(_, _, named)| *named == node) {
            Some((parent, name, _)) => format!("{}/{name}", self.path(parent)),
            None => String::new(),
        }
    }

    fn is_file(&self, node: u64) -> bool {
        !self.directories.contains_key(&node)
    }

    /// As the rules read.
    fn is_out(&self, parent: u64, name: &str) -> bool {
        let directory = self.path(parent);
        name == "t" || directory == "/out" || directory.starts_with("/out/") || directory == "/d/x" || directory.starts_with("/d/x/") || {
            directory == "/d" && name == "x"
        }
    }

    fn is_protected(&self, node: u64) -> bool {
        self.names().any(|(parent, name, named)| named == node && !self.is_out(parent, name))
    }

    fn entry(&self, name: &str, node: u64) -> ListedEntry {
        let kind = if self.is_file(node) { NodeKind::File } else { NodeKind::Directory };
        let entry = DirectoryEntry { name: self::name(name), node: id(node), kind, device: 0, target: vec![] };
        ListedEntry { entry, changed: Timestamp(self.clock), links: self.links(node), allocated: ByteLen(4096 * node) }
    }
}

impl SourceReader for Disk {
    fn list(&mut self, directory: NodeId) -> Result<Option<Vec<ListedEntry>>, ReadError> {
        let names = self.directories.get(&directory.inode);
        Ok(names.map(|names| names.iter().map(|(name, node)| self.entry(name, *node)).collect()))
    }
    fn parent(&mut self, directory: NodeId) -> Result<Option<(NodeId, Name)>, ReadError> {
        Ok(self.names().find(|(_, _, node)| *node == directory.inode).map(|(parent, name, _)| (id(parent), self::name(name))))
    }
    fn look(&mut self, node: NodeId) -> Result<Option<NodeFacts>, ReadError> {
        let links = self.links(node.inode);
        let exists = links > 0 || node.inode == ROOT;
        let kind = if self.is_file(node.inode) { NodeKind::File } else { NodeKind::Directory };
        let attributes = Attributes { mode: 0, owner: 0, group: 0, modified: Timestamp(0) };
        let (accessed, changed, size) = (Timestamp(0), Timestamp(self.clock), ByteLen(1));
        let facts = NodeFacts { kind, named: exists, links, attributes, accessed, changed, flags: 0, project: 0, size, xattrs: vec![] };
        Ok(exists.then_some(facts))
    }
    fn read(&mut self, _: NodeId, _: u64, _: usize) -> Result<Option<Content>, ReadError> {
        Ok(Some(Content { chunks: vec![Chunk::Data { offset: 0, data: vec![7] }], next: 1, end: true }))
    }
}

/// A source whose operations reach the mirror one barrier later.
struct Run {
    disk: Disk,
    mirror: Mirror,
    ring: Vec<Operation>,
    shown: Vec<u64>,
}

impl Run {
    fn new(disk: Disk) -> Run {
        let rules = Exclusions::new(&["/out", "/d/x", "/**/t"]).unwrap();
        let mirror = Mirror::new(&[(id(ROOT), b"/".to_vec())], Scope::Everything, rules);
        Run { disk, mirror, ring: Vec::new(), shown: Vec::new() }
    }

    fn settled(disk: Disk) -> Run {
        let mut run = Run::new(disk);
        run.settle();
        run
    }

    fn drain(&mut self) {
        for operation in std::mem::take(&mut self.ring) {
            self.mirror.admit(&operation);
            if !self.mirror.is_idle() {
                // As the pump does when something crosses the border.
                self.mirror.mark_dirty([], Timestamp(0));
            }
        }
    }

    fn step(&mut self) -> Step {
        self.drain();
        let mut items = Vec::new();
        let step = self.mirror.step(&mut self.disk, 1, &mut items);
        self.shown
            .extend(items.iter().filter(|item| matches!(item, Operation::MirrorData { .. })).filter_map(|item| Some(item.node()?.inode)));
        step
    }

    fn settle(&mut self) {
        loop {
            while self.step() == Step::More {}
            self.drain();
            if self.mirror.is_idle() {
                return self.mirror.finished();
            }
        }
    }

    fn link(&mut self, node: u64, parent: u64, to: &str) {
        self.disk.directories.get_mut(&parent).unwrap().insert(to.to_owned(), node);
        self.ring.push(Operation::Link { parent: id(parent), name: name(to), node: id(node) });
    }

    fn unlink(&mut self, parent: u64, from: &str) {
        let node = self.disk.directories.get_mut(&parent).unwrap().remove(from).unwrap();
        self.ring.push(Operation::Unlink { parent: id(parent), name: name(from), node: id(node) });
        if self.disk.links(node) == 0 {
            self.ring.push(Operation::Forget { node: id(node) });
        }
    }

    fn rename(&mut self, (parent, from): (u64, &str), (new_parent, to): (u64, &str)) {
        let node = self.disk.directories.get_mut(&parent).unwrap().remove(from).unwrap();
        let victim = self.disk.directories.get_mut(&new_parent).unwrap().insert(to.to_owned(), node);
        self.ring.push(Operation::Rename {
            parent: id(parent),
            name: name(from),
            node: id(node),
            new_parent: id(new_parent),
            new_name: name(to),
            mode: RenameMode::Replace,
            victim: victim.map(id),
        });
        if let Some(victim) = victim.filter(|victim| self.disk.links(*victim) == 0) {
            self.ring.push(Operation::Forget { node: id(victim) });
        }
    }

    fn passes_writes(&mut self, node: u64) -> bool {
        self.drain();
        let write = Operation::Write { node: id(node), offset: ByteOffset(0), data: vec![1] };
        self.mirror.admit(&write) == Admission::Pass
    }
}

/// A file 20 with these names, in a source that has been mirrored.
fn with(names: &[(u64, &str)]) -> Run {
    let mut disk = Disk::new();
    for (parent, name) in names {
        disk.directories.get_mut(parent).unwrap().insert((*name).to_owned(), 20);
    }
    Run::settled(disk)
}

#[test]
fn a_name_outside_protects_whatever_the_order_of_the_walk() {
    for names in [[(OUT, "a"), (4, "b")], [(4, "t"), (5, "b")], [(5, "b"), (4, "x")], [(4, "b"), (4, "t")]] {
        let mut run = with(&names);
        assert!(run.passes_writes(20), "{names:?}");
        assert_eq!(run.shown, [20]);
    }
}

#[test]
fn only_excluded_names_exclude() {
    for names in [vec![(OUT, "a")], vec![(OUT, "a"), (OUT, "b")], vec![(OUT, "a"), (4, "t"), (4, "x")]] {
        let mut run = with(&names);
        assert!(!run.passes_writes(20), "{names:?}");
        assert!(run.shown.is_empty());
    }
}

#[test]
fn a_link_from_an_excluded_name_to_one_outside_is_read() {
    let mut run = with(&[(OUT, "a")]);
    run.link(20, 4, "b");
    run.settle();
    assert!(run.passes_writes(20));
    assert_eq!(run.shown, [20]);
}

#[test]
fn a_second_name_that_goes_inside_leaves_the_file_protected() {
    let mut run = with(&[(4, "a"), (5, "b")]);
    run.rename((4, "a"), (OUT, "a"));
    assert!(run.passes_writes(20), "it still has a name outside");
    run.rename((5, "b"), (5, "t"));
    run.link(20, 4, "again");
    run.settle();
    assert!(run.passes_writes(20));
    assert_eq!(run.shown, [20, 20], "what the replica did with it meanwhile is not known");
}

#[test]
fn a_directory_that_goes_inside_takes_only_what_has_no_name_elsewhere() {
    let mut disk = Disk::new();
    disk.directories.insert(6, [("a".to_owned(), 20), ("b".to_owned(), 21), ("c".to_owned(), 22), ("d".to_owned(), 22)].into());
    disk.directories.get_mut(&4).unwrap().insert("sub".to_owned(), 6);
    disk.directories.get_mut(&5).unwrap().insert("a".to_owned(), 20);
    let mut run = Run::settled(disk);
    run.rename((4, "sub"), (OUT, "sub"));
    run.settle();
    let passed = [20, 21, 22].map(|node| run.passes_writes(node));
    assert_eq!(passed, [true, false, false], "a link outside, none, and both names in there");
    run.rename((OUT, "sub"), (4, "sub"));
    run.settle();
    assert_eq!([20, 21, 22].map(|node| run.passes_writes(node)), [true; 3]);
}

#[test]
fn a_name_outside_that_is_removed_leaves_it_excluded_at_the_next_walk() {
    let mut run = with(&[(OUT, "a"), (4, "b")]);
    run.unlink(4, "b");
    run.drain();
    run.mirror.restart(Scope::ChangedSince(Timestamp(0)), [id(ROOT)].into_iter());
    run.settle();
    assert!(!run.passes_writes(20));
}

#[test]
fn a_directory_that_moves_is_under_the_rules_of_its_new_path() {
    let mut disk = Disk::new();
    disk.directories.insert(6, [("a".to_owned(), 20)].into());
    disk.directories.get_mut(&4).unwrap().insert("x".to_owned(), 6);
    let mut run = Run::settled(disk);
    assert!(!run.passes_writes(20));
    run.rename((ROOT, "d"), (ROOT, "g"));
    run.settle();
    assert!(run.passes_writes(20), "no rule names /g/x");
    run.rename((ROOT, "g"), (ROOT, "d"));
    run.settle();
    assert!(!run.passes_writes(20), "and /d/x is left out again");
}

#[test]
fn what_is_lost_is_not_counted() {
    let mut run = with(&[(OUT, "a"), (OUT, "b"), (4, "c")]);
    // Capture loses that one excluded name went and another outside came.
    run.unlink(OUT, "a");
    run.link(20, 5, "d");
    run.ring.clear();
    run.mirror.mark_lost(&[id(OUT), id(20), id(5)], Timestamp(0));
    run.unlink(4, "c");
    run.settle();
    assert!(run.passes_writes(20));
}

/// A directory is replicated whatever its name, so that the replica has something where the file comes to be left out.
#[test]
fn a_directory_that_is_exchanged_for_what_a_rule_names_leaves_its_name() {
    for place in [(5, "b"), (OUT, "b")] {
        let mut disk = Disk::new();
        disk.directories.insert(6, [("a".to_owned(), 20)].into());
        disk.directories.get_mut(&4).unwrap().insert("x".to_owned(), 6);
        disk.directories.get_mut(&place.0).unwrap().insert(place.1.to_owned(), 21);
        for directory_is_first in [true, false] {
            let (x, other) = (((4, name("x")), 6), ((place.0, name(place.1)), 21));
            let (((parent, old), node), ((new_parent, new), victim)) = if directory_is_first { (x, other) } else { (other, x) };
            let exchange = Operation::Rename {
                parent: id(parent),
                name: old,
                node: id(node),
                new_parent: id(new_parent),
                new_name: new,
                mode: RenameMode::Exchange,
                victim: Some(id(victim)),
            };
            let mirror = &mut Run::settled(disk.clone()).mirror;
            let Admission::Instead(parts) = mirror.admit(&exchange) else { panic!("nothing tells the replica of the name") };
            let gone = Operation::Unlink { parent: id(4), name: name("x"), node: id(6) };
            assert!(parts.contains(&gone), "{parts:?}");
        }
    }
}

/// Any operations, with the walk going on between them: whenever it is over, every file with a name outside passes its writes and was read since it
/// had none; and what has none is never read by a walk that begins afterwards.
#[test]
fn no_order_of_operations_loses_a_protected_file() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = move |bound: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) % bound
    };
    for round in 0..5000 {
        let mut run = Run::new(Disk::new());
        let mut next = 30;
        for _ in 0..below(70) {
            let directories: Vec<u64> = run.disk.directories.keys().copied().collect();
            let parent = directories[below(directories.len() as u64) as usize];
            let to = ["a", "b", "t", "x", "d"][below(5) as usize];
            let names: Vec<(u64, String, u64)> = run.disk.names().map(|(parent, name, node)| (parent, name.to_owned(), node)).collect();
            let (old, from, node) = names[below(names.len() as u64) as usize].clone();
            let taken = run.disk.directories[&parent].get(to).copied();
            let is_file = run.disk.is_file(node);
            match below(8) {
                0..=1 if taken.is_none() => {
                    let is_directory = below(4) == 0 && to != "t";
                    run.disk.directories.get_mut(&parent).unwrap().insert(to.to_owned(), next);
                    let attributes = Attributes { mode: 0, owner: 0, group: 0, modified: Timestamp(0) };
                    let (parent, name, node) = (id(parent), name(to), id(next));
                    run.ring.push(if is_directory {
                        Operation::Mkdir { parent, name, node, attributes }
                    } else {
                        Operation::Create { parent, name, node, attributes }
                    });
                    if is_directory {
                        run.disk.directories.insert(next, BTreeMap::new());
                    }
                    next += 1;
                }
                2 if is_file && taken.is_none() => run.link(node, parent, to),
                3 if is_file => run.unlink(old, &from),
                4..=5 if taken != Some(node) && taken.is_none_or(|victim| is_file && run.disk.is_file(victim)) && node != OUT => {
                    let inside = !is_file && run.disk.path(parent).starts_with(&run.disk.path(node)) || !is_file && to == "t";
                    if !inside {
                        run.rename((old, &from), (parent, to));
                    }
                }
                6 if below(3) == 0 => run.settle(),
                7 if below(6) == 0 => {
                    run.drain();
                    run.mirror.restart(Scope::ChangedSince(Timestamp(0)), [id(ROOT)].into_iter());
                }
                _ => drop(run.step()),
            }
        }
        run.settle();
        let files: Vec<u64> = run.disk.names().map(|(_, _, node)| node).filter(|node| run.disk.is_file(*node)).collect();
        for node in files {
            assert!(run.passes_writes(node) || !run.disk.is_protected(node), "round {round}: {node} has a name outside");
        }
        // And a walk over a source at rest excludes exactly what has no name outside.
        let mut run = Run::settled(run.disk);
        let files: Vec<u64> = run.disk.names().map(|(_, _, node)| node).filter(|node| run.disk.is_file(*node)).collect();
        for node in files.iter().copied() {
            assert_eq!(run.passes_writes(node), run.disk.is_protected(node), "round {round}: {node} at rest");
        }
        let out: BTreeSet<u64> = files.into_iter().filter(|node| !run.disk.is_protected(*node)).collect();
        let counted = LeftOut { nodes: out.len() as u64, bytes: out.iter().map(|node| 4096 * node).sum() };
        assert_eq!(run.mirror.left_out(), counted, "round {round}");
    }
}
