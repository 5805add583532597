//! The REST API over TLS that trusts the appliance's own CA and nothing else.

use crate::config::Settings;
use crate::exit::{Failure, Problem, Result};
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;
use ureq::Agent;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};

pub struct Client {
    agent: Agent,
    url: String,
    authorization: String,
}

#[derive(Deserialize)]
struct ErrorBody {
    problems: Vec<Problem>,
}

impl Client {
    pub fn new(settings: Settings) -> Result<Client> {
        let wrong = || Failure::Usage("the CA file holds no certificate in PEM".into());
        let roots: Vec<Certificate<'static>> = parse_pem(&settings.ca)
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate.to_owned()),
                _ => None,
            })
            .collect();
        if roots.is_empty() {
            return Err(wrong());
        }
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::new_with_certs(&roots))
            .unversioned_rustls_crypto_provider(std::sync::Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .proxy(None)
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_global(Some(Duration::from_secs(120)))
            .build()
            .into();
        Ok(Client { agent, url: settings.url, authorization: format!("Bearer {}", settings.token) })
    }

    pub fn get(&self, path: &str) -> Result<Value> {
        let request = self.agent.get(format!("{}/api/v1{path}", self.url)).header("authorization", &self.authorization);
        self.answer(request.call())
    }

    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let request = self.agent.post(format!("{}/api/v1{path}", self.url)).header("authorization", &self.authorization);
        self.answer(request.send_json(body))
    }

    /// For what waits for a worker's disk: the appliance answers within 300 s.
    pub fn post_slow(&self, path: &str, body: &Value) -> Result<Value> {
        let request = self.agent.post(format!("{}/api/v1{path}", self.url)).header("authorization", &self.authorization);
        let request = request.config().timeout_global(Some(Duration::from_secs(330))).build();
        self.answer(request.send_json(body))
    }

    pub fn put(&self, path: &str, body: &Value) -> Result<Value> {
        let request = self.agent.put(format!("{}/api/v1{path}", self.url)).header("authorization", &self.authorization);
        self.answer(request.send_json(body))
    }

    pub fn delete(&self, path: &str) -> Result<Value> {
        let request = self.agent.delete(format!("{}/api/v1{path}", self.url)).header("authorization", &self.authorization);
        self.answer(request.call())
    }

    fn answer(&self, result: std::result::Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Value> {
        let unreachable =
            |error: &dyn std::fmt::Display| Failure::Unreachable(format!("cannot reach the appliance at {}: {error}", self.url));
        let mut response = result.map_err(|error| unreachable(&error))?;
        let status = response.status();
        let text = response.body_mut().read_to_string().map_err(|error| unreachable(&error))?;
        if status.is_success() {
            return serde_json::from_str(&text).map_err(|error| unreachable(&error));
        }
        match serde_json::from_str::<ErrorBody>(&text) {
            Ok(body) if !status.is_server_error() => Err(Failure::Refused(body.problems)),
            Ok(body) => {
                Err(Failure::Failed(body.problems.iter().map(|p| format!("{}: {}", p.code, p.cause)).collect::<Vec<_>>().join("\n")))
            }
            Err(_) => Err(unreachable(&format!("it answers {status}"))),
        }
    }
}

/// A name as one segment of a path.
pub fn segment(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn segments_cannot_leave_their_place() {
        assert_eq!(super::segment("web-1.x"), "web-1.x");
        assert_eq!(super::segment("a/b c"), "a%2Fb%20c");
    }
}
