//! TLS settings of both ends: 1.3 only, ring, and which certificates are believed.
//!
//! Servers are known by the authority and by the fixed name [`SERVER_NAME`], not by host name, because an appliance may be reached by
//! addresses that it does not know (NAT, a moved address). Agents' certificates carry no such name and no server usage, so an agent cannot
//! pose as the appliance. Nothing is cached or resumed: connections are few and long.

use crate::authority::ServerCertificate;
use crate::error::{ConnectionError, IdentityError};
use crate::identity::Identity;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use standin_model::AgentId;
use std::sync::Arc;

/// Every server certificate of an appliance has this name besides its addresses.
pub const SERVER_NAME: &str = "standin-appliance";

const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// SHA-256 in lower-case hexadecimal digits, from the same library that TLS uses.
pub fn sha256_hex(bytes: &[u8]) -> String {
    let suite = ring::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().expect("a TLS 1.3 suite");
    crate::token::hex(suite.common.hash_provider.hash(bytes).as_ref())
}

pub(crate) fn server_name() -> ServerName<'static> {
    ServerName::try_from(SERVER_NAME).expect("a valid name")
}

/// An enrolled agent: believes only its authority, and shows its certificate.
pub(crate) fn agent_config(identity: &Identity) -> Result<ClientConfig, ConnectionError> {
    let at = |source| ConnectionError::Identity { source };
    let mut roots = RootCertStore::empty();
    let bad_authority = IdentityError::Malformed { what: "authority" };
    roots.add(identity.authority_der().map_err(at)?).map_err(|_| at(bad_authority))?;
    let config = ClientConfig::builder_with_provider(provider()).with_protocol_versions(VERSIONS)?;
    let config = config.with_root_certificates(roots);
    let (chain, key) = (vec![identity.certificate_der().map_err(at)?], identity.key_der().map_err(at)?);
    let config = config.with_client_auth_cert(chain, key).map_err(|source| at(IdentityError::Mismatch { source }))?;
    Ok(without_resumption(config))
}

/// An agent that has only a token: believes an authority by fingerprint, and has no certificate.
pub(crate) fn newcomer_config(fingerprint: &str) -> Result<ClientConfig, ConnectionError> {
    let verifier = PinnedAuthority { fingerprint: fingerprint.to_owned(), provider: provider() };
    let config = ClientConfig::builder_with_provider(provider()).with_protocol_versions(VERSIONS)?;
    let config = config.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth();
    Ok(without_resumption(config))
}

fn without_resumption(mut config: ClientConfig) -> ClientConfig {
    config.resumption = rustls::client::Resumption::disabled();
    config
}

/// The appliance: shows its certificate; takes agents with a certificate of its authority, and newcomers without one.
pub(crate) fn appliance_config(authority: CertificateDer<'static>, certificate: ServerCertificate) -> Result<ServerConfig, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(authority)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let config = ServerConfig::builder_with_provider(provider()).with_protocol_versions(VERSIONS)?;
    let mut config = config.with_client_cert_verifier(verifier).with_single_cert(certificate.chain, certificate.key)?;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The agent that a verified certificate was issued to; its common name.
pub(crate) fn agent_of(certificate: &CertificateDer<'_>) -> Option<AgentId> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let mut names = certificate.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?;
    // Two names would let the holder be two agents.
    if names.next().is_some() { None } else { AgentId::parse(name) }
}

/// Believes a server whose chain ends in the authority with this fingerprint, whoever else may have signed it.
#[derive(Debug)]
struct PinnedAuthority {
    fingerprint: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = intermediates.iter().find(|certificate| sha256_hex(certificate) == self.fingerprint);
        let Some(pinned) = pinned else { return Err(CertificateError::UnknownIssuer.into()) };
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // TLS 1.2 is never offered.
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
