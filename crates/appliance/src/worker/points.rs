//! The worker's recovery points: where in the stream they fall, and taking them.
//!
//! A point is the replica at exactly one position, so a segment is applied in pieces: up to and with a named marker. What begins a resync of a consistent
//! replica has its point in front of its segment. Then the applier marks, and nothing is applied until the point is there. What cannot be a point is
//! reported with its reason and holds up nothing: a replica without points is worth more than a stream that stands still.

use super::message::FromWorker;
use super::run::{Worker, report};
use crate::errors;
use crate::layout::now;
use anyhow::{Context, Result};
use standin_model::{Item, MarkName, Marker, Operation, PointKind, Timestamp};
use standin_protection::Problem;
use standin_replica::disk;
use standin_replica::point::{self, Draft, Held, PointError, PointRequest};

impl Worker {
    /// Applies a segment's items, with the points that fall into it. The applier is open.
    pub(super) fn apply_items(&mut self, items: &[Item], captured_at: Timestamp) -> Result<()> {
        let mut from = 0;
        // What an earlier worker has begun to apply has had its point, or its chance.
        let untouched = items.first().is_some_and(|first| first.seq > self.applied());
        // In front of a gap, its segment may lack something already. And a stream that starts anew may bring wants at once, and a resync in any case.
        let begins = |(index, item): (usize, &Item)| match &item.operation {
            Operation::Marker(Marker::Gap { .. }) => true,
            Operation::Marker(Marker::ResyncStarted | Marker::StreamStarted { .. }) => index == 0,
            _ => false,
        };
        if untouched && items.iter().enumerate().any(begins) {
            self.before_resync()?;
        }
        for (index, item) in items.iter().enumerate() {
            if item.seq <= self.applied() {
                continue;
            }
            if let Operation::Marker(Marker::Named(name)) = &item.operation {
                self.apply_piece(&items[from..=index])?;
                from = index + 1;
                self.captured_at = Some(captured_at);
                self.at_marker(name, item)?;
            }
        }
        self.apply_piece(&items[from..])?;
        self.captured_at = Some(captured_at);
        Ok(())
    }

    fn apply_piece(&mut self, items: &[Item]) -> Result<()> {
        let applier = self.applier.as_mut().context("the replica is not open")?;
        Ok(applier.apply_segment(items)?)
    }

    /// Reports what is there already: an earlier worker may have died before it told of it.
    pub(super) fn report_known(&self) -> Result<()> {
        for point in self.orders.points.iter().flat_map(|points| point::list(&points.directory).unwrap_or_default()) {
            report(&FromWorker::Point { point })?;
        }
        let Some(applier) = &self.applier else { return Ok(()) };
        for (name, seq) in applier.state().named {
            // The source may be hostile; what is no name is none of ours.
            if let Some(name) = MarkName::parse(&name) {
                report(&FromWorker::Mark { name, seq, captured_at: None, consistent: None })?;
            }
        }
        Ok(())
    }

    fn at_marker(&mut self, name: &str, item: &Item) -> Result<()> {
        let Some(name) = MarkName::parse(name) else {
            tracing::warn!(job = self.orders.job, seq = %item.seq, "a marker without a proper name");
            return Ok(());
        };
        let consistent = Some(self.is_consistent());
        report(&FromWorker::Mark { name: name.clone(), seq: item.seq, captured_at: self.captured_at, consistent })?;
        let wanted = self.orders.points.as_ref().is_some_and(|points| points.policy.at_markers);
        if wanted { self.take_point(PointKind::Marker, Some(name)) } else { Ok(()) }
    }

    fn is_consistent(&self) -> bool {
        self.applier.as_ref().is_some_and(|applier| applier.state().is_consistent())
    }

    /// The last consistent point must stay launchable while the resync changes the replica.
    fn before_resync(&mut self) -> Result<()> {
        let Some(points) = self.orders.points.as_ref().filter(|_| self.is_consistent()) else { return Ok(()) };
        let there = point::list(&points.directory).unwrap_or_default();
        let shared = self.orders.disk.parent().is_some_and(disk::can_reflink);
        if !points.policy.wants_before_resync(now(), shared, &there) || there.iter().any(|point| point.seq == self.applied()) {
            return Ok(());
        }
        self.take_point(PointKind::BeforeResync, None)
    }

    /// Takes a point of the replica as it is now, or reports why not.
    pub(super) fn take_point(&mut self, kind: PointKind, name: Option<MarkName>) -> Result<()> {
        let next = format!("standin watch {}", self.orders.job);
        let redoing = self.applier.as_ref().is_none_or(|applier| applier.is_redoing());
        let refusal = match (redoing || self.finished, self.is_consistent()) {
            (true, _) => Some("its worker is still going over what an earlier one may have applied"),
            (false, false) => Some("the replica is not equal to any state of the source now"),
            (false, true) => None,
        };
        if let Some(reason) = refusal {
            let cause = format!("no recovery point can be taken at {}: {reason}", self.applied());
            return report(&FromWorker::PointFailed { kind, name, seq: self.applied(), problem: Problem::new("E4062", cause, next) });
        }
        let applier = self.applier.as_mut().context("the replica is not open")?;
        // From here to the end of `take` the table on disk and the file systems are of one position.
        let seq = applier.mark()?;
        let request = PointRequest { kind, name, seq, captured_at: self.captured_at, taken_at: now(), consistent: true };
        self.finish_draft(&Draft { request, tries: 0 })
    }

    /// A draft of the very item that the table was marked at: nothing was applied behind it, so it can still be taken.
    pub(super) fn take_up_draft(&mut self) -> Result<()> {
        let Some(points) = &self.orders.points else { return Ok(()) };
        let draft = point::draft_of(&points.directory).filter(|draft| self.applier.is_some() && draft.request.seq == self.applied());
        match draft {
            Some(draft) => self.finish_draft(&draft),
            None => {
                let dropped = point::drop_draft(&points.directory).and_then(|()| point::sweep(&points.directory));
                if let Err(error) = dropped {
                    tracing::warn!(job = self.orders.job, error = errors::chain(&error), "leftovers of recovery points stay");
                }
                Ok(())
            }
        }
    }

    fn finish_draft(&mut self, draft: &Draft) -> Result<()> {
        let (Some(points), Some(attachment)) = (&self.orders.points, &self.attachment) else { return Ok(()) };
        let held = Held {
            attachment,
            table: &self.orders.node_table,
            directory: &points.directory,
            copy_bytes_max: points.policy.copy_bytes_max.0,
        };
        match point::take(draft, held) {
            Ok(point) => report(&FromWorker::Point { point }),
            // A file system that stays frozen would stop the next write for ever; the next worker thaws it.
            Err(error @ PointError::Stuck(_)) => Err(errors::coded("E3026", &error, "nothing: the worker is started again").into()),
            Err(error) => {
                let request = &draft.request;
                let next = format!("standin point policy {}", self.orders.job);
                let problem = Problem { code: error.code().into(), ..errors::coded("E3024", &error, &next) };
                report(&FromWorker::PointFailed { kind: request.kind, name: request.name.clone(), seq: request.seq, problem })
            }
        }
    }
}
