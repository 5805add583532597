//! The agent's service: connect, say hello, carry out orders, connect again.
//!
//! Reconnecting is connecting: a job that runs is announced, and the appliance says from where it wants the stream.

use crate::control::{self, Current};
use crate::driver;
use crate::growth::Growth;
use crate::host::{Host, LiveHost};
use crate::impact::Meter;
use crate::mounted::{self, Misplaced};
use crate::network::Ways;
use crate::renewal::Renewal;
use crate::runner::{Order, Runner, Start};
use crate::settings::{self, Bounds, Settings};
use crate::stop;
use crate::uplink::{Total, Uplink};
use anyhow::{Context, Result};
use standin_capture::CaptureError;
use standin_model::{Inventory, JobId, JobSpec, VolumeSpec};
use standin_wire::{
    Connection, ConnectionError, Hello, Identity, Incoming, PROTOCOL, Pace, Receiver, Running, Sender, Timeouts, ToAgent, ToAppliance, Via,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// A job that could not be started is tried again after this long.
const START_AGAIN: Duration = Duration::from_secs(30);
/// For one small message.
const FENCED_ON_ITS_WAY: Duration = Duration::from_millis(300);

pub struct Service {
    host: Box<dyn Host>,
    directory: PathBuf,
    bounds: Bounds,
    runner: Option<Arc<Runner>>,
    socket: PathBuf,
    /// What the local socket, and whoever ends the agent, see of `runner`.
    current: Current,
    /// There is a session.
    connected: Arc<AtomicBool>,
    /// Outlives connections, so that connecting again is no way around the limit.
    pace: Arc<Pace>,
    ways: Ways,
    connects: u64,
}

/// One connection's sending thread.
struct Sending {
    stop: Arc<AtomicBool>,
    runner: Arc<Runner>,
    thread: std::thread::JoinHandle<()>,
}

impl Sending {
    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.runner.queue.nudge();
        let _ = self.thread.join();
    }
}

impl Service {
    pub fn new(directory: &Path, socket: &Path) -> Service {
        let (directory, socket) = (directory.to_owned(), socket.to_owned());
        let ways = Ways::load(&directory);
        let (current, connected, pace) = (Current::default(), Arc::default(), Arc::default());
        let (host, bounds) = (Box::new(LiveHost), Bounds::default());
        Service { host, directory, bounds, runner: None, socket, current, connected, pace, ways, connects: 0 }
    }

    /// On another host than this server.
    pub fn on(self, host: impl Host + 'static) -> Service {
        Service { host: Box::new(host), ..self }
    }

    /// The one place where the running job changes.
    fn replace_runner(&mut self, runner: Option<Arc<Runner>>) {
        self.current.set(runner.as_ref().map(|runner| runner.live_job()));
        self.runner = runner;
    }

    /// Runs until the process is ended; by SIGTERM it ends in good order. `ring_mib` takes the place of the setting.
    pub fn run(&mut self, ring_mib: Option<u32>) -> Result<()> {
        crate::freeze::thaw_leftover(&self.directory);
        let settings = Settings::load(&self.directory)?;
        self.bounds = Bounds { ring_mib: ring_mib.unwrap_or(settings.bounds.ring_mib), ..settings.bounds };
        self.bounds.check()?;
        // Markers are a service to the server's own programs; replication does not depend on them.
        if let Err(error) = control::serve(&self.socket, settings.mark_group.as_deref(), self.current.clone()) {
            tracing::error!(error = format!("{error:#}"), "no local socket; `standin-agent mark` will not work");
        }
        stop::on_signal(self.current.clone(), Arc::clone(&self.connected))?;
        let mut pause = RETRY_FIRST;
        loop {
            match Identity::load(&self.directory).map_err(Into::into).and_then(|identity| self.session(&settings, identity)) {
                Ok(()) => pause = RETRY_FIRST,
                Err(error) => {
                    tell(&error, pause);
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
            std::thread::sleep(pause);
        }
    }

    fn session(&mut self, settings: &Settings, identity: Identity) -> Result<()> {
        // Before connecting, because the appliance waits for the greeting only so long.
        let inventory = driver::promised(self.host.inventory()?, self.bounds.driver);
        let alive = self.runner.take().filter(|runner| runner.is_alive());
        self.replace_runner(alive);
        let (connection, version) = match self.connect(settings, &identity, &inventory) {
            Ok(connected) => connected,
            Err(error) => {
                self.ways.failed(&format!("{error:#}"));
                return Err(error);
            }
        };
        self.ways.worked();
        self.connects += 1;
        // Reading the kernel's types takes some twenty MiB for a moment.
        crate::memory::trim();
        tracing::info!(appliance = settings.appliance, version, "connected");
        let (sender, receiver) = connection.split();
        if let Some(runner) = &self.runner {
            sender.send(&ToAppliance::Started { job: runner.spec.job.clone(), epoch: runner.epoch })?;
        }
        let mut sending = None;
        let mut renewal = Renewal::start(&self.directory, identity, sender.clone())?;
        self.connected.store(true, Ordering::Relaxed);
        let ended = self.listen(receiver, &sender, &mut sending, &inventory, &mut renewal);
        self.connected.store(false, Ordering::Relaxed);
        sender.abort();
        if let Some(sending) = sending.take() {
            sending.end();
        }
        // A session that was welcomed counts as a success: the next attempt comes soon.
        tracing::info!(reason = format!("{:#}", ended.expect_err("a session ends by an error")), "disconnected");
        Ok(())
    }

    /// Up to the welcome, on the way that is next to be tried.
    fn connect(&mut self, settings: &Settings, identity: &Identity, inventory: &Inventory) -> Result<(Connection, String)> {
        let via = Via { pace: self.pace.clone(), path: self.ways.next(&settings.network) };
        let mut connection = Connection::connect_via(&settings.appliance, identity, Timeouts::default(), &via)
            .with_context(|| format!("cannot reach the appliance at {}", settings.appliance))?;
        let agent_version = env!("CARGO_PKG_VERSION").to_owned();
        // With the greeting, because over a slow link the appliance would take a later word for none.
        let running = self.runner.iter().map(|runner| Running { job: runner.spec.job.clone(), epoch: runner.epoch }).collect();
        let (protocol, agent) = (PROTOCOL, identity.agent_id.clone());
        let hello = Hello { protocol, agent_version, agent, inventory: inventory.clone(), running: Some(running) };
        let welcome = standin_wire::open_session(&mut connection, hello)?;
        Ok((connection, welcome.appliance_version))
    }

    fn listen(
        &mut self,
        mut receiver: Receiver,
        sender: &Sender,
        sending: &mut Option<Sending>,
        inventory: &Inventory,
        renewal: &mut Renewal,
    ) -> Result<std::convert::Infallible> {
        loop {
            let Incoming::Control(message) = receiver.receive::<ToAgent>()? else { anyhow::bail!("the appliance sent a segment") };
            match message {
                ToAgent::StartJob { spec, next, epoch, since, compares } => {
                    if let Some(before) = sending.take() {
                        before.end();
                    }
                    *sending = self.start(spec, Start { next, epoch, since, compares }, sender, inventory)?;
                }
                ToAgent::Network { limit, path } => {
                    self.pace.set_limit(Some(limit).filter(|limit| *limit > 0));
                    let other = path.is_some_and(|path| self.ways.order(path));
                    let frozen = self.runner.as_ref().is_some_and(|runner| runner.is_frozen());
                    anyhow::ensure!(!other || frozen, "another way was ordered; connecting again on it");
                }
                ToAgent::StopJob { reason, .. } => {
                    tracing::info!(reason, "job stopped");
                    sending.take().into_iter().for_each(Sending::end);
                    self.replace_runner(None);
                }
                ToAgent::JobFailedOver { job } => {
                    tracing::warn!(%job, "this server's job has failed over; nothing more is sent");
                    sending.take().into_iter().for_each(Sending::end);
                    self.replace_runner(None);
                }
                ToAgent::Ack { job, durable, applied } => {
                    if let Some(runner) = self.runner.as_ref().filter(|runner| runner.spec.job == job) {
                        runner.queue.acknowledge(durable)?;
                        runner.answers.applied(applied);
                    }
                }
                ToAgent::Differs { job, answers } => {
                    if let Some(runner) = self.runner.as_ref().filter(|runner| runner.spec.job == job) {
                        runner.answers.tell(answers);
                    }
                }
                ToAgent::Want { job, nodes } => self.order(&job, Order::Want(nodes))?,
                ToAgent::Verify { job, run, rate } => self.order(&job, Order::Verify { run, rate })?,
                ToAgent::VerifyAgain { job, run, pass, suspects, rate } => {
                    self.order(&job, Order::VerifyAgain { run, pass, suspects, rate })?;
                }
                ToAgent::EndVerify { job, run } => self.order(&job, Order::EndVerify { run })?,
                ToAgent::Quiesce { job, timeout_ms } => self.order(&job, Order::Quiesce { bound: Duration::from_millis(timeout_ms) })?,
                ToAgent::Thaw { job } => self.order(&job, Order::Thaw)?,
                ToAgent::Fence { job } => self.fence(job, sender)?,
                // What cannot be saved is no reason to part, and a write may have to wait while the file systems stand still.
                ToAgent::Renewed { .. } if self.runner.as_ref().is_some_and(|runner| runner.is_frozen()) => {}
                ToAgent::Renewed { certificate } => {
                    anyhow::ensure!(!renewal.take(certificate), "the certificate was renewed; connecting again with it");
                }
                ToAgent::Refused(refusal) if renewal.is_refusal(&refusal) => {}
                ToAgent::Refused(refusal) => anyhow::bail!("{}: {}", refusal.code, refusal.cause),
                ToAgent::Welcome(_) | ToAgent::Unknown => {}
            }
        }
    }

    /// Switches this server off, but only while it still stands as it did at the replica's cut.
    fn fence(&self, job: JobId, sender: &Sender) -> Result<()> {
        let runner = self.runner.as_ref().filter(|runner| runner.spec.job == job);
        let Some(runner) = runner.filter(|runner| runner.keep_frozen()) else {
            let cause = "the file systems are not frozen any more, so this server has gone on since the replica's cut".to_owned();
            tracing::error!(%job, cause, "not switching this server off");
            sender.send(&ToAppliance::Refused { job: Some(job), code: "STANDIN-E6004".to_owned(), cause })?;
            return Ok(());
        };
        tracing::warn!(%job, "switching this server off: its replica takes over");
        let ended = switch_off(job, |message| Ok(sender.send(message)?), crate::freeze::power_off);
        // Still here: the server goes on. The appliance hears that after the refusal, or sees a new connection.
        runner.order(Order::Thaw);
        ended
    }

    /// Orders for another job than the one that runs come from before it, and mean nothing.
    fn order(&self, job: &JobId, order: Order) -> Result<()> {
        let taken = self.runner.as_ref().filter(|runner| runner.spec.job == *job).is_none_or(|runner| runner.order(order));
        anyhow::ensure!(taken, "the pump does not answer");
        Ok(())
    }

    /// Resumes the running job where the appliance wants it, or starts the job anew.
    fn start(&mut self, spec: JobSpec, start: Start, sender: &Sender, inventory: &Inventory) -> Result<Option<Sending>> {
        let sent = standin_model::OpSeq(start.next.0.saturating_sub(1));
        let (job, epoch) = (spec.job.clone(), start.epoch);
        let same = self.runner.as_ref().is_some_and(|r| r.epoch == epoch && r.spec.job == job && r.is_alive());
        if !same {
            self.replace_runner(None);
            let sound = mounted::check(&spec, inventory).map_err(anyhow::Error::from);
            match sound.and_then(|()| Runner::start(&*self.host, spec, start, &self.directory, &self.bounds)) {
                Ok(runner) => self.replace_runner(Some(Arc::new(runner))),
                Err(error) => {
                    let cause = format!("{error:#}");
                    tracing::error!(cause, "capture does not start");
                    sender.send(&ToAppliance::Refused { job: Some(job), code: code_of(&error).to_owned(), cause })?;
                    try_again_later(sender.clone());
                    return Ok(None);
                }
            }
        }
        let Some(runner) = self.runner.clone() else { return Ok(None) };
        sender.send(&ToAppliance::Started { job, epoch })?;
        let stop = Arc::new(AtomicBool::new(false));
        let totals = totals(inventory, &runner.spec);
        let growth = Growth::since(inventory, &runner.spec);
        let (connects, trouble) = (self.connects, self.ways.trouble());
        let (sender, stopped, mounted) = (sender.clone(), Arc::clone(&stop), mounted::Watch::new());
        let (meter, changes) = (Meter::new(&runner.contract), settings::Watch::new(&self.directory));
        let runner_there = Arc::clone(&runner);
        let uplink =
            Uplink { sender, runner: runner_there, sent, totals, growth, mounted, meter, changes, stop: stopped, connects, trouble };
        let thread = std::thread::Builder::new().name("uplink".to_owned()).spawn(move || uplink.run())?;
        Ok(Some(Sending { stop, runner, thread }))
    }
}

/// Says that the server goes, and has it go. Coming back means that it did not, which is said too: the appliance must not launch the replica then.
fn switch_off(job: JobId, send: impl Fn(&ToAppliance) -> Result<()>, power_off: impl FnOnce() -> std::io::Result<()>) -> Result<()> {
    send(&ToAppliance::Fenced { job: job.clone() })?;
    // The appliance has it before the power goes.
    std::thread::sleep(FENCED_ON_ITS_WAY);
    let failure = power_off().map_or_else(|error| error.to_string(), |()| "the power stayed on".to_owned());
    let cause = format!("this server was to switch itself off and could not ({failure}); it goes on, whatever was said before");
    tracing::error!(%job, cause, "not switched off");
    send(&ToAppliance::Refused { job: Some(job), code: "STANDIN-E6004".to_owned(), cause })
}

/// Logs why there is no connection: what an operator can do about it is in the error where it is one of the wire's.
fn tell(error: &anyhow::Error, pause: Duration) {
    let known = error.chain().find_map(|cause| cause.downcast_ref::<ConnectionError>());
    let (code, next) = known.map_or(("", ""), |known| (known.code(), known.next_command()));
    tracing::warn!(error = format!("{error:#}"), code, next, retry_in = ?pause, "no connection to the appliance");
}

/// Connecting anew has the appliance order the start once more, with an inventory of then.
fn try_again_later(sender: Sender) {
    std::thread::spawn(move || {
        std::thread::sleep(START_AGAIN);
        sender.abort();
    });
}

fn code_of(error: &anyhow::Error) -> &'static str {
    if let Some(misplaced) = error.downcast_ref::<Misplaced>() {
        return misplaced.code();
    }
    error.chain().find_map(|cause| cause.downcast_ref::<CaptureError>()).map_or("STANDIN-E6003", CaptureError::code)
}

fn totals(inventory: &Inventory, spec: &JobSpec) -> Vec<Total> {
    let of = |volume: &VolumeSpec| {
        let facts = inventory.volumes.iter().find(|facts| facts.mount_point == volume.mount_point)?;
        Some(Total { volume: volume.id, mount_point: volume.mount_point.clone(), bytes: facts.used.0, nodes: facts.nodes_used })
    };
    spec.volumes.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn a_server_that_stays_on_says_so_after_it_said_that_it_goes() {
        let (job, sent) = (JobId::parse("job-0123456789abcdef").unwrap(), RefCell::new(Vec::new()));
        let send = |message: &ToAppliance| {
            sent.borrow_mut().push(message.clone());
            Ok(())
        };
        switch_off(job.clone(), send, || Err(std::io::Error::from_raw_os_error(libc::EPERM))).unwrap();
        let sent = sent.into_inner();
        assert_eq!(sent[0], ToAppliance::Fenced { job: job.clone() });
        let ToAppliance::Refused { job: of, code, cause } = &sent[1] else { panic!("{sent:?}") };
        assert_eq!((of.as_ref(), code.as_str()), (Some(&job), "STANDIN-E6004"));
        assert!(cause.contains("Operation not permitted"), "{cause}");
    }

    #[test]
    fn a_server_whose_word_does_not_get_through_stays_on() {
        let job = JobId::parse("job-0123456789abcdef").unwrap();
        let refuse = |_: &ToAppliance| anyhow::bail!("no connection");
        assert!(switch_off(job, refuse, || panic!("the power goes")).is_err());
    }
}
