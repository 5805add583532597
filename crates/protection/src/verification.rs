//! A verification of one job, from its order to its result: which pass comes next, and what counts as a difference.
//!
//! ```text
//! reading ─► confirming (pass 2, pass 3) ─► equal | different
//!                                       └─► repairing ─► checking the repair ─► repaired | different
//! ```
//! The first pass compares everything; the later ones, node by node, only what did not match before. A difference is one that every pass has seen. Whatever
//! makes a result doubtful (a lost check, a new worker, another life of the agent) interrupts it; a verification has no half results.
//!
//! Pure: the shell tells what came, and carries out the [`VerifyAction`].

use serde::{Deserialize, Serialize};
use standin_model::{NodeId, PassEnd, Suspect, Timestamp};
use std::collections::{BTreeSet, VecDeque};

/// Suspects in one order to the agent; see the wire's bound.
pub const SUSPECTS_PER_ORDER: usize = 4096;
/// Suspects that are followed up; the others only count.
pub const SUSPECTS_MAX: usize = 64 * 1024;
/// Differences that a record names.
pub const NAMED_MAX: usize = 256;
/// Times that the last pass is done again.
const REPEATS_MAX: u8 = 10;
/// The pass that confirms; the one behind it looks at a repair.
const LAST_PASS: u8 = 3;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum VerificationState {
    Running {
        stage: Stage,
    },
    Equal,
    Different,
    /// It differed, was mirrored again, and is equal now.
    Repaired,
    Interrupted {
        reason: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    Reading,
    Confirming,
    Repairing,
    CheckingRepair,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mismatch {
    /// The node as the source knows it.
    pub node: String,
    /// Of content: where it begins, and how much of it was compared as one.
    #[serde(default)]
    pub offset: Option<u64>,
    #[serde(default)]
    pub bytes: Option<u64>,
    pub what: String,
}

/// What the job's history keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    pub started: Timestamp,
    pub ended: Option<Timestamp>,
    /// `schedule`, or who asked for it.
    pub actor: String,
    pub repair: bool,
    /// Bytes a second; 0 for the agent's default.
    pub rate: u64,
    #[serde(flatten)]
    pub state: VerificationState,
    /// Of the source, in the first pass.
    pub nodes: u64,
    pub bytes: u64,
    /// Content read of the replica, in all passes.
    pub replica_bytes: u64,
    /// Nodes that never stood still, and how much content of theirs was not compared for it.
    pub busy_nodes: u64,
    pub busy_bytes: u64,
    /// The first of them.
    pub busy: Vec<Mismatch>,
    pub unread_nodes: u64,
    pub differences: u64,
    /// The first of them.
    pub mismatches: Vec<Mismatch>,
}

/// A part of what the worker compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    pub run: u64,
    pub pass: u8,
    pub checks: u64,
    pub bytes: u64,
    pub differences: Vec<(Suspect, String)>,
    pub unnamed_differences: u64,
    pub not_compared: Vec<Suspect>,
    pub end: Option<PassEnd>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VerifyAction {
    /// The agent is to read these again, each by itself.
    Again { pass: u8, suspects: Vec<Suspect> },
    /// These nodes are mirrored again; [`Verifier::is_repaired`] is told when they have come.
    Repair { nodes: Vec<NodeId> },
    /// The record has its result.
    Ended,
}

pub struct Verifier {
    pub run: u64,
    pub record: Verification,
    pass: u8,
    /// Of the order that the agent works on.
    checks: u64,
    /// What this pass has found.
    suspects: Vec<(Suspect, String)>,
    not_compared: Vec<Suspect>,
    /// Differences that nobody can ask for.
    unnamed: u64,
    /// What this pass has still to order.
    queue: VecDeque<Suspect>,
    repeats: u8,
}

impl Verifier {
    pub fn new(run: u64, now: Timestamp, actor: &str, repair: bool, rate: u64) -> Verifier {
        let record = Verification {
            started: now,
            ended: None,
            actor: actor.to_owned(),
            repair,
            rate,
            state: VerificationState::Running { stage: Stage::Reading },
            nodes: 0,
            bytes: 0,
            replica_bytes: 0,
            busy_nodes: 0,
            busy_bytes: 0,
            busy: Vec::new(),
            unread_nodes: 0,
            differences: 0,
            mismatches: Vec::new(),
        };
        let (suspects, not_compared, queue) = (Vec::new(), Vec::new(), VecDeque::new());
        Verifier { run, record, pass: 1, checks: 0, suspects, not_compared, unnamed: 0, queue, repeats: 0 }
    }

    pub fn stage(&self) -> Option<Stage> {
        match self.record.state {
            VerificationState::Running { stage } => Some(stage),
            _ => None,
        }
    }

    /// Takes in what the worker compared.
    pub fn compared(&mut self, now: Timestamp, part: Compared) -> Option<VerifyAction> {
        let expected = part.run == self.run && part.pass == self.pass && !matches!(self.stage(), None | Some(Stage::Repairing));
        if !expected {
            return None;
        }
        self.checks += part.checks;
        self.record.replica_bytes += part.bytes;
        for (suspect, what) in part.differences {
            if self.suspects.len() < SUSPECTS_MAX {
                self.suspects.push((suspect, what));
            } else {
                self.unnamed += 1;
            }
        }
        self.unnamed += part.unnamed_differences;
        self.not_compared.extend(part.not_compared);
        let end = part.end?;
        if self.checks < end.checks || self.not_compared.len() > SUSPECTS_MAX {
            let lost = end.checks.saturating_sub(self.checks);
            return Some(self.interrupt(now, &format!("{lost} of {} checks did not reach the replica as they were sent", end.checks)));
        }
        self.note_end(&end);
        self.checks = 0;
        if self.queue.is_empty() { self.next_pass(now) } else { Some(self.order()) }
    }

    /// Busy and unread nodes of later passes are some of the first one's, or suspects that began to move.
    fn note_end(&mut self, end: &PassEnd) {
        let record = &mut self.record;
        if self.pass == 1 {
            (record.nodes, record.bytes) = (end.nodes, end.bytes);
        }
        record.busy_nodes += end.busy_nodes;
        record.busy_bytes += end.busy_bytes;
        record.unread_nodes += end.unread_nodes;
        let busy = |(node, bytes): &(NodeId, standin_model::ByteLen)| Mismatch {
            node: node.to_string(),
            offset: None,
            bytes: Some(bytes.0),
            what: "busy, not compared".to_owned(),
        };
        record.busy.extend(end.busy.iter().map(busy));
        record.busy.truncate(NAMED_MAX);
    }

    fn next_pass(&mut self, now: Timestamp) -> Option<VerifyAction> {
        if self.pass >= LAST_PASS && !self.not_compared.is_empty() {
            return Some(self.repeat(now));
        }
        if self.pass > LAST_PASS {
            return Some(self.end_repair(now));
        }
        if self.pass == LAST_PASS || (self.suspects.is_empty() && self.not_compared.is_empty()) {
            return Some(self.conclude(now));
        }
        self.pass += 1;
        self.queue_suspects();
        self.set_stage(Stage::Confirming);
        Some(self.order())
    }

    /// The last pass came when the replica was not consistent: it is done again, a few times.
    fn repeat(&mut self, now: Timestamp) -> VerifyAction {
        if self.repeats == REPEATS_MAX {
            return self.interrupt(now, "the replica was not consistent whenever it was to be compared");
        }
        self.repeats += 1;
        self.queue_suspects();
        self.order()
    }

    fn queue_suspects(&mut self) {
        // From here on only what can be asked for counts: what nobody could name has a directory that differs.
        self.unnamed = 0;
        let all: BTreeSet<Suspect> = self.suspects.drain(..).map(|(suspect, _)| suspect).chain(self.not_compared.drain(..)).collect();
        self.queue = all.into_iter().collect();
    }

    fn order(&mut self) -> VerifyAction {
        let count = self.queue.len().min(SUSPECTS_PER_ORDER);
        VerifyAction::Again { pass: self.pass, suspects: self.queue.drain(..count).collect() }
    }

    fn set_stage(&mut self, stage: Stage) {
        self.record.state = VerificationState::Running { stage };
    }

    /// Every pass has seen what is left.
    fn conclude(&mut self, now: Timestamp) -> VerifyAction {
        self.name_differences();
        if self.record.differences == 0 {
            return self.end(now, VerificationState::Equal);
        }
        if !self.record.repair || self.suspects.is_empty() {
            return self.end(now, VerificationState::Different);
        }
        self.set_stage(Stage::Repairing);
        let nodes: BTreeSet<NodeId> = self.suspects.iter().map(|(suspect, _)| suspect.node).collect();
        VerifyAction::Repair { nodes: nodes.into_iter().collect() }
    }

    fn name_differences(&mut self) {
        let mismatch = |(suspect, what): &(Suspect, String)| Mismatch {
            node: suspect.node.to_string(),
            offset: suspect.range.map(|(offset, _)| offset.0),
            bytes: suspect.range.map(|(_, len)| len.0),
            what: what.clone(),
        };
        self.record.differences = self.suspects.len() as u64 + self.unnamed;
        self.record.mismatches = self.suspects.iter().take(NAMED_MAX).map(mismatch).collect();
    }

    /// What was mirrored again has come.
    pub fn is_repaired(&mut self) -> Option<VerifyAction> {
        if self.stage() != Some(Stage::Repairing) {
            return None;
        }
        self.pass = LAST_PASS + 1;
        self.set_stage(Stage::CheckingRepair);
        self.queue = self.suspects.drain(..).map(|(suspect, _)| suspect).collect();
        Some(self.order())
    }

    fn end_repair(&mut self, now: Timestamp) -> VerifyAction {
        if self.suspects.is_empty() && self.not_compared.is_empty() && self.unnamed == 0 {
            return self.end(now, VerificationState::Repaired);
        }
        self.name_differences();
        self.end(now, VerificationState::Different)
    }

    pub fn interrupt(&mut self, now: Timestamp, reason: &str) -> VerifyAction {
        self.end(now, VerificationState::Interrupted { reason: reason.to_owned() })
    }

    fn end(&mut self, now: Timestamp, state: VerificationState) -> VerifyAction {
        self.record.state = state;
        self.record.ended = Some(now);
        VerifyAction::Ended
    }
}

impl Verification {
    /// One line for people.
    pub fn summary(&self) -> String {
        let Verification { nodes, bytes, busy_nodes, busy_bytes, unread_nodes, differences, .. } = self;
        let mut text = match &self.state {
            VerificationState::Running { .. } => "running".to_owned(),
            VerificationState::Equal => format!("the replica equals its source: {nodes} nodes, {bytes} bytes of content"),
            VerificationState::Different => format!("{differences} differences between the replica and its source"),
            VerificationState::Repaired => format!("{differences} differences, mirrored again and equal now"),
            VerificationState::Interrupted { reason } => format!("interrupted: {reason}"),
        };
        if *busy_nodes > 0 {
            text.push_str(&format!("; {busy_nodes} busy nodes with {busy_bytes} bytes not compared"));
        }
        if *unread_nodes > 0 {
            text.push_str(&format!("; {unread_nodes} could not be read on the source"));
        }
        text
    }
}

#[cfg(test)]
mod tests;
