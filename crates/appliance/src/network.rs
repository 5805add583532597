//! What every source's connection may take: the rules of the appliance and of each job, held against the clock and divided among the jobs that send.
//!
//! The appliance decides and the agents obey, so one clock and one time zone database count, and the appliance's own limit can be divided by what each job can
//! use. A thread divides anew every second, at every border of a calendar, and at once when a rule changes or a stream begins; an agent is told
//! what is new to it, before its stream begins. While nobody can tell an agent anything, it sends nothing either.

use crate::appliance::Appliance;
use crate::errors;
use crate::job::{JobShell, Live};
use crate::layout::now;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use standin_model::{BITS_PER_SECOND_MIN, NetworkPath, Timestamp};
use standin_protection::network::{Claim, Held, divide};
use standin_protection::{NetworkPlan, NetworkRule, Problem};
use standin_wire::NetworkStatus;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::Duration;

/// The agents' status, from which the division follows, comes as often.
const DIVIDE_EVERY: Duration = Duration::from_secs(1);
/// More than this waiting means that a job would send faster if it might. Less than one segment is what a moment brings.
const BACKLOG_BYTES: u64 = 256 * 1024;

/// What a job wants of the network, as the operator wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JobNetwork {
    pub rule: NetworkRule,
    /// `None` where the agent's own setting counts.
    pub path: Option<NetworkPath>,
}

/// A change: what is absent stays.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkChange {
    pub rule: Option<NetworkRule>,
    pub path: Option<NetworkPath>,
}

/// A job's part, inside of its live state.
#[derive(Default)]
pub struct JobLink {
    pub wanted: JobNetwork,
    plan: Option<NetworkPlan>,
    /// What it may take now, in bits a second, once that was decided.
    share: Option<Option<u64>>,
    /// What the agent last said of its connection.
    pub status: Option<NetworkStatus>,
}

/// What an agent is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ordered {
    pub limit: Option<u64>,
    pub path: Option<NetworkPath>,
}

/// The appliance's own rule, and the thread that divides.
pub struct Governor {
    rule: Mutex<(NetworkRule, Option<NetworkPlan>)>,
    nudged: Mutex<bool>,
    wake: Condvar,
}

fn zone(name: &str) -> Option<TimeZone> {
    TimeZone::get(name).ok()
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Governor {
    pub fn new(rule: NetworkRule) -> Governor {
        let plan = stored(&rule, "the appliance");
        Governor { rule: Mutex::new((rule, plan)), nudged: Mutex::new(false), wake: Condvar::new() }
    }

    pub fn nudge(&self) {
        *lock(&self.nudged) = true;
        self.wake.notify_all();
    }

    fn wait(&self, bound: Duration) {
        let waited = self.wake.wait_timeout_while(lock(&self.nudged), bound, |nudged| !*nudged);
        *waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0 = false;
    }

    fn held(&self, at: Timestamp) -> Option<Held> {
        lock(&self.rule).1.as_ref().map(|plan| plan.at(at))
    }
}

/// A rule that was accepted once; that it is not any more can only be a time zone that is gone. Then no limit is better than no service, and it is said.
fn stored(rule: &NetworkRule, whose: &str) -> Option<NetworkPlan> {
    let told = |problem: &Problem| tracing::error!(code = problem.code, cause = problem.cause, "the network rule of {whose} does not hold");
    rule.compile(zone).inspect_err(told).ok()
}

/// What the store says of a job.
pub fn take_up(appliance: &Appliance, shell: &JobShell) -> anyhow::Result<()> {
    let wanted = appliance.store.network(Some(&shell.record.id))?.unwrap_or_default();
    let plan = stored(&wanted.rule, &shell.record.name);
    shell.update(|live| live.network = JobLink { wanted, plan, ..JobLink::default() });
    Ok(())
}

pub fn start(appliance: &Arc<Appliance>) -> std::io::Result<()> {
    let weak = Arc::downgrade(appliance);
    std::thread::Builder::new().name("network".into()).spawn(move || run(&weak)).map(drop)
}

fn run(weak: &Weak<Appliance>) {
    while let Some(appliance) = weak.upgrade() {
        let next = divide_now(&appliance);
        let until = next.map_or(DIVIDE_EVERY, |at| Duration::from_nanos(u64::try_from(at.0 - now().0).unwrap_or(0)));
        // A nudge or the second ends the wait; an appliance that ends is noticed by then.
        appliance.network.wait(until.min(DIVIDE_EVERY));
    }
}

/// Divides, and tells every agent what is new to it. Returns when the next border of a calendar is.
pub fn divide_now(appliance: &Appliance) -> Option<Timestamp> {
    let at = now();
    let sending: Vec<_> = appliance
        .jobs()
        .into_iter()
        .filter_map(|shell| {
            let session = appliance.session(&shell.record.agent)?;
            session.runs(&shell.record.id).then_some((shell, session))
        })
        .collect();
    let mut borders: Vec<Timestamp> =
        lock(&appliance.network.rule).1.iter().filter_map(|plan| plan.next_change(at)).map(|(at, _)| at).collect();
    let claims: Vec<Claim> = sending
        .iter()
        .map(|(shell, _)| {
            let live = shell.live();
            borders.extend(live.network.plan.iter().filter_map(|plan| plan.next_change(at)).map(|(at, _)| at));
            claim(&live, at)
        })
        .collect();
    let shares = divide(appliance.network.held(at).and_then(|held| held.limit), &claims);
    let mut orders: Vec<_> = sending.into_iter().zip(shares).collect();
    // Who gets less hears of it first, so that together they are never above the limit for longer than a message takes.
    orders.sort_by_key(|(_, share)| share.unwrap_or(u64::MAX));
    for ((shell, session), limit) in orders {
        let path = shell.update(|live| {
            live.network.share = Some(limit);
            live.network.wanted.path.clone()
        });
        session.order_network(Ordered { limit, path });
    }
    borders.into_iter().min()
}

fn claim(live: &Live, at: Timestamp) -> Claim {
    let limit = live.network.plan.as_ref().and_then(|plan| plan.at(at).limit);
    let Some(source) = &live.source else { return Claim { limit, ..Claim::default() } };
    let rate = live.network.status.as_ref().map_or(0, |status| status.rate);
    // Twice of what it sends: it may grow by as much in every second without waiting.
    let demand = (source.queue_bytes < BACKLOG_BYTES).then(|| rate.saturating_mul(2).max(BITS_PER_SECOND_MIN));
    Claim { limit, demand, replicates: source.mirror.is_none() }
}

/// The appliance's rule, from now on.
pub fn set_rule(appliance: &Appliance, rule: NetworkRule, actor: &str) -> Result<(), Problem> {
    let plan = rule.compile(zone)?;
    let wanted = JobNetwork { rule: rule.clone(), path: None };
    appliance.store.save_network(None, &wanted).map_err(errors::internal)?;
    appliance.log(None, actor, None, &format!("network of the appliance: {}", words(&rule)));
    *lock(&appliance.network.rule) = (rule, Some(plan));
    appliance.network.nudge();
    Ok(())
}

/// A job's rule and way, from now on.
pub fn set_job(appliance: &Appliance, shell: &JobShell, change: NetworkChange, actor: &str) -> Result<(), Problem> {
    let name = &shell.record.name;
    let of_job =
        |problem: Problem| Problem { next: problem.next.replace("standin network set", &format!("standin job network {name}")), ..problem };
    let mut wanted = shell.live().network.wanted.clone();
    if let Some(rule) = change.rule {
        wanted.rule = rule;
    }
    let plan = wanted.rule.compile(zone).map_err(of_job)?;
    if let Some(mut path) = change.path {
        // Whoever sends back what was shown does not know the password, and means the same proxy.
        let before = wanted.path.as_ref().filter(|before| before.proxy.is_some() && before.redacted().proxy == path.proxy);
        if let Some(before) = before {
            path.proxy = before.proxy.clone();
        }
        let next = format!("standin job network {name} --source any --proxy none --congestion default");
        path.check().map_err(|error| Problem::new("E4104", error.to_string(), next))?;
        wanted.path = Some(path);
    }
    appliance.store.save_network(Some(&shell.record.id), &wanted).map_err(errors::internal)?;
    let way = wanted.path.as_ref().map(|path| serde_json::to_string(&path.redacted()).unwrap_or_default()).unwrap_or_default();
    appliance.log(Some(shell), actor, None, &format!("network: {} {way}", words(&wanted.rule)));
    shell.update(|live| (live.network.wanted, live.network.plan) = (wanted, Some(plan)));
    appliance.network.nudge();
    Ok(())
}

/// A rule in one line.
fn words(rule: &NetworkRule) -> String {
    let limit = if rule.limit.is_empty() { "none" } else { &rule.limit };
    let windows: Vec<_> =
        rule.windows.iter().map(|window| format!("{} {}-{} {}", window.days, window.from, window.to, window.limit)).collect();
    let windows = if windows.is_empty() { String::new() } else { format!(", else than {} ({})", windows.join("; "), zone_name(rule)) };
    format!("limit {limit}{windows}")
}

fn zone_name(rule: &NetworkRule) -> &str {
    if rule.zone.is_empty() { "UTC" } else { &rule.zone }
}

fn plan_view(rule: &NetworkRule, plan: Option<&NetworkPlan>) -> Value {
    let at = now();
    let held = plan.map(|plan| plan.at(at));
    let next = plan.and_then(|plan| plan.next_change(at));
    json!({
        "rule": rule,
        "limit": held.as_ref().and_then(|held| held.limit),
        "window": held.and_then(|held| held.window),
        "next_change": next.map(|(at, held)| json!({"at": at, "limit": held.limit})),
    })
}

pub fn view(appliance: &Appliance) -> Value {
    let rule = lock(&appliance.network.rule);
    let mut view = plan_view(&rule.0, rule.1.as_ref());
    drop(rule);
    let live = |shell: &Arc<JobShell>| appliance.session(&shell.record.agent).is_some_and(|session| session.runs(&shell.record.id));
    let jobs = appliance.jobs().into_iter().filter(live).map(|shell| {
        let live = shell.live();
        let rate = live.network.status.as_ref().map(|status| status.rate);
        json!({"job": shell.record.name, "share": live.network.share.flatten(), "rate": rate})
    });
    view["jobs"] = jobs.collect();
    view
}

/// A job's part: what was asked for, what it gets, and what its agent says.
pub fn job_view(live: &Live) -> Value {
    let link = &live.network;
    let mut view = plan_view(&link.wanted.rule, link.plan.as_ref());
    view["path"] = json!(link.wanted.path.as_ref().map(NetworkPath::redacted));
    // With a limit of the appliance it may be less than the job's own.
    view["share"] = json!(link.share.flatten());
    view["agent"] = json!(link.status);
    view
}
