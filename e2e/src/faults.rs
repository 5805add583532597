//! What can happen to a job's parts, done to a site of the lab: kills, a cut link, a cut power.
//!
//! Each returns when the part is back; whether the job comes back is for the caller to see.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::{Value, json};

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
    /// SIGKILL of the process that applies; the appliance starts another one.
    WorkerKilled,
    /// SIGKILL, and a start some seconds later.
    ApplianceKilled,
    /// The source's network card loses its carrier for this long.
    LinkCut { seconds: u64 },
    /// The source's machine goes off at once and starts again.
    PowerCut,
}

pub fn inject(run: &Run, site: &mut Site, fault: Fault) -> Result<()> {
    match fault {
        Fault::AgentKilled => kill_agent(site),
        Fault::WorkerKilled => kill_worker(site),
        Fault::ApplianceKilled => {
            site.appliance.kill();
            command::pause(AWAY)?;
            site.appliance.serve()
        }
        Fault::LinkCut { seconds } => {
            let carrier = |up: bool| site.source.qmp()?.command("set_link", json!({"name": "net", "up": up}));
            carrier(false)?;
            let waited = command::pause(Duration::from_secs(seconds));
            carrier(true)?;
            waited
        }
        Fault::PowerCut => site.cut_power(run),
    }
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
    let target = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).context("an odd process id")?;
    rustix::process::kill_process(target, rustix::process::Signal::KILL).context("killing the worker")?;
    wait_for(RECOVERY_LIMIT, "no new worker was started", || {
        let now = worker_pid(&site.appliance.job(&site.job)?);
        Ok(now != 0 && now != pid)
    })
}

pub fn agent_pid(site: &mut Site) -> Result<u32> {
    let said = site.source.ssh("systemctl show --property MainPID --value standin-agent.service")?;
    said.trim().parse().with_context(|| format!("systemd says {said:?}"))
}

pub fn applied(view: &Value) -> u64 {
    view["watermarks"]["applied"].as_u64().unwrap_or(0)
}

fn worker_pid(view: &Value) -> u64 {
    view["worker"]["pid"].as_u64().unwrap_or(0)
}

pub fn wait_for(limit: Duration, otherwise: &str, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    // A question that fails once (a connection that is being made anew) is asked again.
    while !ready().unwrap_or(false) {
        if Instant::now() > deadline {
            bail!("{otherwise} within {} s", limit.as_secs());
        }
        command::pause(Duration::from_millis(300))?;
    }
    Ok(())
}
