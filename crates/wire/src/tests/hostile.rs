//! Strangers: garbage before TLS, garbage inside TLS, floods, and sessions without a certificate. The appliance goes on serving.

use super::lab::*;
use crate::connection::Connection;
use crate::*;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A connection that has verified the appliance but shows no certificate.
fn newcomer(lab: &Lab) -> Connection {
    let config = tls::newcomer_config(lab.authority.fingerprint()).unwrap();
    Connection::connect_with(&lab.address(), config, QUICK, &Via::default()).unwrap()
}

#[test]
fn garbage_instead_of_tls_is_closed() {
    let lab = Lab::new();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 3000], b"\x16\x03\x01\xff\xff"] {
        let mut stream = TcpStream::connect(lab.listening.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        stream.write_all(garbage).unwrap();
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let ended = stream.read_to_end(&mut Vec::new());
        let timed_out = ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(!timed_out);
    }
    lab.identity(1);
}

#[test]
fn a_newcomer_may_only_enrol() {
    let lab = Lab::new();
    let mut session = newcomer(&lab);
    assert!(open_session(&mut session, hello(&agent(1))).is_err());
    let mut flood = newcomer(&lab);
    let _ = flood.send_segment(&vec![0; 1 << 20]);
    assert!(flood.receive::<EnrolReply>().is_err());
    assert!(lab.appliance.session_errors.lock().unwrap().is_empty());
}

#[test]
fn a_newcomer_of_another_protocol_keeps_its_token() {
    let lab = Lab::new();
    let token = lab.token(1);
    let mut link = newcomer(&lab);
    let (_, csr) = new_key_and_request().unwrap();
    let request = EnrolRequest { protocol: 7, secret: token.secret().into(), csr, hostname: "h".into() };
    link.send(&request).unwrap();
    let reply = link.receive::<EnrolReply>().unwrap().control().unwrap();
    assert!(matches!(reply, EnrolReply::Refused(Refusal { code, .. }) if code == "STANDIN-E1004"));
    let mut link = newcomer(&lab);
    link.send(&EnrolRequest { protocol: PROTOCOL, csr: "bad".into(), ..request }).unwrap();
    let reply = link.receive::<EnrolReply>().unwrap().control().unwrap();
    assert!(matches!(reply, EnrolReply::Refused(Refusal { code, .. }) if code == "STANDIN-E1015"));
    lab.enrol(&token.to_string()).unwrap();
}

#[test]
fn garbage_inside_a_session_ends_it_with_a_code() {
    let lab = Lab::new();
    let identity = lab.identity(1);
    let connection = lab.connect(&identity).unwrap();
    connection.send(&"not a message").unwrap();
    let (_sender, mut receiver) = connection.split();
    assert!(receiver.receive::<ToAgent>().is_err());
    for _ in 0..200 {
        if !lab.appliance.session_errors.lock().unwrap().is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(*lab.appliance.session_errors.lock().unwrap(), ["STANDIN-E1008"]);
    lab.connect(&identity).unwrap();
}

#[test]
fn silent_strangers_do_not_keep_agents_out_for_long() {
    let timeouts = Timeouts { connect: Duration::from_millis(500), ..QUICK };
    let lab = Lab::with(ServeOptions { timeouts, newcomers_max: 2, ..Default::default() });
    let identity = signed(&lab.authority, 1, Duration::from_secs(3600));
    let _strangers: Vec<_> = (0..5).map(|_| TcpStream::connect(lab.listening.address()).unwrap()).collect();
    let connected = (0..100).find_map(|_| {
        std::thread::sleep(Duration::from_millis(50));
        lab.connect(&identity).ok()
    });
    assert!(connected.is_some());
}
