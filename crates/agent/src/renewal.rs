//! Asks for a new certificate when two thirds of the old one's lifetime are over, and puts the answer into place.
//!
//! The key stays the same, so the new certificate alone replaces the old one, in one step; after any crash one of the two is there, and both are
//! valid. A refused or lost request is made again an hour later: a third of the lifetime is two months with the appliance's usual validity.
//! A thread of its own asks, because a session may last for months without a message.

use anyhow::{Context, Result};
use standin_wire::{Identity, IdentityError, Refusal, Sender};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

/// Between two requests.
const ASK_EVERY: Duration = Duration::from_secs(60 * 60);

/// Of one session; dropping it ends the asking.
pub struct Renewal {
    directory: PathBuf,
    identity: Identity,
    asked: Arc<AtomicBool>,
    _stop: SyncSender<()>,
}

impl Renewal {
    pub fn start(directory: &Path, identity: Identity, sender: Sender) -> Result<Renewal> {
        let (stop, stopped) = sync_channel(1);
        let asked = Arc::new(AtomicBool::new(false));
        let (of_thread, noted) = (identity.clone(), Arc::clone(&asked));
        let ask_on = move || {
            while matches!(ask_if_due(&of_thread, &sender, &noted), Ok(()))
                && stopped.recv_timeout(ASK_EVERY) == Err(RecvTimeoutError::Timeout)
            {}
        };
        std::thread::Builder::new().name("renewal".to_owned()).spawn(ask_on)?;
        Ok(Renewal { directory: directory.to_owned(), identity, asked, _stop: stop })
    }

    /// Whether the appliance has refused the request, which is no reason to part: the old certificate is still good.
    pub fn is_refusal(&self, refusal: &Refusal) -> bool {
        let ours = self.asked.load(Ordering::Acquire) && matches!(refusal.code.as_str(), "STANDIN-E1014" | "STANDIN-E1015");
        if ours {
            tracing::error!(code = refusal.code, cause = refusal.cause, "the certificate is not renewed; asking again in an hour");
        }
        ours
    }

    /// Whether the new certificate is good and saved. Where not, the session goes on with the old one, which is still valid: asking again at once
    /// would be answered in the same way.
    pub fn take(&mut self, certificate: String) -> bool {
        let taken = self.check_and_save(certificate);
        if let Err(error) = &taken {
            tracing::error!(error = format!("{error:#}"), "the certificate is not renewed; asking again in an hour");
        }
        taken.is_ok()
    }

    fn check_and_save(&mut self, certificate: String) -> Result<()> {
        anyhow::ensure!(self.asked.load(Ordering::Acquire), "a certificate came that was not asked for");
        let renewed = self.identity.renewed(certificate).context("the renewed certificate cannot be used")?;
        // In this order, because time goes on between the two.
        let before = self.identity.remaining()?;
        anyhow::ensure!(renewed.remaining()? > before, "the renewed certificate is not valid for longer");
        renewed.save(&self.directory).context("cannot save the renewed certificate")?;
        tracing::info!(valid_for = ?renewed.remaining()?, "certificate renewed");
        self.identity = renewed;
        Ok(())
    }
}

fn ask_if_due(identity: &Identity, sender: &Sender, asked: &AtomicBool) -> Result<()> {
    let due = identity.is_renewal_due().inspect_err(|error: &IdentityError| tracing::error!(%error, "cannot tell when to renew"))?;
    if due {
        tracing::info!(remaining = ?identity.remaining()?, "asking for a new certificate");
        asked.store(true, Ordering::Release);
        sender.send(&standin_wire::renewal_request(identity)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use standin_model::AgentId;
    use standin_wire::{Accepted, Authority, Connection, Timeouts, ToAgent, ToAppliance};
    use std::net::TcpListener;

    const HOUR: Duration = Duration::from_secs(3600);
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

    fn identity(authority: &Authority, validity: Duration) -> Identity {
        let (key, csr) = standin_wire::new_key_and_request().unwrap();
        let agent = AgentId::parse("agent-0123456789abcdef").unwrap();
        let certificate = authority.sign_agent(&csr, &agent, validity).unwrap();
        Identity::new(certificate, key, authority.certificate_pem().to_owned()).unwrap()
    }

    /// An appliance that answers one request of each connection with `answer`.
    fn appliance(listener: TcpListener, authority: Authority, answer: impl Fn(&Authority, &str) -> ToAgent + Send + 'static) {
        std::thread::spawn(move || {
            let config = authority.server_config(&[]).unwrap();
            while let Ok((stream, _)) = listener.accept() {
                let Ok(Accepted::Agent(_, mut connection)) = Connection::accept(stream, &config, Timeouts::default()) else { continue };
                let Ok(ToAppliance::Renew { csr }) = connection.receive().and_then(|message| message.control()) else { continue };
                connection.send(&answer(&authority, &csr)).unwrap();
            }
        });
    }

    fn lab(validity: Duration, answer: impl Fn(&Authority, &str) -> ToAgent + Send + 'static) -> (tempfile::TempDir, String, Identity) {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(directory.path().join("authority")).unwrap();
        let identity = identity(&authority, validity);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        appliance(listener, authority, answer);
        (directory, address, identity)
    }

    #[test]
    fn an_old_certificate_is_renewed_saved_and_used() {
        let sign = |authority: &Authority, csr: &str| {
            let agent = AgentId::parse("agent-0123456789abcdef").unwrap();
            ToAgent::Renewed { certificate: authority.sign_agent(csr, &agent, YEAR).unwrap() }
        };
        let (directory, address, old) = lab(HOUR, sign);
        old.save(directory.path()).unwrap();
        // Valid from a day before it was signed, so an hour is less than a third of it.
        assert!(old.is_renewal_due().unwrap());
        let (sender, mut receiver) = Connection::connect(&address, &old, Timeouts::default()).unwrap().split();
        let mut renewal = Renewal::start(directory.path(), old.clone(), sender).unwrap();
        let ToAgent::Renewed { certificate } = receiver.receive().unwrap().control().unwrap() else { panic!() };
        assert!(renewal.take(certificate));
        let renewed = Identity::load(directory.path()).unwrap();
        assert!(renewed.remaining().unwrap() > YEAR - HOUR && !renewed.is_renewal_due().unwrap());
        assert_eq!((&renewed.key, &renewed.agent_id), (&old.key, &old.agent_id));
        Connection::connect(&address, &renewed, Timeouts::default()).unwrap();
    }

    #[test]
    fn a_refusal_leaves_the_old_certificate_in_place() {
        let refuse = |_: &Authority, _: &str| ToAgent::Refused(Refusal::new("STANDIN-E1014", "no room"));
        let (directory, address, old) = lab(HOUR, refuse);
        let (sender, mut receiver) = Connection::connect(&address, &old, Timeouts::default()).unwrap().split();
        let mut renewal = Renewal::start(directory.path(), old.clone(), sender).unwrap();
        let ToAgent::Refused(refusal) = receiver.receive().unwrap().control().unwrap() else { panic!() };
        assert!(renewal.is_refusal(&refusal) && !renewal.is_refusal(&Refusal::new("STANDIN-E4021", "")));
        assert!(!renewal.take(old.certificate.clone()), "not valid for longer");
        assert!(!renewal.take("nonsense".to_owned()));
    }

    #[test]
    fn a_certificate_that_cannot_be_saved_leaves_the_session_as_it_is() {
        let sign = |authority: &Authority, csr: &str| {
            let agent = AgentId::parse("agent-0123456789abcdef").unwrap();
            ToAgent::Renewed { certificate: authority.sign_agent(csr, &agent, YEAR).unwrap() }
        };
        let (directory, address, old) = lab(HOUR, sign);
        let (sender, mut receiver) = Connection::connect(&address, &old, Timeouts::default()).unwrap().split();
        let nowhere = directory.path().join("file/agent");
        std::fs::write(directory.path().join("file"), b"not a folder").unwrap();
        let mut renewal = Renewal::start(&nowhere, old.clone(), sender).unwrap();
        let ToAgent::Renewed { certificate } = receiver.receive().unwrap().control().unwrap() else { panic!() };
        assert!(!renewal.take(certificate));
        assert_eq!(renewal.identity.certificate, old.certificate);
    }

    #[test]
    fn a_young_certificate_is_left_alone() {
        let (directory, address, young) = lab(YEAR, |_, _| panic!("nobody asks"));
        let (sender, _receiver) = Connection::connect(&address, &young, Timeouts::default()).unwrap().split();
        let mut renewal = Renewal::start(directory.path(), young.clone(), sender).unwrap();
        assert!(renewal.check_and_save(young.certificate).unwrap_err().to_string().contains("not asked for"));
    }

    #[test]
    fn an_expired_certificate_is_named_with_its_code() {
        let (_directory, address, expired) = lab(Duration::ZERO, |_, _| panic!("nobody gets in"));
        // Certificates count whole seconds, and the last one is still good.
        let second = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let signed = second();
        while second() < signed + 2 {
            std::thread::yield_now();
        }
        let mut connection = match Connection::connect(&address, &expired, Timeouts::default()) {
            Ok(connection) => connection,
            Err(error) => return assert_eq!(error.code(), "STANDIN-E1006", "{error:?}"),
        };
        connection.receiver().set_deadline(Some(Duration::from_secs(20)));
        let error = connection.receive::<ToAgent>().unwrap_err();
        assert_eq!(error.code(), "STANDIN-E1006", "{error:?}");
        assert!(error.next_command().contains("enrol"));
    }
}
