//! Verifications in the simulator: one of a right replica never ends with a difference, whatever befalls it; one of a damaged replica always finds the damage and
//! mends it.

use crate::random::Random;
use crate::target::Target;
use crate::trace::trace;
use standin_agent::pump::Pump;
use standin_agent::pump::{Capture, PumpReader};
use standin_model::Timestamp;
use standin_protection::{Stage, VerificationState, Verifier, VerifyAction};

#[derive(Default)]
pub struct Verifications {
    verifier: Option<Verifier>,
    last: u64,
    pub ended: Option<VerificationState>,
}

impl Verifications {
    pub fn is_running(&self) -> bool {
        self.verifier.is_some()
    }

    pub fn begin<C: Capture, R: PumpReader>(&mut self, pump: &mut Pump<C, R>, repair: bool) {
        self.last += 1;
        trace!("verify  run {} begins", self.last);
        self.verifier = Some(Verifier::new(self.last, Timestamp(0), "sim", repair, 0));
        self.ended = None;
        pump.verify(self.last, 0);
    }

    /// A restart of somebody on the way.
    pub fn interrupt(&mut self) {
        if self.verifier.take().is_some() {
            trace!("verify  interrupted");
        }
    }

    /// What the appliance does with what the worker compared.
    pub fn go_on<C: Capture, R: PumpReader>(&mut self, pump: &mut Pump<C, R>, target: &mut Target) {
        let compared = target.replica.take_compared();
        let Some(verifier) = &mut self.verifier else { return };
        let mut action = compared.and_then(|part| {
            trace!(
                "verify  pass {}: {} differ, {} not compared, end {:?}",
                part.pass,
                part.differences.len(),
                part.not_compared.len(),
                part.end
            );
            verifier.compared(Timestamp(0), part)
        });
        if verifier.stage() == Some(Stage::Repairing) && action.is_none() && target.replica.is_consistent() {
            action = verifier.is_repaired();
        }
        match action {
            Some(VerifyAction::Again { pass, suspects }) => pump.verify_again(verifier.run, pass, suspects, 0),
            Some(VerifyAction::Repair { nodes }) => target.replica.repair(nodes),
            Some(VerifyAction::Ended) => {
                let record = self.verifier.take().expect("just seen").record;
                trace!("verify  {}", record.summary());
                self.ended = Some(record.state);
            }
            None => {}
        }
    }

    /// Of a replica that nobody damaged.
    pub fn judge(&mut self) -> Result<u64, String> {
        match self.ended.take() {
            Some(VerificationState::Equal) => Ok(1),
            Some(VerificationState::Different | VerificationState::Repaired) => {
                Err("a verification found differences in a replica that nobody damaged".to_owned())
            }
            _ => Ok(0),
        }
    }
}

/// Damages the replica somehow.
pub fn damage(target: &mut Target, random: &mut Random) -> Option<String> {
    let what = (0..20).find_map(|_| target.replica.damage(random))?;
    trace!("damage  {what}");
    target.is_damaged = true;
    Some(what)
}
