//! Markers, limbo's end, durable marks, and what comes back after a crash.

use super::{Inode, Redo, Replica, Table};
use standin_model::*;
use std::collections::BTreeSet;

impl Replica {
    pub(super) fn mark_state(&mut self, marker: &Marker, seq: OpSeq) {
        if *marker == Marker::Consistent && !self.is_redoing() {
            self.want_hollow();
            self.fresh_wants = self.table.wanted.iter().copied().collect();
        }
        match marker {
            Marker::Gap { .. } => self.table.gap_open = true,
            Marker::ResyncStarted => {
                self.table.resync_running = true;
                // What they missed no walk will show.
                let unnamed: Vec<NodeId> = self.table.entries.iter().filter(|(_, e)| e.unnamed).map(|(node, _)| *node).collect();
                unnamed.into_iter().for_each(|node| self.forget(node));
            }
            Marker::Consistent => {
                self.table.answered.clear();
                // What is wanted now the agent did not know of when it appended this; it stays wanted.
                self.table.consistent_at = Some(seq);
                (self.table.gap_open, self.table.resync_running) = (false, false);
                match self.is_redoing() {
                    true if self.table.wanted.is_empty() => {
                        for (node, unlinked) in self.nameless_in_limbo() {
                            self.lost_a_name(node);
                            self.table.buried.entry(node).or_insert(unlinked);
                        }
                    }
                    true => {}
                    false => self.purge_if_whole(),
                }
            }
            Marker::StreamStarted { boot, everything } => self.stream_started(*boot, *everything),
            Marker::Settled { through } => self.table.unsettled.retain(|_, last| *last > *through),
            _ => {}
        }
    }

    /// Another kernel: what was not on the source's disks may be as it was before.
    fn stream_started(&mut self, boot: u64, everything: bool) {
        let before = self.table.source_boot.replace(boot);
        let answered = std::mem::take(&mut self.table.answered);
        if !everything {
            answered.into_iter().for_each(|node| self.want(node));
        }
        if !everything && before.is_some_and(|before| before != boot) {
            std::mem::take(&mut self.table.unsettled).into_keys().for_each(|node| self.want(node));
        }
    }

    /// Placeholders that stayed empty are content that the agent took for known.
    fn want_hollow(&mut self) {
        let hollow: Vec<(NodeId, super::Entry)> =
            self.table.entries.iter().filter(|(_, e)| e.hollow).map(|(node, e)| (*node, *e)).collect();
        for (node, entry) in hollow {
            let gone = !self.disk.has(entry.inode) || self.lies_in_limbo_only(entry.inode);
            if !gone {
                self.want(node);
            } else if !entry.unlinked {
                // Another node took its only name. Should it be heard of again, it is a node that the replica does not know.
                self.table.entries.remove(&node);
            }
        }
    }

    fn purge_if_whole(&mut self) {
        if !self.careful() {
            self.purge(&BTreeSet::new());
        }
    }

    /// Known nodes in limbo that have no other name and that the stream took no name from.
    fn lost_in_limbo(&self) -> Vec<NodeId> {
        self.nameless_in_limbo().into_iter().filter(|(_, unlinked)| !unlinked).map(|(node, _)| node).collect()
    }

    /// Known nodes in limbo that have no other name, and whether the stream took one from them.
    fn nameless_in_limbo(&self) -> Vec<(NodeId, bool)> {
        let nameless = self.disk.nameless();
        let here = self.table.entries.iter().filter(|(_, e)| nameless.contains(&e.inode) && !e.unnamed);
        here.map(|(node, e)| (*node, e.unlinked)).collect()
    }

    fn purge(&mut self, keep: &BTreeSet<Inode>) {
        let unnamed = self.table.entries.values().filter(|e| e.unnamed).map(|e| e.inode);
        let keep: BTreeSet<Inode> = unnamed.chain(keep.iter().copied()).collect();
        // A directory in limbo that holds something to keep stays as well.
        let kept = |replica: &Replica, inode: Inode| keep.iter().any(|k| *k == inode || replica.disk.is_below(*k, inode));
        let going: Vec<Inode> = self.disk.limbo.iter().copied().filter(|inode| !kept(self, *inode)).collect();
        for inode in going {
            self.disk.limbo.remove(&inode);
            self.disk.reap(inode);
        }
    }

    /// Makes everything applied so far durable.
    pub fn mark(&mut self) {
        self.purge_if_whole();
        self.save(None);
    }

    pub(super) fn save(&mut self, intent: Option<(OpSeq, usize)>) {
        self.set_due_times();
        self.table.intent = intent;
        self.clone_origins.clear();
        self.marked = (self.table.clone(), self.disk.clone());
    }

    /// The worker or its machine goes down: the table is that of the last mark, and the disk anything between then and now.
    pub fn crash(&mut self, disk_kept: bool, journal_end: OpSeq) {
        let (table, disk): (Table, _) = self.marked.clone();
        self.table = table;
        if self.forgets_intents {
            self.table.intent = None;
        }
        if !disk_kept {
            self.disk = disk;
        }
        self.disk.touched.clear();
        self.half_wanted.clear();
        self.fresh_wants = self.table.wanted.iter().copied().collect();
        self.listings.clear();
        self.differs.clear();
        self.clone_origins.clear();
        self.redo = Redo::Through(journal_end);
        self.end_redo_if_reached();
    }

    /// The worker dies when the disk has the item and nothing else knows of it.
    pub fn die_in(&mut self, item: &Item, journal_end: OpSeq) {
        assert_eq!(item.seq, self.table.applied.next(), "the stream has a hole");
        self.execute(&item.operation, item.seq);
        self.crash(true, journal_end);
    }

    pub(super) fn end_redo_if_reached(&mut self) {
        if !matches!(self.redo, Redo::Through(end) if end <= self.table.applied) {
            return;
        }
        self.redo = Redo::Done;
        for (node, parent) in std::mem::take(&mut self.table.unplaced) {
            if !self.is_rightly_gone(node) {
                self.want(parent);
            }
        }
        for node in std::mem::take(&mut self.table.suspects) {
            self.missing(node);
        }
        self.prove();
        if self.table.consistent_at.is_some() && !self.table.resync_running {
            self.want_hollow();
        }
        if self.careful() {
            return;
        }
        let lost = self.lost_in_limbo();
        let keep = lost.iter().filter_map(|node| self.table.entries.get(node)).map(|e| e.inode).collect();
        self.purge(&keep);
        for (node, unlinked) in std::mem::take(&mut self.table.buried) {
            if !unlinked && self.alive(node).is_none() {
                self.table.entries.remove(&node);
            }
        }
        lost.into_iter().for_each(|node| self.want(node));
    }
}
