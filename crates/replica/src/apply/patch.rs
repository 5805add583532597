//! Patches: the parts are written, and then all of the range must be what the source says. A range that is not has its node wanted.
//!
//! A patch reads nothing that it needs, so that redo repeats it as it repeats writes. In a redo the range may rightly be what later items made of
//! it, so that what does not match there waits for the redo's end as *unproven*. What is proven in a redo stays proven: everything that comes
//! behind it comes again.

use super::fds::Fd;
use super::unproven::Expected;
use super::{Applier, Done, check, content};
use rustix::io::Errno;
use standin_model::{NodeId, NodeKind, Operation, patch::checksum_of};

impl Applier {
    pub(super) fn patch(&mut self, operation: &Operation) -> Done {
        let Operation::Patch { node, offset, len, parts, checksum } = operation else { return Ok(()) };
        let Some(fd) = self.need_file(*node)? else { return Ok(()) };
        self.guard_clone_origin(*node)?;
        self.counters.patches += 1;
        self.counters.content_bytes += operation.content_len();
        let write = |fd: &Fd| parts.iter().try_for_each(|part| content::write_all(fd, &part.data, offset.0.saturating_add(part.at.into())));
        self.keeping_capability(*node, &fd, write)?;
        let expected = Expected { node: *node, offset: offset.0, len: len.0, checksum: *checksum, is_broken: false };
        let holds = self.settle(*node, "reading what was patched", holds(&fd, &expected))?;
        if holds == Some(true) {
            self.unproven.settled(*node, offset.0, len.0);
        } else if self.redoing() {
            // An older promise about these bytes is kept or broken with this one.
            self.unproven.settled(*node, offset.0, len.0);
            self.expect(expected);
        } else if holds == Some(false) {
            self.refuse(*node);
        }
        Ok(())
    }

    fn expect(&mut self, expected: Expected) {
        let node = expected.node;
        if self.suspects.contains(&node) || self.wanted.contains(&node) {
            // It comes again in any case, and with it what was expected of it.
            return;
        }
        if self.unproven.is_full() {
            tracing::info!(%node, "more is unproven in this redo than is remembered; the node is wanted");
            self.unproven.forget(node);
            self.counters.patches_unproven += 1;
            self.suspects.insert(node);
            return;
        }
        self.unproven.expect(expected);
    }

    /// The redo is through, so that the replica is what the stream made of it; or it is not.
    pub(super) fn prove(&mut self) -> Done {
        for expected in self.unproven.take() {
            let node = expected.node;
            if self.wanted.contains(&node) || self.kind(node).is_some_and(|kind| kind != NodeKind::File) {
                continue;
            }
            // Whoever needs a node that is gone says so himself.
            let Some(fd) = self.alive(node)? else { continue };
            if expected.is_broken {
                tracing::info!(%node, "a patch of the redo cannot be proven; the node is wanted");
                self.counters.patches_unproven += 1;
                self.want(node);
            } else if self.settle(node, "reading what was patched", holds(&fd, &expected))? == Some(false) {
                self.refuse(node);
            }
        }
        Ok(())
    }

    fn refuse(&mut self, node: NodeId) {
        if self.wanted.contains(&node) {
            return;
        }
        tracing::warn!(%node, applied = %self.applied, "a patch does not give what the source has; the node is wanted");
        self.counters.patches_refused += 1;
        self.want(node);
    }
}

fn holds(fd: &Fd, expected: &Expected) -> Result<bool, Errno> {
    let content = check::read(fd, expected.offset, expected.len)?;
    Ok(content.len() as u64 == expected.len && checksum_of(&content) == expected.checksum)
}
