//! The one-time token by which an agent enrols: `standin1.<secret>.<fingerprint>`.
//!
//! The secret (160 random bits) proves to the appliance that an operator wants this agent; the fingerprint (SHA-256 of the
//! authority's certificate) proves to the agent that this is the operator's appliance. The appliance need keep only
//! [`Token::secret_hash`]. A token that was mistyped is refused before anything is sent.

use crate::error::TokenError;
use crate::tls::sha256_hex;
use std::fmt;

const PREFIX: &str = "standin1";
const SECRET_BYTES: usize = 20;
const FINGERPRINT_DIGITS: usize = 64;

#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    secret: String,
    fingerprint: String,
}

impl Token {
    /// A new token for the authority with this fingerprint. Fails only where the system has no randomness.
    pub fn generate(fingerprint: &str) -> Result<Token, getrandom::Error> {
        let mut bytes = [0u8; SECRET_BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Token { secret: hex(&bytes), fingerprint: fingerprint.to_owned() })
    }

    pub fn parse(text: &str) -> Result<Token, TokenError> {
        let refuse = |reason| Err(TokenError { reason });
        let mut parts = text.trim().split('.');
        let (Some(prefix), Some(secret), Some(fingerprint), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return refuse("it has three parts with dots between");
        };
        if prefix != PREFIX {
            return refuse("it begins with standin1");
        }
        if !is_hex(secret, 2 * SECRET_BYTES) {
            return refuse("its second part has 40 hexadecimal digits");
        }
        if !is_hex(fingerprint, FINGERPRINT_DIGITS) {
            return refuse("its third part has 64 hexadecimal digits");
        }
        Ok(Token { secret: secret.to_owned(), fingerprint: fingerprint.to_owned() })
    }

    /// What the agent sends, and what `redeem` gets.
    pub fn secret(&self) -> &str {
        &self.secret
    }
    /// What the appliance keeps: enough to recognise the secret, useless to who reads it.
    pub fn secret_hash(&self) -> String {
        Self::hash_of(&self.secret)
    }
    /// Hash of a secret as it came over the wire.
    pub fn hash_of(secret: &str) -> String {
        sha256_hex(secret.as_bytes())
    }
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

/// Lower-case only, so that every token has one spelling.
fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}.{}.{}", self.secret, self.fingerprint)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(…{})", self.fingerprint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_its_printed_form() {
        let token = Token::generate(&"ab".repeat(32)).unwrap();
        assert_eq!(Token::parse(&format!(" {token}\n")), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(token.secret()));
        assert_eq!(token.secret_hash(), Token::hash_of(token.secret()));
    }

    #[test]
    fn anything_else_is_refused() {
        let good = Token::generate(&"ab".repeat(32)).unwrap().to_string();
        for bad in ["", ".", "..", "standin1..", &good[1..], &good[..good.len() - 1], &format!("{good}.x"), &good.to_uppercase()] {
            assert!(Token::parse(bad).is_err(), "{bad}");
        }
    }
}
