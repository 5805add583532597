//! Decisions about protection: the state machine of a job, the protection summary, and the runbook of a failover.
//!
//! Pure: no I/O, no clock, no randomness. The appliance feeds events and performs the actions; everything here is plain data that the
//! appliance stores as JSON, so that a decision can be shown, kept and tested without a machine. What fails is a [`Problem`] with a code,
//! a cause and the next thing to do.

pub mod convergence;
pub mod estimate;
pub mod explain;
pub mod failover;
pub mod fence;
pub mod flags;
pub mod job;
pub mod network;
pub mod point;
pub mod problem;
pub mod run;
pub mod runbook;
pub mod state;
pub mod stream;
pub mod summary;
pub mod verification;

pub use convergence::Convergence;
pub use estimate::{Estimate, Estimator, Work};
pub use explain::{Explanation, Fate, explain};
pub use failover::{FailoverFacts, FailoverRequest, plan_failover};
pub use fence::{SourceFenced, Waiver};
pub use flags::{Flag, Flags};
pub use job::{Action, Event, Job};
pub use network::{NetworkPlan, NetworkRule};
pub use point::PointPolicy;
pub use problem::Problem;
pub use run::{Run, RunState, StepState};
pub use runbook::{FailoverMode, Runbook, Step, StepKind};
pub use state::JobState;
pub use stream::{StartOrder, StreamFacts, decide_start};
pub use summary::{HostFacts, LeftOut, ProtectRequest, ProtectionSummary, plan_protection};
pub use verification::{Compared, Mismatch, Stage, Verification, VerificationState, Verifier, VerifyAction};
