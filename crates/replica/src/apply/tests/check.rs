//! Checks against the oracle: a right replica never differs, whatever happens to it; a damaged one always does, and is mended by what the agent sends when it
//! is asked for the nodes again.

use super::oracle::{Node, ROOT};
use super::*;
use crate::apply::Comparison;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;

/// What a verification would read of the oracle.
fn checks(oracle: &Oracle, pass: u8) -> Vec<Operation> {
    let nodes = reachable(oracle);
    let mut of = Vec::new();
    for group in nodes.chunks(5) {
        let digests: Vec<_> = group.iter().map(|id| (*id, digest(oracle, *id))).collect();
        let digest = Digest::of_nodes(digests.iter().map(|(id, digest)| (*id, digest)));
        let inodes = group.iter().map(|id| id.inode).collect();
        of.push(CheckOf::Nodes { volume: ROOT.volume, subvolume: 0, inodes, digest });
    }
    for node in nodes {
        of.push(CheckOf::Node { node, digest: digest(oracle, node) });
        let content = &oracle.nodes[&node].content;
        if oracle.nodes[&node].kind == NodeKind::File && content.len() > 100 {
            let (offset, len) = (ByteOffset(50), ByteLen(content.len() as u64 - 50));
            of.push(match content[50..].iter().all(|byte| *byte == 0) {
                true => CheckOf::Zeros { node, offset, len },
                false => CheckOf::Range { node, offset, len, digest: Digest::of_content(&content[50..]) },
            });
        }
    }
    of.into_iter().map(|of| Operation::Check(Check { run: 1, pass, of })).collect()
}

/// Every node with a name, by inode number.
fn reachable(oracle: &Oracle) -> Vec<NodeId> {
    let (mut found, mut waiting) = (std::collections::BTreeSet::new(), vec![ROOT]);
    while let Some(id) = waiting.pop() {
        if found.insert(id) {
            waiting.extend(oracle.nodes[&id].names.values());
        }
    }
    found.into_iter().collect()
}

fn entries(oracle: &Oracle, node: &Node) -> Vec<DirectoryEntry> {
    let entry = |(name, id): (&Name, &NodeId)| {
        let child = &oracle.nodes[id];
        let target = if child.kind == NodeKind::Symlink { child.content.clone() } else { vec![] };
        DirectoryEntry { name: name.clone(), node: *id, kind: child.kind, device: child.device, target }
    };
    node.names.iter().map(entry).collect()
}

fn digest(oracle: &Oracle, id: NodeId) -> NodeDigest {
    let node = &oracle.nodes[&id];
    let mut xattrs: Vec<_> = node.xattrs.clone().into_iter().collect();
    NodeDigest {
        attributes: Digest::of_attributes(node.kind, &node.attributes, ByteLen(node.content.len() as u64)),
        xattrs: Digest::of_xattrs(&mut xattrs),
        content: match node.kind {
            NodeKind::File => Digest::of_content(&node.content),
            NodeKind::Directory => Digest::of_names(&mut entries(oracle, node)),
            _ => Digest::default(),
        },
    }
}

/// A stream in the making.
struct Stream {
    seq: u64,
}

impl Stream {
    fn apply(&mut self, applier: &mut Applier, operations: Vec<Operation>) {
        let items: Vec<Item> = operations
            .into_iter()
            .map(|operation| {
                self.seq += 1;
                Item { seq: OpSeq(self.seq), operation }
            })
            .collect();
        applier.apply_segment(&items).unwrap();
    }

    fn check(&mut self, applier: &mut Applier, oracle: &Oracle) -> Comparison {
        self.apply(applier, checks(oracle, 2));
        let mut all = applier.take_comparisons();
        assert_eq!(all.len(), 1);
        all.remove(0)
    }
}

/// A volume with a history, consistent.
fn grown(test: &str, seed: u64, steps: u64) -> Option<(Lab, Applier, Oracle, Stream)> {
    let lab = Lab::new(test)?;
    let mut applier = lab.open();
    applier.redo_through(OpSeq::ZERO).unwrap();
    let mut oracle = Oracle::new(seed);
    // The stream never names one, so that the agent lists its directory again; there is none here.
    oracle.makes_whiteouts = false;
    let mut stream = Stream { seq: 0 };
    let mut operations = vec![Operation::SetOwner { node: ROOT, owner: 0, group: 0 }, Operation::SetMode { node: ROOT, mode: 0o755 }];
    for _ in 0..steps {
        oracle.step(&mut operations);
    }
    oracle.end_segment(&mut operations);
    operations.push(Operation::Marker(Marker::Consistent));
    stream.apply(&mut applier, operations);
    Some((lab, applier, oracle, stream))
}

#[test]
fn a_right_replica_never_differs() {
    let mut compared = 0;
    for seed in 1..=10 {
        let Some((_lab, mut applier, mut oracle, mut stream)) = grown("right replica", seed, 100) else { return };
        for round in 0..40 {
            let mut operations = Vec::new();
            let steps = oracle.random.below(30);
            (0..steps).for_each(|_| oracle.step(&mut operations));
            oracle.end_segment(&mut operations);
            stream.apply(&mut applier, operations);
            let found = stream.check(&mut applier, &oracle);
            assert_eq!((&found.differences[..], found.unnamed_differences), (&[][..], 0), "seed {seed}, round {round}");
            compared += found.checks;
            if round % 7 == 0 {
                applier.mark().unwrap();
            }
        }
    }
    assert!(compared > 10_000, "{compared}");
}

/// The first file, by path, that is as wanted.
fn file(lab: &Lab, fits: impl Fn(&std::fs::Metadata) -> bool) -> (PathBuf, std::fs::Metadata) {
    let mut waiting = vec![lab.volume()];
    while let Some(path) = waiting.pop() {
        for entry in std::fs::read_dir(&path).unwrap().flatten().filter(|entry| entry.file_name() != ".standin-limbo") {
            let meta = entry.path().symlink_metadata().unwrap();
            if meta.is_dir() {
                waiting.push(entry.path());
            } else if meta.is_file() && fits(&meta) {
                return (entry.path(), meta);
            }
        }
    }
    panic!("no such file");
}

fn keep_time(path: &std::path::Path, meta: &std::fs::Metadata) {
    let file = std::fs::File::open(path).unwrap();
    file.set_modified(meta.modified().unwrap()).unwrap();
}

/// What the agent sends when it is asked for these.
fn mirrored(oracle: &Oracle, wanted: &[NodeId]) -> Vec<Operation> {
    let mut out = vec![Operation::Marker(Marker::Gap { reason: "test".into() }), Operation::Marker(Marker::ResyncStarted)];
    for node in wanted {
        let Some(found) = oracle.nodes.get(node) else {
            out.push(Operation::Forget { node: *node });
            continue;
        };
        let xattrs = found.xattrs.clone().into_iter().collect();
        let size = ByteLen(if found.kind == NodeKind::File { found.content.len() as u64 } else { 0 });
        let (kind, attributes, accessed) = (found.kind, found.attributes, found.attributes.modified);
        out.push(Operation::MirrorNode { node: *node, kind, attributes, accessed, flags: 0, project: 0, size, xattrs });
        match kind {
            NodeKind::Directory => {
                out.push(Operation::MirrorDirectory { node: *node, entries: entries(oracle, found), first: true, last: true });
                // The listing changes the directory's time.
                out.push(Operation::SetTimes { node: *node, accessed: None, modified: Some(found.attributes.modified) });
            }
            NodeKind::File => out.push(Operation::MirrorData { node: *node, offset: ByteOffset(0), data: found.content.clone() }),
            _ => {}
        }
    }
    out.push(Operation::Marker(Marker::Consistent));
    out
}

/// Damages a replica, sees that exactly the damaged nodes are found, has them mirrored again, and sees that nothing differs any more.
fn damaged(name: &str, what: &str, damage: impl Fn(&Lab)) {
    for seed in 1..=5 {
        let Some((lab, mut applier, oracle, mut stream)) = grown(name, seed, 300) else { return };
        applier.mark().unwrap();
        assert_eq!(stream.check(&mut applier, &oracle).differences, [], "seed {seed}");
        damage(&lab);
        let found = stream.check(&mut applier, &oracle);
        let singly: Vec<_> = found.differences.iter().filter(|difference| !difference.what.is_empty()).collect();
        assert!(singly.iter().any(|difference| difference.what.contains(what)), "{name}, seed {seed}: {:?}", found.differences);
        assert!(found.differences.len() > singly.len(), "{name}, seed {seed}: its group differs as well");
        applier.repair(singly.iter().map(|difference| difference.suspect.node)).unwrap();
        assert!(!applier.state().is_consistent());
        for _ in 0..5 {
            let wanted = applier.take_wants();
            if wanted.is_empty() {
                break;
            }
            stream.apply(&mut applier, mirrored(&oracle, &wanted));
        }
        assert!(applier.state().is_consistent(), "{name}, seed {seed}");
        let after = stream.check(&mut applier, &oracle);
        assert_eq!((&after.differences[..], after.unnamed_differences), (&[][..], 0), "{name}, seed {seed}");
    }
}

#[test]
fn a_flipped_byte_is_found_and_mended() {
    damaged("flipped byte", "content", |lab| {
        let (path, meta) = file(lab, |meta| meta.len() > 60);
        let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 55).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 55).unwrap();
        keep_time(&path, &meta);
    });
}

#[test]
fn a_missing_name_is_found_and_mended() {
    damaged("missing name", "names", |lab| std::fs::remove_file(file(lab, |meta| meta.nlink() == 1).0).unwrap());
}

#[test]
fn an_extra_file_is_found_and_mended() {
    damaged("extra file", "names", |lab| std::fs::write(lab.volume().join("nobody's"), b"x").unwrap());
}

#[test]
fn a_name_that_leads_to_another_file_of_the_same_content_is_found_and_mended() {
    damaged("wrong node", "names", |lab| {
        let (path, meta) = file(lab, |meta| meta.nlink() == 1);
        let other = path.with_file_name("other");
        std::fs::copy(&path, &other).unwrap();
        keep_time(&other, &meta);
        std::fs::rename(&other, &path).unwrap();
    });
}

#[test]
fn a_changed_attribute_is_found_and_mended() {
    damaged("mode", "mode", |lab| {
        let (path, meta) = file(lab, |_| true);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(meta.mode() ^ 0o100)).unwrap();
    });
    damaged("time", "time", |lab| {
        let (path, meta) = file(lab, |_| true);
        let file = std::fs::File::open(path).unwrap();
        file.set_modified(meta.modified().unwrap() + std::time::Duration::from_nanos(1000)).unwrap();
    });
    damaged("xattr", "extended attributes", |lab| {
        let (path, _) = file(lab, |_| true);
        rustix::fs::setxattr(path, "user.damage", b"x", rustix::fs::XattrFlags::empty()).unwrap();
    });
    damaged("shorter", "size", |lab| {
        let (path, meta) = file(lab, |meta| meta.len() > 200);
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(meta.len() - 1).unwrap();
        keep_time(&path, &meta);
    });
}

#[test]
fn a_hole_that_is_none_is_found_and_zeros_that_are_data_are_equal() {
    let Some((lab, mut applier, _, mut stream)) = grown("hole", 1, 0) else { return };
    let node = NodeId { inode: 900, generation: 1, ..ROOT };
    let attributes = Attributes { mode: 0o600, owner: 0, group: 0, modified: Timestamp(1) };
    let name = Name::new("hole").unwrap();
    stream.apply(
        &mut applier,
        vec![Operation::Create { parent: ROOT, name, node, attributes }, Operation::Truncate { node, size: ByteLen(64 << 20) }],
    );
    let zeros =
        |len: u64| Operation::Check(Check { run: 1, pass: 1, of: CheckOf::Zeros { node, offset: ByteOffset(0), len: ByteLen(len) } });
    let mut check = |len: u64| {
        stream.apply(&mut applier, vec![zeros(len)]);
        applier.take_comparisons().remove(0)
    };
    assert_eq!((check(64 << 20).differences.len(), check((64 << 20) + 1).differences.len()), (0, 1));
    let file = std::fs::File::options().write(true).open(lab.volume().join("hole")).unwrap();
    file.write_all_at(&[0; 9000], 30 << 20).unwrap();
    let found = check(64 << 20);
    assert!(found.differences.is_empty() && found.bytes > 0 && found.bytes <= 1 << 20, "{found:?}");
    file.write_all_at(&[1], 40 << 20).unwrap();
    assert_eq!(check(64 << 20).differences[0].what, "content");
}

#[test]
fn during_redo_nothing_is_compared_and_that_is_told() {
    let Some((lab, mut applier, oracle, mut stream)) = grown("redo", 3, 100) else { return };
    applier.mark().unwrap();
    let from = applier.applied();
    let items = numbered(checks(&oracle, 1)).into_iter().map(|item| Item { seq: OpSeq(item.seq.0 + from.0), ..item });
    let items: Vec<Item> = items.collect();
    drop(applier);
    let mut applier = lab.open();
    applier.redo_through(OpSeq(from.0 + 2)).unwrap();
    applier.apply_segment(&items).unwrap();
    let found = applier.take_comparisons().remove(0);
    assert_eq!((found.checks, found.differences.len()), (items.len() as u64, 0));
    assert!(!found.not_compared.is_empty() && found.not_compared.len() <= 10);
    stream.seq = applier.applied().0;
    assert_eq!(stream.check(&mut applier, &oracle).not_compared, []);
}
