//! The wire between agent and appliance: one TLS 1.3 connection with mutual authentication, frames, and typed messages.
//!
//! The appliance is its own certificate authority ([`Authority`]); an agent enrols once by token ([`enrol`]), which pins that authority by
//! fingerprint, and from then on both ends know each other by certificate. Blocking sockets and threads, no runtime, because
//! an agent's memory belongs to its source. Nothing here trusts a byte before it is checked, every buffer and wait has a bound, and a
//! connection that fails is dropped whole: the stream goes on from the last acknowledgement over a new one.

pub mod authority;
pub mod connection;
pub mod enrol;
pub mod error;
mod frame;
pub mod identity;
pub mod listener;
pub mod message;
pub mod pace;
pub mod session;
mod store;
pub mod tls;
pub mod token;

pub use authority::{Authority, ServerCertificate};
pub use connection::{Accepted, Connection, Incoming, Receiver, Sender, Timeouts, Via};
pub use enrol::{enrol, enrol_via, new_key_and_request, renewal_request};
pub use error::{AuthorityError, ConnectionError, EnrolError, IdentityError, TokenError};
pub use identity::Identity;
pub use listener::{Handler, Listening, ServeOptions, serve};
pub use message::{
    CaptureStatus, EnrolReply, EnrolRequest, Hello, ImpactStatus, LeftOut, MirrorPhase, MirrorProgress, NetworkStatus, PROTOCOL, Refusal,
    RingStats, Running, Status, ToAgent, ToAppliance, VerifyStatus, VolumeProgress, Welcome,
};
pub use pace::Pace;
pub use session::{accept_session, open_session};
pub use token::Token;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
