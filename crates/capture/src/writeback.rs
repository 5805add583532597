//! Asks for the writeback of mapped writes, on a thread of its own: the call waits where a disk is busy, and writeback fills the ring meanwhile, so it
//! must not be made by whoever drains that.

use standin_model::NodeId;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
};

/// Nodes that wait for the thread, about 32 KiB. What does not fit is asked for later.
const WAITING_MAX: usize = 1024;

/// Dropping it ends the thread after the call that it is in.
pub(crate) struct Writeback {
    requests: SyncSender<NodeId>,
    under_way: Arc<AtomicUsize>,
}

impl Writeback {
    pub(crate) fn start(mut write_back: impl FnMut(NodeId) + Send + 'static) -> io::Result<Writeback> {
        let (requests, received) = sync_channel(WAITING_MAX);
        let under_way = Arc::new(AtomicUsize::new(0));
        let counted = Arc::downgrade(&under_way);
        std::thread::Builder::new().name("writeback".to_owned()).spawn(move || {
            while let Ok(node) = received.recv()
                && counted.strong_count() > 0
            {
                write_back(node);
                if let Some(under_way) = counted.upgrade() {
                    under_way.fetch_sub(1, Ordering::AcqRel);
                }
            }
        })?;
        Ok(Writeback { requests, under_way })
    }

    /// Never waits; `false` when too many wait already.
    pub(crate) fn ask(&self, node: NodeId) -> bool {
        self.under_way.fetch_add(1, Ordering::AcqRel);
        let asked = self.requests.try_send(node).is_ok();
        if !asked {
            self.under_way.fetch_sub(1, Ordering::AcqRel);
        }
        asked
    }

    /// Nodes that were asked for and are not done.
    pub(crate) fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use standin_model::VolumeId;
    use std::time::{Duration, Instant};

    fn node(inode: usize) -> NodeId {
        NodeId { volume: VolumeId(0), subvolume: 0, inode: inode as u64, generation: 1 }
    }

    #[test]
    fn a_disk_that_hangs_holds_nobody_up() {
        let (done, disk) = sync_channel::<()>(0);
        let writeback = Writeback::start(move |_| disk.recv().unwrap_or_default()).unwrap();
        let asked = (0..3 * WAITING_MAX).filter(|number| writeback.ask(node(*number))).count();
        // One more may be in the thread's hands.
        assert!((WAITING_MAX..=WAITING_MAX + 1).contains(&asked), "{asked}");
        assert_eq!(writeback.under_way(), asked);
        // The disk answers again.
        drop(done);
        let begun = Instant::now();
        while writeback.under_way() > 0 {
            assert!(begun.elapsed() < Duration::from_secs(30), "{} wait", writeback.under_way());
            std::thread::yield_now();
        }
        assert!(writeback.ask(node(0)));
    }
}
