//! The appliance's port for agents: one thread per connection, with a bound on both kinds of connection.
//!
//! Enrolled agents and newcomers use the same port; what the peer may do follows from its certificate. Whoever has not yet shown one
//! holds one of few places for a bounded time, so that strangers cannot keep agents out. At a bound the newest connection is closed at
//! once; agents try again. A connection that fails ends alone.

use crate::authority::Authority;
use crate::connection::{Accepted, Connection, Timeouts};
use crate::error::{AuthorityError, ConnectionError};
use crate::message::{EnrolReply, EnrolRequest, Refusal};
use crate::session::check_protocol;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use standin_model::AgentId;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Host names and addresses that go into the server certificate, for people's tools; agents do not need them.
    pub names: Vec<String>,
    pub timeouts: Timeouts,
    /// Sessions of enrolled agents at the same time.
    pub sessions_max: usize,
    /// Connections that have not yet shown a certificate, or are enrolling.
    pub newcomers_max: usize,
    /// How long an agent's certificate is valid; agents renew in time.
    pub agent_validity: Duration,
}

impl Default for ServeOptions {
    /// A session costs a thread and about a segment of memory: 256 of them are 2 GiB at worst. Half a year of validity survives a
    /// source that was switched off over the summer.
    fn default() -> Self {
        let agent_validity = Duration::from_secs(180 * 24 * 60 * 60);
        ServeOptions { names: Vec::new(), timeouts: Timeouts::default(), sessions_max: 256, newcomers_max: 32, agent_validity }
    }
}

/// What the appliance does with those who come. Called from many threads.
pub trait Handler: Send + Sync + 'static {
    /// Uses up a token's secret, durably and at most once, and says which agent it made.
    fn redeem(&self, secret: &str, hostname: &str) -> Result<AgentId, Refusal>;
    /// Runs a session until its connection ends. Begins with [`crate::accept_session`].
    fn session(&self, agent: AgentId, connection: Connection);
}

/// A running listener; dropping it stops accepting, and running sessions go on.
pub struct Listening {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listening {
    pub fn address(&self) -> SocketAddr {
        self.address
    }
    pub fn stop(mut self) {
        self.end();
    }
    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.end();
    }
}

struct Port {
    authority: Arc<Authority>,
    config: Arc<rustls::ServerConfig>,
    options: ServeOptions,
    handler: Arc<dyn Handler>,
    newcomers: Arc<AtomicUsize>,
    sessions: Arc<AtomicUsize>,
}

/// Accepts agents on `listener` until the returned handle is stopped.
pub fn serve(
    listener: TcpListener,
    authority: Arc<Authority>,
    options: ServeOptions,
    handler: Arc<dyn Handler>,
) -> Result<Listening, AuthorityError> {
    let io = |source| AuthorityError::Io { action: "listen", path: "agents' port".into(), source };
    let address = listener.local_addr().map_err(io)?;
    // Polled, so that stopping needs no connection to ourselves.
    listener.set_nonblocking(true).map_err(io)?;
    let config = authority.server_config(&options.names)?;
    let (newcomers, sessions) = Default::default();
    let port = Arc::new(Port { authority, config, options, handler, newcomers, sessions });
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let thread = thread::Builder::new().name("agents-port".into()).spawn(move || accept_loop(&listener, &port, &stopped)).map_err(io)?;
    Ok(Listening { address, stop, thread: Some(thread) })
}

fn accept_loop(listener: &TcpListener, port: &Arc<Port>, stop: &AtomicBool) {
    let pause = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
    while !stop.load(Ordering::Relaxed) {
        let mut fds = [PollFd::new(listener, PollFlags::IN)];
        if !poll(&mut fds, Some(&pause)).is_ok_and(|ready| ready > 0) {
            continue;
        }
        match listener.accept() {
            Ok((stream, from)) => admit(stream, from, port),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::ConnectionAborted) => {}
            Err(error) => {
                // Out of descriptors, most likely: the connection stays in the backlog, so trying again at once would spin.
                tracing::warn!(%error, "cannot accept");
                thread::sleep(Duration::from_millis(200));
            }
        }
    }
}

fn admit(stream: TcpStream, from: SocketAddr, port: &Arc<Port>) {
    let Some(place) = Place::take(&port.newcomers, port.options.newcomers_max) else {
        tracing::warn!(%from, "too many connections that have not shown a certificate; closed");
        return;
    };
    let port = port.clone();
    let run = move || {
        if let Err(error) = run(stream, &port, place) {
            tracing::info!(%from, code = error.code(), error = &error as &dyn std::error::Error, "connection ended");
        }
    };
    if let Err(error) = thread::Builder::new().name(format!("agent {from}")).stack_size(1 << 20).spawn(run) {
        tracing::warn!(%error, "cannot start a thread for a connection");
    }
}

fn run(stream: TcpStream, port: &Port, place: Place) -> Result<(), ConnectionError> {
    stream.set_nonblocking(false).map_err(|source| ConnectionError::Lost { action: "setting the socket up", source })?;
    match Connection::accept(stream, &port.config, port.options.timeouts)? {
        Accepted::Newcomer(connection) => enrol(connection, port),
        Accepted::Agent(agent, connection) => {
            drop(place);
            let Some(_place) = Place::take(&port.sessions, port.options.sessions_max) else {
                crate::session::refuse(&connection, "STANDIN-E1016", "the appliance has as many sessions as it may have");
                return Ok(());
            };
            port.handler.session(agent, connection);
            Ok(())
        }
    }
}

/// One request, one answer. The request is checked before the token is used up.
fn enrol(mut connection: Connection, port: &Port) -> Result<(), ConnectionError> {
    connection.receiver().set_deadline(Some(port.options.timeouts.connect));
    let request = connection.receive::<EnrolRequest>()?.control()?;
    let reply = match answer(&request, port) {
        Ok(reply) => reply,
        Err(refusal) => {
            tracing::warn!(hostname = %request.hostname.escape_debug(), code = refusal.code, cause = refusal.cause, "enrolment refused");
            EnrolReply::Refused(refusal)
        }
    };
    connection.send(&reply)?;
    // The agent closes when it has read the answer; closing first could lose it.
    match connection.receive::<serde_json::Value>() {
        Err(ConnectionError::Closed | ConnectionError::Lost { .. }) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(ConnectionError::Unexpected { expected: "end of enrolment" }),
    }
}

fn answer(request: &EnrolRequest, port: &Port) -> Result<EnrolReply, Refusal> {
    check_protocol(request.protocol).map_err(|error| Refusal::new(error.code(), error.to_string()))?;
    let refuse = |error: AuthorityError| Refusal::new(error.code(), error.to_string());
    port.authority.check_request(&request.csr).map_err(refuse)?;
    let agent = port.handler.redeem(&request.secret, &request.hostname)?;
    let certificate = port.authority.sign_agent(&request.csr, &agent, port.options.agent_validity).map_err(refuse)?;
    tracing::info!(%agent, hostname = %request.hostname.escape_debug(), "enrolled");
    Ok(EnrolReply::Enrolled { agent, certificate, authority: port.authority.certificate_pem().to_owned() })
}

/// One of a bounded number of places; given back when dropped, also by a panic.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(count: &Arc<AtomicUsize>, max: usize) -> Option<Place> {
        let taken = count.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < max).then(|| n + 1));
        taken.ok().map(|_| Place(count.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
