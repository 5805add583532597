//! From here to the other end: the chosen address or interface, the family, the proxy, and sockets that notice when a link is gone.
//!
//! Everything up to the open connection has one deadline, a proxy's answers too, which are short or refused. A source address or congestion control that this system
//! does not have is an error of its own: falling back to another would send where somebody has said not to.

use crate::error::ConnectionError as Error;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use standin_model::{AddressFamily, NetworkPath, Proxy, ProxyKind, SourcePlace};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// A proxy's answer in HTTP; RFC 9112 asks for no bound, but nobody needs more.
const ANSWER_BYTES_MAX: usize = 8 * 1024;
/// The kernel asks a silent peer after this, so often, and gives up: 10 + 6 · 5 s. A round trip of 300 ms and lost packets are far below it.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
const KEEPALIVE_TRIES: u32 = 6;

/// A connection to `address`, `HOST:PORT`, or to the proxy's end of it.
pub(super) fn reach(address: &str, limit: Duration, path: &NetworkPath) -> Result<TcpStream, Error> {
    let deadline = Instant::now() + limit;
    let wrong = |error: standin_model::PathError| Error::Path { what: error.to_string(), source: io::ErrorKind::InvalidInput.into() };
    match path.proxy().map_err(wrong)? {
        None => open(address, deadline, path),
        Some(proxy) => {
            let host = if proxy.host.contains(':') {
                format!("[{}]:{}", proxy.host, proxy.port)
            } else {
                format!("{}:{}", proxy.host, proxy.port)
            };
            let stream = open(&host, deadline, path)?;
            let refused = |reason| Error::Proxy { proxy: host.clone(), reason };
            let link = Timed { stream: &stream, deadline };
            match proxy.kind {
                ProxyKind::Socks5 => socks5(link, &proxy, address),
                ProxyKind::HttpConnect => http_connect(link, &proxy, address),
            }
            .map_err(refused)?;
            Ok(stream)
        }
    }
}

/// Tries every address of the name within one time limit.
fn open(address: &str, deadline: Instant, path: &NetworkPath) -> Result<TcpStream, Error> {
    let failed = |source| Error::Connect { address: address.to_owned(), source };
    let place = path.source().map_err(|error| Error::Path { what: error.to_string(), source: io::ErrorKind::InvalidInput.into() })?;
    let family = match (path.family, &place) {
        (None, Some(SourcePlace::Address(IpAddr::V4(_)))) => Some(AddressFamily::Ipv4),
        (None, Some(SourcePlace::Address(IpAddr::V6(_)))) => Some(AddressFamily::Ipv6),
        (family, _) => family,
    };
    let fits = |candidate: &SocketAddr| family.is_none_or(|family| candidate.is_ipv4() == (family == AddressFamily::Ipv4));
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address of the family that is asked for");
    for candidate in address.to_socket_addrs().map_err(failed)?.filter(fits) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            last = io::ErrorKind::TimedOut.into();
            break;
        }
        let socket = prepare(candidate, place.as_ref(), path.congestion.as_deref())?;
        match socket.connect_timeout(&candidate.into(), left) {
            Ok(()) => return Ok(socket.into()),
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

fn prepare(candidate: SocketAddr, place: Option<&SourcePlace>, congestion: Option<&str>) -> Result<Socket, Error> {
    let at = |what: String| move |source| Error::Path { what, source };
    let socket = Socket::new(Domain::for_address(candidate), Type::STREAM, Some(Protocol::TCP)).map_err(at("a socket".into()))?;
    match place {
        Some(SourcePlace::Address(address)) => {
            socket.bind(&SocketAddr::new(*address, 0).into()).map_err(at(format!("the source's address {address}")))?;
        }
        Some(SourcePlace::Interface(name)) => {
            socket.bind_device(Some(name.as_bytes())).map_err(at(format!("the interface {name}")))?;
        }
        None => {}
    }
    if let Some(name) = congestion {
        socket.set_tcp_congestion(name.as_bytes()).map_err(at(format!("the congestion control {name}")))?;
    }
    Ok(socket)
}

/// What every connection's socket is like, at both ends. `idle` is when the other end counts as gone.
pub(super) fn tune(stream: &TcpStream, idle: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_EVERY).with_retries(KEEPALIVE_TRIES);
    socket.set_tcp_keepalive(&keepalive)?;
    // What was sent and never acknowledged ends the connection then, not after the quarter of an hour that the kernel would try.
    socket.set_tcp_user_timeout(Some(idle))
}

/// Reads and writes up to a deadline.
struct Timed<'a> {
    stream: &'a TcpStream,
    deadline: Instant,
}

impl Timed<'_> {
    fn left(&self) -> Result<Option<Duration>, String> {
        match self.deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err("it does not answer in time".into()),
            left => Ok(Some(left)),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        let left = self.left()?;
        self.stream.set_write_timeout(left).and_then(|()| self.stream.write_all(bytes)).map_err(|error| error.to_string())
    }

    /// Exactly so many bytes: what comes behind belongs to the other end.
    fn read(&mut self, count: usize) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; count];
        let mut got = 0;
        while let Some(rest) = bytes.get_mut(got..).filter(|rest| !rest.is_empty()) {
            let left = self.left()?;
            match self.stream.set_read_timeout(left).and_then(|()| self.stream.read(rest)) {
                Ok(0) => return Err("it closed the connection".into()),
                Ok(count) => got += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err("it does not answer in time".into()),
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(bytes)
    }
}

/// RFC 1928, and RFC 1929 for the password. The appliance's name goes to the proxy, which may be the only one that can resolve it.
fn socks5(mut link: Timed<'_>, proxy: &Proxy, address: &str) -> Result<(), String> {
    let (host, port) = split(address)?;
    let method: u8 = if proxy.credentials.is_some() { 2 } else { 0 };
    link.write(&[5, 1, method])?;
    match link.read(2)?.as_slice() {
        [5, chosen] if *chosen == method => {}
        [5, _] => return Err("it asks for another way to log in than it was given".into()),
        _ => return Err("it does not speak SOCKS5".into()),
    }
    if let Some((user, password)) = &proxy.credentials {
        let part = |text: &str| [&[u8::try_from(text.len()).unwrap_or(0)], text.as_bytes()].concat();
        link.write(&[&[1], part(user).as_slice(), part(password).as_slice()].concat())?;
        if link.read(2)?.get(1) != Some(&0) {
            return Err("it does not take the user and password".into());
        }
    }
    let mut ask = vec![5, 1, 0];
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => ask.extend([&[1], ip.octets().as_slice()].concat()),
        Ok(IpAddr::V6(ip)) => ask.extend([&[4], ip.octets().as_slice()].concat()),
        Err(_) => {
            let len = u8::try_from(host.len()).map_err(|_| "the appliance's name is too long for SOCKS5".to_owned())?;
            ask.extend([&[3, len], host.as_bytes()].concat());
        }
    }
    ask.extend(port.to_be_bytes());
    link.write(&ask)?;
    let head = link.read(4)?;
    let (Some(version), Some(reply), Some(kind)) = (head.first(), head.get(1), head.get(3)) else {
        return Err("its answer is cut short".into());
    };
    if *version != 5 {
        return Err("it does not speak SOCKS5".into());
    }
    if *reply != 0 {
        return Err(format!("it cannot reach {address}: {}", reason(*reply)));
    }
    let len = match kind {
        1 => 4,
        4 => 16,
        3 => usize::from(link.read(1)?.first().copied().unwrap_or(0)),
        _ => return Err("its answer has an address of an unknown kind".into()),
    };
    link.read(len + 2).map(drop)
}

/// RFC 1928, 6.
fn reason(reply: u8) -> &'static str {
    match reply {
        1 => "general failure",
        2 => "its rules do not allow it",
        3 => "network unreachable",
        4 => "host unreachable",
        5 => "connection refused",
        6 => "too many hops",
        7 => "it does not make connections",
        8 => "it does not know this kind of address",
        _ => "unknown reason",
    }
}

/// RFC 9110, 9.3.6; the password as RFC 7617 has it.
fn http_connect(mut link: Timed<'_>, proxy: &Proxy, address: &str) -> Result<(), String> {
    split(address)?;
    let login = proxy.credentials.as_ref().map(|(user, password)| {
        format!("Proxy-Authorization: Basic {}\r\n", data_encoding::BASE64.encode(format!("{user}:{password}").as_bytes()))
    });
    link.write(format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n{}\r\n", login.unwrap_or_default()).as_bytes())?;
    let mut answer = Vec::new();
    // Byte by byte: what comes behind the blank line is not ours. Once per connection, and short.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= ANSWER_BYTES_MAX {
            return Err(format!("its answer is longer than {ANSWER_BYTES_MAX} bytes"));
        }
        answer.extend(link.read(1)?);
    }
    let line = String::from_utf8_lossy(answer.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
    let mut words = line.split(' ');
    let (version, status) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    match (version.starts_with("HTTP/1."), status.len() == 3 && status.starts_with('2')) {
        (true, true) => Ok(()),
        (true, false) => Err(format!("it answers {:?}", line.chars().take(100).collect::<String>())),
        _ => Err("it does not speak HTTP".into()),
    }
}

/// `HOST:PORT`, with brackets around an IPv6 address.
fn split(address: &str) -> Result<(&str, u16), String> {
    let wrong = || format!("{address:?} is not HOST:PORT");
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let plain = !host.is_empty() && !host.chars().any(|c| c.is_control() || c == ' ');
    if plain { Ok((host, port.parse().map_err(|_| wrong())?)) } else { Err(wrong()) }
}
