//! What happens to the source while something that was read is not in the stream yet.

use super::*;

impl Verify {
    /// Something happens to the source: what was read of these nodes and is not in the stream yet is read again.
    pub fn note(&mut self, operation: &Operation, touched: &[(NodeId, Timestamp)], now: Timestamp) {
        use Operation::*;
        if self.ended {
            return;
        }
        for (node, _) in touched {
            self.hit(*node, Some((0, 0)), now);
        }
        let Some(node) = operation.node() else { return };
        match operation {
            Write { offset, data, .. } => self.hit(node, Some((offset.0, data.len() as u64)), now),
            Zero { offset, len, .. } | Punch { offset, len, .. } | Allocate { offset, len, .. } => {
                self.hit(node, Some((offset.0, len.0)), now)
            }
            SetMode { .. }
            | SetOwner { .. }
            | SetTimes { .. }
            | SetXattr { .. }
            | RemoveXattr { .. }
            | SetFlags { .. }
            | SetProject { .. } => {
                self.hit(node, Some((0, 0)), now);
            }
            _ => self.hit(node, None, now),
        }
        // The first is the node itself.
        operation.changed_nodes().skip(1).for_each(|other| self.hit(other, None, now));
        match operation {
            // What was not there when the pass began need not be met.
            Create { .. } | CreateUnnamed { .. } | Mkdir { .. } | Symlink { .. } | Mknod { .. } => drop(self.meet(node)),
            // It may have moved from where the walk comes later to where it was before.
            Rename { parent, new_parent, .. } if parent != new_parent && self.meet(node) => {
                self.tasks.push_back(Task::Node { node, chain: true });
            }
            _ => {}
        }
    }

    /// Whether a node that moves has to be met by itself. Once is enough, or a pass would have no end where files are moved all the time.
    fn meet(&mut self, node: NodeId) -> bool {
        if self.pass > 1 || self.met.contains(&node) {
            return false;
        }
        if self.met.len() < MET_MAX {
            return self.met.insert(node);
        }
        // Nobody knows whether it was met.
        self.busy.entry(node).or_default();
        false
    }

    /// The way to read a node has changed.
    pub fn note_node(&mut self, node: NodeId, now: Timestamp) {
        self.hit(node, None, now);
    }

    /// `range` is what of the content changed, everything where absent.
    fn hit(&mut self, node: NodeId, range: Option<(u64, u64)>, now: Timestamp) {
        let Some(held) = self.held.remove(&node) else { return };
        let overlaps = |offset: u64, len: u64| match range {
            Some((from, count)) => count > 0 && from < offset.saturating_add(len) && offset < from.saturating_add(count),
            None => true,
        };
        let mut kept = Vec::new();
        for one in held {
            match one.read {
                Read::Block { offset, len, .. } | Read::Zeros { offset, len } if !overlaps(offset, len) => kept.push(one),
                _ => self.throw_away(node, one, now),
            }
        }
        if !kept.is_empty() {
            self.held.insert(node, kept);
        }
    }

    fn throw_away(&mut self, node: NodeId, held: Held, now: Timestamp) {
        self.held_count -= 1;
        let tries = held.tries.saturating_add(1);
        match held.read {
            Read::Node { content, chain, .. } => self.try_again(Task::Node { node, chain }, tries, content, now),
            Read::Block { offset, len, .. } | Read::Zeros { offset, len } if len <= BLOCK_BYTES => {
                self.try_again(Task::Block { node, offset }, tries, len, now);
            }
            // Something was written into a large hole: block by block from here on.
            Read::Block { offset, len, .. } | Read::Zeros { offset, len } => {
                for block in 0..len.div_ceil(BLOCK_BYTES) {
                    self.try_again(Task::Block { node, offset: offset + block * BLOCK_BYTES }, tries, BLOCK_BYTES, now);
                }
            }
        }
    }

    pub(super) fn try_again(&mut self, task: Task, tries: u8, content: u64, now: Timestamp) {
        if tries >= TRIES_MAX || self.again.len() >= WAITING_MAX {
            *self.busy.entry(task.node()).or_default() += content;
            return;
        }
        let from = Timestamp(now.0.saturating_add(TRY_AFTER * i64::from(tries)));
        self.again.push_back((task, tries.max(1), from));
    }

    /// The job is not live: nothing that was read before may go into the stream behind what comes now. That counts as a try: where gaps come oftener than a check is held
    /// back, a pass would have no end.
    pub fn suspend(&mut self, now: Timestamp) {
        for (node, held) in std::mem::take(&mut self.held) {
            held.into_iter().for_each(|one| self.throw_away(node, one, now));
        }
    }
}
