//! The limit as it is on the socket: a whole TLS connection over loopback, and a count of bytes at the other end.

use super::lab::*;
use crate::*;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// A relay in front of the appliance, which notes when how many bytes came from the agent.
struct Meter {
    address: String,
    arrivals: Arc<Mutex<Vec<(Instant, usize)>>>,
}

impl Meter {
    fn before(appliance: String) -> Meter {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let arrivals = Arc::new(Mutex::new(Vec::new()));
        let noted = arrivals.clone();
        thread::spawn(move || {
            let (mut agent, _) = listener.accept().unwrap();
            let mut up = TcpStream::connect(appliance).unwrap();
            let (mut back, mut down) = (up.try_clone().unwrap(), agent.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut back, &mut down));
            let mut bytes = vec![0; 64 << 10];
            loop {
                let count = agent.read(&mut bytes).unwrap_or(0);
                if count == 0 || up.write_all(&bytes[..count]).is_err() {
                    break;
                }
                noted.lock().unwrap().push((Instant::now(), count));
            }
            let _ = up.shutdown(Shutdown::Both);
        });
        Meter { address, arrivals }
    }

    /// Bits that came in each window of `span` between two moments, windows beginning every tenth of a span.
    fn rates(&self, from: Instant, to: Instant, span: Duration) -> Vec<f64> {
        let arrivals = self.arrivals.lock().unwrap();
        let mut rates = Vec::new();
        let mut begin = from;
        while begin + span <= to {
            let bytes: usize = arrivals.iter().filter(|(at, _)| *at >= begin && *at < begin + span).map(|(_, bytes)| bytes).sum();
            rates.push(bytes as f64 * 8.0 / span.as_secs_f64());
            begin += span / 10;
        }
        rates
    }
}

fn spread(rates: &[f64]) -> (f64, f64) {
    rates.iter().fold((f64::MAX, 0f64), |(least, most), rate| (least.min(*rate), most.max(*rate)))
}

/// Sends segments without a pause, and reads their echoes, until the connection is aborted.
fn saturate(connection: Connection) -> (Sender, [thread::JoinHandle<()>; 2]) {
    let (sender, mut receiver) = connection.split();
    let sending = sender.clone();
    let bytes = vec![7; 100_000];
    let send = thread::spawn(move || while sending.send_segment(&bytes).is_ok() {});
    let receive = thread::spawn(move || while receiver.receive::<ToAgent>().is_ok() {});
    (sender, [send, receive])
}

/// How late a thread of this process is woken: what a shared machine takes from the sender too, and no pace can give back within a second.
struct Witness {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Vec<(Instant, Duration)>>,
}

impl Witness {
    fn call() -> Witness {
        const NAP: Duration = Duration::from_millis(5);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut late = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                thread::sleep(NAP);
                late.push((began, began.elapsed().saturating_sub(2 * NAP)));
            }
            late
        });
        Witness { stop, thread }
    }

    fn end(self) -> Vec<(Instant, Duration)> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// The largest part of any window that was lost; stalls of sender, relay and receiver add up, hence the factor.
fn lost(late: &[(Instant, Duration)], from: Instant, to: Instant, span: Duration) -> f64 {
    let inside = |begin: Instant| late.iter().filter(move |(at, _)| *at >= begin && *at < begin + span);
    let sums = late.iter().filter(|(at, _)| *at >= from && *at < to).map(|(at, _)| inside(*at).map(|(_, late)| late.as_secs_f64()).sum());
    3.0 * sums.fold(0.0, f64::max) / span.as_secs_f64()
}

/// Three limits, changed while a segment is on its way. Above them nothing goes in any try; below them only what the machine withholds.
/// `pace::tests` has the goals under every lateness.
#[test]
fn a_limit_is_kept_on_the_socket_and_changed_live() {
    let tries: Vec<_> = (0..3).map_while(|_| limits_kept().err()).collect();
    assert!(tries.len() < 3, "{}", tries.join("; "));
}

fn limits_kept() -> Result<(), String> {
    let lab = Lab::new();
    let identity = lab.identity(1);
    let meter = Meter::before(lab.address());
    let via = Via::default();
    via.pace.set_limit(Some(16_000_000));
    let mut connection = Connection::connect_via(&meter.address, &identity, QUICK, &via).unwrap();
    open_session(&mut connection, hello(&identity.agent_id)).unwrap();
    let (sender, threads) = saturate(connection);
    let (mut checks, witness) = (Vec::new(), Witness::call());
    for (limit, seconds) in [(16_000_000, 3), (4_000_000, 3), (40_000_000, 10)] {
        via.pace.set_limit(Some(limit));
        thread::sleep(Duration::from_millis(200));
        let from = Instant::now();
        thread::sleep(Duration::from_secs(seconds));
        checks.push((limit as f64, from, Instant::now()));
    }
    sender.abort();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let late = witness.end();
    for (limit, from, to) in checks {
        let (least, most) = spread(&meter.rates(from, to, Duration::from_secs(1)));
        let whole = meter.rates(from, to, to - from)[0];
        let (lost_second, lost_all) = (lost(&late, from, to, Duration::from_secs(1)), lost(&late, from, to, to - from));
        let figures = format!("at {limit}: any 1 s {:.4}..{:.4}, in all {:.4}", least / limit, most / limit, whole / limit);
        let figures = format!("{figures}; the machine took {lost_second:.4} of a second, {lost_all:.4} of all");
        eprintln!("{figures}");
        // The meter is a process like any other: what it reads late counts to the window behind.
        assert!(most / limit <= 1.05 + lost_second && whole / limit <= 1.02, "{figures}");
        if least / limit < 0.95 - lost_second || whole / limit < 0.98 - lost_all {
            return Err(figures);
        }
    }
    Ok(())
}
