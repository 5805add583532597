//! Checks on the virtual replica, in the shortest form: what they mean, and how its disk may be damaged to see that they find it.

use super::Replica;
use crate::random::Random;
use crate::tree::Body;
use standin_model::*;
use standin_protection::Compared;

impl Replica {
    pub(super) fn check(&mut self, check: &Check) {
        self.set_due_times();
        let part = match self.compared.take().filter(|part| (part.run, part.pass) == (check.run, check.pass) && part.end.is_none()) {
            Some(part) => part,
            None => Compared { run: check.run, pass: check.pass, ..Compared::default() },
        };
        let mut part = Compared { checks: part.checks + u64::from(!matches!(check.of, CheckOf::End(_))), ..part };
        let comparable = self.is_consistent() && !self.is_redoing();
        let mut suspect = |node, range, differs: bool| match comparable {
            true if differs => part.differences.push((Suspect { node, range }, "differs".to_owned())),
            true => {}
            false => part.not_compared.push(Suspect { node, range }),
        };
        match &check.of {
            CheckOf::Nodes { volume, inodes, digest, .. } => {
                let known = |inode: &u64| {
                    let of_inode = self.table.entries.keys().filter(|node| node.volume == *volume && node.inode == *inode);
                    of_inode.copied().max_by_key(|node| (self.alive(*node).is_some(), node.generation))
                };
                let nodes: Vec<NodeId> = inodes.iter().filter_map(known).collect();
                let digests: Vec<NodeDigest> = nodes.iter().map(|node| self.digest(*node)).collect();
                let differs = nodes.len() < inodes.len() || Digest::of_nodes(nodes.iter().copied().zip(&digests)) != *digest;
                nodes.iter().for_each(|node| suspect(*node, None, differs));
            }
            CheckOf::Node { node, digest } => suspect(*node, None, self.digest(*node) != *digest),
            // Contents here are smaller than a block.
            CheckOf::Range { node, offset, len, .. } | CheckOf::Zeros { node, offset, len } => suspect(*node, Some((*offset, *len)), true),
            CheckOf::End(end) => part.end = Some(end.clone()),
        }
        self.compared = Some(part);
    }

    pub fn take_compared(&mut self) -> Option<Compared> {
        self.compared.take()
    }

    pub fn repair(&mut self, nodes: Vec<NodeId>) {
        nodes.into_iter().for_each(|node| self.want(node));
    }

    fn digest(&self, node: NodeId) -> NodeDigest {
        let Some(inode) = self.alive(node) else { return NodeDigest::default() };
        let body = self.disk.look(inode).expect("it is alive");
        let attributes = body.attributes();
        let content = match body.kind {
            NodeKind::File => Digest::of_content(&body.content),
            NodeKind::Directory => Digest::of_names(&mut self.entries_of(inode)),
            _ => Digest::default(),
        };
        NodeDigest {
            attributes: Digest::of_attributes(body.kind, &attributes, ByteLen(body.content.len() as u64)),
            xattrs: Digest::of_xattrs(&mut body.xattrs.clone().into_iter().collect::<Vec<_>>()),
            content,
        }
    }

    fn entries_of(&self, directory: super::Inode) -> Vec<DirectoryEntry> {
        let nobody = NodeId { inode: 0, ..self.roots[0] };
        let entry = |(name, inode): (&Vec<u8>, &super::Inode)| {
            let known = self.table.entries.iter().find(|(_, entry)| entry.inode == *inode).map(|(node, _)| *node);
            let Body { kind, device, target, .. } = self.disk.look(*inode).expect("a name leads to something");
            let name = Name::new(name.clone()).expect("good");
            DirectoryEntry { name, node: known.unwrap_or(nobody), kind: *kind, device: *device, target: target.clone() }
        };
        self.disk.names(directory).into_iter().flatten().map(entry).collect()
    }

    /// Does something to the disk that no operation did; says what, or `None` where it could not be done.
    pub fn damage(&mut self, random: &mut Random) -> Option<String> {
        let named: Vec<NodeId> = self.table.entries.keys().copied().filter(|node| self.is_named(*node)).collect();
        let node = random.pick(&named)?;
        let inode = self.alive(node)?;
        let kind = self.disk.look(inode)?.kind;
        let whole = self.disk.look(inode)?.content.len() as u64;
        Some(match random.below(5) {
            0 if whole > 0 => {
                self.disk.body(inode).content[random.below(whole) as usize] ^= 1;
                format!("a flipped byte in {node}")
            }
            1 => {
                self.disk.body(inode).xattrs.insert(b"user.damage".to_vec(), vec![1]);
                format!("an attribute more on {node}")
            }
            2 if kind != NodeKind::Symlink => {
                self.disk.body(inode).mode ^= 0o100;
                format!("another mode of {node}")
            }
            3 if kind != NodeKind::Directory => {
                let (directory, name) = self.disk.links(inode).first()?.clone();
                self.disk.unlink(directory, &name);
                self.disk.reap(inode);
                format!("a name of {node} missing")
            }
            4 if kind == NodeKind::Directory => {
                let extra = self.disk.make(Body::new(NodeKind::File, super::names::PLACEHOLDER));
                self.disk.link(inode, b"nobody's", extra);
                format!("a name more in {node}")
            }
            _ => return None,
        })
    }

    fn is_named(&self, node: NodeId) -> bool {
        self.roots.contains(&node) || self.alive(node).is_some_and(|inode| self.is_below_root(inode))
    }

    fn is_below_root(&self, inode: super::Inode) -> bool {
        let mut at = inode;
        for _ in 0..1000 {
            match self.disk.links(at).first() {
                _ if self.disk.roots().contains(&at) => return true,
                Some((above, _)) => at = *above,
                None => return false,
            }
        }
        false
    }
}
