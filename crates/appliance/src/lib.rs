//! The appliance: takes the streams of all agents, keeps them durable, lets workers apply them, and answers the API.
//!
//! ```text
//! wire session ─► intake (journal, fdatasync) ─► ack          executor ─► hypervisor
//!                    │ durable                                   ▲
//!                    ▼                                           │
//!               worker process (applies) ─► report ─► job machine ─► actions      API ─► the same machine
//! ```
//! One [`Appliance`] owns all jobs; each job is a [`job::JobShell`] around the pure machine of `standin-protection`. Threads and channels, no runtime,
//! but for the API. When this process dies, journals and store say where to go on; running VMs do not notice.

pub mod api;
pub mod appliance;
pub mod errors;
pub mod execute;
pub mod facts;
pub mod growth;
pub mod init;
pub mod intake;
pub mod job;
pub mod launch;
pub mod layout;
pub mod link;
pub mod network;
pub mod perform;
pub mod points;
pub mod progress;
pub mod protect;
pub mod provision;
pub mod session;
pub mod store;
pub mod supervise;
pub mod unit;
pub mod verify;
pub mod view;
pub mod worker;

pub use appliance::Appliance;
