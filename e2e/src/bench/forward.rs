//! The slow link: a process between two tunnel devices that lets packets through at a rate, after a delay, and loses some.
//!
//! Each way is a link of its own: a packet waits until the ones before it have been sent, which takes their length at the rate, and arrives after
//! the delay. A packet that would wait for longer than the buffer is dropped, as a router does; senders slow down by that.
#![allow(unsafe_code)] // Making a tunnel device is an ioctl without a safe binding.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;

use crate::random::Random;

/// What a packet may wait for the link: twice the round trip of 50 ms, which is what home routers have and more.
const BUFFER: Duration = Duration::from_millis(100);
/// Packets on their way; 100 ms and the delay at 100 Mbit/s are 2,000 of the longest.
const PACKETS_MAX: usize = 16_384;
const PACKET_BYTES_MAX: usize = 2048;

#[derive(Args, Clone, Debug)]
pub struct ForwardArgs {
    pub source: String,
    pub target: String,
    pub device: String,
    pub bits: u64,
    pub delay_ms: u64,
    pub loss: f64,
}

impl ForwardArgs {
    /// The words that start it.
    pub fn words(&self) -> Vec<String> {
        let numbers = [self.bits.to_string(), self.delay_ms.to_string(), self.loss.to_string()];
        ["bench-forward".to_owned(), self.source.clone(), self.target.clone(), self.device.clone()].into_iter().chain(numbers).collect()
    }
}

struct Packet {
    due: Instant,
    bytes: Vec<u8>,
}

/// Runs until it is killed.
pub fn run(args: &ForwardArgs) -> Result<ExitCode> {
    let source = tunnel(&args.source, &args.device)?;
    let target = tunnel(&args.target, &args.device)?;
    println!("ready");
    let ways = [(source.try_clone()?, target.try_clone()?, 1), (target, source, 2)];
    let mut threads = Vec::new();
    for (from, to, seed) in ways {
        let (sender, receiver) = sync_channel(PACKETS_MAX);
        let link = LinkState::new(args.bits, Duration::from_millis(args.delay_ms), args.loss, seed);
        threads.push(std::thread::spawn(move || take_in(from, link, &sender)));
        threads.push(std::thread::spawn(move || let_out(to, &receiver)));
    }
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a thread of the forwarder panicked"))??;
    }
    Ok(ExitCode::SUCCESS)
}

/// One way of the link.
struct LinkState {
    bits: u64,
    delay: Duration,
    loss: f64,
    random: Random,
    /// When the last packet that was taken will have been sent.
    free_at: Instant,
}

impl LinkState {
    fn new(bits: u64, delay: Duration, loss: f64, seed: u64) -> LinkState {
        LinkState { bits, delay, loss, random: Random(seed), free_at: Instant::now() }
    }

    /// When a packet of this length that comes now arrives at the other end; `None` when it is dropped.
    fn arrival(&mut self, now: Instant, len: usize) -> Option<Instant> {
        let lost = self.random.unit() < self.loss;
        let begins = self.free_at.max(now);
        if lost || begins - now > BUFFER {
            return None;
        }
        self.free_at = begins + Duration::from_nanos(len as u64 * 8 * 1_000_000_000 / self.bits);
        Some(self.free_at + self.delay)
    }
}

fn take_in(mut from: File, mut link: LinkState, sender: &SyncSender<Packet>) -> Result<()> {
    let mut buffer = [0; PACKET_BYTES_MAX];
    loop {
        let count = from.read(&mut buffer).context("reading a packet")?;
        if let Some(due) = link.arrival(Instant::now(), count)
            && sender.send(Packet { due, bytes: buffer[..count].to_vec() }).is_err()
        {
            return Ok(());
        }
    }
}

fn let_out(mut to: File, receiver: &Receiver<Packet>) -> Result<()> {
    for packet in receiver {
        std::thread::sleep(packet.due.saturating_duration_since(Instant::now()));
        match to.write_all(&packet.bytes) {
            // The other end is not up yet: the packet is lost, as on a cable that nobody has plugged in.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => {}
            written => written.context("writing a packet")?,
        }
    }
    Ok(())
}

/// `struct ifreq` of linux/if.h, as far as TUNSETIFF reads it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// A tunnel device in a network namespace. It lives as long as its file.
fn tunnel(namespace: &str, device: &str) -> Result<File> {
    let path = format!("/run/netns/{namespace}");
    let into = File::open(&path).with_context(|| format!("opening {path}"))?;
    rustix::thread::move_into_link_name_space(into.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network))
        .with_context(|| format!("entering {path}"))?;
    let file = File::options().read(true).write(true).open("/dev/net/tun").context("opening /dev/net/tun")?;
    let mut request = InterfaceRequest { name: [0; 16], flags: (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short, rest: [0; 22] };
    request.name[..device.len()].copy_from_slice(device.as_bytes());
    // SAFETY: the request reads and writes one `struct ifreq`, whose 40 bytes `request` has.
    let result = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&file), libc::TUNSETIFF as _, &mut request) };
    anyhow::ensure!(result == 0, "making the tunnel device {device}: {}", std::io::Error::last_os_error());
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_keeps_its_rate_its_delay_and_its_buffer() {
        let mut link = LinkState::new(10_000_000, Duration::from_millis(25), 0.0, 1);
        let now = link.free_at;
        let arrivals: Vec<Option<Instant>> = (0..200).map(|_| link.arrival(now, 1250)).collect();
        // A packet of 10,000 bits takes a millisecond; 100 wait in the buffer, and one is on its way.
        assert_eq!(arrivals.iter().flatten().count(), 101);
        assert_eq!(arrivals[0], Some(now + Duration::from_millis(26)));
        assert_eq!(arrivals[100], Some(now + Duration::from_millis(126)));
        assert!(link.arrival(now + Duration::from_millis(1), 1250).is_some());
    }

    #[test]
    fn a_link_loses_its_share() {
        let mut link = LinkState::new(1_000_000_000, Duration::ZERO, 0.02, 1);
        let now = link.free_at;
        let lost = (0..50_000u64).filter(|number| link.arrival(now + Duration::from_millis(*number), 100).is_none()).count();
        assert!((800..1200).contains(&lost), "{lost}");
    }
}
