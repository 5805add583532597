//! The replica's own file system: inodes, names, and a limbo; like a real one it destroys an inode with its last name.

use super::Inode;
use crate::tree::Body;
use standin_model::{Attributes, NodeKind, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Bodies are shared between a disk and its copies until they change.
#[derive(Clone)]
pub struct Disk {
    bodies: BTreeMap<Inode, Rc<Body>>,
    directories: BTreeMap<Inode, BTreeMap<Vec<u8>, Inode>>,
    pub limbo: BTreeSet<Inode>,
    /// What our own work gave a time that is nobody's.
    pub touched: BTreeSet<Inode>,
    /// They are the first inodes.
    roots: Inode,
    next: Inode,
}

/// The time that the kernel stamps on what we change.
pub const OUR_TIME: Timestamp = Timestamp(i64::MIN);

impl Disk {
    pub fn new(roots: usize) -> Disk {
        let mut disk = Disk {
            bodies: BTreeMap::new(),
            directories: BTreeMap::new(),
            limbo: BTreeSet::new(),
            touched: BTreeSet::new(),
            roots: roots as Inode,
            next: 1,
        };
        let attributes = Attributes { mode: 0o755, owner: 0, group: 0, modified: OUR_TIME };
        for _ in 0..roots {
            disk.make(Body::new(NodeKind::Directory, attributes));
        }
        disk
    }

    pub fn roots(&self) -> Vec<Inode> {
        (1..=self.roots).collect()
    }

    /// A new inode, without a name as yet.
    pub fn make(&mut self, body: Body) -> Inode {
        let inode = self.next;
        self.next += 1;
        if body.kind == NodeKind::Directory {
            self.directories.insert(inode, BTreeMap::new());
        }
        self.bodies.insert(inode, Rc::new(body));
        inode
    }

    pub fn has(&self, inode: Inode) -> bool {
        self.bodies.contains_key(&inode)
    }
    pub fn look(&self, inode: Inode) -> Option<&Body> {
        self.bodies.get(&inode).map(|body| &**body)
    }
    /// To change what is not content.
    pub fn body(&mut self, inode: Inode) -> &mut Body {
        Rc::make_mut(self.bodies.get_mut(&inode).expect("the caller knows that it lives")).changing()
    }
    /// To change the content, or names, which changes the time as well.
    pub fn modify(&mut self, inode: Inode) -> &mut Body {
        self.touched.insert(inode);
        let body = self.body(inode);
        body.modified = OUR_TIME;
        body
    }
    pub fn names(&self, inode: Inode) -> Option<&BTreeMap<Vec<u8>, Inode>> {
        self.directories.get(&inode)
    }
    pub fn lookup(&self, directory: Inode, name: &[u8]) -> Option<Inode> {
        self.directories.get(&directory)?.get(name).copied()
    }

    /// Names of an inode outside limbo.
    pub fn links(&self, inode: Inode) -> Vec<(Inode, Vec<u8>)> {
        let names = |(directory, names): (&Inode, &BTreeMap<Vec<u8>, Inode>)| {
            names.iter().filter(|(_, i)| **i == inode).map(|(name, _)| (*directory, name.clone())).collect::<Vec<_>>()
        };
        self.directories.iter().flat_map(names).collect()
    }

    /// The name must be free.
    pub fn link(&mut self, directory: Inode, name: &[u8], inode: Inode) {
        let taken = self.directories.get_mut(&directory).expect("a directory").insert(name.to_vec(), inode);
        assert!(taken.is_none(), "a name is taken");
        self.modify(directory);
    }

    /// Takes the name away and nothing else.
    pub fn unlink(&mut self, directory: Inode, name: &[u8]) -> Option<Inode> {
        let inode = self.directories.get_mut(&directory)?.remove(name)?;
        self.modify(directory);
        Some(inode)
    }

    pub fn to_limbo(&mut self, directory: Inode, name: &[u8]) {
        if let Some(inode) = self.unlink(directory, name) {
            self.limbo.insert(inode);
        }
    }

    /// Destroys what has no name at all.
    pub fn reap(&mut self, inode: Inode) {
        if inode <= self.roots || !self.has(inode) || self.limbo.contains(&inode) || !self.links(inode).is_empty() {
            return;
        }
        self.bodies.remove(&inode);
        for child in self.directories.remove(&inode).into_iter().flatten().map(|(_, child)| child).collect::<Vec<_>>() {
            self.reap(child);
        }
    }

    /// The directory that holds this one; `None` in limbo and for the root.
    pub fn above(&self, directory: Inode) -> Option<Inode> {
        self.links(directory).first().map(|(above, _)| *above)
    }

    /// Whether `inode` is `directory` or lies below it.
    pub fn is_below(&self, inode: Inode, directory: Inode) -> bool {
        let mut at = Some(inode);
        while let Some(here) = at {
            if here == directory {
                return true;
            }
            at = self.above(here);
        }
        false
    }

    /// Everything in limbo and below it that has no name elsewhere.
    pub fn nameless(&self) -> BTreeSet<Inode> {
        let mut found = BTreeSet::new();
        let mut todo: Vec<Inode> = self.limbo.iter().copied().collect();
        while let Some(inode) = todo.pop() {
            let elsewhere = self.links(inode).iter().any(|(directory, _)| !found.contains(directory));
            if (self.limbo.contains(&inode) && !elsewhere || !self.limbo.contains(&inode) && self.links(inode).len() == 1)
                && found.insert(inode)
            {
                todo.extend(self.directories.get(&inode).into_iter().flatten().map(|(_, child)| *child));
            }
        }
        found
    }
}
