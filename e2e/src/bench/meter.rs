//! How fast a source sends, moment by moment: the content of its TCP packets, as its network device counts it.
//!
//! A limit is on what a connection carries. The device counts headers as well, one for each packet that passes it; without offloading's splitting, which
//! comes behind it, so that taking away as many headers as packets leaves the content. What the kernel sends again because it was lost comes on top of
//! every limit, and is counted by itself.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::network::{DEVICE, Network};

const EVERY: Duration = Duration::from_millis(10);
/// Content of a full packet.
const SEGMENT_BYTES: u64 = 1448;
/// IPv4, and TCP with its time stamps.
const HEADER_BYTES: u64 = 20 + 32;
const ETHERNET_BYTES: u64 = 14;

#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub at: Instant,
    /// Content that has left the source by then, each byte once.
    pub bytes: u64,
    /// What of it left once more.
    pub resent: u64,
}

/// Looks at the device until it is asked for what it saw.
pub struct Meter {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Vec<Sample>>>>,
}

impl Meter {
    pub fn start(network: &Network) -> Result<Meter> {
        let path = network.source_namespace();
        let into = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        let header = HEADER_BYTES + if network.is_ethernet() { ETHERNET_BYTES } else { 0 };
        let ended = Arc::new(AtomicBool::new(false));
        let end = ended.clone();
        let thread = std::thread::spawn(move || {
            rustix::thread::move_into_link_name_space(into.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network))?;
            let mut samples = Vec::new();
            while !end.load(Ordering::Relaxed) {
                let read =
                    |name: &str| fs::read_to_string(format!("/proc/thread-self/net/{name}")).context("reading the network's counters");
                let (device, protocols, at) = (read("dev")?, read("snmp")?, Instant::now());
                let (bytes, packets) = sent(&device).context("the kernel tells no counters of the device")?;
                let resent = retransmitted(&protocols).context("the kernel does not count what TCP sends again")? * SEGMENT_BYTES;
                samples.push(Sample { at, bytes: bytes.saturating_sub(packets * header + resent), resent });
                std::thread::sleep(EVERY);
            }
            Ok(samples)
        });
        Ok(Meter { ended, thread: Some(thread) })
    }

    pub fn samples(mut self) -> Result<Vec<Sample>> {
        self.ended.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the meter has ended")?;
        thread.join().map_err(|_| anyhow!("the meter panicked"))?
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// Bytes and packets that the device has sent, by `/proc/net/dev`.
fn sent(said: &str) -> Option<(u64, u64)> {
    let line = said.lines().find_map(|line| line.trim_start().strip_prefix(DEVICE)?.strip_prefix(':'))?;
    let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    Some((*numbers.get(8)?, *numbers.get(9)?))
}

/// TCP segments that were sent again, by `/proc/net/snmp`.
fn retransmitted(said: &str) -> Option<u64> {
    let mut lines = said.lines().filter_map(|line| line.strip_prefix("Tcp:"));
    let at = lines.next()?.split_whitespace().position(|name| name == "RetransSegs")?;
    lines.next()?.split_whitespace().nth(at)?.parse().ok()
}

/// Bits a second in each window of this length that lies between the two times, in order.
pub fn rates(samples: &[Sample], from: Instant, to: Instant, window: Duration) -> Vec<f64> {
    let within: Vec<&Sample> = samples.iter().filter(|sample| sample.at >= from && sample.at <= to).collect();
    let mut rates = Vec::new();
    let mut end = 0;
    for begin in &within {
        while within.get(end).is_some_and(|sample| sample.at - begin.at < window) {
            end += 1;
        }
        let Some(last) = within.get(end) else { break };
        rates.push(last.bytes.saturating_sub(begin.bytes) as f64 * 8.0 / (last.at - begin.at).as_secs_f64());
    }
    rates
}

/// The largest deviation from a limit, as a share of it.
pub fn worst(rates: &[f64], limit: u64) -> Option<f64> {
    rates.iter().map(|rate| (rate / limit as f64 - 1.0).abs()).max_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_device_has_sent_stands_in_its_line() {
        let said = "Inter-|   Receive  |  Transmit\n face |bytes packets errs\n    lo: 1 2 3 4 5 6 7 8 9 10 0 0 0 0 0 0\nbench0: 10 20 0 0 0 0 0 0 30 40 0 0 0 0 0 0\n";
        assert_eq!(sent(said), Some((30, 40)));
        assert_eq!(sent("bench01: 1 2 3 4 5 6 7 8 9 10"), None);
        assert_eq!(retransmitted("Ip: a b\nIp: 1 2\nTcp: In RetransSegs Out\nTcp: 5 6 7\n"), Some(6));
        assert_eq!(retransmitted("Tcp: In Out\nTcp: 5 6\n"), None);
    }

    #[test]
    fn a_burst_shows_in_the_short_window_more_than_in_the_long() {
        let begin = Instant::now();
        let at = |tenths: u64| begin + Duration::from_millis(100 * tenths);
        // 1,000 bits a second, and 500 more in the fifth one.
        let samples: Vec<Sample> = (0..=200u64)
            .map(|tenths| Sample { at: at(tenths), bytes: tenths * 100 / 8 + if tenths >= 45 { 62 } else { 0 }, resent: 0 })
            .collect();
        let worst_of = |window| worst(&rates(&samples, begin, at(200), Duration::from_secs(window)), 1000).unwrap();
        assert!((0.45..0.55).contains(&worst_of(1)), "{}", worst_of(1));
        assert!((0.045..0.06).contains(&worst_of(10)), "{}", worst_of(10));
        assert_eq!(worst(&rates(&samples, begin, at(5), Duration::from_secs(1)), 1000), None);
    }
}
