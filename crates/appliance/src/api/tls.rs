//! TLS and HTTP for the API: connections run beside each other and have a bound in number, and in time until they have shown what they want.

use anyhow::{Context, Result};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use standin_wire::Authority;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

/// Server settings with a fresh certificate of the appliance's CA for these names; clients show no certificate but a token.
pub fn server_config(authority: &Authority, names: &[String]) -> Result<Arc<rustls::ServerConfig>> {
    let certificate = authority.issue_server(names).context("issuing the API's certificate")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(certificate.chain, certificate.key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// How much of this process those may take who have shown no token yet.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; more wait in the kernel's backlog. Well below the descriptors that a process may have by default.
    pub connections: usize,
    pub handshake: Duration,
    /// For one request's head, and for the silence before it. Longer than the 15 s after which `standin` itself lets go of an idle connection.
    pub head: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { connections: 256, handshake: Duration::from_secs(10), head: Duration::from_secs(20) }
    }
}

/// Serves `router` on every connection whose handshake comes to its end; does not end by itself.
pub async fn serve(listener: TcpListener, config: Arc<rustls::ServerConfig>, router: Router, limits: Limits) {
    let acceptor = TlsAcceptor::from(config);
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head);
    while let Ok(place) = places.clone().acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, mostly; the pause lets others close.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (acceptor, http, router) = (acceptor.clone(), http.clone(), router.clone());
        tokio::spawn(async move {
            // For as long as the connection lives.
            let _place = place;
            if let Ok(Ok(stream)) = tokio::time::timeout(limits.handshake, acceptor.accept(stream)).await {
                // What breaks here is the other end's affair.
                let _ = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName};
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio_rustls::client::TlsStream;

    async fn connect(authority: &Authority, address: SocketAddr) -> TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let stream = TcpStream::connect(address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap()
    }

    /// Handshakes and keeps its place, but only for the time that a request's head may take.
    #[tokio::test]
    async fn who_says_nothing_holds_one_place_for_a_moment() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(dir.path().join("authority")).unwrap();
        let config = server_config(&authority, &["localhost".into()]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limits = Limits { connections: 1, head: Duration::from_secs(1), ..Limits::default() };
        let router = Router::new().route("/", get(|| async { "welcome" }));
        let serving = tokio::spawn(serve(listener, config, router, limits));

        let mut silent = connect(&authority, address).await;
        silent.write_all(b"GET / HTT").await.unwrap();
        let next = connect(&authority, address);
        tokio::pin!(next);
        assert!(tokio::time::timeout(Duration::from_millis(200), &mut next).await.is_err(), "there is one place");
        let mut rest = Vec::new();
        // The end may come with or without TLS's farewell.
        let _ = tokio::time::timeout(Duration::from_secs(30), silent.read_to_end(&mut rest)).await.expect("the silent one is let go");
        let mut next = tokio::time::timeout(Duration::from_secs(30), next).await.expect("its place is free");
        next.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        let _ = next.read_to_string(&mut answer).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("welcome"), "{answer}");
        serving.abort();
    }
}
