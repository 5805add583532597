//! Files whose last name is gone while somebody has them open: temporary files of databases, and of a file system's own housekeeping (`xfs_fsr`).
//!
//! They can never have a name again (only one that began without any can, `O_TMPFILE`), and they end with the server. So no replica that is ever started
//! can show their content, and it is not sent. What is cloned from one is content that was not sent: it is read again.

use super::Assembler;
use crate::{CaptureEvent, LossReason};
use standin_model::{NodeId, Operation};

/// About 2 MiB. Of what does not fit, the content is sent like any other.
const NAMELESS_MAX: usize = 65_536;

impl Assembler {
    pub(super) fn unname(&mut self, node: NodeId) {
        if self.nameless.len() < NAMELESS_MAX {
            self.nameless.insert(node);
        }
    }

    /// What is left of an event when content of such files is taken out.
    pub(super) fn without_nameless(&mut self, event: CaptureEvent) -> Option<CaptureEvent> {
        use Operation::*;
        if self.nameless.is_empty() {
            return Some(event);
        }
        match &event {
            CaptureEvent::Operation { operation: Forget { node }, .. } => drop(self.nameless.remove(node)),
            CaptureEvent::Operation { operation: CloneRange { origin, node, .. }, .. } => {
                if self.nameless.contains(node) {
                    return None;
                }
                if self.nameless.contains(origin) {
                    return Some(CaptureEvent::Lost { node: *node, range: (0, u64::MAX), reason: LossReason::CopiedFromLost });
                }
            }
            CaptureEvent::Operation { operation: Write { node, .. } | Allocate { node, .. }, .. } if self.nameless.contains(node) => {
                return None;
            }
            _ => {}
        }
        Some(event)
    }
}
