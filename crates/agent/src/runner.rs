//! One running job on the source: the pump's thread, and what others may ask of it.
//!
//! The runner lives across connections. It ends by order, or when the pump fails; then the service starts over with a new epoch.

use crate::answers::Answers;
use crate::control::LiveJob;
use crate::freeze::Frozen;
use crate::host::Host;
use crate::impact::{Contract, Impact};
use crate::nodes::{Nodes, Root};
use crate::observe::Observed;
use crate::pump::{CHANGE_SLACK_NS, Capture, Figures, Pump, Standing, Turn, WALK_NS, now};
use crate::queue::SharedQueue;
use crate::reader::LinuxReader;
use crate::settings::Bounds;
use crate::settle::{self, Settling};
use crate::signature::{SignatureSizes, Signatures};
use crate::stop;
use anyhow::{Context, Result};
use standin_capture::{CaptureConfig, CaptureSource, CapturedVolume, Promise};
use standin_journal::{Queue, Sealer};
use standin_mirror::{CompareSizes, Exclusions, LeftOut, Mirror, Progress, Scope, VerifyProgress};
use standin_model::{JobSpec, MarkName, NodeId, OpSeq, Suspect, Timestamp};
use standin_wire::RingStats;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

mod rhythm;
use rhythm::Cut;
pub use rhythm::Stills;

/// What the appliance orders for a job that runs.
#[derive(Debug)]
pub enum Order {
    Want(Vec<NodeId>),
    Quiesce {
        bound: Duration,
    },
    Thaw,
    /// Answered with the marker's number, or with nothing while there is no state to mark.
    Mark {
        name: MarkName,
        answer: SyncSender<Option<OpSeq>>,
    },
    Verify {
        run: u64,
        rate: u64,
    },
    VerifyAgain {
        run: u64,
        pass: u8,
        suspects: Vec<Suspect>,
        rate: u64,
    },
    EndVerify {
        run: u64,
    },
    /// The agent is about to end: see `stop`. Answered with whether the source's disks have everything, and then the pump does nothing more.
    Leave {
        answer: SyncSender<bool>,
    },
}

/// What happened, for the appliance to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    Quiesced { seq: OpSeq },
    Thawed { reason: String },
    Failed { code: &'static str, cause: String },
}

#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub captured: OpSeq,
    pub captured_at: Timestamp,
    pub figures: Figures,
    pub progress: Option<Progress>,
    pub left_out: LeftOut,
    pub verify: Option<VerifyProgress>,
    /// Of a source that tells only which nodes changed.
    pub standing: Option<Standing>,
    pub stills: Stills,
    /// Of compression.
    pub level: i32,
}

/// Orders that wait for the pump; more than a few means that it hangs, and then the session is closed.
const ORDERS_MAX: usize = 64;
const NOTICES_MAX: usize = 64;
/// How long the pump sleeps when nothing happens. Short enough for a lively status, long enough for an idle server.
const IDLE_WAIT: Duration = Duration::from_millis(200);
/// A pump that has not ended this long after it was told is left to itself.
const STOP_MAX: Duration = Duration::from_secs(20);
/// How long a freeze is put off until the replica lacks nothing and the queue is off the disk.
const READY_MAX: Duration = Duration::from_secs(15);
const READY_WAIT: Duration = Duration::from_millis(5);
/// No order freezes the source for longer, whatever it says.
const FREEZE_MAX: Duration = Duration::from_secs(300);
/// Numbers beyond this are no order of an appliance: 2^62 operations are a million a second for 146,000 years.
const NEXT_MAX: OpSeq = OpSeq(1 << 62);
/// Freed memory is given back when nothing has happened for this long after something has.
const TRIM_AFTER: Duration = Duration::from_secs(2);
/// More bytes than this must have been queued since, so that a trickle of changes does not trim each time.
const TRIM_BYTES_MIN: u64 = 4 << 20;

pub struct Runner {
    pub spec: JobSpec,
    pub epoch: u64,
    /// The file systems as they were found at the start.
    pub captured: Vec<CapturedVolume>,
    pub queue: SharedQueue,
    /// Where what the replica says of digests goes.
    pub answers: Answers,
    pub snapshot: Arc<Mutex<Snapshot>>,
    pub ring: Arc<Mutex<RingStats>>,
    /// What the mirror may take, and has taken.
    pub contract: Arc<Contract>,
    pub bounds: Bounds,
    /// Why the source is captured with the weaker promise; `None` where it is not.
    pub periodic: Option<String>,
    orders: SyncSender<Order>,
    pub notices: Mutex<Receiver<Notice>>,
    frozen: Shared,
    /// The last order about it was to quiesce.
    may_freeze: Arc<AtomicBool>,
    /// What stands still, or is about to, does so for the agent itself.
    is_own: Arc<AtomicBool>,
    /// Set once; the pump ends at its next turn.
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What is frozen now, or about to be; shared because neither a fence nor a thaw may wait for the pump.
type Shared = Arc<Mutex<Option<Frozen>>>;

fn lock(frozen: &Shared) -> MutexGuard<'_, Option<Frozen>> {
    frozen.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Where a stream begins.
pub struct Start {
    pub next: OpSeq,
    pub epoch: u64,
    pub since: Option<Timestamp>,
    /// The appliance answers to digests.
    pub compares: bool,
}

impl Runner {
    /// Starts capture and then the walk. Returns when capture runs.
    pub fn start(host: &dyn Host, spec: JobSpec, start: Start, state_directory: &Path, bounds: &Bounds) -> Result<Runner> {
        let sound = start.next > OpSeq::ZERO && start.next <= NEXT_MAX;
        anyhow::ensure!(sound, "the appliance asks for item {} to be the first, which no stream can have", start.next);
        let volumes: Vec<_> = spec.volumes.iter().map(|v| (v.id, v.mount_point.clone(), v.file_system)).collect();
        let nodes = Nodes::open_volumes(&volumes).context("cannot open the protected volumes")?;
        let captured = spec.volumes.iter().map(|v| CapturedVolume::of_mount_point(v.id, Path::new(&v.mount_point)));
        let captured: Vec<CapturedVolume> = captured.collect::<std::io::Result<_>>()?;
        let mut config = CaptureConfig::new(captured.clone());
        config.ring_bytes = bounds.ring_bytes();
        let capture = host.capture(&config, bounds.driver)?;
        let periodic = (capture.promise() == Promise::Periodic).then(|| capture.because());
        let mut queue = Queue::open(state_directory.join("queue"), bounds.queue())?;
        queue.acknowledge(OpSeq(start.next.0.saturating_sub(1)))?;
        let queue = SharedQueue::new(queue);
        let (orders, received) = sync_channel(ORDERS_MAX);
        let (notify, notices) = sync_channel(NOTICES_MAX);
        let snapshot = Arc::new(Mutex::new(Snapshot::default()));
        let shared = Arc::clone(&snapshot);
        let observed = Observed::new(capture, bounds.ring_bytes());
        let ring = observed.ring();
        // Nothing is written into the stream of a periodic source, so that nothing is written again.
        let budget = if periodic.is_some() { 0 } else { bounds.delta_bytes() };
        let signatures = Signatures::new(budget, secret(), SignatureSizes::default());
        let contract = Arc::new(Contract::default());
        contract.set(bounds.cpu_percent, bounds.read_mib);
        let pump = make_pump(&spec, &start, nodes.clone(), observed, queue.clone(), state_directory)?;
        let pump = pump.with_rhythm(bounds.rhythm()).with_impact(Impact::new(Arc::clone(&contract)));
        let mut pump = pump.with_signatures(signatures);
        pump.started(settle::boot()?, start.since.is_none());
        let answers = pump.answers();
        let roots = Arc::new(nodes.roots().context("cannot open the protected volumes once more")?);
        let (frozen, stop) = (Shared::default(), Arc::new(AtomicBool::new(false)));
        let (may_freeze, is_own) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let mut work = Work {
            stop: Arc::clone(&stop),
            pump,
            orders: received,
            notify,
            queue: queue.clone(),
            frozen: Arc::clone(&frozen),
            settling: Settling::new(Arc::clone(&roots)),
            may_freeze: Arc::clone(&may_freeze),
            freezing: None,
            holds_queue: false,
            roots,
            state_directory: state_directory.to_owned(),
            snapshot: shared,
            trimmed: Trimmed { bytes: 0, busy: Instant::now() },
            has_left: false,
            period: Duration::from_secs(bounds.period_seconds.into()),
            stills: Stills::new(Duration::from_millis(bounds.still_ms.into())),
            frozen_at: None,
            is_own: Arc::clone(&is_own),
        };
        let thread = std::thread::Builder::new().name("pump".to_owned()).spawn(move || work.run())?;
        Ok(Runner {
            spec,
            epoch: start.epoch,
            captured,
            queue,
            answers,
            snapshot,
            ring,
            contract,
            bounds: *bounds,
            periodic,
            orders,
            notices: Mutex::new(notices),
            frozen,
            may_freeze,
            is_own,
            stop,
            thread: Some(thread),
        })
    }

    /// False when the pump is gone or does not answer any more.
    pub fn order(&self, order: Order) -> bool {
        match order {
            Order::Quiesce { .. } => self.may_freeze.store(true, Ordering::SeqCst),
            Order::Thaw => self.thaw(),
            Order::Want(_) | Order::Mark { .. } | Order::Leave { .. } => {}
            Order::Verify { .. } | Order::VerifyAgain { .. } | Order::EndVerify { .. } => {}
        }
        !matches!(self.orders.try_send(order), Err(TrySendError::Full(_) | TrySendError::Disconnected(_)))
    }

    /// What the local socket needs of this job.
    pub fn live_job(&self) -> LiveJob {
        LiveJob { job: self.spec.job.clone(), orders: self.orders.clone(), queue: self.queue.clone() }
    }

    /// At once, whatever the pump is doing, and also in the middle of a freeze.
    fn thaw(&self) {
        self.may_freeze.store(false, Ordering::SeqCst);
        *lock(&self.frozen) = None;
    }

    /// Keeps what is frozen until the power goes; `false` when nothing is frozen any more, and then the source must not be switched off:
    /// it has gone on since the replica's cut.
    pub fn keep_frozen(&self) -> bool {
        let frozen = lock(&self.frozen);
        // What stands still for a marker has no cut to be fenced at.
        !self.is_own.load(Ordering::SeqCst) && frozen.as_ref().is_some_and(Frozen::keep)
    }

    /// Whether anything is frozen now.
    pub fn is_frozen(&self) -> bool {
        lock(&self.frozen).as_ref().is_some_and(Frozen::holds)
    }

    /// What the queue holds cannot be sent any more; the job begins anew, with another epoch.
    pub fn give_up(&self) {
        self.stop.store(true, Ordering::Release);
    }

    pub fn is_alive(&self) -> bool {
        !self.stop.load(Ordering::Acquire) && self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.give_up();
        let Some(thread) = self.thread.take() else { return };
        // Woken only by its own bound; a pump that hangs on a disk must not hang the service too.
        let begun = Instant::now();
        while !thread.is_finished() {
            if begun.elapsed() > STOP_MAX {
                return tracing::error!("the pump does not end; a volume may hang");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = thread.join();
    }
}

type Source = Observed<Box<dyn CaptureSource + Send>>;
type Real = Pump<Source, LinuxReader>;

/// What no job may contain: the agent's own state, which changes because of the stream itself.
fn own_exclusions(state_directory: &Path) -> Vec<String> {
    let absolute: PathBuf = std::fs::canonicalize(state_directory).unwrap_or_else(|_| state_directory.to_owned());
    vec![absolute.to_string_lossy().into_owned()]
}

/// A number that nobody outside can guess: the standard library's hashers have random keys of the kernel's.
fn secret() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

fn make_pump(spec: &JobSpec, start: &Start, nodes: Nodes, observed: Source, queue: SharedQueue, state: &Path) -> Result<Real> {
    let exclusions = Exclusions::new(&[spec.exclusions.clone(), own_exclusions(state)].concat())?;
    let root = |v: &standin_model::VolumeSpec| nodes.root(v.id).map(|root| (root, v.mount_point.clone().into_bytes()));
    let roots: Vec<(NodeId, Vec<u8>)> = spec.volumes.iter().filter_map(root).collect();
    // What neither an event nor a look told of, a walk would have found only then.
    let unseen = if observed.is_periodic() { WALK_NS } else { 0 };
    let slack = |since: Timestamp| Timestamp(since.0.saturating_sub(CHANGE_SLACK_NS).saturating_sub(unseen));
    let scope = start.since.map_or(Scope::Everything, |since| Scope::ChangedSince(slack(since)));
    let mut mirror = Mirror::new(&roots, scope, exclusions);
    if start.compares {
        mirror = mirror.compare(CompareSizes::default());
    }
    if let Scope::ChangedSince(since) = scope {
        mirror.distrust(crate::writers::writing_since(&nodes, since));
    }
    let ids = roots.iter().map(|(root, _)| *root).collect();
    let sealer = Sealer::new(start.epoch, start.next, 0);
    Ok(Pump::new(observed, LinuxReader::new(nodes), mirror, ids, sealer, queue, Box::new(now)).with_levels())
}

struct Work {
    pump: Real,
    stop: Arc<AtomicBool>,
    orders: Receiver<Order>,
    notify: SyncSender<Notice>,
    queue: SharedQueue,
    frozen: Shared,
    settling: Settling,
    may_freeze: Arc<AtomicBool>,
    /// The last freeze. While its thread runs, something may stand still.
    freezing: Option<std::thread::JoinHandle<Result<()>>>,
    /// The queue keeps off the disk.
    holds_queue: bool,
    roots: Arc<Vec<Root>>,
    state_directory: PathBuf,
    snapshot: Arc<Mutex<Snapshot>>,
    trimmed: Trimmed,
    /// The agent is about to end, and only the queue is still delivered.
    has_left: bool,
    /// Of a periodic source.
    period: Duration,
    stills: Stills,
    /// When the last standstill began.
    frozen_at: Option<Instant>,
    /// Nobody ordered what stands still.
    is_own: Arc<AtomicBool>,
}

/// When memory was last given back.
struct Trimmed {
    /// Bytes sealed until then.
    bytes: u64,
    /// Last time that there was something to do.
    busy: Instant,
}

impl Work {
    fn run(&mut self) {
        if let Err(error) = self.pump_on() {
            tracing::error!(error = format!("{error:#}"), "the pump stopped");
            self.tell(Notice::Failed { code: "STANDIN-E6001", cause: format!("{error:#}") });
        }
        // Nobody comes to thaw after this. Where the power is about to go, nothing may be written any more.
        if !lock(&self.frozen).as_ref().is_some_and(Frozen::is_kept) {
            self.thaw();
        }
    }

    fn tell(&self, notice: Notice) {
        // Nobody reads while the connection is down; the appliance asks again by its own timeout.
        let _ = self.notify.try_send(notice);
        self.queue.nudge();
    }

    fn thaw(&mut self) {
        *lock(&self.frozen) = None;
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn pump_on(&mut self) -> Result<()> {
        loop {
            if self.is_stopped() {
                return Ok(());
            }
            match self.orders.try_recv() {
                Err(TryRecvError::Disconnected) => return Ok(()),
                Ok(order) => self.obey(order)?,
                Err(TryRecvError::Empty) => {}
            }
            self.watch_frozen();
            if self.has_left {
                // What happens from here on the next agent finds; nothing may be queued behind what is waited for.
                std::thread::sleep(IDLE_WAIT);
                continue;
            }
            let turn = self.pump.turn(IDLE_WAIT)?;
            self.stand_still_if_wanted()?;
            self.settle()?;
            self.publish();
            self.trim(turn);
        }
    }

    fn settle(&mut self) -> Result<()> {
        if let Some(through) = self.settling.take() {
            self.pump.settled(through);
            self.settling.told(self.pump.captured());
        }
        // A sync of a frozen file system waits for the thaw.
        if self.settling.is_due(self.pump.captured())
            && lock(&self.frozen).is_none()
            && let Some(through) = self.pump.position()?
        {
            self.settling.begin(through)?;
        }
        Ok(())
    }

    fn watch_frozen(&mut self) {
        let thawed = lock(&self.frozen).as_ref().is_some_and(|frozen| !frozen.holds());
        if thawed {
            self.thaw();
            self.tell(Notice::Thawed { reason: "nobody fenced within the agreed time".to_owned() });
        }
        self.freezing.take_if(|thread| thread.is_finished());
        if self.holds_queue && self.freezing.is_none() && lock(&self.frozen).is_none() {
            // Nothing stands still any more, so the disk may be used again.
            self.holds_queue = false;
            self.queue.release();
        }
    }

    fn trim(&mut self, turn: Turn) {
        let bytes = self.pump.figures().bytes_sealed;
        if turn == Turn::Busy {
            self.trimmed.busy = Instant::now();
        } else if bytes - self.trimmed.bytes > TRIM_BYTES_MIN && self.trimmed.busy.elapsed() >= TRIM_AFTER {
            self.trimmed.bytes = bytes;
            crate::memory::trim();
        }
    }

    fn publish(&self) {
        let progress = (!self.pump.is_consistent()).then(|| self.pump.mirror().progress());
        let (captured, figures, verify) = (self.pump.captured(), self.pump.figures(), self.pump.verify_progress());
        let (captured_at, standing, stills) = (self.pump.known_until(), self.pump.standing(), self.stills.clone());
        let (left_out, level) = (self.pump.mirror().left_out(), self.pump.level());
        let snapshot = Snapshot { captured, captured_at, figures, progress, left_out, verify, standing, stills, level };
        *self.snapshot.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = snapshot;
    }

    fn obey(&mut self, order: Order) -> Result<()> {
        match order {
            Order::Want(nodes) => self.pump.want(nodes),
            Order::Mark { name, answer } => {
                let seq = self.mark(&name)?;
                // Who asked may have stopped waiting.
                let _ = answer.try_send(seq);
            }
            Order::Verify { run, rate } => self.pump.verify(run, rate),
            Order::VerifyAgain { run, pass, suspects, rate } => self.pump.verify_again(run, pass, suspects, rate),
            Order::EndVerify { run } => self.pump.end_verify(run),
            Order::Quiesce { bound } => self.quiesce(bound)?,
            Order::Thaw => {
                self.thaw();
                self.tell(Notice::Thawed { reason: "ordered by the appliance".to_owned() });
            }
            Order::Leave { answer } => {
                let settled = self.leave()?;
                let _ = answer.try_send(settled);
            }
        }
        Ok(())
    }

    /// The agent ends after this.
    fn leave(&mut self) -> Result<bool> {
        if lock(&self.frozen).as_ref().is_some_and(Frozen::is_kept) {
            // The power is about to go, and nothing may be written any more.
            return Ok(false);
        }
        if lock(&self.frozen).is_some() {
            self.thaw();
            self.tell(Notice::Thawed { reason: "the agent was told to end".to_owned() });
        }
        self.pump.abandon_verify();
        let settled = self.settling.settle_now(&mut self.pump, stop::SYNC_MAX)?;
        self.publish();
        self.has_left = true;
        Ok(settled)
    }

    fn quiesce(&mut self, bound: Duration) -> Result<()> {
        // An older freeze would make this one fail, and its watchdog would thaw too early.
        self.thaw();
        let still = self.stand_still(bound.min(FREEZE_MAX), &Cut::Failover)?;
        self.frozen_at = None;
        match still {
            Still::At(seq) => self.tell(Notice::Quiesced { seq }),
            Still::CalledOff => self.thaw(),
            Still::Impossible(cause) => {
                self.thaw();
                self.tell(Notice::Failed { code: "STANDIN-E6002", cause });
            }
            Still::Lost => {
                self.thaw();
                self.tell(Notice::Thawed { reason: "a loss was found while the source stood still".to_owned() });
            }
        }
        self.publish();
        Ok(())
    }

    /// A thaw was ordered meanwhile, or the pump is to end. Nobody ordered a standstill of its own, and a thaw ends it by itself.
    fn is_called_off(&self) -> bool {
        self.is_stopped() || !self.is_own.load(Ordering::SeqCst) && !self.may_freeze.load(Ordering::SeqCst)
    }

    fn stand_still(&mut self, bound: Duration, cut: &Cut) -> Result<Still> {
        self.is_own.store(!matches!(cut, Cut::Failover), Ordering::SeqCst);
        self.pump.hurry(true);
        let still = self.freeze_and_read(bound, cut);
        self.pump.hurry(false);
        self.pump.stand_still(None);
        still
    }

    fn freeze_and_read(&mut self, bound: Duration, cut: &Cut) -> Result<Still> {
        let begun = Instant::now();
        // The queue's files may lie on a volume that is to stand still. A frozen source must wait neither for them nor for the mirror.
        while !(self.is_ready() && self.freezing.is_none() && self.queue.hold_in_memory()) {
            if self.is_called_off() {
                return Ok(Still::CalledOff);
            }
            if begun.elapsed() > self.ready_max(cut) {
                return Ok(Still::Impossible(self.why_not_ready()));
            }
            self.pump.turn(READY_WAIT)?;
            self.watch_frozen();
        }
        self.holds_queue = true;
        if matches!(cut, Cut::Failover) {
            self.pump.abandon_verify();
        }
        let (frozen, freezing) = Frozen::prepare();
        *lock(&self.frozen) = Some(frozen);
        let (roots, state) = (Arc::clone(&self.roots), self.state_directory.clone());
        let freeze = move || freezing.freeze(&roots, bound, &state);
        self.freezing = Some(std::thread::Builder::new().name("freeze".to_owned()).spawn(freeze)?);
        // Freezing writes back what is dirty, and the ring must be drained meanwhile.
        while self.freezing.as_ref().is_some_and(|thread| !thread.is_finished()) {
            if self.is_called_off() {
                return Ok(Still::CalledOff);
            }
            if !self.is_periodic() && !self.pump.is_consistent() {
                return Ok(Still::Lost);
            }
            self.pump.turn(Duration::from_millis(1))?;
        }
        self.frozen_at = Some(Instant::now());
        let result = self.freezing.take().map(|thread| thread.join());
        let why = match result {
            Some(Ok(Ok(()))) => None,
            Some(Ok(Err(error))) => Some(format!("{error:#}")),
            _ => Some("the freezing thread ended without a result".to_owned()),
        };
        let seq = match why {
            None => {
                self.read_what_is_left()?;
                self.cut(cut)?
            }
            Some(_) => None,
        };
        Ok(match (why, seq) {
            _ if self.is_called_off() => Still::CalledOff,
            (Some(why), _) => Still::Impossible(why),
            (None, Some(seq)) => Still::At(seq),
            (None, None) => Still::Lost,
        })
    }

    fn why_not_ready(&self) -> String {
        let what = match self.is_ready() {
            false => "the replica still lacks something of this server",
            true => "what waits for the link does not fit the agent's memory",
        };
        format!("{what}, and the server does not stand still for that; it was waited for {} s", READY_MAX.as_secs())
    }
}

/// What came of an order to stand still.
enum Still {
    At(OpSeq),
    /// Nobody wants it any more.
    CalledOff,
    Impossible(String),
    Lost,
}
