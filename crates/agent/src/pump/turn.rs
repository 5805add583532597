//! One turn of the pump: drain, read a little for the mirror, seal what is old enough.

use super::*;

/// Beyond it what has to be read is no small thing, and a gap like any other.
const MEND_STEPS_MAX: u32 = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Busy,
    /// Nothing to read for the mirror and nothing captured.
    Idle,
}

impl<C: Capture, R: PumpReader> Pump<C, R> {
    /// Does what there is to do; waits for captured operations at most `patience` when there is nothing else.
    pub fn turn(&mut self, patience: Duration) -> Result<Turn> {
        let captured = self.take_barrier()?;
        self.leave_loss();
        self.take_answers();
        let begun = self.keep_rhythm()?;
        let mirrored = self.mirror_some()? || begun;
        self.mend()?;
        // Somebody without patience waits for the source's own changes.
        let verified = !patience.is_zero() && !self.is_held() && self.verify_some()?;
        if patience.is_zero() && self.opened.is_some() {
            self.seal();
        }
        self.seal_if_old();
        if captured || mirrored || verified {
            return Ok(Turn::Busy);
        }
        if !patience.is_zero() {
            let bound = if self.opened.is_some() { SEGMENT_AGE_MAX.min(patience) } else { self.verify_wait(patience) };
            let awaits_room = self.awaits_room();
            let bound = if self.mirror.awaits_answers() || awaits_room { ANSWER_WAIT.min(bound) } else { bound };
            let rest = if self.may_mirror() { self.rest() } else { None };
            let bound = rest.map_or(bound, |rest| rest.min(bound));
            let is_held = awaits_room || self.queue.has_backlog();
            let since = Instant::now();
            self.capture.wait(bound)?;
            if let Some(impact) = self.impact.as_ref().filter(|_| rest.is_some()) {
                impact.rested(since.elapsed());
            }
            if let Some(levels) = &mut self.levels {
                levels.waited(since.elapsed(), is_held);
            }
        }
        Ok(Turn::Idle)
    }

    /// Takes what was captured and reads nothing of the source; waits for it at most `patience`.
    pub fn drain(&mut self, patience: Duration) -> Result<()> {
        if !self.take_barrier()? {
            self.capture.wait(if self.opened.is_some() { SEGMENT_AGE_MAX.min(patience) } else { patience })?;
        }
        self.seal_if_old();
        Ok(())
    }

    fn seal_if_old(&mut self) {
        let age = |opened: Timestamp| (self.clock)().0.saturating_sub(opened.0);
        if self.opened.is_some_and(|opened| age(opened) >= SEGMENT_AGE_MAX.as_nanos() as i64) {
            self.seal();
        }
    }

    /// The queue has room again: the gap begins here in the stream, and its nodes are mirrored again.
    fn leave_loss(&mut self) {
        if self.loss.is_none() || !self.queue.has_room(LOSS_ROOM_BYTES) {
            return;
        }
        let Some(loss) = self.loss.take() else { return };
        self.figures.gaps += 1;
        self.begin_resync(loss.reason);
        match loss.nodes {
            Some(nodes) => {
                let mut nodes: Vec<NodeId> = nodes.into_iter().collect();
                nodes.sort_unstable();
                self.mirror.mark_dirty(nodes, loss.since);
            }
            None => {
                let roots = self.roots.clone();
                // What an unfinished run had answered may be among the lost items, whatever its change time is.
                let scope = if self.mirror.is_whole() { Scope::ChangedSince(loss.since) } else { Scope::Everything };
                self.mirror.restart(scope, roots.into_iter());
            }
        }
    }

    /// Everything that happened before now is in the stream after this.
    pub(super) fn take_barrier(&mut self) -> Result<bool> {
        self.slow.begin((self.clock)());
        self.capture.barrier(&mut self.captured)?;
        let some = !self.captured.is_empty();
        self.take_captured();
        if self.periodic.is_none() {
            self.known_until = self.slow.known_until();
        }
        Ok(some)
    }

    fn take_answers(&mut self) {
        let (answers, applied) = self.answers.take();
        answers.iter().for_each(|differs| self.mirror.answered(differs));
        self.mirror.applied(applied);
    }

    /// Whether there is something to read for the mirror, room or not.
    fn may_mirror(&self) -> bool {
        let waiting = self.mirror.is_idle() && (self.clock)() < self.retry_at;
        !self.consistent && !waiting && !self.is_pausing() && self.loss.is_none()
    }

    /// Whether it is the link that the mirror waits for, and not for long.
    fn awaits_room(&self) -> bool {
        self.may_mirror() && self.queue.is_moving() && !self.queue.has_mirror_room(MIRROR_ROOM_BYTES)
    }

    fn mirror_some(&mut self) -> Result<bool> {
        // What is mended within a segment waits for nothing, and asks nobody.
        let is_mending = self.mending.is_some();
        if !self.may_mirror() || !is_mending && (!self.queue.has_mirror_room(MIRROR_ROOM_BYTES) || self.rest().is_some()) {
            return Ok(false);
        }
        self.mirror.ask(!is_mending);
        self.take_barrier()?;
        let yielding = self.impact.as_ref().and_then(|_| Yielding::begin());
        let mut items = std::mem::take(&mut self.items);
        let ahead = if is_mending { usize::MAX } else { self.queue.mirror_step_bytes() };
        let step_bytes = self.limits.step_bytes.min(ahead);
        // More of it packs better, by a thirtieth. What the server writes meanwhile waits for it, and only a link that is waited for anyway is worth that.
        let together = if self.levels.as_ref().is_some_and(Levels::is_high) { 2 } else { 1 };
        let segment_bytes = together * self.limits.segment_bytes.min(ahead);
        let step = self.mirror.step(&mut self.reader, step_bytes, &mut items);
        for trouble in self.mirror.take_troubles() {
            tracing::warn!(node = %trouble.node, error = %trouble.error, "a node could not be mirrored; it is tried again");
            self.troubled.push(trouble.node);
        }
        self.pay(items.iter().map(read_bytes).sum());
        for item in items.drain(..) {
            if let Operation::MirrorNode { node, .. } = &item {
                // It has the node's times from after everything captured so far; what waits for the segment's end would put older ones over them.
                self.touched.remove(node);
            }
            self.mirror.numbered(self.sealer.next_seq(), &item);
            self.push(item);
            self.seal_if_full(segment_bytes);
        }
        self.items = items;
        drop(yielding);
        match step {
            Step::More => {}
            Step::Finished => self.finish_walk()?,
            // Nothing comes to keep what was asked company.
            Step::Waiting => self.seal(),
        }
        Ok(step != Step::Waiting)
    }

    /// How long the contract keeps what can wait waiting.
    pub(super) fn rest(&mut self) -> Option<Duration> {
        let now = self.begun.elapsed();
        self.impact.as_mut().and_then(|impact| impact.rest(now, cpu_time()))
    }

    pub(super) fn pay(&mut self, bytes: u64) {
        let now = self.begun.elapsed();
        self.impact.iter_mut().for_each(|impact| impact.pay(now, bytes));
    }

    /// Reads on at once where that keeps the segment's end a state of the source. Ends, because each step fills the segment or lessens the tasks, and a
    /// full segment makes it a gap.
    pub(super) fn mend(&mut self) -> Result<()> {
        for _ in 0..MEND_STEPS_MAX {
            if self.mending.is_none() || !self.mirror_some()? {
                break;
            }
        }
        Ok(())
    }

    /// What the last reads may have seen beyond their barriers comes into the stream now, and then the state is one of the source's own.
    fn finish_walk(&mut self) -> Result<()> {
        self.take_barrier()?;
        if self.mirror.is_idle() && !self.troubled.is_empty() {
            // The nodes come back as tasks when the wait is over; until then nothing claims to be consistent.
            if (self.clock)() < self.retry_at {
                return Ok(());
            }
            self.retry_at = Timestamp((self.clock)().0 + RETRY_AFTER_NS);
            let troubled = std::mem::take(&mut self.troubled);
            self.mirror.mark_dirty(troubled, self.known_until);
            return Ok(());
        }
        if self.mirror.is_idle() && !self.has_come_to_rest()? {
            return Ok(());
        }
        if self.mirror.is_idle() && self.loss.is_none() {
            // What was mended lies in one segment with what made it necessary: nobody ever sees that something was missing.
            if self.mending.take().is_some() { self.push_times() } else { self.seal() }
        }
        if self.mirror.is_idle() && self.loss.is_none() {
            self.push(Operation::Marker(Marker::Consistent));
            self.consistent = true;
            tracing::info!(seq = %self.sealer.next_seq(), "all that had to be read is in the stream");
            self.seal();
        }
        // A walk whose end did not fit the queue is not over.
        let over = self.consistent;
        #[cfg(feature = "mutants")]
        let over = over || self.finishes_early && self.mirror.is_idle();
        if over {
            self.mirror.finished();
        }
        Ok(())
    }
}

/// What the source's disks were read for it.
fn read_bytes(item: &Operation) -> u64 {
    match item {
        Operation::MirrorDigests { len, .. } => len.0,
        item => item.content_len(),
    }
}
