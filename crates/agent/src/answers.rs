//! What the appliance says of digests, on its way from the connection's thread to the pump.
//!
//! Invariant: an answer lies here before the acknowledgement that it came with, so that the pump takes no answer for lost that is only late. Answers beyond the
//! bound are lost; then the pump sends the data.

use standin_model::{Differs, OpSeq};
use std::sync::{Arc, Mutex, MutexGuard};

/// About 640 KiB: four times what can be asked for at a time.
const ANSWERS_MAX: usize = 16 * 1024;

#[derive(Default)]
struct State {
    waiting: Vec<Differs>,
    applied: OpSeq,
}

#[derive(Clone, Default)]
pub struct Answers(Arc<Mutex<State>>);

impl Answers {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no thread panics with answers in its hands")
    }

    pub fn tell(&self, answers: impl IntoIterator<Item = Differs>) {
        let mut state = self.lock();
        let room = ANSWERS_MAX - state.waiting.len();
        state.waiting.extend(answers.into_iter().take(room));
    }

    /// The replica has everything up to there, and what it answers to that has been told.
    pub fn applied(&self, seq: OpSeq) {
        let mut state = self.lock();
        state.applied = state.applied.max(seq);
    }

    /// What has come since the last call, and how far the replica is.
    pub fn take(&self) -> (Vec<Differs>, OpSeq) {
        let mut state = self.lock();
        (std::mem::take(&mut state.waiting), state.applied)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_holds_and_what_is_applied_never_goes_back() {
        let answers = Answers::default();
        let differs = |seq| Differs { seq: OpSeq(seq), blocks: Default::default() };
        (0..100).for_each(|round| answers.tell((0..1000).map(|at| differs(round * 1000 + at))));
        answers.applied(OpSeq(9));
        answers.applied(OpSeq(3));
        let (taken, applied) = answers.take();
        assert_eq!((taken.len(), applied), (ANSWERS_MAX, OpSeq(9)));
        assert_eq!(answers.take(), (vec![], OpSeq(9)));
    }
}
