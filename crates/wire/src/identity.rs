//! Who an agent is: its id, certificate, key, and the authority that it trusts; kept in one directory, for its owner only.
//!
//! An identity on disk is whole: the certificate is written last, and without it the agent is not enrolled. A renewed
//! certificate replaces the old one in one step. What cannot be read is an error with the way out (enrol again), never a guess.

use crate::error::IdentityError as Error;
use crate::{store, tls};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use standin_model::AgentId;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const CERTIFICATE_FILE: &str = "agent.pem";
const KEY_FILE: &str = "agent.key";
const AUTHORITY_FILE: &str = "authority.pem";

#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    pub agent_id: AgentId,
    /// All PEM.
    pub certificate: String,
    pub key: String,
    pub authority: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key must not reach a log.
        write!(f, "Identity({})", self.agent_id)
    }
}

impl Identity {
    /// Checks the parts against each other as far as that is possible without connecting.
    pub fn new(certificate: String, key: String, authority: String) -> Result<Identity, Error> {
        let der = certificate_of(&certificate, "certificate")?;
        let agent_id = tls::agent_of(&der).ok_or(Error::Malformed { what: "certificate" })?;
        let identity = Identity { agent_id, certificate, key, authority };
        tls::agent_config(&identity).map_err(|error| match error {
            crate::ConnectionError::Identity { source } => source,
            _ => Error::Malformed { what: "certificate" },
        })?;
        Ok(identity)
    }

    /// Whether there is one; an agent without it must enrol.
    pub fn exists(dir: impl AsRef<Path>) -> bool {
        dir.as_ref().join(CERTIFICATE_FILE).exists()
    }

    pub fn load(dir: impl AsRef<Path>) -> Result<Identity, Error> {
        let dir = dir.as_ref();
        if !Self::exists(dir) {
            return Err(Error::Missing { path: dir.to_owned() });
        }
        let read = |name| store::read(&dir.join(name)).map_err(|source| Error::Io { action: "read", path: dir.join(name), source });
        Identity::new(read(CERTIFICATE_FILE)?, read(KEY_FILE)?, read(AUTHORITY_FILE)?)
    }

    pub fn save(&self, dir: impl AsRef<Path>) -> Result<(), Error> {
        let dir = dir.as_ref();
        store::make_directory(dir).map_err(|source| Error::Io { action: "make", path: dir.to_owned(), source })?;
        // The certificate comes last: its presence says that the rest is there.
        for (name, text) in [(AUTHORITY_FILE, &self.authority), (KEY_FILE, &self.key), (CERTIFICATE_FILE, &self.certificate)] {
            let path = dir.join(name);
            store::write(&path, text).map_err(|source| Error::Io { action: "write", path, source })?;
        }
        Ok(())
    }

    /// The same agent and key with the certificate that a renewal brought.
    pub fn renewed(&self, certificate: String) -> Result<Identity, Error> {
        let renewed = Identity::new(certificate, self.key.clone(), self.authority.clone())?;
        if renewed.agent_id == self.agent_id { Ok(renewed) } else { Err(Error::Malformed { what: "renewed certificate" }) }
    }

    /// How long the certificate is still valid by this machine's clock; zero when it is not.
    pub fn remaining(&self) -> Result<Duration, Error> {
        let (_, end) = self.validity()?;
        Ok(end.saturating_sub(now()))
    }

    /// Whether two thirds of the certificate's lifetime are over.
    pub fn is_renewal_due(&self) -> Result<bool, Error> {
        let (begin, end) = self.validity()?;
        Ok(end.saturating_sub(now()) <= end.saturating_sub(begin) / 3)
    }

    /// Begin and end, since the Unix epoch.
    fn validity(&self) -> Result<(Duration, Duration), Error> {
        let der = self.certificate_der()?;
        let malformed = || Error::Malformed { what: "certificate" };
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).map_err(|_| malformed())?;
        let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).map(Duration::from_secs).map_err(|_| malformed());
        Ok((seconds(certificate.validity().not_before)?, seconds(certificate.validity().not_after)?))
    }

    pub(crate) fn certificate_der(&self) -> Result<CertificateDer<'static>, Error> {
        certificate_of(&self.certificate, "certificate")
    }
    pub(crate) fn authority_der(&self) -> Result<CertificateDer<'static>, Error> {
        certificate_of(&self.authority, "authority")
    }
    pub(crate) fn key_der(&self) -> Result<PrivateKeyDer<'static>, Error> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|_| Error::Malformed { what: "key" })
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn certificate_of(pem: &str, what: &'static str) -> Result<CertificateDer<'static>, Error> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| Error::Malformed { what })
}
