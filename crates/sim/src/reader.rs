//! What the pump sees of the virtual source: capture and reader, sharing it, with the workload going on in the middle of every read.

use crate::random::Random;
use crate::source::Source;
use crate::trace::trace;
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
    /// Rules of what the job leaves out.
    pub exclusions: Vec<String>,
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

impl World {
    /// Whether the appliance's worker dies in this item. What is not idempotent is where that is dangerous.
    pub fn kills_worker(&mut self, operation: &Operation) -> bool {
        let one_in = match operation {
            Operation::Patch { .. } => 50,
            operation if operation.is_idempotent() => 1000,
            _ => 10,
        };
        !self.frozen && self.random.one_in(one_in)
    }
}

#[derive(Clone)]
pub struct View(pub Rc<RefCell<World>>);

impl Capture for View {
    fn barrier(&mut self, sink: &mut Vec<Captured>) -> Result<()> {
        let mut world = self.0.borrow_mut();
        world.source.ring.iter().for_each(|event| trace!("ring    {}", crate::trace::short(event)));
        sink.append(&mut world.source.ring);
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

impl World {
    /// Now and then the source's disk fails for a moment.
    fn fail(&mut self, action: &'static str, node: NodeId) -> Result<(), ReadError> {
        if !self.frozen && self.random.one_in(400) {
            trace!("reader  fails to {action} {node}");
            return Err(ReadError { action, node, cause: "simulated".to_owned() });
        }
        Ok(())
    }
}

impl SourceReader for View {
    fn list(&mut self, directory: NodeId) -> Result<Option<Vec<ListedEntry>>, ReadError> {
        let mut world = self.0.borrow_mut();
        world.disturb(2);
        world.fail("list", directory)?;
        world.source.lock_to_list(directory);
        let Some(entries) = world.source.nodes().get(&directory).and_then(|n| n.directory.clone()) else { return Ok(None) };
        let mut listed = Vec::new();
        for name in entries.into_keys() {
            // Every entry is looked up on its own, so one listing may mix several moments.
            world.disturb(1);
            let nodes = world.source.nodes();
            let Some(node) = nodes.get(&directory).and_then(|n| n.directory.as_ref()?.get(&name)).copied() else { continue };
            let Some(n) = nodes.get(&node) else { continue };
            let name = Name::new(name).expect("good");
            let entry = DirectoryEntry { name, node, kind: n.body.kind, device: n.body.device, target: n.body.target.clone() };
            listed.push(ListedEntry { entry, changed: n.changed, links: world.source.links(node), allocated: ByteLen(0) });
        }
        Ok(Some(listed))
    }

    fn parent(&mut self, directory: NodeId) -> Result<Option<(NodeId, Name)>, ReadError> {
        let mut world = self.0.borrow_mut();
        world.disturb(1);
        world.fail("find the place of", directory)?;
        Ok(world.source.name_of(directory).map(|(parent, name)| (parent, Name::new(name).expect("good"))))
    }

    fn look(&mut self, node: NodeId) -> Result<Option<NodeFacts>, ReadError> {
        let mut world = self.0.borrow_mut();
        world.disturb(1);
        world.fail("look at", node)?;
        let named = world.source.is_named(node);
        Ok(world.source.nodes().get(&node).map(|n| NodeFacts {
            kind: n.body.kind,
            named,
            links: world.source.links(node),
            attributes: n.body.attributes(),
            accessed: Timestamp(0),
            changed: n.changed,
            flags: 0,
            project: 0,
            size: ByteLen(n.body.content.len() as u64),
            xattrs: n.body.xattrs.clone().into_iter().collect(),
        }))
    }

    fn read(&mut self, node: NodeId, offset: u64, budget: usize) -> Result<Option<Content>, ReadError> {
        let mut world = self.0.borrow_mut();
        world.disturb(1);
        world.fail("read", node)?;
        // Small reads, so that files of a few kilobytes are read in several steps.
        let want = budget.min(64 + world.random.below(1500) as usize);
        let reserved = world.random.one_in(4);
        let Some(n) = world.source.nodes().get(&node) else { return Ok(None) };
        let content = &n.body.content;
        let start = (offset as usize).min(content.len());
        let end = (start + want).min(content.len());
        let data = content[start..end].to_vec();
        let chunks = match data.iter().all(|byte| *byte == 0) {
            true if data.is_empty() => vec![],
            true if reserved => vec![Chunk::Allocated { offset: start as u64, len: data.len() as u64 }],
            true => vec![Chunk::Hole { offset: start as u64, len: data.len() as u64 }],
            false => vec![Chunk::Data { offset: start as u64, data }],
        };
        Ok(Some(Content { chunks, next: end as u64, end: end == content.len() }))
    }
}
