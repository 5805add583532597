//! Known bugs, seeded one at a time between the parts of a run, so that the checker can be checked.
//!
//! Each is a bug that this design could have. A mutant acts in a wrapper or at a seam of the simulator; only one has to sit in the product, behind
//! a feature that no product is built with. It draws from a generator of its own, so that the seed's workload and faults stay what they are.

use crate::random::Random;
use anyhow::Result;
use clap::ValueEnum;
use standin_agent::pump::{Capture, Captured};
use standin_model::Operation;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mutant {
    /// Capture hands on all operations but one.
    DropOperation,
    /// Capture hands on two neighbours in the wrong order.
    SwapOperations,
    /// The mirror reads, or the walk ends, without what happened before.
    SkipBarrier,
    /// The appliance acknowledges what a power cut can still take away.
    AcknowledgeEarly,
    /// Inode numbers come back and nothing tells the nodes apart.
    IgnoreGeneration,
    /// A full ring is noticed, and nobody is told.
    ForgetGap,
    /// A walk counts as finished although its end did not fit the queue.
    FinishEarly,
    /// After a crash, redo collapses or inserts what the disk has already.
    RepeatShift,
    /// A new agent gives out numbers that the journal has, in the epoch that gave them.
    ResumeBehind,
    /// A rename takes the old name away and does not give the new one.
    HalveRename,
    /// Of blocks that the replica has otherwise, one is taken for equal.
    OverlookDifference,
    /// Patches are made against signatures that match too often, and nobody reads back what they gave.
    TrustPatches,
    /// What a patch of a redo did not give is not looked at again when the redo is through.
    ForgetUnproven,
}

impl Mutant {
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// A mutant, or none, and its own chance.
#[derive(Clone)]
pub struct Whim {
    mutant: Option<Mutant>,
    random: Random,
}

impl Whim {
    pub fn new(mutant: Option<Mutant>, seed: u64) -> Whim {
        Whim { mutant, random: Random(seed ^ 0x006d_7574_616e_7400) }
    }
    pub fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }
    /// Whether this mutant acts now.
    pub fn acts(&mut self, mutant: Mutant, one_in: u64) -> bool {
        self.is(mutant) && self.random.one_in(one_in)
    }
    pub fn below(&mut self, bound: u64) -> u64 {
        self.random.below(bound)
    }
}

/// A capture that a mutant may have in its hands.
pub struct Spoiled<C> {
    pub inner: C,
    pub whim: Whim,
}

impl<C: Capture> Capture for Spoiled<C> {
    fn barrier(&mut self, sink: &mut Vec<Captured>) -> Result<()> {
        if self.whim.acts(Mutant::SkipBarrier, 3) {
            return Ok(());
        }
        let mut taken = Vec::new();
        self.inner.barrier(&mut taken)?;
        self.spoil(&mut taken);
        sink.append(&mut taken);
        Ok(())
    }

    fn wait(&mut self, bound: Duration) -> Result<()> {
        self.inner.wait(bound)
    }
}

impl<C> Spoiled<C> {
    fn spoil(&mut self, events: &mut Vec<Captured>) {
        let whim = &mut self.whim;
        let is_operation = |event: &Captured| matches!(event, Captured::Operation { .. });
        events.retain(|event| !(is_operation(event) && whim.acts(Mutant::DropOperation, 40)));
        events.retain(|event| is_operation(event) || !whim.is(Mutant::ForgetGap));
        for at in 1..events.len() {
            if whim.acts(Mutant::SwapOperations, 40) {
                events.swap(at - 1, at);
            }
        }
        for event in events {
            if let Captured::Operation { operation, .. } = event
                && let Operation::Rename { parent, name, node, .. } = operation
                && whim.acts(Mutant::HalveRename, 4)
            {
                *operation = Operation::Unlink { parent: *parent, name: name.clone(), node: *node };
            }
        }
    }
}
