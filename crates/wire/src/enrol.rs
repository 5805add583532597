//! Enrolment, the agent's side: from a one-time token to an [`Identity`].
//!
//! The key never leaves the agent. The appliance is believed only if its authority has the fingerprint in the token, and the secret is
//! sent only after that. A token is used up when the appliance redeems it: if the answer is then lost, a new token is needed.

use crate::connection::{Connection, Timeouts, Via};
use crate::error::{ConnectionError, EnrolError as Error};
use crate::identity::Identity;
use crate::message::{EnrolReply, EnrolRequest, PROTOCOL, Refusal, ToAppliance};
use crate::tls::{newcomer_config, sha256_hex};
use crate::token::Token;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::time::Duration;

/// For the appliance to look the token up and sign.
const ANSWER: Duration = Duration::from_secs(20);

/// A new key and a certificate request over it, both PEM.
pub fn new_key_and_request() -> Result<(String, String), Error> {
    let make = |source| Error::Request { source };
    let key = KeyPair::generate().map_err(make)?;
    let params = CertificateParams::new(Vec::<String>::new()).map_err(make)?;
    let request = params.serialize_request(&key).and_then(|request| request.pem()).map_err(make)?;
    Ok((key.serialize_pem(), request))
}

/// Enrols with the appliance at `host:port`. The caller saves the identity.
pub fn enrol(address: &str, token: &str, hostname: &str, timeouts: Timeouts) -> Result<Identity, Error> {
    enrol_via(address, token, hostname, timeouts, &Via::default())
}

/// The same on a chosen way.
pub fn enrol_via(address: &str, token: &str, hostname: &str, timeouts: Timeouts, via: &Via) -> Result<Identity, Error> {
    let token = Token::parse(token).map_err(|source| Error::Token { source })?;
    let (key, csr) = new_key_and_request()?;
    let config = newcomer_config(token.fingerprint()).map_err(connection)?;
    let mut link = Connection::connect_with(address, config, timeouts, via).map_err(|error| match error {
        ConnectionError::UnknownAuthority { .. } => Error::OtherAppliance,
        error => connection(error),
    })?;
    let request =
        EnrolRequest { protocol: PROTOCOL, secret: token.secret().to_owned(), csr, hostname: hostname.chars().take(255).collect() };
    link.send(&request).map_err(connection)?;
    link.receiver().set_deadline(Some(ANSWER));
    let reply = link.receive::<EnrolReply>().and_then(|reply| reply.control()).map_err(connection)?;
    match reply {
        EnrolReply::Refused(Refusal { code, cause }) => Err(Error::Refused { code, cause }),
        EnrolReply::Enrolled { agent, certificate, authority } => {
            check_authority(&authority, token.fingerprint())?;
            let identity = Identity::new(certificate, key, authority).map_err(|source| Error::BadAnswer { source })?;
            let same = identity.agent_id == agent;
            if same { Ok(identity) } else { Err(bad_answer("agent id")) }
        }
    }
}

/// A renewed certificate for the same agent, over the session's own messages: send this, and give the answer's certificate to
/// [`Identity::renewed`].
pub fn renewal_request(identity: &Identity) -> Result<ToAppliance, Error> {
    let make = |source| Error::Request { source };
    let key = KeyPair::from_pem(&identity.key).map_err(make)?;
    let params = CertificateParams::new(Vec::<String>::new()).map_err(make)?;
    let csr = params.serialize_request(&key).and_then(|request| request.pem()).map_err(make)?;
    Ok(ToAppliance::Renew { csr })
}

/// The authority in the answer becomes the agent's only trust, so it must be the one that the operator's token names.
fn check_authority(pem: &str, fingerprint: &str) -> Result<(), Error> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| bad_answer("authority"))?;
    if sha256_hex(&der) == fingerprint { Ok(()) } else { Err(Error::OtherAppliance) }
}

fn bad_answer(what: &'static str) -> Error {
    Error::BadAnswer { source: crate::IdentityError::Malformed { what } }
}

fn connection(source: ConnectionError) -> Error {
    Error::Connection { source }
}
