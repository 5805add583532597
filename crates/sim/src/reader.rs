//! What the pump sees of the virtual source: capture and reader, sharing it, with the workload going on in the middle of every read.

use crate::source::{Random, Source};
use anyhow::Result;
use standin_agent::pump::{Capture, Captured, PumpReader};
use standin_mirror::*;
use standin_model::*;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

pub struct World {
    pub source: Source,
    pub random: Random,
    /// Operations left for the workload in this run.
    pub budget: u32,
    /// Nothing changes any more.
    pub frozen: bool,
}

impl World {
    /// The workload acts at moments of its own choosing.
    pub fn disturb(&mut self, most: u64) {
        for _ in 0..self.random.below(most + 1) {
            if self.frozen || self.budget == 0 {
                return;
            }
            self.budget -= 1;
            self.source.act(&mut self.random);
        }
    }
}

#[derive(Clone)]
pub struct View(pub Rc<RefCell<World>>);

impl Capture for View {
    fn barrier(&mut self, sink: &mut Vec<Captured>) -> Result<()> {
        sink.append(&mut self.0.borrow_mut().source.ring);
        Ok(())
    }
    fn wait(&mut self, _: Duration) -> Result<()> {
        self.0.borrow_mut().disturb(3);
        Ok(())
    }
}

impl PumpReader for View {
    fn note_direct_io(&mut self, _: NodeId) {}
}

impl SourceReader for View {
    fn list(&mut self, directory: NodeId) -> Result<Option<Vec<ListedEntry>>, ReadError> {
        let mut world = self.0.borrow_mut();
        world.disturb(2);
        let nodes = &world.source.nodes.0;
        let Some(entries) = nodes.get(&directory).and_then(|n| n.directory.clone()) else { return Ok(None) };
        let mut listed = Vec::new();
        for (name, node) in entries {
            // Every entry is looked up on its own, so one listing may mix several moments.
            world.disturb(1);
            let Some(n) = world.source.nodes.0.get(&node) else { continue };
            let kind = if n.directory.is_some() { NodeKind::Directory } else { NodeKind::File };
            let entry = DirectoryEntry { name: Name::new(name).expect("good"), node, kind, device: 0, target: vec![] };
            listed.push(ListedEntry { entry, changed: n.changed });
        }
        Ok(Some(listed))
    }

    fn look(&mut self, node: NodeId) -> Result<Option<NodeFacts>, ReadError> {
        let mut world = self.0.borrow_mut();
        world.disturb(1);
        Ok(world.source.nodes.0.get(&node).map(|n| NodeFacts {
            named: true,
            kind: if n.directory.is_some() { NodeKind::Directory } else { NodeKind::File },
            attributes: Attributes { mode: n.mode, owner: 0, group: 0, modified: n.changed },
            accessed: Timestamp(0),
            changed: n.changed,
            flags: 0,
            size: ByteLen(n.content.len() as u64),
            xattrs: n.xattrs.clone().into_iter().collect(),
        }))
    }

    fn read(&mut self, node: NodeId, offset: u64, budget: usize) -> Result<Option<Content>, ReadError> {
        let mut world = self.0.borrow_mut();
        world.disturb(1);
        // Small reads, so that files of a few kilobytes are read in several steps.
        let want = budget.min(64 + world.random.below(1500) as usize);
        let Some(n) = world.source.nodes.0.get(&node) else { return Ok(None) };
        let size = n.content.len();
        let start = (offset as usize).min(size);
        let end = (start + want).min(size);
        let data = n.content[start..end].to_vec();
        let chunks = if data.is_empty() { vec![] } else { vec![Chunk::Data { offset: start as u64, data }] };
        Ok(Some(Content { chunks, next: end as u64, end: end == size }))
    }
}
