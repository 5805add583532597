//! Capture by fanotify, for kernels on which the programs of `ebpf` cannot run: it tells which nodes changed, not what happened to them.
//!
//! Place on the spine: beside `ebpf`, behind the same [`CaptureSource`], with another [`Promise`]. The kernel queues an event before the call that it tells of
//! returns, so what had returned before a barrier is in the queue then, and the barrier empties it. Events of one node in the queue become one. What comes by
//! no event is found by a look at whoever may write so (`unseen`), and the rest by change times, in a walk of the pump's. A queue that was full is a loss of
//! everything since the known time; nothing ever waits for this one either.

mod event;
mod group;
#[cfg(test)]
mod tests;
mod unseen;

use crate::self_test::{self, Written};
use crate::{CaptureConfig, CaptureError, CaptureEvent, CaptureSource, CaptureStats, CapturedVolume, LossReason, Promise, Sink, handles};
use event::Event;
use group::Group;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use standin_model::{FileSystem, NodeId, Timestamp, VolumeId};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

pub(crate) struct Watched {
    id: VolumeId,
    root: OwnedFd,
    file_system: FileSystem,
    /// Only this one is protected; of another subvolume nothing is told.
    subvolume: u64,
}

pub struct FanotifyCapture {
    volumes: Vec<Watched>,
    /// One for each volume, in the same order.
    groups: Vec<Group>,
    exclude_tgid: u32,
    events_max: usize,
    because: String,
    stats: CaptureStats,
}

/// Why fanotify cannot be used on this kernel at all; `None` when it can.
pub fn obstacle() -> Option<CaptureError> {
    let refuse = |error: io::Error| CaptureError::Fanotify { what: "anything".into(), cause: error.to_string() };
    group::init().err().map(refuse)
}

impl FanotifyCapture {
    /// When this returns, every change from here on is told of. `because` is why it is this source and not the other one.
    pub fn start(config: &CaptureConfig, because: &str) -> Result<FanotifyCapture, CaptureError> {
        let (mut volumes, mut groups) = (Vec::new(), Vec::new());
        let mut stats = CaptureStats::default();
        for volume in &config.volumes {
            let refuse =
                |error: io::Error| CaptureError::Fanotify { what: volume.mount_point.display().to_string(), cause: error.to_string() };
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::open(&volume.mount_point, flags, Mode::empty()).map_err(|error| refuse(error.into()))?;
            let id = handles::node_id_of(&root, volume.id).map_err(refuse)?;
            let mut group = Group::watch(root.as_fd(), &volume.mount_point, volume.file_system).map_err(refuse)?;
            let said = prove(&mut group, volume)?;
            stats.hooks.push((format!("fanotify on {}", volume.mount_point.display()), said));
            volumes.push(Watched { id: volume.id, root, file_system: volume.file_system, subvolume: id.subvolume });
            groups.push(group);
        }
        let (exclude_tgid, events_max) = (config.exclude_tgid, group::queue_events_max());
        Ok(FanotifyCapture { volumes, groups, exclude_tgid, events_max, because: because.to_owned(), stats })
    }

    fn take(&mut self, sink: Sink<'_>) {
        let FanotifyCapture { volumes, groups, exclude_tgid, events_max, stats, .. } = self;
        let mut counted = |event: CaptureEvent| {
            stats.count(&event);
            sink(event);
        };
        let mut records = 0;
        for (volume, group) in volumes.iter().zip(groups) {
            // More than can have waited when this began; writers that are faster must not keep the pump.
            let mut events = 0;
            while events <= *events_max {
                match take_some(group, volume, *exclude_tgid, &mut counted) {
                    Some(0) => break,
                    Some(some) => events += some,
                    None => {
                        counted(CaptureEvent::LostEverything { reason: LossReason::BadRecord });
                        break;
                    }
                }
            }
            records += events as u64;
        }
        self.stats.records += records;
    }
}

/// How many events there were in one read; `None` where what was read is not whole.
fn take_some(group: &mut Group, volume: &Watched, exclude: u32, sink: &mut impl FnMut(CaptureEvent)) -> Option<usize> {
    let (mut rest, mut events) = (group.read().ok()?, 0);
    while !rest.is_empty() {
        let (event, behind) = event::take(rest, volume.id)?;
        (rest, events) = (behind, events + 1);
        if event.process != exclude || event.overflow {
            tell(&event, volume, sink);
        }
    }
    Some(events)
}

fn tell(event: &Event, volume: &Watched, sink: &mut impl FnMut(CaptureEvent)) {
    if event.overflow {
        return sink(CaptureEvent::LostEverything { reason: LossReason::EventQueueFull });
    }
    // An event on a directory itself has only that.
    let changed = event.node.or(event.directory);
    if event.unknown || changed.is_none() {
        return sink(CaptureEvent::LostEverything { reason: LossReason::BadRecord });
    }
    let mut one = |node: Option<NodeId>, directory: Option<NodeId>, names: bool| {
        if let Some(node) = node.filter(|node| node.subvolume == volume.subvolume) {
            sink(CaptureEvent::Changed { node, directory, names });
        }
    };
    if event.names {
        one(event.directory, None, true);
    }
    if event.itself {
        one(changed, event.directory.filter(|directory| Some(*directory) != changed), false);
    }
}

/// A write to the volume must be told of, before capture counts as started.
fn prove(group: &mut Group, volume: &CapturedVolume) -> Result<String, CaptureError> {
    let (process, written) = self_test::write(volume)?;
    if let Written::NotPossible(errno) = written {
        let cause = io::Error::from_raw_os_error(errno);
        tracing::warn!(mount_point = %volume.mount_point.display(), %cause, "no test write is possible; capture is not proved here");
        return Ok(format!("not proved: {cause}"));
    }
    // Others may have filled the queue meanwhile; that is told of as well, and proves as much.
    let mut seen = false;
    for _ in 0..=group::queue_events_max() {
        let failed = |cause: String| CaptureError::Fanotify { what: volume.mount_point.display().to_string(), cause };
        let mut rest = group.read().map_err(|error| failed(error.to_string()))?;
        if seen || rest.is_empty() {
            break;
        }
        while !rest.is_empty() {
            let (event, behind) = event::take(rest, volume.id).ok_or_else(|| failed("its events cannot be read".into()))?;
            seen |= event.overflow || event.process == process && event.itself && event.node.is_some();
            rest = behind;
        }
    }
    let mount_point = volume.mount_point.display().to_string();
    let refuse = || CaptureError::SelfTest { mount_point, reason: "fanotify did not tell of it".into() };
    seen.then(|| "marked".to_owned()).ok_or_else(refuse)
}

impl CaptureSource for FanotifyCapture {
    fn drain(&mut self, sink: Sink<'_>) {
        self.take(sink);
    }

    fn barrier(&mut self, sink: Sink<'_>) {
        self.take(sink);
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let mut fds: Vec<PollFd<'_>> = self.groups.iter().map(|group| PollFd::from_borrowed_fd(group.fd(), PollFlags::IN)).collect();
        let limit = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        match poll(&mut fds, Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn stats(&self) -> CaptureStats {
        self.stats.clone()
    }

    fn pending_mapped(&self) -> usize {
        0
    }

    fn flush_mapped(&mut self, _older_than: Duration) -> usize {
        0
    }

    fn promise(&self) -> Promise {
        Promise::Periodic
    }

    fn because(&self) -> String {
        self.because.clone()
    }

    fn sweep(&mut self, since: Timestamp, sink: Sink<'_>) {
        let events = match unseen::find(&self.volumes, since) {
            Ok(nodes) => nodes.into_iter().map(|(node, directory)| CaptureEvent::Changed { node, directory, names: false }).collect(),
            Err(unseen::TooMuch) => vec![CaptureEvent::LostEverything { reason: LossReason::TooMuchUnseen }],
        };
        for event in events {
            self.stats.count(&event);
            sink(event);
        }
    }
}
