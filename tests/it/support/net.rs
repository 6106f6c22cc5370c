//! A network to test in: nothing of it touches the machine's own.
//!
//! ```text
//!  internet  203.0.113.1 ──veth── 203.0.113.2  host = the test's own thread
//!            198.51.100.1 a server somewhere     default route by the internet; tenants are attached here
//!            169.254.169.254 a cloud's metadata service, as seen from the host
//!            10.99.0.1 the operator's private network
//! ```
//!
//! Threads inherit the namespace of the thread that starts them, and so do processes: a runtime, a daemon or an `nft`
//! started from the test's thread is on the lab's host. Tests with tokio use a current-thread runtime.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{io, thread};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;

/// A server on the internet.
pub const INTERNET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The internet's end of the host's uplink.
pub const UPLINK_GATEWAY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The host's address on its uplink.
pub const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// A cloud's metadata service.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// A machine in the operator's private network.
pub const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

/// How long a packet that must not arrive is waited for.
pub const SILENCE: Duration = Duration::from_millis(200);
/// How long a packet that must arrive is waited for.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// A network namespace, alive as long as this or anything in it is.
#[derive(Debug)]
pub struct Netns(File);

impl Netns {
    /// A new namespace with its loopback device down, as the kernel makes it.
    pub fn new() -> Self {
        thread::scope(|scope| {
            let made = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                Self::current()
            });
            made.join().unwrap()
        })
    }

    /// The calling thread's.
    pub fn current() -> Self {
        Self(File::open("/proc/thread-self/ns/net").unwrap())
    }

    /// The namespace of another process.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/ns/net")).map(Self)
    }

    /// A path that opens it, from any thread of this process.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    /// Runs something on a thread inside, and waits for it.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                body()
            });
            inside.join().unwrap()
        })
    }

    /// `ip <words>` inside.
    pub fn ip(&self, words: &str) -> String {
        self.run(|| ip(words))
    }
}

/// `ip <words>` in the calling thread's namespace.
pub fn ip(words: &str) -> String {
    tool("ip", words)
}

/// `nft <words>` in the calling thread's namespace.
pub fn nft(words: &str) -> String {
    tool("nft", words)
}

fn tool(program: &str, words: &str) -> String {
    let output = Command::new(program).args(words.split_whitespace()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {words}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// The lab: made by moving the calling thread into a new namespace, undone by dropping it.
#[derive(Debug)]
pub struct NetLab {
    /// Where the packets go that leave this machine.
    pub internet: Netns,
    before: Netns,
}

impl NetLab {
    /// Moves the calling thread, and what it starts from now on, to the lab's host.
    pub fn enter() -> Self {
        let before = Netns::current();
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let internet = Netns::new();
        ip("link set lo up");
        ip(&format!("link add uplink type veth peer name host netns {}", internet.path().display()));
        internet.ip("link set lo up");
        for address in [INTERNET, METADATA, PRIVATE] {
            internet.ip(&format!("address add {address}/32 dev lo"));
        }
        internet.ip(&format!("address add {UPLINK_GATEWAY}/24 dev host"));
        internet.ip("link set host up");
        ip(&format!("address add {HOST}/24 dev uplink"));
        ip("link set uplink up");
        ip(&format!("route add default via {UPLINK_GATEWAY}"));
        Self { internet, before }
    }
}

impl Drop for NetLab {
    fn drop(&mut self) {
        let _ = setns(&self.before.0, CloneFlags::CLONE_NEWNET);
    }
}

/// A TCP server: greets with the address it sees, then sends back what it gets.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Listens on all addresses of a namespace.
    pub fn listen(netns: &Netns, port: u16) -> Self {
        let listener = in_ticks(netns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let body = move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((stream, peer)) = listener.accept() {
                    let stopped = stopped.clone();
                    thread::spawn(move || serve(stream, peer, &stopped));
                }
            }
        };
        Self { stop, thread: Some(thread::spawn(body)) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Lets accepts and reads of a socket come back now and then, to look whether the server shall stop.
pub fn in_ticks<T: AsFd>(socket: T) -> T {
    setsockopt(&socket, ReceiveTimeout, &TimeVal::new(0, 20_000)).unwrap();
    socket
}

fn serve(stream: TcpStream, peer: SocketAddr, stopped: &AtomicBool) {
    let mut stream = in_ticks(stream);
    let mut buffer = [0; 1024];
    if stream.write_all(format!("{}\n", peer.ip()).as_bytes()).is_err() {
        return;
    }
    while !stopped.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(length) if length > 0 && stream.write_all(&buffer[..length]).is_ok() => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

/// A conversation with an [`Echo`].
#[derive(Debug)]
pub struct Conversation {
    stream: TcpStream,
    /// The address the server saw.
    pub seen_as: Ipv4Addr,
}

impl Conversation {
    /// Connects from the calling thread's namespace.
    pub fn open(address: Ipv4Addr, port: u16, timeout: Duration) -> io::Result<Self> {
        let target = SocketAddr::V4(SocketAddrV4::new(address, port));
        let mut stream = TcpStream::connect_timeout(&target, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        let mut greeting = Vec::new();
        while greeting.last() != Some(&b'\n') {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            greeting.push(byte[0]);
        }
        let seen_as = String::from_utf8(greeting).unwrap().trim().parse().unwrap();
        Ok(Self { stream, seen_as })
    }

    /// Sends a word and waits for it to come back.
    pub fn say(&mut self, word: &[u8]) -> io::Result<()> {
        self.stream.write_all(word)?;
        let mut back = vec![0; word.len()];
        self.stream.read_exact(&mut back)?;
        assert_eq!(back, word);
        Ok(())
    }
}

/// Connects from inside a namespace and says a word; the address the server saw.
pub fn talk(from: &Netns, address: Ipv4Addr, port: u16) -> io::Result<Ipv4Addr> {
    from.run(|| {
        let mut conversation = Conversation::open(address, port, PATIENCE)?;
        conversation.say(b"hello")?;
        Ok(conversation.seen_as)
    })
}

/// Whether a connection is refused, and not left without a word, within [`PATIENCE`].
pub fn rejected(from: &Netns, address: Ipv4Addr, port: u16) -> bool {
    from.run(|| Conversation::open(address, port, PATIENCE))
        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Why a connection is not made within [`SILENCE`]; panics where it is.
pub fn refused(from: &Netns, address: Ipv4Addr, port: u16) -> io::ErrorKind {
    from.run(|| match Conversation::open(address, port, SILENCE) {
        Ok(conversation) => panic!("{address}:{port} was reached, seen as {}", conversation.seen_as),
        Err(error) => error.kind(),
    })
}

/// Who sent it, and what it was.
pub type Datagram = (SocketAddr, Vec<u8>);

/// A UDP socket that remembers who sent what.
#[derive(Debug)]
pub struct Sink {
    received: Arc<Mutex<Vec<Datagram>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sink {
    /// Listens on all addresses of a namespace.
    pub fn listen(netns: &Netns, port: u16) -> Self {
        let socket = in_ticks(netns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()));
        let (received, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (log, stopped) = (received.clone(), stop.clone());
        let body = move || {
            let mut buffer = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    log.lock().unwrap().push((from, buffer[..length].to_vec()));
                }
            }
        };
        Self { received, stop, thread: Some(thread::spawn(body)) }
    }

    /// What has come so far.
    pub fn received(&self) -> Vec<Datagram> {
        self.received.lock().unwrap().clone()
    }

    /// Waits for a datagram with this text.
    pub fn waits_for(&self, text: &str, timeout: Duration) -> Option<SocketAddr> {
        let deadline = std::time::Instant::now() + timeout;
        loop {
            let found = self.received().into_iter().find(|(_, bytes)| bytes == text.as_bytes());
            if found.is_some() || std::time::Instant::now() > deadline {
                return found.map(|(from, _)| from);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sends one datagram from a namespace, from a source address of its own choice.
pub fn send(from: &Netns, source: Ipv4Addr, address: Ipv4Addr, port: u16, text: &str) -> io::Result<()> {
    from.run(|| {
        let socket = UdpSocket::bind((source, 0))?;
        socket.send_to(text.as_bytes(), (address, port)).map(drop)
    })
}

/// Answers everybody at once, wherever on the loopback.
pub async fn answer_all() -> (u16, tokio::task::JoinHandle<()>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut some = [0; 1024];
                while stream.read(&mut some).await.is_ok_and(|read| read > 0) {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                }
            });
        }
    });
    (port, serving)
}
