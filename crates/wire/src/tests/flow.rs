//! Both directions at once, large and small, and what ends a connection.

use super::lab::*;
use crate::*;
use standin_model::{JobId, OpSeq};
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

/// Two ends of one connection without a listener.
fn pair(timeouts: Timeouts) -> (Connection, Connection) {
    let dir = TempDir::new().unwrap();
    let authority = authority(dir.path());
    let identity = signed(&authority, 1, Duration::from_secs(3600));
    let config = authority.server_config(&[]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let accepting = thread::spawn(move || match Connection::accept(listener.accept().unwrap().0, &config, timeouts).unwrap() {
        Accepted::Agent(id, connection) if id == agent(1) => connection,
        _ => panic!("not the agent"),
    });
    let agent = Connection::connect(&address, &identity, timeouts).unwrap();
    (agent, accepting.join().unwrap())
}

fn pattern(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + number * 13) as u8).collect()
}

#[test]
fn segments_of_every_size_arrive_whole() {
    let lab = Lab::new();
    let mut connection = lab.connect(&lab.identity(1)).unwrap();
    for len in [0, 1, 4095, 16 << 10, (32 << 10) - 5, 32 << 10, (32 << 10) + 1, 1 << 20, 8 << 20] {
        let bytes = pattern(len, len);
        // An echo: the whole segment is at the other end before any of it comes back.
        connection.send_segment(&bytes).unwrap();
        assert!(connection.receive::<ToAgent>().unwrap() == Incoming::Segment(bytes), "{len}");
    }
    assert_eq!(connection.send_segment(&vec![0; (8 << 20) + 1]).unwrap_err().code(), "STANDIN-E1009");
    connection.send_segment(b"still fine").unwrap();
}

/// Both ends send more than all buffers hold before either has read everything; each end sends from two threads.
#[test]
fn both_directions_saturated_do_not_deadlock() {
    const EACH: usize = 24;
    const LEN: usize = 2 << 20;
    let (one, two) = pair(QUICK);
    let ends: Vec<_> = [one, two]
        .into_iter()
        .map(|connection| {
            let (sender, mut receiver) = connection.split();
            let chatter = sender.clone();
            let sending = thread::spawn(move || (0..EACH).for_each(|number| sender.send_segment(&pattern(number, LEN)).unwrap()));
            let chatting = thread::spawn(move || {
                let message = |seq| ToAgent::Ack { job: JobId::from_random([1; 8]), durable: OpSeq(seq), applied: OpSeq(0) };
                (0..500).for_each(|seq| chatter.send(&message(seq)).unwrap());
            });
            let receiving = thread::spawn(move || {
                let (mut segments, mut messages) = (0, 0);
                while segments < EACH || messages < 500 {
                    match receiver.receive::<ToAgent>().unwrap() {
                        Incoming::Segment(bytes) => {
                            assert!(bytes == pattern(segments, LEN));
                            segments += 1;
                        }
                        Incoming::Control(ToAgent::Ack { durable, .. }) => {
                            assert_eq!(durable, OpSeq(messages));
                            messages += 1;
                        }
                        Incoming::Control(_) => panic!(),
                    }
                }
                receiver
            });
            (sending, chatting, receiving)
        })
        .collect();
    for (sending, chatting, receiving) in ends {
        sending.join().unwrap();
        chatting.join().unwrap();
        receiving.join().unwrap();
    }
}

#[test]
fn a_quiet_connection_stays_alive_and_a_dead_one_is_noticed() {
    let timeouts = Timeouts { idle: Duration::from_millis(600), keepalive: Duration::from_millis(100), ..QUICK };
    let (mut one, mut two) = pair(timeouts);
    let waiting = thread::spawn(move || {
        let message = two.receive::<ToAgent>();
        (message, two)
    });
    let listening = thread::spawn(move || one.receive::<ToAgent>().map(|_| ()).map_err(|error| error.code().to_owned()));
    thread::sleep(Duration::from_millis(1500)); // Longer than `idle`: only keep-alives bridge it.
    assert!(!waiting.is_finished() && !listening.is_finished());
    // One end stops reading and with that stops saying that it lives.
    let (one, _two) = pair(timeouts);
    let (_sender, mut receiver) = one.split();
    assert_eq!(receiver.receive::<ToAgent>().unwrap_err().code(), "STANDIN-E1003");
}

#[test]
fn closing_is_told_from_losing() {
    let (one, mut two) = pair(QUICK);
    one.send(&ToAgent::Unknown).unwrap();
    one.sender().close();
    assert_eq!(two.receive::<ToAgent>().unwrap(), Incoming::Control(ToAgent::Unknown));
    assert!(matches!(two.receive::<ToAgent>(), Err(ConnectionError::Closed)));
    let (one, mut two) = pair(QUICK);
    one.sender().abort();
    let error = two.receive::<ToAgent>().unwrap_err();
    assert!(matches!(error, ConnectionError::Lost { .. }) && error.is_retryable(), "{error}");
}

#[test]
fn aborting_wakes_a_blocked_receiver_and_a_blocked_sender() {
    let (one, two) = pair(QUICK);
    let (sender, mut receiver) = one.split();
    let stopper = sender.clone();
    let receiving = thread::spawn(move || receiver.receive::<ToAgent>().is_err());
    // Nobody reads at the other end, so this blocks until the abort.
    let sending = thread::spawn(move || (0..100).any(|_| sender.send_segment(&vec![0; 8 << 20]).is_err()));
    thread::sleep(Duration::from_millis(300));
    stopper.abort();
    assert!(receiving.join().unwrap() && sending.join().unwrap());
    drop(two);
}

#[test]
fn a_peer_that_does_not_read_fails_the_write_in_time() {
    let (one, _two) = pair(Timeouts { write: Duration::from_millis(300), ..QUICK });
    let error = (0..100).find_map(|_| one.send_segment(&vec![0; 8 << 20]).err()).unwrap();
    assert_eq!(error.code(), "STANDIN-E1003");
    assert_eq!(one.send_segment(b"").unwrap_err().code(), "STANDIN-E1002");
}

#[test]
fn the_bound_on_sessions_is_said_and_freed_again() {
    let lab = Lab::with(ServeOptions { timeouts: QUICK, sessions_max: 1, ..Default::default() });
    let identity = lab.identity(1);
    let first = lab.connect(&identity).unwrap();
    assert_eq!(lab.connect(&identity).err().unwrap().code(), "STANDIN-E1016");
    drop(first);
    let again = (0..100).find_map(|_| {
        thread::sleep(Duration::from_millis(20));
        lab.connect(&identity).ok()
    });
    assert!(again.is_some());
}

#[test]
fn stopping_ends_accepting() {
    let lab = Lab::new();
    let (address, identity) = (lab.address(), lab.identity(1));
    let appliance = Arc::downgrade(&lab.appliance);
    lab.listening.stop();
    let error = Connection::connect(&address, &identity, QUICK).err().unwrap();
    assert_eq!((error.code(), error.is_retryable()), ("STANDIN-E1001", true));
    drop((lab.appliance, lab.authority));
    assert!(appliance.strong_count() <= 1);
}
