//! A call from inside by which a tenant keeps itself awake: `http://169.254.1.1/keepalive?seconds=60`.
//!
//! ```text
//! tenant ──► 169.254.1.1:80 ──(firewall)──► here ─► who is it, by its address? ─► counts as used, until then
//! ```
//!
//! For work that nobody outside waits for: a queue's worker, a nightly export. Who calls is known by the address, which the firewall
//! has checked, so none keeps another awake; and nothing that a call carries is used but a number of seconds.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::places::{Place, Places};
use super::{Tenants, address_of, pause_after};
use crate::domain::ContainerId;

/// The longest that one call keeps a tenant awake, in seconds: who works for longer calls again, or is taken for stuck.
pub const SECONDS_MAX: u32 = 3_600;
/// Calls of one tenant at once, and of all.
const CALLS_OF_ONE_MAX: usize = 4;
const CALLS_OF_ALL_MAX: usize = 1_024;
/// Bytes and fields of a call's head.
const HEAD_BYTES_MAX: usize = 4_096;
const FIELDS_MAX: usize = 32;
/// For the whole call, in milliseconds.
const CALL_MS_MAX: u64 = 5_000;

/// What came of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is kept awake.
    Awake,
    /// Its settings say that such calls do not count.
    SwitchedOff,
    /// It is being put to sleep at this moment.
    TooLate,
}

/// Who keeps containers awake: the floor below, or a table in a test.
pub trait Keeper: fmt::Debug + Send + Sync + 'static {
    /// Counts a container as used for so long from now on. Must not wait.
    fn keep(&self, container: ContainerId, time: Duration) -> Kept;
}

/// Answers such calls; [`Keepalive::serve`] runs it.
#[derive(Debug)]
pub struct Keepalive {
    tenants: Arc<dyn Tenants>,
    keeper: Arc<dyn Keeper>,
    places: Places,
}

impl Keepalive {
    /// For these tenants.
    pub fn new(tenants: Arc<dyn Tenants>, keeper: Arc<dyn Keeper>) -> Arc<Self> {
        Arc::new(Self { tenants, keeper, places: Places::new(CALLS_OF_ONE_MAX, CALLS_OF_ALL_MAX) })
    }

    /// Answers until `shutdown`.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, shutdown: CancellationToken) {
        let tasks = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                // Cancel-safe: an accept that was not polled to its end took no connection.
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => break,
            };
            match accepted {
                Ok((stream, from)) => self.begin(stream, from, &tasks, &shutdown),
                Err(error) => pause_after(&error).await,
            }
        }
        tasks.close();
        tasks.wait().await;
    }

    /// Answers one call in a task; who has as many open as it may is cut off.
    fn begin(self: &Arc<Self>, stream: TcpStream, from: SocketAddr, tasks: &TaskTracker, shutdown: &CancellationToken) {
        let Some(tenant) = address_of(from).and_then(|address| self.tenants.at(address)) else { return };
        let Some(place) = self.places.take(tenant.container) else { return };
        let (keepalive, shutdown) = (Arc::clone(self), shutdown.clone());
        tasks.spawn(async move {
            let _held: Place = place;
            let call = timeout(Duration::from_millis(CALL_MS_MAX), keepalive.call(stream, tenant.container));
            // How a tenant's connection ended is the tenant's affair.
            let _ = shutdown.run_until_cancelled(call).await;
        });
    }

    async fn call(&self, mut stream: TcpStream, container: ContainerId) -> io::Result<()> {
        let answer = match asked(&mut stream).await? {
            Ok(seconds) => match self.keeper.keep(container, Duration::from_secs(seconds.into())) {
                Kept::Awake => {
                    Answer { status: "200 OK", text: format!("kept awake; its silence begins in {seconds} s") }
                }
                Kept::SwitchedOff => {
                    Answer::new("403 Forbidden", "keepalive calls are switched off for this container")
                }
                Kept::TooLate => Answer::new("503 Service Unavailable", "it is being put to sleep"),
            },
            Err(refused) => refused,
        };
        let Answer { status, text } = answer;
        let length = text.len() + 1;
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nCache-Control: no-store\r\n\
             Connection: close\r\n\r\n{text}\n"
        );
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await
    }
}

/// What is answered: never a text of the caller's.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    status: &'static str,
    text: String,
}

impl Answer {
    fn new(status: &'static str, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }
}

/// Reads a call's head, and for how many seconds it asks. A body is not read.
async fn asked(stream: &mut TcpStream) -> io::Result<Result<u32, Answer>> {
    let mut head = Vec::new();
    let mut buffer = [0; 1_024];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(&buffer[..read]);
        if let Some(outcome) = understood(&head) {
            return Ok(outcome);
        }
        if head.len() > HEAD_BYTES_MAX {
            return Ok(Err(Answer::new("431 Request Header Fields Too Large", "the call's head is too long")));
        }
    }
}

/// What a head asks for; `None` while it is not all there. Pure.
fn understood(head: &[u8]) -> Option<Result<u32, Answer>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Partial) => None,
        Ok(httparse::Status::Complete(_)) => {
            Some(seconds(request.method.unwrap_or_default(), request.path.unwrap_or_default()))
        }
        Err(_) => Some(Err(Answer::new("400 Bad Request", "this is no HTTP"))),
    }
}

fn seconds(method: &str, target: &str) -> Result<u32, Answer> {
    // Proxies' clients name the whole URL.
    let target = target.strip_prefix("http://169.254.1.1").unwrap_or(target);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if path != "/keepalive" {
        return Err(Answer::new("404 Not Found", "there is /keepalive alone"));
    }
    if !matches!(method, "GET" | "POST" | "PUT") {
        return Err(Answer::new("405 Method Not Allowed", "GET or POST is wanted"));
    }
    let wanted = || Answer::new("400 Bad Request", format!("?seconds=1 to {SECONDS_MAX} is wanted, or nothing"));
    match query {
        "" => Ok(0),
        query => {
            let number = query.strip_prefix("seconds=").and_then(|number| number.parse().ok());
            number.filter(|number| (1..=SECONDS_MAX).contains(number)).ok_or_else(wanted)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::super::Tenant;
    use super::*;

    #[test]
    fn a_call_says_how_long_or_nothing() {
        let seconds = |target| seconds("GET", target);
        assert_eq!(seconds("/keepalive"), Ok(0));
        assert_eq!(seconds("/keepalive?seconds=60"), Ok(60));
        assert_eq!(seconds("http://169.254.1.1/keepalive?seconds=3600"), Ok(3_600));
        for bad in ["?seconds=0", "?seconds=3601", "?seconds=-1", "?seconds=", "?minutes=1", "?seconds=1&seconds=2"] {
            let target = format!("/keepalive{bad}");
            assert!(super::seconds("GET", &target).unwrap_err().status.starts_with("400"), "{bad}");
        }
        for bad in ["/", "/keepalive/", "/Keepalive", "*", "http://example.com/keepalive"] {
            assert!(seconds(bad).unwrap_err().status.starts_with("404"), "{bad}");
        }
        assert!(super::seconds("DELETE", "/keepalive").unwrap_err().status.starts_with("405"));
    }

    proptest! {
        #[test]
        fn whatever_comes_is_understood_or_refused(head in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Some(Ok(seconds)) = understood(&head) {
                prop_assert!(seconds <= SECONDS_MAX);
            }
        }
    }

    #[derive(Debug, Default)]
    struct Table {
        kept: Mutex<Vec<(ContainerId, u64)>>,
    }

    impl Tenants for Table {
        fn at(&self, address: Ipv4Addr) -> Option<Tenant> {
            let tenant = Tenant { container: ContainerId::NIL, address, network: None };
            (address == Ipv4Addr::LOCALHOST).then_some(tenant)
        }
    }

    impl Keeper for Table {
        fn keep(&self, container: ContainerId, time: Duration) -> Kept {
            self.kept.lock().unwrap().push((container, time.as_secs()));
            Kept::Awake
        }
    }

    /// What is answered to some bytes.
    async fn answer(table: &Arc<Table>, bytes: &[u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let keepalive = Keepalive::new(table.clone(), table.clone());
        let served = tokio::spawn(keepalive.serve(listener, shutdown.clone()));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        shutdown.cancel();
        served.await.unwrap();
        answer
    }

    #[tokio::test]
    async fn who_calls_is_kept_awake_and_a_head_without_end_is_not_read() {
        let table = Arc::new(Table::default());
        let call = b"GET /keepalive?seconds=9 HTTP/1.1\r\nHost: 169.254.1.1\r\n\r\n";
        let good = answer(&table, call).await;
        assert!(
            good.starts_with("HTTP/1.1 200") && good.ends_with("\r\n\r\nkept awake; its silence begins in 9 s\n"),
            "{good}"
        );
        assert_eq!(*table.kept.lock().unwrap(), [(ContainerId::NIL, 9)]);
        let endless = [b"GET /keepalive HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; HEAD_BYTES_MAX]].concat();
        assert!(answer(&table, &endless).await.starts_with("HTTP/1.1 431"));
        assert!(answer(&table, b"\x16\x03\x01 no HTTP\r\n\r\n").await.starts_with("HTTP/1.1 400"));
        assert_eq!(table.kept.lock().unwrap().len(), 1);
    }
}
