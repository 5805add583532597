//! Verification against a small source in memory: what is read, how often, and what happens to a read that something happened to.

use super::*;
use crate::{Content, Exclusions, ListedEntry, Scope};

const SECOND: i64 = 1_000_000_000;

fn id(inode: u64) -> NodeId {
    NodeId { volume: VolumeId(0), subvolume: 0, inode, generation: 1 }
}

#[derive(Clone)]
enum Body {
    Directory(Vec<(&'static str, u64)>),
    File(Vec<u8>),
    /// All hole, of this size.
    Sparse(u64),
}

struct Source {
    nodes: BTreeMap<u64, Body>,
    links: BTreeMap<u64, u64>,
    content_read: u64,
}

impl SourceReader for Source {
    fn list(&mut self, directory: NodeId) -> Result<Option<Vec<ListedEntry>>, ReadError> {
        let Some(Body::Directory(entries)) = self.nodes.get(&directory.inode) else { return Ok(None) };
        let kind = |inode| match self.nodes[&inode] {
            Body::Directory(_) => NodeKind::Directory,
            _ => NodeKind::File,
        };
        let entry = |(name, inode): &(&str, u64)| ListedEntry {
            entry: DirectoryEntry { name: Name::new(*name).unwrap(), node: id(*inode), kind: kind(*inode), device: 0, target: vec![] },
            changed: Timestamp(0),
            links: self.links.get(inode).copied().unwrap_or(1),
            allocated: ByteLen(0),
        };
        Ok(Some(entries.iter().map(entry).collect()))
    }

    fn look(&mut self, node: NodeId) -> Result<Option<NodeFacts>, ReadError> {
        let Some(body) = self.nodes.get(&node.inode) else { return Ok(None) };
        let (kind, size) = match body {
            Body::Directory(_) => (NodeKind::Directory, 0),
            Body::File(bytes) => (NodeKind::File, bytes.len() as u64),
            Body::Sparse(size) => (NodeKind::File, *size),
        };
        Ok(Some(NodeFacts {
            kind,
            named: true,
            links: self.links.get(&node.inode).copied().unwrap_or(1),
            attributes: attributes(),
            accessed: Timestamp(0),
            changed: Timestamp(0),
            flags: 0,
            project: 0,
            size: ByteLen(size),
            xattrs: vec![],
        }))
    }

    fn read(&mut self, node: NodeId, offset: u64, budget: usize) -> Result<Option<Content>, ReadError> {
        Ok(match self.nodes.get(&node.inode) {
            Some(Body::File(bytes)) => {
                let end = (offset as usize + budget).min(bytes.len());
                let data = bytes[(offset as usize).min(end)..end].to_vec();
                self.content_read += data.len() as u64;
                Some(Content { chunks: vec![Chunk::Data { offset, data }], next: end as u64, end: end == bytes.len() })
            }
            Some(Body::Sparse(size)) => Some(Content { chunks: vec![Chunk::Hole { offset, len: size - offset }], next: *size, end: true }),
            _ => None,
        })
    }
}

fn attributes() -> Attributes {
    Attributes { mode: 0o644, owner: 0, group: 0, modified: Timestamp(5) }
}

fn source(nodes: &[(u64, Body)]) -> Source {
    Source { nodes: nodes.iter().cloned().collect(), links: BTreeMap::new(), content_read: 0 }
}

/// A mirror that is live.
fn live(exclude: &[&str], source: &mut Source) -> Mirror {
    let mut mirror = Mirror::new(&[(id(2), b"/".to_vec())], Scope::Everything, Exclusions::new(exclude).unwrap());
    while mirror.step(source, 1 << 30, &mut Vec::new()) == crate::Step::More {}
    mirror.finished();
    source.content_read = 0;
    mirror
}

/// Reads on until the pass has ended or `steps` are over; `between` happens behind each read and is noted.
fn run(
    verify: &mut Verify,
    mirror: &Mirror,
    source: &mut Source,
    clock: &mut i64,
    mut between: impl FnMut(&mut Source, &Verify) -> Option<Operation>,
) -> Vec<CheckOf> {
    let mut checks = Vec::new();
    for _ in 0..10_000 {
        let now = Timestamp(*clock);
        verify.step(mirror, source, 1 << 20, now);
        if let Some(operation) = between(source, verify) {
            verify.note(&operation, &[], now);
        }
        checks.extend(verify.take_due(now).into_iter().map(|operation| match operation {
            Operation::Check(check) => check.of,
            other => panic!("{other:?}"),
        }));
        if verify.is_ended() {
            return checks;
        }
        *clock += SECOND / 10;
    }
    panic!("the pass does not end: {checks:?}");
}

fn end(checks: &[CheckOf]) -> &PassEnd {
    match checks.last() {
        Some(CheckOf::End(end)) => end,
        other => panic!("{other:?}"),
    }
}

fn tree() -> Source {
    let mut big = vec![7; 3 << 20];
    big[2 << 20..].fill(9);
    let mut source = source(&[
        (2, Body::Directory(vec![("a", 10), ("d", 20), ("big", 12)])),
        (20, Body::Directory(vec![("b", 11), ("twin", 10), ("hidden", 13)])),
        (10, Body::File(b"aaaa".to_vec())),
        (11, Body::File(vec![])),
        (12, Body::File(big)),
        (13, Body::File(b"secret".to_vec())),
    ]);
    source.links.insert(10, 2);
    source
}

fn digest(content: Digest, size: u64, kind: NodeKind) -> NodeDigest {
    NodeDigest { attributes: Digest::of_attributes(kind, &attributes(), ByteLen(size)), xattrs: Digest::of_xattrs(&mut []), content }
}

#[test]
fn everything_is_read_once_and_little_is_sent() {
    let mut source = tree();
    let mirror = live(&["/d/hidden"], &mut source);
    let mut verify = Verify::new(7, [id(2)]);
    let checks = run(&mut verify, &mirror, &mut source, &mut 0, |_, _| None);
    assert_eq!(source.content_read, 4 + (3 << 20), "the file with two names once, what is excluded never");
    let PassEnd { nodes, bytes, busy_nodes, unread_nodes, .. } = end(&checks);
    assert_eq!((*nodes, *bytes, *busy_nodes, *unread_nodes), (5, 4 + (3 << 20), 0, 0));
    assert_eq!(end(&checks).checks + 1, checks.len() as u64);
    let ranges: Vec<_> =
        checks.iter().filter_map(|of| if let CheckOf::Range { offset, len, .. } = of { Some((offset.0, len.0)) } else { None }).collect();
    assert_eq!(ranges, [(0, 1 << 20), (1 << 20, 1 << 20), (2 << 20, 1 << 20)]);
    // The digests are those of the tree.
    let names = |source: &mut Source, inode| {
        let listed = source.list(id(inode)).unwrap().unwrap().into_iter().map(|listed| listed.entry);
        Digest::of_names(&mut listed.filter(|entry| entry.node != id(13)).collect::<Vec<_>>())
    };
    let of = |source: &mut Source, inode: u64| match inode {
        2 | 20 => digest(names(source, inode), 0, NodeKind::Directory),
        10 => digest(Digest::of_content(b"aaaa"), 4, NodeKind::File),
        11 => digest(Digest::of_content(b""), 0, NodeKind::File),
        _ => digest(Digest::default(), 3 << 20, NodeKind::File),
    };
    let mut members = 0;
    for check in &checks {
        if let CheckOf::Nodes { inodes, digest, .. } = check {
            let parts: Vec<_> = inodes.iter().map(|inode| (id(*inode), of(&mut source, *inode))).collect();
            assert_eq!(Digest::of_nodes(parts.iter().map(|(node, part)| (*node, part))), *digest, "{inodes:?}");
            members += inodes.len();
        }
    }
    assert_eq!(members, 5);
    let mut sent = Vec::new();
    for of in checks {
        standin_model::codec::encode(&Operation::Check(Check { run: 7, pass: 1, of }), &mut sent);
    }
    assert!(sent.len() as u64 * 1000 < 3 << 20, "{} bytes", sent.len());
}

#[test]
fn a_read_that_something_happened_to_is_done_again() {
    let mut source = tree();
    let mirror = live(&[], &mut source);
    let mut verify = Verify::new(1, [id(2)]);
    let mut left = 3;
    let checks = run(&mut verify, &mirror, &mut source, &mut 0, |source, verify| {
        if left == 0 || !verify.held.contains_key(&id(10)) {
            return None;
        }
        left -= 1;
        source.nodes.insert(10, Body::File(vec![left; 9]));
        Some(Operation::Write { node: id(10), offset: ByteOffset(0), data: vec![left; 9] })
    });
    assert_eq!((left, end(&checks).busy_nodes), (0, 0));
    let of = digest(Digest::of_content(&[0; 9]), 9, NodeKind::File);
    let alone = checks.iter().any(
        |check| matches!(check, CheckOf::Nodes { inodes, digest, .. } if *inodes == [10] && *digest == Digest::of_nodes([(id(10), &of)])),
    );
    assert!(alone, "{checks:?}");
}

#[test]
fn a_file_that_never_stands_still_is_busy_and_the_rest_of_a_large_one_is_compared() {
    let mut source = tree();
    let mirror = live(&[], &mut source);
    let mut verify = Verify::new(1, [id(2)]);
    let mut turn = 0;
    let checks = run(&mut verify, &mirror, &mut source, &mut 0, |_, _| {
        turn += 1;
        let (node, offset) = if turn % 2 == 0 { (id(10), 0) } else { (id(12), 1_500_000) };
        Some(Operation::Write { node, offset: ByteOffset(offset), data: vec![1; 100] })
    });
    // Reads that nothing hit are in; every other turn leaves the file alone, so all comes in the end.
    assert_eq!(end(&checks).busy_nodes, 0);
    let mut verify = Verify::new(2, [id(2)]);
    let checks = run(&mut verify, &mirror, &mut source, &mut 0, |_, verify| {
        let node = if verify.held.contains_key(&id(10)) { id(10) } else { id(12) };
        Some(Operation::Write { node, offset: ByteOffset(1_500_000), data: vec![1; 100] })
    });
    let PassEnd { busy_nodes, busy_bytes, busy, .. } = end(&checks);
    assert_eq!((*busy_nodes, *busy_bytes), (2, 4 + (1 << 20)), "{busy:?}");
    let ranges = checks.iter().filter(|of| matches!(of, CheckOf::Range { offset, .. } if offset.0 != 1 << 20)).count();
    assert_eq!(ranges, 2, "the blocks beside the one that is written");
}

#[test]
fn later_passes_hold_their_checks_back() {
    let mut source = tree();
    let mirror = live(&[], &mut source);
    let suspects = [Suspect { node: id(10), range: None }, Suspect { node: id(12), range: Some((ByteOffset(1 << 20), ByteLen(1 << 20))) }];
    let mut verify = Verify::again(1, 3, suspects);
    verify.step(&mirror, &mut source, 1 << 20, Timestamp(0));
    verify.step(&mirror, &mut source, 1 << 20, Timestamp(0));
    assert_eq!(verify.take_due(Timestamp(4 * SECOND)), []);
    // The announcement of what the read may have seen comes late.
    verify.note(&Operation::SetMode { node: id(10), mode: 0o600 }, &[], Timestamp(4 * SECOND));
    let due = verify.take_due(Timestamp(6 * SECOND));
    assert!(matches!(&due[..], [Operation::Check(Check { of: CheckOf::Range { .. }, pass: 3, .. })]), "{due:?}");
    let mut clock = 6 * SECOND;
    let checks = run(&mut verify, &mirror, &mut source, &mut clock, |_, _| None);
    assert!(matches!(checks[0], CheckOf::Node { node, .. } if node == id(10)), "{checks:?}");
    assert!(clock >= 11 * SECOND);
}

#[test]
fn a_hole_costs_next_to_nothing() {
    let mut source = source(&[(2, Body::Directory(vec![("hole", 10)])), (10, Body::Sparse((1 << 40) + 5))]);
    let mirror = live(&[], &mut source);
    let mut verify = Verify::new(1, [id(2)]);
    let checks = run(&mut verify, &mirror, &mut source, &mut 0, |_, _| None);
    let mut at = 0;
    for check in &checks {
        if let CheckOf::Zeros { offset, len, .. } = check {
            assert_eq!(offset.0, at);
            at += len.0;
        }
    }
    assert_eq!((at, end(&checks).bytes), ((1 << 40) + 5, 0));
    assert!(checks.len() < 5000);
}

#[test]
fn what_was_read_before_a_gap_is_read_again_behind_it() {
    let mut source = tree();
    let mirror = live(&[], &mut source);
    let mut verify = Verify::new(1, [id(2)]);
    verify.step(&mirror, &mut source, 1 << 20, Timestamp(0));
    verify.suspend(Timestamp(0));
    assert_eq!(verify.take_due(Timestamp(0)), []);
    let checks = run(&mut verify, &mirror, &mut source, &mut 1, |_, _| None);
    assert_eq!((end(&checks).nodes, end(&checks).busy_nodes), (6, 0));
}

#[test]
fn a_pass_ends_where_gaps_come_oftener_than_a_check_is_held_back() {
    let mut source = tree();
    let mirror = live(&[], &mut source);
    let mut verify = Verify::again(1, 3, [Suspect { node: id(10), range: None }]);
    let mut clock = 0;
    while !verify.is_ended() {
        assert!(clock < 120 * SECOND, "it never ends");
        verify.step(&mirror, &mut source, 1 << 20, Timestamp(clock));
        verify.take_due(Timestamp(clock));
        clock += 3 * SECOND;
        verify.suspend(Timestamp(clock));
    }
}

#[test]
fn a_node_that_moves_to_where_the_walk_was_is_met_all_the_same() {
    let mut source = tree();
    let mirror = live(&[], &mut source);
    let mut verify = Verify::new(1, [id(2)]);
    // The root and its files are read; directories come later.
    verify.step(&mirror, &mut source, 1, Timestamp(0));
    verify.take_due(Timestamp(0));
    source.nodes.insert(20, Body::Directory(vec![("twin", 10), ("hidden", 13)]));
    source.nodes.insert(2, Body::Directory(vec![("a", 10), ("d", 20), ("big", 12), ("b", 11)]));
    let name = Name::new("b").unwrap();
    let mode = RenameMode::Replace;
    let rename =
        Operation::Rename { parent: id(20), name: name.clone(), node: id(11), new_parent: id(2), new_name: name, mode, victim: None };
    verify.note(&rename, &[], Timestamp(0));
    let checks = run(&mut verify, &mirror, &mut source, &mut 1, |_, _| None);
    let met = checks.iter().any(|check| matches!(check, CheckOf::Nodes { inodes, .. } if inodes.contains(&11)));
    assert!(met, "{checks:?}");
}

#[test]
fn a_pass_ends_where_files_are_made_and_moved_all_the_time() {
    let mut source = tree();
    let mirror = live(&[], &mut source);
    let mut verify = Verify::new(1, [id(2)]);
    let name = Name::new("b").unwrap();
    let rename = |node, from, to| {
        let (name, new_name, mode) = (name.clone(), name.clone(), RenameMode::Replace);
        Operation::Rename { parent: id(from), name, node: id(node), new_parent: id(to), new_name, mode, victim: None }
    };
    for round in 0.. {
        assert!(round < 20, "it never ends");
        verify.step(&mirror, &mut source, 1 << 20, Timestamp(round * SECOND));
        let fresh = 100 + round as u64;
        source.nodes.insert(fresh, Body::File(vec![1]));
        let create = Operation::Create { parent: id(2), name: name.clone(), node: id(fresh), attributes: attributes() };
        for operation in [rename(11, 2, 20), rename(11, 20, 2), create, rename(fresh, 2, 20)] {
            verify.note(&operation, &[], Timestamp(round * SECOND));
        }
        verify.take_due(Timestamp(round * SECOND));
        if verify.is_ended() {
            break;
        }
    }
}
