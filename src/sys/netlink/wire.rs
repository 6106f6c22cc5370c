//! Speaking to the kernel's routing tables: one thread drives every netlink socket of an instance.
//!
//! The kernel does the work of a request inside the call that sends it, under a lock that it shares with every other
//! network change of the machine; it may take milliseconds. On a thread of their own these calls hold up no other
//! task of the daemon. A socket belongs for life to the network namespace it was opened in, so that a container's
//! end is configured through a socket that a short-lived thread opened inside.

use std::fs::File;
use std::path::Path;
use std::time::Duration;
use std::{io, thread};

use futures_util::StreamExt;
use nix::sched::{CloneFlags, setns};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};
use rtnetlink::{Error, Handle};
use tokio::runtime;
use tokio::sync::oneshot;

use super::message::Request;

/// How long a netlink request may take. One waits for a lock that a burst of other changes may hold.
pub(super) const REQUEST_MS_MAX: u64 = 10_000;

/// How long opening a socket inside a namespace may take.
const ENTER_MS_MAX: u64 = 5_000;

/// Removals under way at once, each on a thread; further ones wait.
const APART_MAX: usize = 8;

/// Answers to one request, at most: links of one host, far above what a host has.
const ANSWERS_MAX: usize = 65_536;

/// What went wrong with a request, before it is known whose it was.
#[derive(Debug)]
pub(super) enum WireError {
    Kernel(Error),
    Socket(io::Error),
    Timeout,
}

/// The thread and its socket in the namespace in which it was made.
#[derive(Debug)]
pub(super) struct Wire {
    host: Handle,
    driver: runtime::Handle,
    /// The thread ends when this is dropped, and with it every socket.
    _stop: oneshot::Sender<()>,
}

/// A socket inside a container's namespace; closed when dropped.
#[derive(Debug)]
pub(super) struct Inside(Handle);

impl Wire {
    /// Starts the thread, in the caller's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().max_blocking_threads(APART_MAX).build()?;
        let driver = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let (connection, host, _) = {
            let _entered = runtime.enter();
            rtnetlink::new_connection()?
        };
        let drive = move || {
            runtime.spawn(connection);
            // An error is the sender's end: the same wish.
            let _ = runtime.block_on(stopped);
        };
        thread::Builder::new().name("netlink".into()).spawn(drive)?;
        Ok(Self { host, driver, _stop: stop })
    }

    /// One request to the host's own namespace, and its answers.
    pub(super) async fn ask(&self, request: Request) -> Result<Vec<RouteNetlinkMessage>, WireError> {
        ask(&self.host, request).await
    }

    /// One slow request to the host's own namespace, on a socket and a thread of its own, so that it keeps no other
    /// waiting.
    pub(super) async fn ask_apart(&self, request: Request) -> Result<(), WireError> {
        let gone = |error| WireError::Socket(io::Error::other(error));
        // A socket belongs to the namespace of the thread that opens it: the driver's, not a pool thread's.
        let socket = self.driver.spawn(async { Socket::new(NETLINK_ROUTE) }).await.map_err(gone)?;
        let socket = socket.map_err(WireError::Socket)?;
        let work = self.driver.spawn_blocking(move || exchange(&socket, request));
        match tokio::time::timeout(Duration::from_millis(REQUEST_MS_MAX), work).await {
            Ok(outcome) => outcome.map_err(gone)?,
            Err(_) => Err(WireError::Timeout),
        }
    }

    /// Opens a socket in another network namespace, and switches IPv6 off there: `all` covers the devices that are
    /// there and those that will come.
    pub(super) async fn enter(&self, path: &Path, netns: &File) -> Result<Inside, (&'static str, io::Error)> {
        let netns = netns.try_clone().map_err(|error| ("open", error))?;
        let driver = self.driver.clone();
        let (reply, answer) = oneshot::channel();
        let body = move || {
            let opened = setns(&netns, CloneFlags::CLONE_NEWNET).map_err(io::Error::from).and_then(|()| {
                disable_ipv6("all")?;
                let _entered = driver.enter();
                let (connection, handle, _) = rtnetlink::new_connection()?;
                driver.spawn(connection);
                Ok(Inside(handle))
            });
            // The caller has given up; the socket closes as it is dropped.
            let _ = reply.send(opened);
        };
        let thread = thread::Builder::new().name("netns".into()).spawn(body);
        thread.map_err(|error| ("start a thread for", error))?;
        match tokio::time::timeout(Duration::from_millis(ENTER_MS_MAX), answer).await {
            Ok(Ok(opened)) => opened.map_err(|error| ("enter and prepare", error)),
            Ok(Err(_)) => Err(("enter", io::Error::other(format!("the thread for {} died", path.display())))),
            Err(_) => Err(("enter", io::ErrorKind::TimedOut.into())),
        }
    }

    /// Switches IPv6 off on one link of the host's namespace. On the thread, since the write waits for the same lock.
    pub(super) async fn disable_ipv6(&self, link: &str) -> io::Result<()> {
        let link = link.to_owned();
        self.driver.spawn(async move { disable_ipv6(&link) }).await.map_err(io::Error::other)?
    }

    /// Writes a setting of the host's namespace.
    pub(super) async fn write_setting(&self, path: &'static str, value: &'static str) -> io::Result<()> {
        self.driver.spawn(async move { std::fs::write(path, value) }).await.map_err(io::Error::other)?
    }
}

impl Inside {
    /// One request to the container's namespace, and its answers.
    pub(super) async fn ask(&self, request: Request) -> Result<Vec<RouteNetlinkMessage>, WireError> {
        ask(&self.0, request).await
    }
}

/// `/proc/sys/net` shows the namespace of the thread that looks.
fn disable_ipv6(link: &str) -> io::Result<()> {
    match std::fs::write(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), "1") {
        // A kernel without IPv6, or a link that is gone by now: nothing to switch off.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Sends one request and reads its acknowledgement; blocks.
fn exchange(socket: &Socket, request: Request) -> Result<(), WireError> {
    let mut message = request.message;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let talk = || {
        socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        socket.recv_from_full().map(|(answer, _)| answer)
    };
    let answer = talk().map_err(WireError::Socket)?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
        .map_err(|error| WireError::Kernel(Error::InvalidNla(error.to_string())))?;
    match answer.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => Err(WireError::Kernel(Error::NetlinkError(error))),
        NetlinkPayload::Error(_) => Ok(()),
        _ => Err(WireError::Kernel(Error::UnexpectedMessage(answer))),
    }
}

async fn ask(handle: &Handle, request: Request) -> Result<Vec<RouteNetlinkMessage>, WireError> {
    let mut handle = handle.clone();
    let work = async {
        let mut answers = Vec::new();
        let stream = handle.request(request.message)?;
        let mut stream = std::pin::pin!(stream);
        while let Some(answer) = stream.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(message) if answers.len() < ANSWERS_MAX => answers.push(message),
                NetlinkPayload::Error(error) => return Err(Error::NetlinkError(error)),
                _ => return Err(Error::RequestFailed),
            }
        }
        Ok(answers)
    };
    match tokio::time::timeout(Duration::from_millis(REQUEST_MS_MAX), work).await {
        Ok(answers) => answers.map_err(WireError::Kernel),
        Err(_) => Err(WireError::Timeout),
    }
}
