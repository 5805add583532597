//! Ways to the appliance: a source address, an interface, a family, proxies that work and proxies that do not.

use super::lab::*;
use crate::*;
use standin_model::{AddressFamily, NetworkPath};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn connect(lab: &Lab, identity: &Identity, address: &str, path: NetworkPath) -> Result<Connection, ConnectionError> {
    let via = Via { path, ..Via::default() };
    let timeouts = Timeouts { connect: Duration::from_secs(3), ..QUICK };
    let mut connection = Connection::connect_via(address, identity, timeouts, &via)?;
    let welcome = open_session(&mut connection, hello(&identity.agent_id))?;
    assert_eq!((welcome.appliance_version.as_str(), lab.dir.path().exists()), ("1.2.3", true));
    Ok(connection)
}

#[test]
fn the_source_is_the_one_that_was_chosen() {
    let lab = Lab::new();
    let identity = lab.identity(1);
    let address = lab.address();
    let to = |path: NetworkPath| connect(&lab, &identity, &address, path);
    let connection = to(NetworkPath { source: some("127.0.0.7"), ..NetworkPath::default() }).unwrap();
    assert!(connection.sender().ends().0.starts_with("127.0.0.7:"), "{:?}", connection.sender().ends());
    to(NetworkPath { family: Some(AddressFamily::Ipv4), ..NetworkPath::default() }).unwrap();
    // TEST-NET-1 is no address of this machine; no interface has this name; no kernel knows this control.
    for (path, word) in [
        (NetworkPath { source: some("192.0.2.1"), ..NetworkPath::default() }, "192.0.2.1"),
        (NetworkPath { source: some("none0"), ..NetworkPath::default() }, "none0"),
        (NetworkPath { congestion: some("none"), ..NetworkPath::default() }, "none"),
    ] {
        let error = to(path).err().unwrap();
        assert!(error.code() == "STANDIN-E1021" && error.to_string().contains(word) && error.is_retryable(), "{error}");
    }
    let error = to(NetworkPath { family: Some(AddressFamily::Ipv6), ..NetworkPath::default() }).err().unwrap();
    assert_eq!(error.code(), "STANDIN-E1001");
    // Every kernel has reno, and lets everybody use it.
    let connection = to(NetworkPath { congestion: some("reno"), ..NetworkPath::default() }).unwrap();
    assert_eq!(connection.sender().ends().2, "reno");
}

#[test]
fn ipv6_works_like_ipv4() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else { return eprintln!("skipped: this machine has no IPv6") };
    let lab = Lab::new();
    let address = listener.local_addr().unwrap().to_string();
    let _listening =
        serve(listener, lab.authority.clone(), ServeOptions { timeouts: QUICK, ..Default::default() }, lab.appliance.clone()).unwrap();
    let identity = lab.identity(1);
    let path = NetworkPath { source: some("::1"), ..NetworkPath::default() };
    connect(&lab, &identity, &address, path).unwrap().send(&ToAppliance::Unknown).unwrap();
}

/// A proxy for one connection: `script` is what it expects and what it answers; behind it the connection is relayed.
fn proxy(appliance: String, script: Vec<(Vec<u8>, Vec<u8>)>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let (mut agent, _) = listener.accept().unwrap();
        for (expected, answer) in script {
            let mut got = vec![0; expected.len()];
            agent.read_exact(&mut got).unwrap();
            assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(&expected));
            agent.write_all(&answer).unwrap();
        }
        let Ok(mut up) = TcpStream::connect(appliance) else { return };
        let (mut back, mut down) = (up.try_clone().unwrap(), agent.try_clone().unwrap());
        thread::spawn(move || std::io::copy(&mut back, &mut down));
        let _ = std::io::copy(&mut agent, &mut up);
    });
    address
}

#[test]
fn through_proxies() {
    let lab = Lab::new();
    let identity = lab.identity(1);
    let target = "appliance.example:7410";
    let name = target.split(':').next().unwrap();
    let ask = [&[5, 1, 0, 3, name.len() as u8], name.as_bytes(), &7410u16.to_be_bytes()].concat();
    let done = vec![5, 0, 0, 1, 10, 0, 0, 1, 0, 80];
    let plain = proxy(lab.address(), vec![(vec![5, 1, 0], vec![5, 0]), (ask.clone(), done.clone())]);
    let login = b"\x01\x02me\x06s3cret".to_vec();
    let known = proxy(lab.address(), vec![(vec![5, 1, 2], vec![5, 2]), (login, vec![1, 0]), (ask, done)]);
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    let yes = b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n".to_vec();
    let http = proxy(lab.address(), vec![(format!("{request}\r\n").into(), yes.clone())]);
    let header = format!("{request}Proxy-Authorization: Basic bWU6czNjcmV0\r\n\r\n");
    let http_known = proxy(lab.address(), vec![(header.into(), yes)]);
    for way in [
        format!("socks5://{plain}"),
        format!("socks5://me:s3cret@{known}"),
        format!("http://{http}"),
        format!("http://me:s3cret@{http_known}"),
    ] {
        // The appliance's name is one that only the proxy knows.
        let path = NetworkPath { proxy: Some(way.clone()), ..NetworkPath::default() };
        connect(&lab, &identity, target, path).unwrap_or_else(|error| panic!("{way}: {error:?}"));
    }
}

#[test]
fn proxies_that_refuse_lie_or_say_nothing() {
    let lab = Lab::new();
    let identity = lab.identity(1);
    let request = b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n".to_vec();
    let long = [b"HTTP/1.1 200 ".to_vec(), vec![b'x'; 9000]].concat();
    let cases: Vec<(&str, Vec<(Vec<u8>, Vec<u8>)>, &str)> = vec![
        ("socks5", vec![(vec![5, 1, 0], vec![5, 255])], "log in"),
        ("socks5", vec![(vec![5, 1, 0], b"HT".to_vec())], "SOCKS5"),
        ("socks5", vec![(vec![5, 1, 0], vec![5, 0]), (vec![5, 1, 0, 3, 1, b'a', 0, 1], vec![5, 2, 0, 1])], "rules"),
        ("socks5", vec![(vec![5, 1, 0], vec![5, 0]), (vec![5, 1, 0, 3, 1, b'a', 0, 1], vec![5, 0, 0, 9])], "unknown kind"),
        ("http", vec![(request.clone(), b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n".to_vec())], "407"),
        ("http", vec![(request.clone(), b"SSH-2.0-x\r\n\r\n".to_vec())], "HTTP"),
        ("http", vec![(request.clone(), long)], "8192"),
        ("http", vec![(request, b"HTTP/1.1 200 OK\r\n".to_vec())], "closed the connection"),
    ];
    for (scheme, script, word) in cases {
        let place = proxy("127.0.0.1:1".into(), script);
        let began = Instant::now();
        let path = NetworkPath { proxy: Some(format!("{scheme}://{place}")), ..NetworkPath::default() };
        let error = connect(&lab, &identity, "a:1", path).err().unwrap();
        assert_eq!(error.code(), "STANDIN-E1022", "{error:?}");
        let text = error.to_string();
        assert!(text.contains(word), "{text}: {word}");
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}
