//! One connection, and its two halves that two threads use at the same time.
//!
//! The TLS state is one object behind a mutex that is held only while encrypting or decrypting, never while waiting for the network. Writing to
//! the socket happens under a second mutex (`out`), so that records leave in the order in which they were encrypted. The receiving half never waits for
//! `out`: both ends may have their senders stuck on full sockets, and still both receivers read, which is what unsticks the senders.
//! Lock order: `out`, then `tls`.
//!
//! Liveness: whoever calls `receive` also sends a keep-alive when this end has been silent; if the peer is silent for `idle`, or a write
//! makes no progress for `write`, the connection ends with an error. After any error both halves are dead.

use crate::error::ConnectionError as Error;
use crate::frame::Limits;
use crate::identity::Identity;
use crate::pace::Pace;
use crate::tls;
use link::Shared;
use rustls::pki_types::CertificateDer;
use standin_model::{AgentId, NetworkPath};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

mod handshake;
mod link;
mod receiver;
mod route;
mod sender;

pub use receiver::{Incoming, Receiver};
pub use sender::Sender;

#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For reaching the other end, and again for the whole TLS handshake.
    pub connect: Duration,
    /// A write that makes no progress for so long has failed.
    pub write: Duration,
    /// Nothing at all arrived for so long: the other end is gone.
    pub idle: Duration,
    /// Nothing was sent for so long: say that we live. Must be well below the other end's `idle`.
    pub keepalive: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Timeouts { connect: seconds(10), write: seconds(30), idle: seconds(60), keepalive: seconds(10) }
    }
}

/// How a connection reaches the other end, and how fast it may send.
#[derive(Clone, Debug, Default)]
pub struct Via {
    pub pace: Arc<Pace>,
    pub path: NetworkPath,
}

pub struct Connection {
    sender: Sender,
    receiver: Receiver,
    peer: Option<CertificateDer<'static>>,
}

/// Who has connected to the appliance.
pub enum Accepted {
    /// An enrolled agent; its certificate was verified.
    Agent(AgentId, Connection),
    /// Somebody without a certificate, who may only enrol.
    Newcomer(Connection),
}

impl Connection {
    /// Connects an enrolled agent to its appliance at `host:port`. That the appliance accepts the agent's certificate is known only when
    /// the first message arrives, because TLS 1.3 lets a client speak before that.
    pub fn connect(address: &str, identity: &Identity, timeouts: Timeouts) -> Result<Connection, Error> {
        Self::connect_via(address, identity, timeouts, &Via::default())
    }

    /// The same on a chosen way.
    pub fn connect_via(address: &str, identity: &Identity, timeouts: Timeouts, via: &Via) -> Result<Connection, Error> {
        Self::connect_with(address, tls::agent_config(identity)?, timeouts, via)
    }

    pub(crate) fn connect_with(address: &str, config: rustls::ClientConfig, timeouts: Timeouts, via: &Via) -> Result<Connection, Error> {
        let stream = route::reach(address, timeouts.connect, &via.path)?;
        let tls = rustls::ClientConnection::new(Arc::new(config), tls::server_name())?;
        Self::begin(stream, tls.into(), timeouts, Limits::SESSION, via.pace.clone())
    }

    /// Takes a connection on the appliance. Whoever comes is given `timeouts.connect` for the handshake.
    pub fn accept(stream: TcpStream, config: &Arc<rustls::ServerConfig>, timeouts: Timeouts) -> Result<Accepted, Error> {
        let tls = rustls::ServerConnection::new(config.clone())?;
        let mut connection = Self::begin(stream, tls.into(), timeouts, Limits::NEWCOMER, Arc::default())?;
        let Some(certificate) = &connection.peer else { return Ok(Accepted::Newcomer(connection)) };
        let agent = tls::agent_of(certificate).ok_or(Error::NotAnAgent)?;
        connection.receiver.set_limits(Limits::SESSION);
        Ok(Accepted::Agent(agent, connection))
    }

    fn begin(
        stream: TcpStream,
        mut tls: rustls::Connection,
        timeouts: Timeouts,
        limits: Limits,
        pace: Arc<Pace>,
    ) -> Result<Connection, Error> {
        let lost = |source| Error::Lost { action: "setting the socket up", source };
        route::tune(&stream, timeouts.idle).map_err(lost)?;
        handshake::run(&stream, &mut tls, timeouts.connect)?;
        stream.set_write_timeout(Some(timeouts.write)).map_err(lost)?;
        let peer = tls.peer_certificates().and_then(|chain| chain.first()).map(|c| c.clone().into_owned());
        let shared = Arc::new(Shared::new(stream, tls, timeouts, pace));
        let receiver = Receiver::new(shared.clone(), limits)?;
        Ok(Connection { sender: Sender::new(shared), receiver, peer })
    }

    /// Two halves for two threads. Dropping both closes the connection.
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }

    pub fn sender(&self) -> &Sender {
        &self.sender
    }
    pub fn receiver(&mut self) -> &mut Receiver {
        &mut self.receiver
    }
    pub fn send<M: serde::Serialize>(&self, message: &M) -> Result<(), Error> {
        self.sender.send(message)
    }
    pub fn send_segment(&self, bytes: &[u8]) -> Result<(), Error> {
        self.sender.send_segment(bytes)
    }
    pub fn receive<M: serde::de::DeserializeOwned>(&mut self) -> Result<Incoming<M>, Error> {
        self.receiver.receive()
    }
}
