//! Capture by the kernel programs of `bpf/`: loads and attaches them, owns the ring and everything else that needs a kernel.
//!
//! On any failure to load nothing stays attached. While it runs it makes no map system calls except after a loss, because kprobe programs
//! may be skipped on a processor that is inside such a call.

use crate::{
    CaptureConfig, CaptureError, CaptureEvent, CaptureSource, CaptureStats, CapturedVolume, LossReason, RingUse, Sink,
    assembler::Assembler,
    facts::Facts,
    handles,
    hooks::{Attach, DEVICES_MAX, Hook},
    misses,
    ring::{Counter, Counters, Ring},
    self_test::{self, Written},
    under_way,
    writeback::Writeback,
};
use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{HashMap as KernelMap, Map, MapData},
    programs::Program,
};
use rustix::{
    event::{PollFd, PollFlags},
    fs::inotify,
    time::{ClockId, clock_gettime},
};
use standin_model::{FileSystem, NodeId, Operation, VolumeId};
use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, BufRead, BufReader},
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    time::{Duration, Instant},
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/capture.bpf.o"));

/// Nodes that wait to be asked for writeback; beyond it they wait for the kernel's own.
const MAPPED_NODES_MAX: usize = 65_536;
/// As many as the kernel's own map of lost nodes holds.
const LOST_NODES_MAX: usize = 65_536;
/// How long a barrier waits for the exits of calls in flight before it gives their nodes up.
const BARRIER_MAX: Duration = Duration::from_millis(500);

/// A busy server can fill the ring meanwhile, and then a good capture fails its test.
const SELF_TESTS_MAX: u32 = 3;

/// Calls that began before capture are waited for, for so long; then the start fails, and the service tries it again.
const UNDER_WAY_MAX: Duration = Duration::from_secs(20);

/// A question costs one system call for each program.
const MISSES_EVERY: Duration = Duration::from_secs(2);

struct Mount {
    root: OwnedFd,
    file_system: FileSystem,
}

pub struct EbpfCapture {
    ring: Ring,
    counters: Counters,
    assembler: Assembler,
    lost: KernelMap<MapData, [u64; 3], [u64; 3]>,
    lost_seen: HashMap<[u64; 3], u64>,
    /// Every node that was ever lost: what is cloned from it later is lost too, since nobody here knows when it was read again.
    lost_nodes: HashSet<NodeId>,
    lost_count: u64,
    lost_everything: u64,
    stuck: u64,
    mapped: HashMap<NodeId, Instant>,
    writeback: Writeback,
    stats: CaptureStats,
    ring_map: Map,
    program_fds: Vec<RawFd>,
    asked_for_misses: Instant,
    /// Kept for their effect: marks make the kernel call fsnotify, programs detach when dropped.
    _marks: OwnedFd,
    _programs: Ebpf,
}

fn load_error(error: impl std::error::Error + Send + Sync + 'static) -> CaptureError {
    CaptureError::Load { source: Box::new(error) }
}

impl EbpfCapture {
    pub fn start(config: &CaptureConfig) -> Result<EbpfCapture, CaptureError> {
        let io_error = |doing| move |source: io::Error| CaptureError::Io { doing, source };
        if config.volumes.is_empty() || config.volumes.len() > DEVICES_MAX {
            return Err(CaptureError::Unsupported {
                file_system: "the configuration",
                reason: format!("1 to {DEVICES_MAX} volumes are possible"),
            });
        }
        if !config.ring_bytes.is_power_of_two()
            || !(CaptureConfig::RING_BYTES_MIN..=CaptureConfig::RING_BYTES_MAX).contains(&config.ring_bytes)
        {
            let reason = format!("a ring of {} bytes is not a power of two from 1 MiB to 1 GiB", config.ring_bytes);
            return Err(CaptureError::Unsupported { file_system: "the configuration", reason });
        }
        let protected: Vec<FileSystem> = config.volumes.iter().map(|volume| volume.file_system).collect();
        let facts = Facts::of_kernel(&protected)?;
        let (layout, hooks) = (facts.check(&protected)?, facts.hooks(&protected)?);
        let [vmemmap, page_offset] = symbols(["vmemmap_base", "page_offset_base"]).map_err(io_error("find symbols in /proc/kallsyms"))?;
        let mut devices = [0u32; 2 * DEVICES_MAX];
        for (pair, volume) in devices.chunks_exact_mut(2).zip(&config.volumes) {
            // `enum file_system` of bpf/emit.h
            let is = match volume.file_system {
                FileSystem::Ext4 => 1,
                FileSystem::Btrfs => 2,
                FileSystem::Xfs => 3,
            };
            pair.copy_from_slice(&[volume.device, is]);
        }
        let types = Btf::from_sys_fs().map_err(load_error)?;
        let mut programs = EbpfLoader::new()
            .btf(Some(&types))
            .map_max_entries("ring", config.ring_bytes)
            .override_global("devices", &devices, true)
            .override_global("excluded_tgid", &config.exclude_tgid, true)
            .override_global("vmemmap_base_address", &vmemmap, true)
            .override_global("page_offset_base_address", &page_offset, true)
            .override_global("ext4_inode_vfs_offset", &layout.ext4_inode_vfs, true)
            .override_global("ext4_inode_flags_offset", &layout.ext4_inode_flags, true)
            .override_global("ext4_inode_project_offset", &layout.ext4_inode_project, true)
            .override_global("xfs_inode_vfs_offset", &layout.xfs_inode_vfs, true)
            .override_global("xfs_inode_flags_offset", &layout.xfs_inode_flags, true)
            .override_global("xfs_inode_project_offset", &layout.xfs_inode_project, true)
            .override_global("xfs_exchange_file1_offset", &layout.xfs_exchange_file1, true)
            .override_global("xfs_exchange_file2_offset", &layout.xfs_exchange_file2, true)
            .override_global("btrfs_inode_flags_offset", &layout.btrfs_inode_flags, true)
            .override_global("btrfs_inode_vfs_offset", &layout.btrfs_inode_vfs, true)
            .override_global("btrfs_inode_root_offset", &layout.btrfs_inode_root, true)
            .override_global("btrfs_root_objectid_offset", &layout.btrfs_root_objectid, true)
            .override_global("event_inode", &layout.event_inode, true)
            .override_global("event_dentry", &layout.event_dentry, true)
            .override_global("page_head_bit", &layout.page_head_bit, true)
            .override_global("page_uptodate_bit", &layout.page_uptodate_bit, true)
            .load(OBJECT)
            .map_err(load_error)?;

        let marks = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .map_err(|e| io_error("create an inotify instance")(e.into()))?;
        let mut mounts = HashMap::new();
        for volume in &config.volumes {
            // A root directory cannot be deleted: the mark is there and says nothing.
            inotify::add_watch(&marks, &volume.mount_point, inotify::WatchFlags::DELETE_SELF)
                .map_err(|e| io_error("mark a volume's root")(e.into()))?;
            let root = File::open(&volume.mount_point).map_err(io_error("open a volume's root"))?.into();
            mounts.insert(volume.id, Mount { root, file_system: volume.file_system });
        }
        let mut take = |name: &str| {
            programs
                .take_map(name)
                .ok_or_else(|| CaptureError::Unsupported { file_system: "this build", reason: format!("has no map {name}") })
        };
        let (ring_map, counters_map, lost_map) = (take("ring")?, take("counters")?, take("lost")?);
        let (Map::RingBuf(ring_data), Map::Array(counters_data)) = (&ring_map, &counters_map) else {
            return Err(CaptureError::Unsupported { file_system: "this build", reason: "maps have other types".into() });
        };
        let ring = Ring::new(ring_data.fd().as_fd(), config.ring_bytes).map_err(io_error("map the ring"))?;
        let counters = Counters::new(counters_data.fd().as_fd()).map_err(io_error("map the counters"))?;
        let mut stats = CaptureStats::default();
        let program_fds = attach(&mut programs, &hooks, &types, &mut stats)?;
        let mut ring = ring;
        let before = under_way::tasks(under_way::changes_without_page_cache);
        prove(&mut ring, &config.volumes, &mut stats)?;
        if let Some(task) = under_way::wait(&before, UNDER_WAY_MAX, under_way::changes_without_page_cache) {
            return Err(CaptureError::CallUnderWay { task: task.display().to_string() });
        }
        Ok(EbpfCapture {
            ring,
            counters,
            assembler: Assembler::new(config.volumes.iter().map(|volume| (volume.device, volume.id))),
            lost: KernelMap::try_from(lost_map).map_err(load_error)?,
            lost_seen: HashMap::new(),
            lost_nodes: HashSet::new(),
            lost_count: 0,
            lost_everything: 0,
            stuck: 0,
            mapped: HashMap::new(),
            writeback: Writeback::start(move |node| start_writeback(&mounts, node)).map_err(io_error("start the writeback thread"))?,
            stats,
            ring_map,
            program_fds,
            asked_for_misses: Instant::now(),
            _marks: marks,
            _programs: programs,
        })
    }

    fn take(&mut self, end: u64, sink: Sink<'_>) {
        let EbpfCapture { ring, assembler, mapped, stats, lost_nodes, .. } = self;
        let mut clones = Vec::new();
        let mut counted = |event: CaptureEvent| {
            stats.count(&event);
            match &event {
                CaptureEvent::Lost { node, .. } => drop(lost_nodes.insert(*node)),
                CaptureEvent::Operation { operation: Operation::CloneRange { origin, node, .. }, .. } => {
                    clones.push((*origin, *node));
                }
                CaptureEvent::Mapped { node } if mapped.len() < MAPPED_NODES_MAX => {
                    mapped.entry(*node).or_insert_with(Instant::now);
                }
                _ => {}
            }
            sink(event);
        };
        let (mut records, mut bytes) = (0, 0);
        ring.consume(end, |record| {
            records += 1;
            bytes += record.len() as u64;
            assembler.feed(record, &mut counted);
        });
        assembler.settle(monotonic_now(), &mut counted);
        self.report_losses(&clones, sink);
        self.stats.records += records;
        self.stats.bytes += bytes;
        self.stats.held_bytes = self.assembler.held_bytes();
        self.stats.mapped_marks = self.counters.get(Counter::Marks);
    }

    fn report_losses(&mut self, clones: &[(NodeId, NodeId)], sink: Sink<'_>) {
        let mut losses = Vec::new();
        self.find_losses(&mut losses);
        for event in &losses {
            if let CaptureEvent::Lost { node, .. } = event {
                self.lost_nodes.insert(*node);
            }
        }
        // The kernel notes a loss before the call that clones the damage can make its record, so both are in sight here. In their order,
        // because damage travels from clone to clone.
        for (origin, node) in clones {
            if self.lost_nodes.contains(origin) {
                self.lost_nodes.insert(*node);
                losses.push(CaptureEvent::Lost { node: *node, range: (0, u64::MAX), reason: LossReason::CopiedFromLost });
            }
        }
        if self.lost_nodes.len() > LOST_NODES_MAX {
            self.lost_nodes.clear();
            losses.push(CaptureEvent::LostEverything { reason: LossReason::LostMapFull });
        }
        for event in losses {
            self.stats.count(&event);
            sink(event);
        }
    }

    fn find_losses(&mut self, losses: &mut Vec<CaptureEvent>) {
        if self.ring.stuck != self.stuck {
            self.stuck = self.ring.stuck;
            losses.push(CaptureEvent::LostEverything { reason: LossReason::RingStuck });
        }
        if self.asked_for_misses.elapsed() > MISSES_EVERY {
            self.asked_for_misses = Instant::now();
            let misses = misses::count(&self.program_fds);
            if misses > self.stats.misses {
                losses.push(CaptureEvent::LostEverything { reason: LossReason::ProbeMissed });
            }
            self.stats.misses = misses;
        }
        let everything = self.counters.get(Counter::LostEverything);
        if everything != self.lost_everything {
            self.lost_everything = everything;
            losses.push(CaptureEvent::LostEverything { reason: LossReason::LostMapFull });
        }
        let count = self.counters.get(Counter::Lost);
        if count == self.lost_count {
            return;
        }
        self.lost_count = count;
        // Entries stay in the map: removing one could race with a program that widens it. A changed count means a new loss.
        for entry in self.lost.iter() {
            let Ok((key, [start, end, times])) = entry else {
                losses.push(CaptureEvent::LostEverything { reason: LossReason::LostMapFull });
                return;
            };
            if self.lost_seen.insert(key, times) == Some(times) {
                continue;
            }
            let [inode, subvolume, rest] = key;
            if let Some(volume) = self.assembler.volume((rest >> 32) as u32) {
                let node = NodeId { volume, subvolume, inode, generation: rest as u32 };
                losses.push(CaptureEvent::Lost { node, range: (start, end), reason: LossReason::RingFull });
            }
        }
    }
}

impl CaptureSource for EbpfCapture {
    fn drain(&mut self, sink: Sink<'_>) {
        let end = self.ring.produced();
        self.take(end, sink);
    }

    fn barrier(&mut self, sink: Sink<'_>) {
        let end = self.ring.produced();
        self.take(end, sink);
        // An operation that waits for its call's result is not in the sink yet. Other nodes' operations may pass it meanwhile; what begins now is
        // nobody's business.
        let (begun, through) = (Instant::now(), self.assembler.last_hold());
        while self.assembler.is_holding(through) && begun.elapsed() < BARRIER_MAX {
            let _ = self.wait(Duration::from_millis(5));
            let end = self.ring.produced();
            self.take(end, sink);
        }
        self.assembler.give_up_held(through, sink);
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let Map::RingBuf(data) = &self.ring_map else { return Ok(()) };
        let fd = data.fd().as_fd();
        let limit = rustix::time::Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        match rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn ring_use(&self) -> RingUse {
        RingUse { bytes_peak: self.ring.waiting_peak, dropped: self.counters.get(Counter::Lost) }
    }

    fn stats(&self) -> CaptureStats {
        self.stats.clone()
    }

    fn pending_mapped(&self) -> usize {
        self.mapped.len() + self.writeback.under_way()
    }

    fn flush_mapped(&mut self, older_than: Duration) -> usize {
        let due: Vec<NodeId> = self.mapped.iter().filter(|(_, since)| since.elapsed() >= older_than).map(|(node, _)| *node).collect();
        if due.is_empty() {
            return 0;
        }
        // First the epoch, then the request: a mark that comes between is told of again.
        self.counters.next_epoch();
        let asked = due.iter().take_while(|node| self.writeback.ask(**node)).count();
        for node in due.iter().take(asked) {
            self.mapped.remove(node);
        }
        asked
    }
}

/// Before capture counts as started: pages that were made writable in some mapping before the programs were there are written back, which takes
/// that right from them, so that the next store through the mapping is seen; and each volume is written to and looked at. What
/// comes through the ring meanwhile is dropped: it is older than the first read of the mirror.
fn prove(ring: &mut Ring, volumes: &[CapturedVolume], stats: &mut CaptureStats) -> Result<(), CaptureError> {
    for volume in volumes {
        let root = File::open(&volume.mount_point).map_err(|source| CaptureError::Io { doing: "open a volume's root", source })?;
        rustix::fs::syncfs(&root).map_err(|e| CaptureError::Io { doing: "write a volume back", source: e.into() })?;
        let (mut verdict, mut said) = (Err(None), "passed".to_owned());
        for _ in 0..SELF_TESTS_MAX {
            ring.consume(ring.produced(), |_| {});
            let (tid, written) = self_test::write(volume)?;
            if let Written::NotPossible(errno) = written {
                let cause = io::Error::from_raw_os_error(errno);
                tracing::warn!(mount_point = %volume.mount_point.display(), %cause, "no test write is possible; capture is not proved here");
                said = format!("not possible: {cause}");
                verdict = Ok(());
                break;
            }
            let mut check = self_test::Check::new(tid, volume);
            ring.consume(ring.produced(), |record| check.feed(record));
            verdict = check.finish(volume).map_err(Some);
            if verdict.is_ok() {
                break;
            }
        }
        if let Err(Some(error)) = verdict {
            return Err(error);
        }
        stats.hooks.push((format!("self-test of {}", volume.mount_point.display()), said));
    }
    Ok(())
}

#[allow(unsafe_code)] // no safe wrapper of sync_file_range exists
fn start_writeback(mounts: &HashMap<VolumeId, Mount>, node: NodeId) {
    let Some(mount) = mounts.get(&node.volume) else { return };
    let opened = handles::open_node(&mount.root, &node, mount.file_system, libc::O_RDONLY | libc::O_NOATIME | libc::O_NONBLOCK);
    // A node that is gone needs no writeback.
    let Ok(fd) = opened else { return };
    // SAFETY: a valid descriptor and plain numbers; length 0 means to the end. An error only means that the kernel does it later.
    unsafe { libc::sync_file_range(fd.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

fn attach(programs: &mut Ebpf, hooks: &[&Hook], types: &Btf, stats: &mut CaptureStats) -> Result<Vec<RawFd>, CaptureError> {
    let mut fds = Vec::new();
    for hook in hooks {
        let refuse = |cause: String| CaptureError::Program { program: hook.program.into(), cause };
        let program = programs.program_mut(hook.program).ok_or_else(|| refuse("not in this build".into()))?;
        let result = match (program, hook.attach) {
            (Program::KProbe(probe), Attach::Probe | Attach::Return) => {
                probe.load().and_then(|()| probe.attach(hook.function, 0)).and_then(|_| probe.fd().map(|fd| fd.as_fd().as_raw_fd()))
            }
            (Program::FExit(exit), Attach::Exit) => {
                exit.load(hook.function, types).and_then(|()| exit.attach()).and_then(|_| exit.fd().map(|fd| fd.as_fd().as_raw_fd()))
            }
            _ => return Err(refuse("is of another type".into())),
        };
        // The verifier's reason is deep in the chain.
        fds.push(result.map_err(|error| refuse(format!("{error:?}")))?);
        stats.hooks.push((hook.function.into(), format!("attached {}", hook.program)));
    }
    Ok(fds)
}

fn symbols<const N: usize>(names: [&str; N]) -> io::Result<[u64; N]> {
    let mut found = [0; N];
    for line in BufReader::new(File::open("/proc/kallsyms")?).lines() {
        let line = line?;
        let mut fields = line.split_whitespace();
        let (address, name) = (fields.next(), fields.nth(1));
        if let Some(index) = names.iter().position(|wanted| name == Some(wanted)) {
            found[index] = u64::from_str_radix(address.unwrap_or_default(), 16).unwrap_or_default();
        }
    }
    match names.iter().zip(found).find(|(_, address)| *address == 0) {
        Some((name, _)) => Err(io::Error::other(format!("no address of {name} (kernel.kptr_restrict?)"))),
        None => Ok(found),
    }
}

fn monotonic_now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
