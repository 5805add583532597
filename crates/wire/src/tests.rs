//! The room's promises, over loopback sockets: who gets in, who does not and why, and that both directions flow at once.

mod enrolment;
mod flow;
mod hostile;
pub(crate) mod lab;
mod limit;
mod route;
