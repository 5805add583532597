//! What the server itself goes through: its disks are written back, it reboots, it loses power.

use super::Source;
use crate::random::Random;
use standin_model::*;

impl Source {
    /// Everything reaches the disks, as it does every few seconds by itself.
    pub fn write_back(&mut self) {
        self.written = self.disks.clone();
    }

    /// A clean shutdown: all processes end, and everything is written back. Nobody captures any more.
    pub fn shut_down(&mut self) {
        self.settle();
        self.lose_memory();
        self.write_back();
        self.remember();
    }

    /// The disks fall back to when they were last written. With `torn`, some files have had their bytes written since, without their times. An id
    /// is not given twice: generations are drawn at random by ext4 and xfs.
    pub fn cut_power(&mut self, random: &mut Random, torn: bool) {
        self.settle();
        let before = std::mem::replace(&mut self.disks, self.written.clone());
        self.disks.next_inode = before.next_inode;
        for (id, node) in &mut self.disks.nodes {
            let Some(newer) = before.nodes.get(id).filter(|_| node.body.kind == NodeKind::File && torn && random.one_in(3)) else {
                continue;
            };
            let body = node.body.changing();
            let kept = body.content.len().min(newer.body.content.len());
            body.content[..kept].copy_from_slice(&newer.body.content[..kept]);
        }
        self.lose_memory();
        self.generation_min += 1000;
        self.write_back();
        self.remember();
    }

    /// Ring and processes are gone, and with the processes the files that only they held.
    fn lose_memory(&mut self) {
        self.ring.clear();
        self.open.clear();
        let nameless: Vec<NodeId> = self.nodes().keys().copied().filter(|node| !self.is_named(*node)).collect();
        for node in nameless {
            self.destroy(node);
        }
    }
}
