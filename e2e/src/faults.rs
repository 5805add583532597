//! What can happen to a job's parts, done to a site of the lab: kills, a cut link, a cut power.
//!
//! Each returns when the part is back; whether the job comes back is for the caller to see.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::{Value, json};

use crate::datastore::Datastore;
use crate::grow;
use crate::job::Site;
use crate::lab::{Run, command};

const RECOVERY_LIMIT: Duration = Duration::from_secs(300);
/// How long a killed appliance stays away.
const AWAY: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// SIGKILL; systemd starts it again, and the source must not notice.
    AgentKilled,
    /// The agent stands still while more is written than the kernel's ring holds.
    RingOverflow,
    /// SIGKILL of the process that applies; the appliance starts another one.
    WorkerKilled,
    /// SIGKILL, and a start some seconds later.
    ApplianceKilled,
    /// The appliance's file system stops at once, without writing anything down any more, and its processes are killed.
    AppliancePowerCut,
    /// The datastore fills up, and is emptied a while later.
    DatastoreFull,
    /// The source's network card loses its carrier for this long.
    LinkCut { seconds: u64 },
    /// It loses its carrier while more is written than the agent's queue holds.
    QueueOverflow,
    /// The source's machine goes off at once and starts again.
    PowerCut,
    /// The source's operating system is restarted.
    Reboot,
    /// The second volume is unmounted, as far as programs let go of it, and mounted again.
    Remounted,
    /// The second volume grows while it is used, and then holds more than it could before.
    VolumeGrown { mib: u64 },
}

impl Fault {
    pub const KINDS: usize = 12;

    pub fn every_kind(cut_seconds: u64) -> [Fault; Fault::KINDS] {
        [
            Fault::AgentKilled,
            Fault::RingOverflow,
            Fault::WorkerKilled,
            Fault::ApplianceKilled,
            Fault::AppliancePowerCut,
            Fault::DatastoreFull,
            Fault::LinkCut { seconds: cut_seconds },
            Fault::QueueOverflow,
            Fault::PowerCut,
            Fault::Reboot,
            Fault::Remounted,
            Fault::VolumeGrown { mib: 512 },
        ]
    }

    /// Whether what works on the source has to be started anew.
    pub fn ends_the_source(self) -> bool {
        matches!(self, Fault::PowerCut | Fault::Reboot)
    }
}

/// How long a full datastore stays full.
const FULL_FOR: Duration = Duration::from_secs(20);
/// More than the ring of 32 MiB and the suite's queue of 8 and 48 MiB hold, of data that nothing compresses.
const BURST_MIB: u64 = 128;
const BURST: &str = "/srv/burst";
const BURST_AFTER: Duration = Duration::from_secs(3);
/// By then the queue is full many times over, also on an emulated machine.
const BURST_TIME: Duration = Duration::from_secs(45);
const BURST_LIMIT: Duration = Duration::from_secs(180);

pub fn inject(run: &Run, site: &mut Site, fault: Fault) -> Result<()> {
    match fault {
        Fault::AgentKilled => kill_agent(site),
        Fault::RingOverflow => overflow_ring(site),
        Fault::WorkerKilled => kill_worker(site),
        Fault::ApplianceKilled => {
            site.appliance.kill();
            command::pause(AWAY)?;
            site.appliance.serve()
        }
        Fault::AppliancePowerCut => cut_appliance(site),
        Fault::DatastoreFull => fill_datastore(run, site),
        Fault::LinkCut { seconds } => without_link(site, || command::pause(Duration::from_secs(seconds))),
        Fault::QueueOverflow => overflow_queue(site),
        Fault::PowerCut => site.cut_power(run),
        Fault::Reboot => site.reboot(),
        Fault::Remounted => remount(site),
        Fault::VolumeGrown { mib } => grow_volume(site, mib),
    }
}

fn without_link(site: &Site, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
    let carrier = |up: bool| site.source.qmp()?.command("set_link", json!({"name": "net", "up": up}));
    carrier(false)?;
    let done = meanwhile();
    carrier(true)?;
    done
}

/// The burst begins by itself, because the link that is cut is also the one by which the guest is spoken to.
fn overflow_queue(site: &mut Site) -> Result<()> {
    let lost = last_loss(site)?;
    let later = format!("sleep {}; {}", BURST_AFTER.as_secs(), burst_words());
    site.source.ssh(&format!("systemd-run --quiet --collect --unit burst sh -c '{later}'"))?;
    without_link(site, || command::pause(BURST_AFTER + BURST_TIME))?;
    wait_for(RECOVERY_LIMIT, "the burst did not end", || {
        Ok(!site.source.ssh_collect("systemctl is-active --quiet burst", BURST_LIMIT)?.status.success())
    })?;
    wait_for_loss(site, lost)
}

/// Much more than anyone can take in, at once.
fn burst_words() -> String {
    format!("rm -f {BURST}; dd if=/dev/urandom of={BURST} bs=1M count={BURST_MIB} status=none")
}

fn overflow_ring(site: &mut Site) -> Result<()> {
    let pid = agent_pid(site)?;
    let words = format!("kill -STOP {pid}; {{ {}; }}; done=$?; kill -CONT {pid}; exit $done", burst_words());
    let lost = last_loss(site)?;
    site.source.ssh_within(&words, BURST_LIMIT)?;
    wait_for_loss(site, lost)
}

/// Where in the stream the job last lost operations, by its history.
fn last_loss(site: &Site) -> Result<u64> {
    let history = site.appliance.json(&["job", "history", &site.job])?;
    let losses = history.as_array().into_iter().flatten().filter(|row| row["kind"] == "resync");
    Ok(losses.filter_map(|row| row["seq"].as_u64()).max().unwrap_or(0))
}

/// A fault that loses nothing has not happened.
fn wait_for_loss(site: &Site, before: u64) -> Result<()> {
    wait_for(RECOVERY_LIMIT, "nothing was lost", || Ok(last_loss(site)? > before))
}

fn datastore(site: &Site) -> Result<&Datastore> {
    site.datastore.as_ref().context("this site's appliance has no file system of its own")
}

fn cut_appliance(site: &mut Site) -> Result<()> {
    let worker = worker_pid(&site.appliance.job(&site.job)?);
    datastore(site)?.stop()?;
    kill(worker).ok();
    site.appliance.kill();
    command::pause(AWAY)?;
    datastore(site)?.start()?;
    site.appliance.serve()
}

fn fill_datastore(run: &Run, site: &mut Site) -> Result<()> {
    datastore(site)?.fill()?;
    let seen = wait_for(RECOVERY_LIMIT, "the job does not say that its datastore is full", || {
        Ok(has_problem(&site.appliance.job(&site.job)?, "STANDIN-E4076"))
    });
    let stands = seen.and_then(|()| {
        let before = applied(&site.appliance.job(&site.job)?);
        command::pause(FULL_FOR)?;
        run.say(&format!("the datastore was full for {} s", FULL_FOR.as_secs()));
        anyhow::ensure!(applied(&site.appliance.job(&site.job)?) == before, "something was applied to a full datastore");
        Ok(())
    });
    datastore(site)?.empty()?;
    stands?;
    wait_for(RECOVERY_LIMIT, "the job stays degraded after its datastore was emptied", || Ok(!is_degraded(&site.appliance.job(&site.job)?)))
}

/// Programs that are at work on the volume go on there, and the job says that it is not where it was.
fn remount(site: &mut Site) -> Result<()> {
    let is_unmounted = |site: &Site| Ok(has_problem(&site.appliance.job(&site.job)?, "STANDIN-E6028"));
    // It comes by paths, and would go on below the empty mount point.
    site.source.ssh(&format!("systemctl kill -s STOP churn-data && umount --lazy {}", grow::MOUNT_POINT))?;
    wait_for(RECOVERY_LIMIT, "the job does not say that a volume is unmounted", || is_unmounted(site))?;
    site.source.ssh(&format!("mount {} && systemctl kill -s CONT churn-data", grow::MOUNT_POINT))?;
    wait_for(RECOVERY_LIMIT, "the job still says that a volume is unmounted", || Ok(!is_unmounted(site)?))
}

/// A replica that did not grow cannot apply what is behind the allocation.
fn grow_volume(site: &mut Site, mib: u64) -> Result<()> {
    grow::volume(site, mib)?;
    let captured = site.appliance.job(&site.job)?["watermarks"]["captured"].as_u64().unwrap_or(0);
    wait_for(RECOVERY_LIMIT, "the replica did not grow", || {
        let view = site.appliance.job(&site.job)?;
        Ok(applied(&view) > captured && !is_degraded(&view))
    })?;
    grow::end_filling(site)
}

fn kill_agent(site: &mut Site) -> Result<()> {
    let pid = agent_pid(site)?;
    site.source.ssh(&format!("kill -KILL {pid}"))?;
    wait_for(RECOVERY_LIMIT, "the agent did not come back", || Ok(agent_pid(site).is_ok_and(|now| now != pid && now != 0)))?;
    wait_for_connection(site)
}

/// Waits until the agent has a session with the appliance.
pub fn wait_for_connection(site: &Site) -> Result<()> {
    wait_for(RECOVERY_LIMIT, "the agent did not connect again", || Ok(site.appliance.job(&site.job)?["connected"] == true))
}

fn kill_worker(site: &mut Site) -> Result<()> {
    let mut pid = 0;
    wait_for(RECOVERY_LIMIT, "no worker runs", || {
        pid = worker_pid(&site.appliance.job(&site.job)?);
        Ok(pid != 0)
    })?;
    kill(pid)?;
    wait_for(RECOVERY_LIMIT, "no new worker was started", || {
        let now = worker_pid(&site.appliance.job(&site.job)?);
        Ok(now != 0 && now != pid)
    })
}

fn kill(pid: u64) -> Result<()> {
    let target = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).context("an odd process id")?;
    rustix::process::kill_process(target, rustix::process::Signal::KILL).context("killing the worker")
}

pub fn agent_pid(site: &mut Site) -> Result<u32> {
    let said = site.source.ssh("systemctl show --property MainPID --value standin-agent.service")?;
    said.trim().parse().with_context(|| format!("systemd says {said:?}"))
}

/// Whether a flag of the job has a problem with this code.
fn has_problem(view: &Value, code: &str) -> bool {
    view["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag["problem"]["code"] == code))
}

fn is_degraded(view: &Value) -> bool {
    view["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag["flag"] == "degraded"))
}

pub fn applied(view: &Value) -> u64 {
    view["watermarks"]["applied"].as_u64().unwrap_or(0)
}

fn worker_pid(view: &Value) -> u64 {
    view["worker"]["pid"].as_u64().unwrap_or(0)
}

pub fn wait_for(limit: Duration, otherwise: &str, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        // A question that fails once (a connection that is being made anew) is asked again.
        let answer = ready();
        if matches!(answer, Ok(true)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            answer?;
            bail!("{otherwise} within {} s", limit.as_secs());
        }
        command::pause(Duration::from_millis(300))?;
    }
}
