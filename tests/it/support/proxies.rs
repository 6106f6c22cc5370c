//! Proxies on the lab's internet: they really connect, from there.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::net::{INTERNET, Netns, PATIENCE, in_ticks};

/// How a proxy is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Socks5,
    Http,
}

/// What a proxy saw.
#[derive(Debug, Default)]
struct Log {
    targets: Mutex<Vec<SocketAddr>>,
    refused: Mutex<Vec<String>>,
}

/// A proxy at [`INTERNET`]; when dropped it is gone with all its connections.
#[derive(Debug)]
pub struct Proxy {
    log: Arc<Log>,
    stop: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens in a namespace that has [`INTERNET`]; lets in whoever has these credentials, or anybody.
    pub fn listen(netns: &Netns, kind: Kind, port: u16, credentials: Option<(&str, &str)>) -> Self {
        let listener = in_ticks(netns.run(|| TcpListener::bind((INTERNET, port)).unwrap()));
        let (log, stop) = (Arc::new(Log::default()), Arc::new(AtomicBool::new(false)));
        let open = Arc::new(Mutex::new(Vec::new()));
        let credentials = credentials.map(|(user, password)| (user.to_owned(), password.to_owned()));
        let inside = netns.path();
        let body = {
            let (log, stop, open) = (log.clone(), stop.clone(), open.clone());
            move || {
                // Threads inherit the namespace: every connection it makes begins there.
                let file = std::fs::File::open(inside).unwrap();
                nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let Ok((stream, _)) = listener.accept() else { continue };
                    open.lock().unwrap().push(stream.try_clone().unwrap());
                    let (log, open, credentials) = (log.clone(), open.clone(), credentials.clone());
                    thread::spawn(move || serve(kind, stream, credentials.as_ref(), &log, &open));
                }
            }
        };
        Self { log, stop, open, thread: Some(thread::spawn(body)) }
    }

    /// Where it was asked to connect to.
    pub fn targets(&self) -> Vec<SocketAddr> {
        self.log.targets.lock().unwrap().clone()
    }

    /// Whom it did not let in, by what they said.
    pub fn refused(&self) -> Vec<String> {
        self.log.refused.lock().unwrap().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.open.lock().unwrap().iter().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
    }
}

type Credentials = (String, String);

fn serve(kind: Kind, mut stream: TcpStream, wanted: Option<&Credentials>, log: &Log, open: &Mutex<Vec<TcpStream>>) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let asked = match kind {
        Kind::Socks5 => socks5(&mut stream, wanted),
        Kind::Http => http(&mut stream, wanted),
    };
    let target = match asked {
        Ok(target) => target,
        Err(error) => return log.refused.lock().unwrap().push(error.to_string()),
    };
    log.targets.lock().unwrap().push(target);
    let connected = TcpStream::connect_timeout(&target, Duration::from_secs(1));
    let said = match (kind, connected.is_ok()) {
        (Kind::Socks5, true) => stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
        (Kind::Socks5, false) => stream.write_all(&[5, 5, 0, 1, 0, 0, 0, 0, 0, 0]),
        (Kind::Http, true) => stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n"),
        (Kind::Http, false) => stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"),
    };
    let Ok(upstream) = connected else { return };
    if said.is_err() {
        return;
    }
    open.lock().unwrap().push(upstream.try_clone().unwrap());
    stream.set_read_timeout(None).unwrap();
    let (from, to) = (stream.try_clone().unwrap(), upstream.try_clone().unwrap());
    thread::spawn(move || pump(from, to));
    pump(upstream, stream);
}

fn pump(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

/// RFC 1928 and RFC 1929, as far as a client of the daemon's kind goes.
fn socks5(stream: &mut TcpStream, wanted: Option<&Credentials>) -> io::Result<SocketAddr> {
    let [version, methods] = read(stream)?;
    let mut offered = vec![0; methods.into()];
    stream.read_exact(&mut offered)?;
    let method = if wanted.is_some() { 2 } else { 0 };
    if version != 5 || !offered.contains(&method) {
        stream.write_all(&[5, 0xff])?;
        return Err(io::Error::other(format!("methods {offered:?}")));
    }
    stream.write_all(&[5, method])?;
    if let Some((user, password)) = wanted {
        let [_version] = read(stream)?;
        let given = (text(stream)?, text(stream)?);
        let fits = given == (user.clone(), password.clone());
        stream.write_all(&[1, u8::from(!fits)])?;
        if !fits {
            return Err(io::Error::other(format!("{given:?}")));
        }
    }
    let [_, command, _, kind] = read(stream)?;
    if (command, kind) != (1, 1) {
        return Err(io::Error::other("neither CONNECT nor IPv4"));
    }
    let [a, b, c, d, high, low] = read(stream)?;
    Ok(SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high, low])).into())
}

fn http(stream: &mut TcpStream, wanted: Option<&Credentials>) -> io::Result<SocketAddr> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let [byte] = read(stream)?;
        head.push(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let given = head.lines().find_map(|line| line.strip_prefix("proxy-authorization: Basic "));
    let basic = wanted.map(|(user, password)| {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
    });
    if given != basic.as_deref() {
        stream.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")?;
        return Err(io::Error::other(format!("{given:?}")));
    }
    let mut words = head.split(' ');
    match (words.next(), words.next().map(str::parse)) {
        (Some("CONNECT"), Some(Ok(target))) => Ok(target),
        _ => Err(io::Error::other(head)),
    }
}

fn read<const N: usize>(stream: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn text(stream: &mut TcpStream) -> io::Result<String> {
    let [length] = read(stream)?;
    let mut bytes = vec![0; length.into()];
    stream.read_exact(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
