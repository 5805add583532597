//! The appliance's side of recovery points: when the worker is asked for one, what the store and the job's history say of it, and which go.
//!
//! What is there is told by the datastore alone; the store's rows follow it, at the start and with every report. A point that the store does not know is
//! taken in, a row without its point goes. So a crash between the two is no special case.

use crate::appliance::Appliance;
use crate::errors;
use crate::job::{JobShell, Live};
use crate::layout::now;
use crate::store::HistoryRow;
use crate::worker::message::ToWorker;
use standin_model::{MarkName, OpSeq, PointKind, RecoveryPoint, Timestamp};
use standin_protection::{JobState, PointPolicy, Problem, point};
use standin_replica::point as files;
use std::time::{Duration, Instant};

/// The worker ends its segment first; then the longest copy that a job may allow is the most of it.
const ASK_MAX: Duration = Duration::from_secs(300);
/// A regular point that could not be taken is not tried again sooner.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// What is known of a job's recovery points.
#[derive(Default)]
pub struct Points {
    pub policy: PointPolicy,
    /// Whole points, oldest first.
    pub there: Vec<RecoveryPoint>,
    /// When the worker was last asked for a regular point.
    regular_asked: Option<Instant>,
    /// The operator's point that is being taken, and its answer.
    asked: Option<Option<MarkName>>,
    answer: Option<Result<RecoveryPoint, Problem>>,
    /// Why the last one could not be taken, until one could.
    pub problem: Option<Problem>,
}

/// Brings memory and store in line with what the datastore has.
pub fn reconcile(appliance: &Appliance, shell: &JobShell) {
    let (record, store) = (&shell.record, &appliance.store);
    let directory = appliance.layout.points(&record.name);
    if let Err(error) = files::sweep(&directory) {
        tracing::warn!(job = record.name, error = errors::chain(&error), "removed recovery points still take space");
    }
    let there = match files::list(&directory) {
        Ok(there) => there,
        Err(error) => return tracing::error!(job = record.name, error = errors::chain(&error), "the recovery points cannot be listed"),
    };
    let policy = store.point_policy(&record.id).unwrap_or_default().unwrap_or_default();
    let known = store.points(&record.id).unwrap_or_default();
    for point in there.iter().filter(|point| !known.contains(point)) {
        note_taken(appliance, shell, point);
    }
    for point in known.iter().filter(|known| !there.iter().any(|point| point.id() == known.id())) {
        note_removed(appliance, shell, point, "it is not in the datastore any more");
    }
    shell.update(|live| (live.points.policy, live.points.there) = (policy, there));
}

fn note_taken(appliance: &Appliance, shell: &JobShell, point: &RecoveryPoint) {
    if let Err(error) = appliance.store.add_point(&shell.record.id, point) {
        tracing::error!(job = shell.record.name, %error, "the store does not take the recovery point");
    }
    let how = match point.bytes_copied {
        0 => "blocks shared".to_owned(),
        bytes => format!("{bytes} bytes copied"),
    };
    let note = format!("recovery point {} taken: {how}, replication held for {} ms", point.id(), point.held_ms);
    history(appliance, shell, HistoryRow::new("point", point.seq, point.name.clone(), &note).captured(point.captured_at));
    appliance.log(Some(shell), "appliance", None, &note);
}

fn note_removed(appliance: &Appliance, shell: &JobShell, point: &RecoveryPoint, why: &str) {
    if let Err(error) = appliance.store.remove_point(&shell.record.id, &point.id()) {
        tracing::error!(job = shell.record.name, %error, "the store does not forget the recovery point");
    }
    let note = format!("recovery point {} removed: {why}", point.id());
    history(appliance, shell, HistoryRow::new("point-removed", point.seq, point.name.clone(), &note));
    appliance.log(Some(shell), "appliance", None, &note);
}

/// One entry of the job's history.
pub fn history(appliance: &Appliance, shell: &JobShell, row: HistoryRow) {
    if let Err(error) = appliance.store.add_history(&shell.record.id, now(), &row) {
        tracing::error!(job = shell.record.name, %error, "the store does not take the job's history");
    }
}

/// A named marker was applied. Told more than once where a worker died behind it; the history has it once.
pub fn marked(
    appliance: &Appliance,
    shell: &JobShell,
    name: MarkName,
    seq: OpSeq,
    captured_at: Option<Timestamp>,
    consistent: Option<bool>,
) {
    let note = match consistent {
        Some(true) => "the replica equals the source here",
        Some(false) => "the replica was not consistent here",
        None => "found in the replica after a restart of its worker",
    };
    history(appliance, shell, HistoryRow::new("marker", seq, Some(name), note).captured(captured_at));
}

/// The worker has a point, or found one that an earlier worker had not told of.
pub fn taken(appliance: &Appliance, shell: &JobShell, point: RecoveryPoint) {
    // It may have been removed since the worker looked.
    if !appliance.layout.points(&shell.record.name).join(point.id()).exists() {
        return;
    }
    let fresh = shell.update(|live| {
        let fresh = !live.points.there.iter().any(|known| known.id() == point.id());
        if fresh {
            live.points.there.push(point.clone());
            live.points.there.sort_by_key(|point| (point.seq, point.kind, point.taken_at));
        }
        live.points.problem = None;
        fresh
    });
    if fresh {
        note_taken(appliance, shell, &point);
    }
    prune(appliance, shell);
    shell.update(|live| {
        if point.kind == PointKind::Manual && live.points.asked == Some(point.name.clone()) {
            live.points.answer = Some(Ok(point));
        }
    });
}

/// The worker could not take a point.
pub fn failed(appliance: &Appliance, shell: &JobShell, kind: PointKind, name: Option<MarkName>, seq: OpSeq, problem: Problem) {
    let note = format!("no {} recovery point at {seq}: {}", kind.as_str(), problem.cause);
    let news = shell.update(|live| {
        let news = live.points.problem.as_ref() != Some(&problem);
        live.points.problem = Some(problem.clone());
        if kind == PointKind::Manual && live.points.asked == Some(name.clone()) {
            live.points.answer = Some(Err(problem.clone()));
        }
        news
    });
    // A regular one fails every minute in the same way.
    if kind != PointKind::Regular || news {
        history(appliance, shell, HistoryRow::new("point-failed", seq, name, &note));
        appliance.log(Some(shell), "appliance", Some(&problem.code), &note);
    }
}

/// Removes what the job's rule does not keep.
fn prune(appliance: &Appliance, shell: &JobShell) {
    let surplus: Vec<RecoveryPoint> = {
        let live = shell.live();
        let ids = live.points.policy.surplus(&live.points.there, live.replica.is_consistent);
        let used = live.point_in_use();
        let goes = |point: &&RecoveryPoint| ids.contains(&point.id()) && used.as_ref() != Some(&point.id());
        live.points.there.iter().filter(goes).cloned().collect()
    };
    for point in surplus {
        if let Err(problem) = remove_files(appliance, shell, &point, "newer ones are kept") {
            tracing::warn!(job = shell.record.name, %problem, "a recovery point stays");
        }
    }
}

fn remove_files(appliance: &Appliance, shell: &JobShell, point: &RecoveryPoint, why: &str) -> Result<(), Problem> {
    let directory = appliance.layout.points(&shell.record.name);
    files::remove(&directory, &point.id()).map_err(|error| {
        let next = format!("standin point list {}", shell.record.name);
        errors::coded("E3024", &error, &next)
    })?;
    note_removed(appliance, shell, point, why);
    shell.update(|live| live.points.there.retain(|known| known.id() != point.id()));
    Ok(())
}

/// Once a second: asks for a regular point where one is due.
pub fn tick(appliance: &Appliance, shell: &JobShell) {
    let shared = appliance.shares_blocks();
    shell.update(|live| {
        let points = &mut live.points;
        let unchanged = points.there.iter().any(|point| point.kind == PointKind::Regular && point.seq == live.target.applied);
        let protected = matches!(live.job.state, JobState::Protected { .. }) && live.replica.is_consistent;
        let interval = points.policy.interval(shared).map_or(RETRY_AFTER, |seconds| Duration::from_secs(seconds.into()));
        let tried = points.regular_asked.is_some_and(|asked| asked.elapsed() < interval.min(RETRY_AFTER));
        if !protected || tried || unchanged || !points.policy.is_due(now(), shared, &points.there) {
            return;
        }
        let ask = ToWorker::Point { kind: PointKind::Regular, name: None };
        if live.worker.as_mut().is_some_and(|worker| worker.send(&ask)) {
            points.regular_asked = Some(Instant::now());
        }
    });
}

/// Takes a point for the operator, and waits for it.
pub fn create(appliance: &Appliance, shell: &JobShell, name: Option<MarkName>, actor: &str) -> Result<RecoveryPoint, Problem> {
    let job = &shell.record.name;
    let show = format!("standin job show {job}");
    claim(shell, &name)?;
    appliance.log(Some(shell), actor, None, "asks for a recovery point");
    let ask = ToWorker::Point { kind: PointKind::Manual, name };
    let pid = shell.update(|live| live.worker.as_mut().and_then(|worker| worker.send(&ask).then_some(worker.pid)));
    let answer = if pid.is_some() {
        let ended = |live: &Live| live.worker.as_ref().map(|worker| worker.pid) != pid;
        let gone = || Problem::new("E4062", "the worker ended before it had taken the recovery point", show.clone());
        shell.wait(ASK_MAX, |live| live.points.answer.take().or_else(|| ended(live).then(|| Err(gone()))))
    } else {
        Some(Err(Problem::new("E4062", format!("no worker holds the replica of {job} now"), show.clone())))
    };
    shell.update(|live| live.points.asked = None);
    let late = || Problem::new("E4064", format!("the worker did not answer within {} s", ASK_MAX.as_secs()), show);
    answer.unwrap_or_else(|| Err(late()))
}

/// One at a time, and no more than there may be.
fn claim(shell: &JobShell, name: &Option<MarkName>) -> Result<(), Problem> {
    let job = &shell.record.name;
    shell.update(|live| {
        let list = format!("standin point list {job}");
        if live.points.asked.is_some() {
            return Err(Problem::new("E4063", format!("a recovery point of {job} is being taken already"), list));
        }
        let manual: Vec<_> = live.points.there.iter().filter(|point| point.kind == PointKind::Manual).collect();
        if manual.len() >= point::MANUAL_MAX {
            let cause = format!("{job} has {} manual recovery points, and none of them goes by itself", manual.len());
            return Err(Problem::new("E4066", cause, format!("standin point remove {job} {}", manual[0].id())));
        }
        (live.points.asked, live.points.answer) = (Some(name.clone()), None);
        Ok(())
    })
}

pub fn remove(appliance: &Appliance, shell: &JobShell, text: &str, actor: &str) -> Result<RecoveryPoint, Problem> {
    let job = &shell.record.name;
    let list = format!("standin point list {job}");
    let point = {
        let live = shell.live();
        let found = point::find(&live.points.there, text).cloned();
        let point = found.ok_or_else(|| Problem::new("E4060", format!("{job} has no recovery point {text:?}"), list.clone()))?;
        if live.point_in_use().as_ref() == Some(&point.id()) {
            let cause = format!("a failover of {job} boots from recovery point {}", point.id());
            return Err(Problem::new("E4067", cause, format!("standin job runbook {job}")));
        }
        let last = point::last_consistent(&live.points.there).map(RecoveryPoint::id);
        if matches!(live.job.state, JobState::Resyncing { .. }) && last.as_ref() == Some(&point.id()) {
            let cause = format!("{job} is being resynced, and {} is the last consistent state that there is", point.id());
            return Err(Problem::new("E4068", cause, format!("standin watch {job}")));
        }
        point
    };
    remove_files(appliance, shell, &point, &format!("by {actor}"))?;
    Ok(point)
}

pub fn set_policy(appliance: &Appliance, shell: &JobShell, policy: PointPolicy, actor: &str) -> Result<(), Problem> {
    policy.check()?;
    appliance.store.save_point_policy(&shell.record.id, &policy).map_err(errors::internal)?;
    shell.update(|live| {
        live.points.policy = policy.clone();
        if let Some(worker) = &mut live.worker {
            worker.send(&ToWorker::PointPolicy { policy });
        }
    });
    appliance.log(Some(shell), actor, None, "changed which recovery points are kept");
    prune(appliance, shell);
    Ok(())
}
