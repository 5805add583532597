//! The sending half of one connection: segments behind what the appliance has, notices at once, a status every second.

use crate::growth::Growth;
use crate::impact::Meter;
use crate::mounted;
use crate::runner::{Notice, Runner, Snapshot};
use crate::settings;
use anyhow::Result;
use standin_mirror::Progress;
use standin_model::{JobId, OpSeq, SourceWatermarks, VolumeId};
use standin_wire::{
    CaptureStatus, LeftOut, MirrorPhase, MirrorProgress, NetworkStatus, Refusal, Sender, Status, ToAppliance, VerifyStatus, VolumeProgress,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const STATUS_EVERY: Duration = Duration::from_secs(1);
/// So much of the limit, or of what the link takes, waits or is on its way at most before the mirror reads on: a second, because acknowledgements take a round trip
/// and a sync.
const MIRROR_AHEAD: Duration = Duration::from_millis(1000);
/// Without a limit, at least so much: nobody knows yet what the link takes.
const MIRROR_AHEAD_BYTES_MIN: u64 = 2 << 20;

/// What a volume holds by its file system's own statistics, for the progress estimate.
#[derive(Clone, Debug)]
pub struct Total {
    pub volume: VolumeId,
    pub mount_point: String,
    pub bytes: u64,
    pub nodes: u64,
}

pub struct Uplink {
    pub sender: Sender,
    pub runner: Arc<Runner>,
    pub sent: OpSeq,
    pub totals: Vec<Total>,
    pub growth: Growth,
    pub mounted: mounted::Watch,
    pub meter: Meter,
    pub changes: settings::Watch,
    pub stop: Arc<AtomicBool>,
    /// Connections since this program began.
    pub connects: u64,
    /// Why the way that was ordered last is not the one that is gone.
    pub trouble: Option<Refusal>,
}

/// Of each volume, and of all of them. More may have been done than the statistics of the beginning said that there is.
fn mirror_progress(progress: &Progress, totals: &[Total]) -> MirrorProgress {
    let of = |total: &Total| {
        let done = progress.volumes.get(&total.volume).copied().unwrap_or_default();
        VolumeProgress {
            mount_point: total.mount_point.clone(),
            nodes_done: done.nodes,
            nodes_total: total.nodes.max(done.nodes),
            bytes_done: done.bytes,
            bytes_total: total.bytes.max(done.bytes),
        }
    };
    let volumes: Vec<VolumeProgress> = totals.iter().map(of).collect();
    let (done, sum) = (progress.done(), |of: fn(&VolumeProgress) -> u64| volumes.iter().map(of).sum::<u64>());
    MirrorProgress {
        phase: if progress.tasks_left == 0 { MirrorPhase::Draining } else { MirrorPhase::Content },
        nodes_done: done.nodes,
        nodes_total_estimate: sum(|volume| volume.nodes_total).max(done.nodes),
        bytes_done: done.bytes,
        bytes_total: sum(|volume| volume.bytes_total).max(done.bytes),
        volumes,
    }
}

impl Uplink {
    /// Runs until the connection fails or `stop` is set.
    pub fn run(mut self) {
        if let Err(error) = self.send_on() {
            tracing::info!(error = format!("{error:#}"), "sending stopped");
            self.sender.abort();
        }
    }

    /// The mirror fills the queue with what is let through in a moment, so that what the server writes is not far behind it.
    fn bound_mirror(&self) {
        let pace = self.sender.pace();
        let of_a_moment = |bits: u64| bits / 8 * MIRROR_AHEAD.as_millis() as u64 / 1000;
        let bound = pace.limit().map_or_else(|| of_a_moment(pace.rate()).max(MIRROR_AHEAD_BYTES_MIN), of_a_moment);
        self.runner.queue.set_mirror_bound(bound);
    }

    fn network(&self, snapshot: &Snapshot) -> NetworkStatus {
        let pace = self.sender.pace();
        let (local, peer, congestion) = self.sender.ends();
        let (limit, rate, bytes) = (pace.limit().unwrap_or(0), pace.rate(), pace.passed());
        NetworkStatus {
            limit,
            rate,
            bytes,
            local,
            peer,
            congestion,
            connects: self.connects,
            level: snapshot.level,
            trouble: self.trouble.clone(),
        }
    }

    fn capture(&self, snapshot: &Snapshot) -> CaptureStatus {
        let Some(because) = self.runner.periodic.clone() else {
            return CaptureStatus { driver: "ebpf".to_owned(), ..CaptureStatus::default() };
        };
        let (standing, stills) = (snapshot.standing.unwrap_or_default(), &snapshot.stills);
        CaptureStatus {
            driver: "fanotify".to_owned(),
            periodic: true,
            because,
            changed_nodes: standing.changed,
            consistent_at: standing.consistent_at,
            stills: stills.tries,
            still_ms_max: u64::try_from(stills.longest.as_millis()).unwrap_or(u64::MAX),
            trouble: stills.trouble.clone(),
        }
    }

    fn send_on(&mut self) -> Result<()> {
        let mut bytes_sent = 0;
        let mut status_at = Instant::now() - STATUS_EVERY;
        while !self.stop.load(Ordering::Relaxed) {
            self.bound_mirror();
            // Segments and notices end the wait, so an idle source wakes this thread once for each status.
            let wait = STATUS_EVERY.saturating_sub(status_at.elapsed());
            // A segment that cannot be read back will not come back by reconnecting.
            let next = self.runner.queue.next_after(self.sent, wait).inspect_err(|_| self.runner.give_up())?;
            if let Some(segment) = next {
                self.sender.send_segment(&segment.bytes)?;
                bytes_sent += segment.byte_len() as u64;
                self.sent = segment.last_seq();
            }
            self.pass_notices()?;
            if status_at.elapsed() >= STATUS_EVERY {
                status_at = Instant::now();
                if let Some(bounds) = self.changes.look() {
                    self.runner.contract.set(bounds.cpu_percent, bounds.read_mib);
                }
                let status = self.status(bytes_sent);
                self.sender.send(&ToAppliance::Status(status))?;
                // The greeting tells the sizes. A source that stands still for a failover keeps its connection.
                anyhow::ensure!(!self.growth.is_seen() || self.runner.is_frozen(), "a volume has grown; connecting again to tell");
            }
            if !self.runner.is_alive() {
                self.pass_notices()?;
                anyhow::bail!("the pump is gone");
            }
        }
        Ok(())
    }

    fn pass_notices(&self) -> Result<()> {
        let notices = self.runner.notices.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        while let Ok(notice) = notices.try_recv() {
            // It may have waited for a connection for longer than the freeze lasted, and nobody may act on it then.
            if matches!(notice, Notice::Quiesced { .. }) && !self.runner.is_frozen() {
                continue;
            }
            self.sender.send(&message(self.runner.spec.job.clone(), notice))?;
        }
        Ok(())
    }

    fn status(&mut self, bytes_sent: u64) -> Status {
        let snapshot = self.runner.snapshot.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        let queued = self.runner.queue.last().max(self.sent);
        let mirror = snapshot.progress.as_ref().map(|progress| mirror_progress(progress, &self.totals));
        Status {
            job: Some(self.runner.spec.job.clone()),
            // The snapshot may be a turn older than the queue; the order of the watermarks is restored here.
            watermarks: SourceWatermarks { captured: snapshot.captured.max(queued), queued, sent: self.sent },
            captured_at: snapshot.captured_at,
            mirror,
            queue_bytes: self.runner.queue.bytes(),
            bytes_changed: snapshot.figures.bytes_changed,
            misplaced: self.mounted.look(&self.runner),
            left_out: LeftOut {
                nodes: snapshot.left_out.nodes,
                bytes: snapshot.left_out.bytes,
                bytes_changed: snapshot.figures.bytes_left_out,
            },
            bytes_spared: snapshot.figures.bytes_spared,
            bytes_sent,
            gaps: snapshot.figures.gaps,
            verify: snapshot.verify.map(|verify| VerifyStatus {
                run: verify.run,
                pass: verify.pass,
                nodes: verify.nodes,
                bytes: verify.bytes,
            }),
            network: Some(self.network(&snapshot)),
            capture: Some(self.capture(&snapshot)),
            impact: Some(self.meter.look(&self.runner.contract, &self.runner.bounds)),
            ring: *self.runner.ring.lock().unwrap_or_else(|poisoned| poisoned.into_inner()),
        }
    }
}

fn message(job: JobId, notice: Notice) -> ToAppliance {
    match notice {
        Notice::Quiesced { seq } => ToAppliance::Quiesced { job, seq },
        Notice::Thawed { reason } => ToAppliance::Thawed { job, reason },
        Notice::Failed { code, cause } => ToAppliance::Refused { job: Some(job), code: code.to_owned(), cause },
    }
}
