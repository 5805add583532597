//! Facts for the pure planners: what the host, the agent and the job are like right now.

use crate::appliance::Appliance;
use crate::job::{BootState, JobShell};
use crate::store::AgentRow;
use crate::{errors, launch};
use standin_model::{AgentId, ByteLen};
use standin_protection::{FailoverFacts, Flag, HostFacts, JobState, Problem};

/// The agent that the operator means: by id, by host name, or by the first label of it.
pub fn find_agent(appliance: &Appliance, text: &str) -> Result<AgentRow, Problem> {
    let agents = appliance.store.agents().map_err(errors::internal)?;
    let named = |row: &AgentRow| {
        let host = row.inventory.as_ref().map(|inventory| inventory.hostname.as_str()).unwrap_or_default();
        row.id.as_str() == text || host == text || host.split('.').next() == Some(text).filter(|text| !text.is_empty())
    };
    let mut found: Vec<AgentRow> = agents.into_iter().filter(named).collect();
    // A source that was enrolled anew leaves its old agent behind; the one that talks to us is meant.
    if found.len() > 1 && found.iter().any(|row| appliance.session(&row.id).is_some()) {
        found.retain(|row| appliance.session(&row.id).is_some());
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(Problem::new("E4034", format!("no enrolled source is called {text:?}"), "standin agent list")),
        count => {
            let cause = format!("{count} enrolled sources are called {text:?}; name one by its id");
            Err(Problem::new("E4034", cause, "standin agent list"))
        }
    }
}

pub fn host_facts(appliance: &Appliance, agent: &AgentRow) -> Result<HostFacts, Problem> {
    let host = appliance.hypervisor.host().map_err(|error| errors::coded("E4050", &error, "standin host list"))?;
    let inventory = agent.inventory.clone().ok_or_else(|| {
        Problem::new("E4020", format!("agent {} has never connected", agent.id), "systemctl status standin-agent   (on the source)")
    })?;
    let mut names: Vec<String> = appliance.jobs().iter().map(|shell| shell.record.name.clone()).collect();
    names.extend(appliance.hypervisor.list().unwrap_or_default());
    let free = standin_replica::disk::datastore_free(&appliance.layout.datastore)
        .map_err(|error| errors::coded("E4051", &error, "standin host list"))?;
    Ok(HostFacts {
        agent: agent.id.clone(),
        connected: appliance.session(&agent.id).is_some(),
        inventory,
        names_in_use: names,
        protected_by: protected_by(appliance, &agent.id),
        datastore: appliance.layout.datastore.display().to_string(),
        datastore_free: ByteLen(free),
        shares_blocks: appliance.shares_blocks(),
        host_cpus: host.cpus,
        host_memory: ByteLen(host.memory_bytes),
    })
}

fn protected_by(appliance: &Appliance, agent: &AgentId) -> Option<String> {
    let jobs = appliance.jobs_of(agent);
    let active = jobs.iter().find(|shell| !matches!(shell.live().job.state, JobState::FailedOver { .. }));
    active.map(|shell| shell.record.name.clone())
}

pub fn failover_facts(appliance: &Appliance, shell: &JobShell) -> FailoverFacts {
    let session = appliance.session(&shell.record.agent);
    let agent_connected = session.is_some();
    let running = session.is_some_and(|session| session.runs(&shell.record.id));
    let obstacles = launch::obstacles(appliance, shell);
    let live = shell.live();
    FailoverFacts {
        job: shell.record.id.clone(),
        job_name: shell.record.name.clone(),
        state: live.job.state.clone(),
        agent_connected,
        stream_stopped: match (running, live.job.flags.has(Flag::Paused)) {
            (_, true) => Some("paused by the operator".into()),
            (false, _) => Some("the agent does not run the job".into()),
            (true, false) => None,
        },
        obstacles,
        durable: live.target.durable,
        applied: live.target.applied,
        loss_seconds: live.durable_captured_at.or(live.stream.captured_at).map(|at| crate::job::seconds_between(at, crate::layout::now())),
        periodic: live.job.flags.has(Flag::Periodic),
        replica_name: shell.record.name.clone(),
        boot_prepared: matches!(live.boot, BootState::Prepared { .. }),
        points: live.points.there.clone(),
    }
}
