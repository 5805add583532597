//! What the mirror may take from its server: processor time and reads by a limit, and everything at a lower priority than the server's own work.
//!
//! Only what can wait is held back: reading for the mirror and for verifications. What is captured is taken at once, whatever it costs; a ring that overflows costs a
//! resync, which is more.
#![allow(unsafe_code)] // ioprio_set has no safe binding in the crates we use.

use crate::settings::Bounds;
use rustix::thread::CapabilitySet;
use standin_wire::ImpactStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What was not used may be caught up for so long.
const CREDIT: Duration = Duration::from_millis(250);
/// Below the server's own work, and yet a third of a processor's share beside one busy thread: the ring has to be drained between two reads.
const NICE: i32 = 5;
/// `IOPRIO_PRIO_VALUE(IOPRIO_CLASS_BE, 7)` of linux/ioprio.h: the last of those that are served without the disk being idle. And none of our own.
const IO_LAST: libc::c_int = 2 << 13 | 7;
const IO_NONE: libc::c_int = 0;
const IOPRIO_WHO_PROCESS: libc::c_int = 1;

/// Shared by who sets the limits, who keeps to them, and who tells of it. 0 is none.
#[derive(Debug, Default)]
pub struct Contract {
    /// Of one processor.
    cpu_percent: AtomicU32,
    read_mib: AtomicU32,
    /// Bytes that were read since the beginning.
    read: AtomicU64,
    /// Milliseconds for which the limits held reading back.
    rested_ms: AtomicU64,
}

impl Contract {
    pub fn set(&self, cpu_percent: u32, read_mib: u32) {
        self.cpu_percent.store(cpu_percent, Ordering::Relaxed);
        self.read_mib.store(read_mib, Ordering::Relaxed);
    }
    pub fn cpu_percent(&self) -> u32 {
        self.cpu_percent.load(Ordering::Relaxed)
    }
    pub fn read_mib(&self) -> u32 {
        self.read_mib.load(Ordering::Relaxed)
    }
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
    pub fn rested(&self) -> Duration {
        Duration::from_millis(self.rested_ms.load(Ordering::Relaxed))
    }
}

/// What was taken between two looks at it.
pub struct Meter {
    at: Instant,
    cpu: Duration,
    read: u64,
    rested: Duration,
}

impl Meter {
    pub fn new(contract: &Contract) -> Meter {
        Meter { at: Instant::now(), cpu: cpu_time(), read: contract.read(), rested: contract.rested() }
    }

    pub fn look(&mut self, contract: &Contract, bounds: &Bounds) -> ImpactStatus {
        let before = std::mem::replace(self, Meter::new(contract));
        let span = self.at.duration_since(before.at).max(Duration::from_millis(1));
        let percent = (self.cpu.saturating_sub(before.cpu)).as_secs_f64() / span.as_secs_f64() * 100.0;
        ImpactStatus {
            cpu_percent: percent.round() as u32,
            cpu_percent_max: contract.cpu_percent(),
            read_rate: ((self.read - before.read) as f64 / span.as_secs_f64()) as u64,
            read_rate_max: u64::from(contract.read_mib()) << 20,
            rested_ms: u32::try_from(self.rested.saturating_sub(before.rested).as_millis()).unwrap_or(u32::MAX),
            memory_bytes: resident_bytes().unwrap_or(0),
            queue_bytes_max: u64::from(bounds.queue_disk_mib) << 20,
        }
    }
}

fn resident_bytes() -> Option<u64> {
    let said = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = said.split_whitespace().nth(1)?.parse().ok()?;
    // SAFETY: takes a number and returns one.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Some(pages * u64::try_from(page).ok()?)
}

/// Two debts, in time: until they are paid, nothing is read.
#[derive(Debug, Default)]
pub struct Impact {
    contract: Arc<Contract>,
    cpu_due: Duration,
    read_due: Duration,
    cpu_before: Duration,
}

impl Impact {
    pub fn new(contract: Arc<Contract>) -> Impact {
        Impact { contract, cpu_before: cpu_time(), ..Impact::default() }
    }

    /// How long to wait before the next read; `now` is of any clock that does not go back, `cpu` the process's processor time.
    pub fn rest(&mut self, now: Duration, cpu: Duration) -> Option<Duration> {
        let used = cpu.saturating_sub(std::mem::replace(&mut self.cpu_before, cpu));
        let earliest = now.saturating_sub(CREDIT);
        self.cpu_due = match self.contract.cpu_percent() {
            0 => Duration::ZERO,
            percent => self.cpu_due.max(earliest) + used * 100 / percent,
        };
        if self.contract.read_mib() == 0 {
            self.read_due = Duration::ZERO;
        }
        let due = self.cpu_due.max(self.read_due);
        (due > now).then(|| due - now)
    }

    /// So much was read.
    pub fn pay(&mut self, now: Duration, bytes: u64) {
        self.contract.read.fetch_add(bytes, Ordering::Relaxed);
        let rate = u64::from(self.contract.read_mib()) << 20;
        if let Some(cost) = (bytes.saturating_mul(1_000_000)).checked_div(rate) {
            self.read_due = self.read_due.max(now.saturating_sub(CREDIT)) + Duration::from_micros(cost);
        }
    }

    pub fn rested(&self, took: Duration) {
        self.contract.rested_ms.fetch_add(took.as_millis() as u64, Ordering::Relaxed);
    }
}

/// Of this process.
pub fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// This thread works at a lower priority while it lives. Best effort: whoever may not raise it again keeps what it has.
pub struct Yielding(i32);

impl Yielding {
    pub fn begin() -> Option<Yielding> {
        let thread = rustix::thread::gettid();
        let before = rustix::process::getpriority_process(Some(thread)).ok()?;
        // Without the right to go back it would stay there.
        let may_go_back = rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_NICE));
        if before >= NICE || !may_go_back {
            return None;
        }
        rustix::process::setpriority_process(Some(thread), NICE).ok()?;
        set_io_priority(IO_LAST);
        Some(Yielding(before))
    }
}

impl Drop for Yielding {
    fn drop(&mut self) {
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), self.0);
        set_io_priority(IO_NONE);
    }
}

fn set_io_priority(priority: libc::c_int) {
    // SAFETY: the call takes no pointer; 0 is the calling thread.
    unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority) };
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(10);

    /// A mirror that reads as much as it may: each step takes 10 ms, all of it processor time, and reads 1 MiB. Returns steps in ten seconds.
    fn steps(impact: &mut Impact, now: &mut Duration, cpu: &mut Duration) -> u32 {
        let (end, mut steps) = (*now + Duration::from_secs(10), 0);
        while *now < end {
            match impact.rest(*now, *cpu) {
                Some(rest) => *now += rest,
                None => {
                    (*now, *cpu, steps) = (*now + STEP, *cpu + STEP, steps + 1);
                    impact.pay(*now, 1 << 20);
                }
            }
        }
        steps
    }

    #[test]
    fn limits_hold_and_change_while_it_works() {
        let contract = Arc::new(Contract::default());
        let mut impact = Impact { contract: contract.clone(), ..Impact::default() };
        let (mut now, mut cpu) = (Duration::from_secs(100), Duration::ZERO);
        let mut check = |impact: &mut Impact, cpu_percent, read_mib, expect: std::ops::RangeInclusive<u32>| {
            contract.set(cpu_percent, read_mib);
            let steps = steps(impact, &mut now, &mut cpu);
            assert!(expect.contains(&steps), "{steps} steps with {cpu_percent} % and {read_mib} MiB/s");
        };
        check(&mut impact, 0, 0, 999..=1000);
        check(&mut impact, 25, 0, 245..=275);
        check(&mut impact, 0, 5, 48..=55);
        check(&mut impact, 25, 5, 47..=55);
        check(&mut impact, 10, 50, 95..=110);
        check(&mut impact, 200, 0, 990..=1000);
        check(&mut impact, 0, 0, 990..=1000);
    }

    #[test]
    fn a_yielding_thread_comes_back() {
        let nice = || rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap();
        let before = nice();
        if let Some(yielding) = Yielding::begin() {
            assert_eq!(nice(), NICE);
            drop(yielding);
        }
        assert_eq!(nice(), before);
    }
}
