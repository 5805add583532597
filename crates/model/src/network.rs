//! How an agent's connection leaves its server, and the bounds of a limit: what the appliance orders and the agent carries out.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use thiserror::Error;

/// The least limit of a connection in bits a second: status and keep-alives take about a tenth of it.
pub const BITS_PER_SECOND_MIN: u64 = 64_000;
/// The most: 1 Tbit/s.
pub const BITS_PER_SECOND_MAX: u64 = 1_000_000_000_000;

/// Linux: IFNAMSIZ is 16 with its zero.
const INTERFACE_BYTES_MAX: usize = 15;
/// Linux: TCP_CA_NAME_MAX is 16 with its zero.
const CONGESTION_BYTES_MAX: usize = 15;
/// RFC 1929: one byte has the length.
const CREDENTIAL_BYTES_MAX: usize = 255;
const HOST_BYTES_MAX: usize = 253;

/// The way of one agent's connection. What is left out the system chooses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkPath {
    /// Address of the source's to send from, or the name of one of its interfaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<AddressFamily>,
    /// `socks5://[USER:PASSWORD@]HOST:PORT` or `http://…`, which reaches the appliance for us.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// How the source's kernel finds out what a link can carry, such as `bbr` or `cubic`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub congestion: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AddressFamily {
    Ipv4,
    Ipv6,
}

/// Where a connection begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourcePlace {
    Address(IpAddr),
    Interface(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyKind {
    /// RFC 1928, with names resolved by the proxy.
    Socks5,
    /// RFC 9110, 9.3.6.
    HttpConnect,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    pub kind: ProxyKind,
    pub host: String,
    pub port: u16,
    pub credentials: Option<(String, String)>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The password must not reach a log.
        f.debug_struct("Proxy").field("kind", &self.kind).field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

#[derive(Debug, Error, PartialEq, Eq)]
#[error("{what} cannot be used: {why}")]
pub struct PathError {
    pub what: &'static str,
    pub why: String,
}

fn bad<T>(what: &'static str, why: impl Into<String>) -> Result<T, PathError> {
    Err(PathError { what, why: why.into() })
}

/// What a kernel takes as a name, and nothing that means something else in a path or a line.
fn is_plain(text: &str, len_max: usize) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    !text.is_empty() && text.len() <= len_max && text.bytes().all(plain)
}

impl NetworkPath {
    pub fn check(&self) -> Result<(), PathError> {
        let source = self.source()?;
        self.proxy()?;
        if let (Some(SourcePlace::Address(address)), Some(family)) = (source, self.family)
            && address.is_ipv4() != (family == AddressFamily::Ipv4)
        {
            return bad("the source's address", format!("{address} is of the other family"));
        }
        match &self.congestion {
            Some(name) if !is_plain(name, CONGESTION_BYTES_MAX) => {
                bad("the congestion control", format!("{name:?} is no name of one, such as bbr"))
            }
            _ => Ok(()),
        }
    }

    pub fn source(&self) -> Result<Option<SourcePlace>, PathError> {
        let Some(text) = &self.source else { return Ok(None) };
        if let Ok(address) = text.parse::<IpAddr>() {
            let sound = !address.is_unspecified() && !address.is_multicast();
            let why = || format!("{address} is no address of one server");
            return if sound { Ok(Some(SourcePlace::Address(address))) } else { bad("the source's address", why()) };
        }
        if !is_plain(text, INTERFACE_BYTES_MAX) {
            return bad("the source's address", format!("{:?} is neither an address nor an interface's name", shortened(text)));
        }
        Ok(Some(SourcePlace::Interface(text.clone())))
    }

    pub fn proxy(&self) -> Result<Option<Proxy>, PathError> {
        self.proxy.as_deref().map(Proxy::parse).transpose()
    }

    /// For people's eyes: without the proxy's password.
    pub fn redacted(&self) -> NetworkPath {
        let hide = |text: &String| match (text.split_once("://"), text.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, place))) => format!("{scheme}://***@{place}"),
            _ => text.clone(),
        };
        NetworkPath { proxy: self.proxy.as_ref().map(hide), ..self.clone() }
    }
}

impl Proxy {
    /// The text itself is in no error: it may have a password in it.
    pub fn parse(text: &str) -> Result<Proxy, PathError> {
        let wrong =
            || PathError { what: "the proxy", why: "write socks5://[USER:PASSWORD@]HOST:PORT or http://[USER:PASSWORD@]HOST:PORT".into() };
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let kind = match scheme {
            "socks5" | "socks5h" => ProxyKind::Socks5,
            "http" => ProxyKind::HttpConnect,
            _ => return Err(wrong()),
        };
        let (credentials, place) = match rest.rsplit_once('@') {
            Some((credentials, place)) => (Some(credentials.split_once(':').ok_or_else(wrong)?), place),
            None => (None, rest),
        };
        let (host, port) = place.strip_suffix('/').unwrap_or(place).rsplit_once(':').ok_or_else(wrong)?;
        let port: u16 = port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let is_host = host.parse::<IpAddr>().is_ok() || is_plain(host, HOST_BYTES_MAX) && !host.contains('@');
        if !is_host {
            return Err(wrong());
        }
        let fits = |text: &str| (1..=CREDENTIAL_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
        if credentials.is_some_and(|(user, password)| !fits(user) || !fits(password)) {
            return bad("the proxy", "user and password must have 1 to 255 bytes");
        }
        let credentials = credentials.map(|(user, password)| (user.to_owned(), password.to_owned()));
        Ok(Proxy { kind, host: host.to_owned(), port, credentials })
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(source: &str, proxy: &str) -> NetworkPath {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        NetworkPath { source: some(source), proxy: some(proxy), ..NetworkPath::default() }
    }

    #[test]
    fn sources() {
        assert_eq!(path("", "").check(), Ok(()));
        for good in ["10.0.0.5", "fd00::1", "eth1", "wlp0s20f3", "bond0.17"] {
            assert_eq!(path(good, "").check(), Ok(()), "{good}");
        }
        for bad in ["0.0.0.0", "224.0.0.1", "::", "eth0/../x", "a-very-long-interface", "eth 0"] {
            assert!(path(bad, "").check().is_err(), "{bad}");
        }
        let mixed = NetworkPath { family: Some(AddressFamily::Ipv6), ..path("10.0.0.5", "") };
        assert!(mixed.check().is_err());
    }

    #[test]
    fn proxies() {
        let proxy = Proxy::parse("socks5://me:p@ss:word@[fd00::1]:1080").unwrap();
        assert_eq!((proxy.kind, proxy.host.as_str(), proxy.port), (ProxyKind::Socks5, "fd00::1", 1080));
        assert_eq!(proxy.credentials, Some(("me".into(), "p@ss:word".into())));
        assert_eq!(Proxy::parse("http://proxy.example:3128/").unwrap().kind, ProxyKind::HttpConnect);
        for bad in [
            "proxy:1",
            "ftp://a:1",
            "http://a",
            "http://a:0",
            "http://a:70000",
            "http://:80",
            "http://me@a:1",
            "socks5://a b:1",
            "http://u\n:p@a:1",
        ] {
            let error = Proxy::parse(bad).unwrap_err().to_string();
            assert!(!error.contains("me@"), "{error}");
        }
        assert_eq!(path("", "http://me:secret@a:1").redacted().proxy.unwrap(), "http://***@a:1");
        assert!(!format!("{:?}", proxy).contains("word"));
    }
}
