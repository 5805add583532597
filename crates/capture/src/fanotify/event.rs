//! What the kernel's records of a fanotify group say, as bytes: `struct fanotify_event_metadata` and what follows it (uapi/linux/fanotify.h).
//!
//! A record that cannot be read ends the buffer, and the caller counts everything as lost.

use crate::handles::node_of_handle;
use standin_model::{NodeId, VolumeId};

const METADATA_BYTES: usize = 24;
const VERSION: u8 = 3;
/// Before the handle: the information's head (4), the file system's id (8), the handle's own head (8).
const FID_HEAD_BYTES: usize = 20;
const INFO_FID: u8 = 1;
const INFO_DFID: u8 = 3;

/// Names in a directory that came or went.
const NAMES: u64 = libc::FAN_CREATE | libc::FAN_DELETE | libc::FAN_MOVED_FROM | libc::FAN_MOVED_TO;
/// What concerns a node itself.
const ITSELF: u64 = libc::FAN_MODIFY | libc::FAN_ATTRIB | libc::FAN_CLOSE_WRITE | libc::FAN_DELETE_SELF;
/// All that is asked for. A directory that moves is listed under both of its parents, so that its own move says nothing new.
pub const ASKED: u64 = NAMES | ITSELF | libc::FAN_ONDIR;

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The process that did it; the kernel's own threads are 0.
    pub process: u32,
    pub names: bool,
    pub itself: bool,
    pub overflow: bool,
    /// One of its handles is of a kind that is not known, so that nobody can say what changed.
    pub unknown: bool,
    pub node: Option<NodeId>,
    pub directory: Option<NodeId>,
}

/// Takes the first record off a buffer; `None` where it is none.
pub fn take(buffer: &[u8], volume: VolumeId) -> Option<(Event, &[u8])> {
    let word = |at: usize| Some(u32::from_le_bytes(buffer.get(at..at + 4)?.try_into().ok()?));
    let len = word(0)? as usize;
    let head = usize::from(u16::from_le_bytes(buffer.get(6..8)?.try_into().ok()?));
    let mask = u64::from(word(8)?) | u64::from(word(12)?) << 32;
    if *buffer.get(4)? != VERSION || head < METADATA_BYTES || len < head || len > buffer.len() {
        return None;
    }
    let mut event = Event {
        process: word(20)?,
        names: mask & NAMES != 0,
        itself: mask & ITSELF != 0,
        overflow: mask & libc::FAN_Q_OVERFLOW != 0,
        unknown: false,
        node: None,
        directory: None,
    };
    let mut infos = buffer.get(head..len)?;
    while !infos.is_empty() {
        let bytes = usize::from(u16::from_le_bytes(infos.get(2..4)?.try_into().ok()?));
        let info = infos.get(..bytes).filter(|_| bytes >= 4)?;
        let place = match *info.first()? {
            INFO_FID => Some(&mut event.node),
            INFO_DFID => Some(&mut event.directory),
            _ => None,
        };
        if let Some(place) = place {
            *place = handle(info, volume);
            event.unknown |= place.is_none();
        }
        infos = infos.get(bytes..)?;
    }
    Some((event, buffer.get(len..)?))
}

fn handle(info: &[u8], volume: VolumeId) -> Option<NodeId> {
    let word = |at: usize| Some(u32::from_le_bytes(info.get(at..at + 4)?.try_into().ok()?));
    let (bytes, kind) = (word(12)? as usize, word(16)? as i32);
    node_of_handle(kind, info.get(FID_HEAD_BYTES..FID_HEAD_BYTES.checked_add(bytes)?)?, volume)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(kind: u8, inode: u32) -> Vec<u8> {
        let mut info = vec![kind, 0, 28, 0];
        info.extend([9; 8]);
        for word in [8, 1, inode, 7] {
            info.extend(u32::to_le_bytes(word));
        }
        info
    }

    fn record(mask: u64, infos: &[Vec<u8>]) -> Vec<u8> {
        let tail = infos.concat();
        let mut record = Vec::new();
        record.extend(((METADATA_BYTES + tail.len()) as u32).to_le_bytes());
        record.extend([VERSION, 0, METADATA_BYTES as u8, 0]);
        record.extend(mask.to_le_bytes());
        record.extend((-1i32).to_le_bytes());
        record.extend(42u32.to_le_bytes());
        record.extend(tail);
        record
    }

    fn node(inode: u64) -> Option<NodeId> {
        Some(NodeId { volume: VolumeId(2), subvolume: 0, inode, generation: 7 })
    }

    #[test]
    fn records_follow_each_other() {
        let write = record(libc::FAN_MODIFY, &[info(INFO_DFID, 2), info(INFO_FID, 12)]);
        let create = record(libc::FAN_CREATE | libc::FAN_ONDIR, &[info(INFO_DFID, 3)]);
        let full = record(libc::FAN_Q_OVERFLOW, &[]);
        let buffer = [write, create, full].concat();
        let (first, rest) = take(&buffer, VolumeId(2)).unwrap();
        assert_eq!((first.node, first.directory, first.itself, first.names, first.process), (node(12), node(2), true, false, 42));
        let (second, rest) = take(rest, VolumeId(2)).unwrap();
        assert_eq!((second.node, second.directory, second.itself, second.names), (None, node(3), false, true));
        let (third, rest) = take(rest, VolumeId(2)).unwrap();
        assert!(third.overflow && rest.is_empty());
        assert_eq!(take(rest, VolumeId(2)), None);
    }

    #[test]
    fn damaged_records_are_none() {
        let good = record(libc::FAN_MODIFY, &[info(INFO_DFID, 2), info(INFO_FID, 12)]);
        for cut in 0..good.len() {
            assert_eq!(take(&good[..cut], VolumeId(2)), None, "{cut}");
        }
        // Another version; infos that end nowhere or before they begin.
        for (at, byte) in [(4, 9), (6, 8), (26, 0), (26, 3), (26, 200), (27, 255)] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert_eq!(take(&bad, VolumeId(2)), None, "{at}");
        }
        // A handle that would reach beyond its information is a node that is not known.
        let mut bad = good;
        bad[24 + 12] = 200;
        let event = take(&bad, VolumeId(2)).unwrap().0;
        assert!(event.unknown && event.directory.is_none() && event.node == node(12), "{event:?}");
    }
}
