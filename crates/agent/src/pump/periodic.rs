//! The pump behind a source that tells only which nodes changed: consistent now and then, and never in between.
//!
//! ```text
//!  consistent ──something changed, and the period is over──► round: pass, pass, … ──nothing changed meanwhile──► consistent
//!  (changes are gathered; the replica stays as it was)              └─ still changing after some ─► pause, or the source stands still
//! ```
//!
//! While the replica is consistent, changes are gathered and nothing is sent: it stays a state that the source was in, only an older one. A *round* opens a gap and
//! reads what changed in *passes*; each takes what the one before left changed. When nothing is left, a sweep looks for what changes without an event, and
//! then the state is one that the source was in, as far as its kernel tells: a call that is under way may be seen in part. While the source stands still
//! (`freeze`) no call is under way, and one pass and one sweep are enough, and exact.
//!
//! Items carry the time before the sweep of the last consistency, so that an agent after this one reads again whatever changed since. What neither an event nor a
//! sweep tells of (inode flags) is found by a walk now and then, and every such agent looks back as far as the last one of those.

use super::*;
use standin_mirror::Concern;
use std::collections::BTreeSet;

/// How often the replica becomes consistent, at best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rhythm {
    /// From one consistency to the next round, in nanoseconds.
    pub period: i64,
    /// Everything is looked at by its change time this often, in nanoseconds.
    pub walk: i64,
}

impl Default for Rhythm {
    fn default() -> Rhythm {
        Rhythm { period: 300_000_000_000, walk: WALK_NS }
    }
}

/// An agent after this one looks back so much further than to the last consistency.
pub const WALK_NS: i64 = 3_600_000_000_000;
/// Passes in a row; each is over what changed during the one before. Then the source is too busy for them.
const PASSES: u32 = 4;
/// Before a pass, so that a file that is written all the time is not read all the time.
const PASS_AFTER_NS: i64 = 250_000_000;
/// Nodes that are gathered, 40 bytes each; beyond it, everything since the last consistency.
const CHANGED_MAX: usize = 256 * 1024;
/// While a verification runs, what changes unseen is looked for this often.
const VERIFY_SWEEP_NS: i64 = 5_000_000_000;

/// Asks whether the source still stands still.
pub type Still = Box<dyn Fn() -> bool + Send>;

pub(super) struct Periodic {
    rhythm: Rhythm,
    /// Changed, and not handed to the mirror yet; `true` for a directory whose names did.
    changed: BTreeMap<NodeId, bool>,
    everything: bool,
    /// Excluded directories in which names changed.
    hidden: BTreeSet<NodeId>,
    /// When the last sweep began.
    swept: Timestamp,
    walked: Timestamp,
    consistent_at: Option<Timestamp>,
    /// Of this round.
    passes: u32,
    /// No pass begins earlier.
    next: Timestamp,
    pass_began: Timestamp,
    pass_took: i64,
    hurries: bool,
    still: Option<Still>,
    swept_still: bool,
}

/// How a periodic source stands, for the status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Nodes that changed since the replica was consistent last, as far as they are known.
    pub changed: u64,
    /// By the source's clock.
    pub consistent_at: Option<Timestamp>,
}

impl Periodic {
    pub fn new(now: Timestamp, rhythm: Rhythm) -> Periodic {
        Periodic {
            rhythm,
            changed: BTreeMap::new(),
            everything: false,
            hidden: BTreeSet::new(),
            swept: now,
            walked: now,
            consistent_at: None,
            passes: 0,
            next: now,
            pass_began: now,
            pass_took: 0,
            hurries: false,
            still: None,
            swept_still: false,
        }
    }

    fn has_changed(&self) -> bool {
        self.everything || !self.changed.is_empty()
    }

    fn note(&mut self, node: NodeId, names: bool) {
        *self.changed.entry(node).or_default() |= names;
        if self.changed.len() > CHANGED_MAX {
            self.note_everything();
        }
    }

    fn note_everything(&mut self) {
        self.changed.clear();
        self.everything = true;
    }

    fn is_in_a_hurry(&self) -> bool {
        self.hurries || self.still.is_some()
    }

    /// While the replica is consistent.
    fn is_sweep_due(&mut self, now: Timestamp, verifies: bool) -> bool {
        if self.still.is_some() {
            return !std::mem::replace(&mut self.swept_still, true);
        }
        let after = if self.hurries { PASS_AFTER_NS } else { self.rhythm.period };
        let after = if verifies { VERIFY_SWEEP_NS.min(after) } else { after };
        now.0.saturating_sub(self.swept.0) >= after
    }

    fn stands_still(&self) -> bool {
        self.still.as_ref().is_some_and(|still| still())
    }
}

impl<C: Capture, R: PumpReader> Pump<C, R> {
    pub fn with_rhythm(mut self, rhythm: Rhythm) -> Self {
        if let Some(periodic) = &mut self.periodic {
            periodic.rhythm = rhythm;
        }
        self
    }

    /// `None` for a source that tells every operation.
    pub fn standing(&self) -> Option<Standing> {
        let periodic = self.periodic.as_ref()?;
        let changed = if periodic.everything { CHANGED_MAX } else { periodic.changed.len() } as u64;
        Some(Standing { changed, consistent_at: periodic.consistent_at })
    }

    /// Whether the replica is what the source was when it was looked at last.
    pub fn is_current(&self) -> bool {
        self.consistent && !self.periodic.as_ref().is_some_and(Periodic::has_changed)
    }

    /// It is what the source, which stands still, is now.
    pub fn is_settled(&self) -> bool {
        self.is_current() && self.periodic.as_ref().is_some_and(|periodic| periodic.swept_still && periodic.stands_still())
    }

    /// The source stands still for this pump, and for as short as possible.
    pub(super) fn is_held(&self) -> bool {
        self.periodic.as_ref().is_some_and(|periodic| periodic.still.is_some())
    }

    /// Rounds begin and go on without a pause, because somebody waits for them.
    pub fn hurry(&mut self, hurries: bool) {
        if let Some(periodic) = &mut self.periodic {
            periodic.hurries = hurries;
        }
    }

    /// Looks for what changed unseen, now.
    pub fn look(&mut self) -> Result<()> {
        self.sweep();
        self.take_barrier().map(drop)
    }

    /// From here on the source stands still as long as `still` says; nothing in any case where it is `None`.
    pub fn stand_still(&mut self, still: Option<Still>) {
        if let Some(periodic) = &mut self.periodic {
            (periodic.still, periodic.swept_still) = (still, false);
        }
    }

    /// The source is too busy for passes, and consistent only if it stands still. How long the last pass took: as much has to be read then.
    pub fn wants_stillness(&self) -> Option<Duration> {
        let periodic = self.periodic.as_ref().filter(|periodic| periodic.passes >= PASSES && periodic.has_changed())?;
        self.mirror.is_idle().then(|| Duration::from_nanos(periodic.pass_took.unsigned_abs()))
    }

    /// Whether so little is left to read that it is worth while to stand still.
    pub fn is_near(&self) -> bool {
        self.is_current() || self.mirror.is_idle() && self.periodic.as_ref().is_some_and(|periodic| periodic.passes > 0)
    }

    pub(super) fn take_changed(&mut self, node: NodeId, directory: Option<NodeId>, names: bool) {
        // What cannot be placed counts as replicated.
        let _ = self.mirror.place_unseen(directory.unwrap_or(node), &mut self.reader);
        let concern = match self.mirror.concern(node, directory, names) {
            Concern::ItsNames => match self.reader.look(node) {
                Ok(Some(facts)) if facts.links <= 1 => {
                    self.mirror.exclude_unseen(node);
                    Concern::Nobody
                }
                Ok(None) => Concern::Nobody,
                _ => Concern::Replica,
            },
            other => other,
        };
        self.note_node_for_verify(node);
        let Some(periodic) = &mut self.periodic else { return };
        match concern {
            Concern::Replica => periodic.note(node, names),
            Concern::Below => drop(periodic.hidden.insert(node)),
            Concern::Nobody | Concern::ItsNames => return,
        }
        if periodic.hidden.len() > CHANGED_MAX {
            periodic.hidden.clear();
            periodic.note_everything();
        }
        if self.consistent && concern == Concern::Replica {
            // So that no verification compares it.
            self.mirror.distrust([node]);
        }
    }

    /// A loss of everything since the last consistency; false for a source that has an order to be kept.
    pub(super) fn take_lost_everything(&mut self) -> bool {
        self.periodic.as_mut().map(Periodic::note_everything).is_some()
    }

    /// Begins what is due; true when it did.
    pub(super) fn keep_rhythm(&mut self) -> Result<bool> {
        let now = (self.clock)();
        let (idle, consistent, verifies) = (self.mirror.is_idle(), self.consistent, self.verifying.is_some());
        let Some(periodic) = self.periodic.as_mut().filter(|_| idle && self.loss.is_none()) else { return Ok(false) };
        let hurry = periodic.is_in_a_hurry();
        if consistent {
            let over = periodic.consistent_at.is_none_or(|at| now.0.saturating_sub(at.0) >= periodic.rhythm.period);
            if periodic.is_sweep_due(now, verifies) {
                self.sweep();
            }
            let Some(periodic) = &mut self.periodic else { return Ok(false) };
            periodic.everything |= now.0.saturating_sub(periodic.walked.0) >= periodic.rhythm.walk;
            if !periodic.has_changed() || !over && !hurry {
                return Ok(false);
            }
            (periodic.passes, periodic.next) = (0, now);
        } else if !periodic.has_changed() || now < periodic.next && periodic.still.is_none() {
            return Ok(false);
        }
        self.begin_pass(now);
        Ok(true)
    }

    /// A pass is waited for, and until then there is nothing to read.
    pub(super) fn is_pausing(&self) -> bool {
        self.mirror.is_idle() && self.periodic.as_ref().is_some_and(Periodic::has_changed)
    }

    fn begin_pass(&mut self, now: Timestamp) {
        let Some(periodic) = &mut self.periodic else { return };
        periodic.passes = if periodic.passes >= PASSES { 1 } else { periodic.passes + 1 };
        periodic.pass_began = now;
        let changed = std::mem::take(&mut periodic.changed);
        let (everything, hidden) = (std::mem::take(&mut periodic.everything), std::mem::take(&mut periodic.hidden));
        if everything {
            periodic.walked = now;
        }
        self.open_gap("files have changed; fanotify does not tell how");
        // Directories first: what is below one may be excluded.
        let (directories, others): (Vec<_>, Vec<_>) = changed.into_iter().partition(|(_, names)| *names);
        let nodes: Vec<NodeId> = directories.into_iter().chain(others).map(|(node, _)| node).collect();
        let since = self.since();
        for directory in hidden {
            match self.mirror.look_below(directory, &mut self.reader) {
                // Its own times have changed with its names.
                Ok(true) => self.mirror.mark_dirty([directory], since),
                Ok(false) => {}
                Err(error) => tracing::warn!(node = %directory, %error, "an excluded directory could not be listed"),
            }
        }
        if everything {
            self.mirror.distrust(nodes);
            let roots = self.roots.clone();
            self.mirror.restart(Scope::ChangedSince(since), roots.into_iter());
        } else {
            self.mirror.mark_lost(&nodes, since);
        }
    }

    fn sweep(&mut self) {
        let now = (self.clock)();
        let Some(periodic) = &mut self.periodic else { return };
        let since = std::mem::replace(&mut periodic.swept, now);
        self.capture.sweep(since, &mut self.captured);
        self.take_captured();
    }

    /// The walk is through. Whether nothing has changed meanwhile: only then the state is one that the source was in.
    pub(super) fn has_come_to_rest(&mut self) -> Result<bool> {
        let now = (self.clock)();
        let Some(periodic) = &mut self.periodic else { return Ok(true) };
        if periodic.passes == 0 {
            // The first walk, which may have taken days.
            periodic.passes = 1;
        }
        periodic.pass_took = now.0.saturating_sub(periodic.pass_began.0);
        let pause = if periodic.passes >= PASSES { periodic.rhythm.period } else { PASS_AFTER_NS };
        periodic.next = Timestamp(now.0.saturating_add(if periodic.hurries { PASS_AFTER_NS } else { pause }));
        let still = periodic.still.is_some();
        if periodic.has_changed() || still && !periodic.stands_still() {
            return Ok(false);
        }
        if !std::mem::replace(&mut periodic.swept_still, still) {
            self.sweep();
            self.take_barrier()?;
        }
        let Some(periodic) = &mut self.periodic else { return Ok(true) };
        if periodic.has_changed() || still && !periodic.stands_still() {
            return Ok(false);
        }
        self.known_until = periodic.swept;
        periodic.consistent_at = Some(now);
        periodic.passes = 0;
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
