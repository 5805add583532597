//! The appliance's own certificate authority: signs its server certificate and its agents' certificates, and nothing else.
//!
//! Invariants: key and certificate on disk belong together (the certificate is written last and made from the key); the key is
//! readable by its owner only; an agent's certificate carries the name that *we* give, whatever the request asked for. If the directory is
//! lost, every agent has to enrol again, so it belongs into the appliance's backup.

use crate::error::AuthorityError as Error;
use crate::store;
use crate::tls::{self, SERVER_NAME, sha256_hex};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use standin_model::AgentId;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const CERTIFICATE_FILE: &str = "authority.pem";
const KEY_FILE: &str = "authority.key";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// The authority outlives any appliance; replacing it means enrolling every agent again.
const AUTHORITY_VALIDITY: Duration = DAY.saturating_mul(365 * 20);
/// A server certificate is made at every start and its key is never stored, so it need only outlive one run.
const SERVER_VALIDITY: Duration = DAY.saturating_mul(365 * 5);
/// A source's clock may be behind ours by this much.
const CLOCK_SLACK: Duration = DAY;
/// A request is about 500 bytes.
const REQUEST_BYTES_MAX: usize = 16 * 1024;

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    fingerprint: String,
}

/// A certificate for this appliance's own listeners (agents' port, REST API), with its key and the authority behind it.
pub struct ServerCertificate {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Authority {
    pub fn open_or_create(dir: impl AsRef<Path>) -> Result<Authority, Error> {
        let dir = dir.as_ref();
        store::make_directory(dir).map_err(|source| Error::Io { action: "make", path: dir.to_owned(), source })?;
        let certificate_path = dir.join(CERTIFICATE_FILE);
        if !certificate_path.exists() {
            create(dir)?;
        }
        let (certificate_pem, key_pem) = (read(&certificate_path)?, read(&dir.join(KEY_FILE))?);
        let malformed = |what, path: PathBuf| Error::Malformed { what, path };
        let key = KeyPair::from_pem(&key_pem).map_err(|_| malformed("a private key", dir.join(KEY_FILE)))?;
        let certificate =
            CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|_| malformed("a certificate", certificate_path.clone()))?;
        if !is_key_of(&key, &certificate) {
            return Err(malformed("the certificate of the key beside it", certificate_path));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|_| malformed("an authority", certificate_path))?;
        let fingerprint = sha256_hex(&certificate);
        Ok(Authority { issuer, certificate, certificate_pem, fingerprint })
    }

    /// SHA-256 of the certificate, in 64 lower-case digits; part of every token.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A certificate (PEM) for the agent, over the key of the request. Everything else that the request asks for is ignored.
    pub fn sign_agent(&self, csr_pem: &str, agent: &AgentId, validity: Duration) -> Result<String, Error> {
        let mut request = parse_request(csr_pem)?;
        request.params = agent_params(agent, validity)?;
        Ok(request.signed_by(&self.issuer).map_err(|source| Error::Make { source })?.pem())
    }

    /// Whether [`Authority::sign_agent`] would take it; asked before a token is used up.
    pub fn check_request(&self, csr_pem: &str) -> Result<(), Error> {
        parse_request(csr_pem).map(|_| ())
    }

    /// A new server certificate for these host names and addresses (and always for [`SERVER_NAME`]).
    pub fn issue_server(&self, names: &[String]) -> Result<ServerCertificate, Error> {
        let make = |source| Error::Make { source };
        let mut all = vec![SERVER_NAME.to_owned()];
        all.extend(names.iter().filter(|name| *name != SERVER_NAME).cloned());
        let mut params = CertificateParams::new(all).map_err(make)?;
        params.distinguished_name = common_name(SERVER_NAME);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        set_validity(&mut params, SERVER_VALIDITY)?;
        let key = KeyPair::generate().map_err(make)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(make)?;
        let chain = vec![certificate.der().clone(), self.certificate.clone()];
        Ok(ServerCertificate { chain, key: PrivatePkcs8KeyDer::from(key.serialize_der()).into() })
    }

    /// Settings of the agents' listener, with a new server certificate.
    pub fn server_config(&self, names: &[String]) -> Result<Arc<rustls::ServerConfig>, Error> {
        let config = tls::appliance_config(self.certificate.clone(), self.issue_server(names)?);
        config.map(Arc::new).map_err(|source| Error::Tls { source })
    }
}

fn read(path: &Path) -> Result<String, Error> {
    store::read(path).map_err(|source| Error::Io { action: "read", path: path.to_owned(), source })
}

fn create(dir: &Path) -> Result<(), Error> {
    let make = |source| Error::Make { source };
    let mut params = CertificateParams::new(Vec::<String>::new()).map_err(make)?;
    let key = KeyPair::generate().map_err(make)?;
    // Two appliances must not have the same name, or tools that look an issuer up by name confuse them.
    let tag = sha256_hex(key.public_key_raw());
    params.distinguished_name = common_name(&format!("Standin appliance {}", tag.get(..8).unwrap_or_default()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, AUTHORITY_VALIDITY)?;
    let certificate = params.self_signed(&key).map_err(make)?;
    for (name, text) in [(KEY_FILE, key.serialize_pem()), (CERTIFICATE_FILE, certificate.pem())] {
        let path = dir.join(name);
        store::write(&path, &text).map_err(|source| Error::Io { action: "write", path, source })?;
    }
    Ok(())
}

fn is_key_of(key: &KeyPair, certificate: &CertificateDer<'_>) -> bool {
    use rcgen::PublicKeyData;
    x509_parser::parse_x509_certificate(certificate)
        .is_ok_and(|(_, certificate)| certificate.public_key().raw == key.subject_public_key_info().as_slice())
}

/// Reads the request and checks that its sender holds the key.
fn parse_request(csr_pem: &str) -> Result<CertificateSigningRequestParams, Error> {
    if csr_pem.len() > REQUEST_BYTES_MAX {
        return Err(Error::BadRequest { reason: "it is too long" });
    }
    CertificateSigningRequestParams::from_pem(csr_pem)
        .map_err(|_| Error::BadRequest { reason: "it cannot be read, or its signature is wrong" })
}

fn agent_params(agent: &AgentId, validity: Duration) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(Vec::<String>::new()).map_err(|source| Error::Make { source })?;
    params.distinguished_name = common_name(agent.as_str());
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    set_validity(&mut params, validity)?;
    Ok(params)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// From a day ago until `validity` from now, under a random serial number.
fn set_validity(params: &mut CertificateParams, validity: Duration) -> Result<(), Error> {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    params.not_before = epoch + now.saturating_sub(CLOCK_SLACK);
    // The year must have four digits in a certificate.
    params.not_after = epoch + now.saturating_add(validity.min(AUTHORITY_VALIDITY));
    let mut serial = [0u8; 16];
    getrandom::fill(&mut serial).map_err(|_| Error::Make { source: rcgen::Error::RingUnspecified })?;
    // A serial number is positive: RFC 5280, 4.1.2.2.
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(())
}
