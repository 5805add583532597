//! What can go wrong between the ends, told apart by what the operator can do about it: each error has a code, and the next command.
//!
//! Whatever goes wrong on a connection ends it; `is_retryable` says whether connecting again can help without an operator.

use std::io;
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;

#[derive(Debug, Error)]
pub enum ConnectionError {
    #[error("cannot reach {address}")]
    Connect { address: String, source: io::Error },
    #[error("{what} cannot be used on this system")]
    Path { what: String, source: io::Error },
    #[error("the proxy {proxy} does not help: {reason}")]
    Proxy { proxy: String, reason: String },
    #[error("connection was closed by the other end")]
    Closed,
    #[error("connection was lost while {action}")]
    Lost { action: &'static str, source: io::Error },
    #[error("nothing happened for {} seconds while {action}", waited.as_secs())]
    TimedOut { action: &'static str, waited: Duration },
    #[error("the other end speaks protocol {theirs}, this one speaks {ours}")]
    ProtocolMismatch { ours: u32, theirs: u32 },
    #[error("the other end's certificate was not issued by the authority that this end trusts")]
    UnknownAuthority { source: rustls::Error },
    #[error("this end's certificate has expired, says the other end")]
    OwnCertificateExpired,
    #[error("the other end's certificate has expired or is not valid yet")]
    PeerCertificateExpired { source: rustls::Error },
    #[error("the other end does not accept this end's certificate")]
    CertificateRefused { source: rustls::Error },
    #[error("the other end has no certificate of an agent")]
    NotAnAgent,
    #[error("TLS failed")]
    Tls { source: rustls::Error },
    #[error("frame of kind {kind} claims {len} bytes, at most {len_max} are allowed")]
    FrameTooLarge { kind: u8, len: u64, len_max: u64 },
    #[error("frame has unknown kind {kind}")]
    UnknownFrame { kind: u8 },
    #[error("message cannot be read")]
    BadMessage { source: serde_json::Error },
    #[error("{expected} was expected, something else came")]
    Unexpected { expected: &'static str },
    #[error("refused with {code}: {cause}")]
    Refused { code: String, cause: String },
    #[error("identity cannot be used")]
    Identity { source: IdentityError },
}

impl ConnectionError {
    pub fn code(&self) -> &str {
        use ConnectionError::*;
        match self {
            Connect { .. } => "STANDIN-E1001",
            Path { .. } => "STANDIN-E1021",
            Proxy { .. } => "STANDIN-E1022",
            Closed | Lost { .. } => "STANDIN-E1002",
            TimedOut { .. } => "STANDIN-E1003",
            ProtocolMismatch { .. } => "STANDIN-E1004",
            UnknownAuthority { .. } => "STANDIN-E1005",
            OwnCertificateExpired => "STANDIN-E1006",
            PeerCertificateExpired { .. } => "STANDIN-E1007",
            BadMessage { .. } | Unexpected { .. } | UnknownFrame { .. } | Tls { .. } => "STANDIN-E1008",
            FrameTooLarge { .. } => "STANDIN-E1009",
            CertificateRefused { .. } | NotAnAgent => "STANDIN-E1012",
            Identity { source } => source.code(),
            Refused { code, .. } => code,
        }
    }

    pub fn next_command(&self) -> &'static str {
        use ConnectionError::*;
        match self {
            Connect { .. } => "systemctl status standin-appliance   (on the appliance)",
            Path { .. } | Proxy { .. } => "standin job network JOB --source any --proxy none --congestion default",
            Closed | Lost { .. } | TimedOut { .. } | Refused { .. } => "journalctl -u standin-appliance   (on the appliance)",
            ProtocolMismatch { .. } => "standin-agent --version; standin-appliance --version",
            UnknownAuthority { .. } | OwnCertificateExpired | CertificateRefused { .. } | NotAnAgent | Identity { .. } => {
                "standin-appliance token enrolment   (on the appliance), then: standin-agent enrol --appliance <host:port> --token <token>"
            }
            PeerCertificateExpired { .. } => "timedatectl   (on both ends), then: systemctl restart standin-appliance",
            BadMessage { .. } | Unexpected { .. } | UnknownFrame { .. } | Tls { .. } | FrameTooLarge { .. } => "standin-agent --version",
        }
    }

    /// Connecting again later can help without anybody's doing.
    pub fn is_retryable(&self) -> bool {
        use ConnectionError::*;
        matches!(
            self,
            Connect { .. }
                | Path { .. }
                | Proxy { .. }
                | Closed
                | Lost { .. }
                | TimedOut { .. }
                | PeerCertificateExpired { .. }
                | Tls { .. }
        )
    }

    /// The other end sent bytes that no end of this protocol sends.
    pub fn is_corrupt(&self) -> bool {
        use ConnectionError::*;
        matches!(self, FrameTooLarge { .. } | UnknownFrame { .. } | BadMessage { .. } | Unexpected { .. } | Tls { .. })
    }

    /// A socket error, told apart by what it means.
    pub(crate) fn io(action: &'static str, waited: Duration, source: io::Error) -> ConnectionError {
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ConnectionError::TimedOut { action, waited },
            _ => ConnectionError::Lost { action, source },
        }
    }
}

impl From<rustls::Error> for ConnectionError {
    fn from(source: rustls::Error) -> ConnectionError {
        use rustls::{AlertDescription as Alert, CertificateError as Bad, Error};
        match &source {
            Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => ConnectionError::UnknownAuthority { source },
            Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. } | Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
                ConnectionError::PeerCertificateExpired { source }
            }
            Error::InvalidCertificate(_) | Error::NoCertificatesPresented => ConnectionError::UnknownAuthority { source },
            Error::AlertReceived(Alert::CertificateExpired) => ConnectionError::OwnCertificateExpired,
            Error::AlertReceived(
                Alert::UnknownCA
                | Alert::BadCertificate
                | Alert::CertificateUnknown
                | Alert::CertificateRequired
                | Alert::DecryptError
                | Alert::AccessDenied
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked,
            ) => ConnectionError::CertificateRefused { source },
            _ => ConnectionError::Tls { source },
        }
    }
}

#[derive(Debug, Error)]
pub enum EnrolError {
    #[error("token cannot be used")]
    Token { source: TokenError },
    #[error("the appliance is not the one that made this token: its authority has another fingerprint")]
    OtherAppliance,
    #[error("the appliance refused the token: {cause}")]
    Refused { code: String, cause: String },
    #[error("enrolment failed")]
    Connection { source: ConnectionError },
    #[error("key and request cannot be made")]
    Request { source: rcgen::Error },
    #[error("the appliance's answer does not fit the request")]
    BadAnswer { source: IdentityError },
}

impl EnrolError {
    pub fn code(&self) -> &str {
        match self {
            EnrolError::Token { source } => source.code(),
            EnrolError::OtherAppliance => "STANDIN-E1018",
            EnrolError::Refused { code, .. } => code,
            EnrolError::Connection { source } => source.code(),
            EnrolError::Request { .. } => "STANDIN-E1015",
            EnrolError::BadAnswer { .. } => "STANDIN-E1008",
        }
    }
    pub fn next_command(&self) -> &'static str {
        match self {
            EnrolError::Connection { source } => source.next_command(),
            _ => "standin-appliance token enrolment   (on the appliance)",
        }
    }
    pub fn is_retryable(&self) -> bool {
        matches!(self, EnrolError::Connection { source } if source.is_retryable())
    }
}

#[derive(Debug, Error, PartialEq, Eq)]
#[error("not an enrolment token: {reason}")]
pub struct TokenError {
    pub reason: &'static str,
}

impl TokenError {
    pub fn code(&self) -> &'static str {
        "STANDIN-E1010"
    }
}

#[derive(Debug, Error)]
pub enum IdentityError {
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("no identity in {}: this agent is not enrolled", path.display())]
    Missing { path: PathBuf },
    #[error("{what} of the identity cannot be read")]
    Malformed { what: &'static str },
    #[error("certificate and key of the identity do not belong together")]
    Mismatch { source: rustls::Error },
}

impl IdentityError {
    pub fn code(&self) -> &'static str {
        "STANDIN-E1013"
    }
    pub fn is_retryable(&self) -> bool {
        false
    }
}

#[derive(Debug, Error)]
pub enum AuthorityError {
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{} cannot be read as {what}", path.display())]
    Malformed { what: &'static str, path: PathBuf },
    #[error("certificate request was refused: {reason}")]
    BadRequest { reason: &'static str },
    #[error("certificate cannot be made")]
    Make { source: rcgen::Error },
    #[error("TLS cannot be set up")]
    Tls { source: rustls::Error },
}

impl AuthorityError {
    pub fn code(&self) -> &'static str {
        match self {
            AuthorityError::BadRequest { .. } => "STANDIN-E1015",
            _ => "STANDIN-E1014",
        }
    }
    pub fn next_command(&self) -> &'static str {
        match self {
            AuthorityError::BadRequest { .. } => "standin-agent enrol --appliance <host:port> --token <token>",
            _ => "journalctl -u standin-appliance",
        }
    }
    pub fn is_retryable(&self) -> bool {
        false
    }
}
