//! HTTP/2 in front of containers that speak HTTP/1.1.

use futures_util::future::join_all;
use http_body_util::{BodyExt, Empty, StreamBody, combinators::BoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::header::HeaderMap;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::*;

type Sent = BoxBody<Bytes, std::convert::Infallible>;
pub(super) type Sender = SendRequest<Sent>;

const URL: &str = "http://acme.node1.localhost/";

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A client over any stream, and the end of its connection.
pub(super) async fn shake<S>(stream: S) -> (Sender, JoinHandle<hyper::Result<()>>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = within(http2::handshake(TokioExecutor::new(), TokioIo::new(stream))).await.unwrap();
    (sender, tokio::spawn(connection))
}

async fn connect(bed: &Bed) -> (Sender, JoinHandle<hyper::Result<()>>) {
    shake(TcpStream::connect(bed.addr).await.unwrap()).await
}

fn nothing() -> Sent {
    Empty::new().boxed()
}

pub(super) fn ask(url: &str) -> Request<Sent> {
    Request::builder().uri(url).body(nothing()).unwrap()
}

/// A body that the test feeds.
fn fed(url: &str) -> (mpsc::Sender<Frame<Bytes>>, Request<Sent>) {
    let (feed, mut frames) = mpsc::channel(1);
    let stream = futures_util::stream::poll_fn(move |cx| frames.poll_recv(cx).map(|frame| frame.map(Ok)));
    (feed, Request::builder().method(Method::POST).uri(url).body(StreamBody::new(stream).boxed()).unwrap())
}

pub(super) async fn text_of(response: Response<Incoming>) -> String {
    let bytes = within(response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn a_request_of_http_2_reaches_its_container_in_http_1_1() {
    let (bed, _container) = Bed::with(fast(), mirror).await;
    let (mut sender, _connection) = connect(&bed).await;
    let request = Request::builder()
        .uri("http://ACME.node1.localhost:8080/a%20b?q=1")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("te", "trailers")
        .header("x-forwarded-proto", "https")
        .header("expect", "100-continue")
        .body(nothing())
        .unwrap();
    let response = within(sender.send_request(request)).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.version(), hyper::Version::HTTP_2);
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let seen = text_of(response).await;
    assert!(seen.starts_with("GET /a%20b?q=1 HTTP/1.1\r\n"), "{seen}");
    for (name, value) in [
        ("host", "acme.node1.localhost:8080"),
        ("cookie", "a=1; b=2"),
        ("te", "trailers"),
        ("connection", "te"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-host", "acme.node1.localhost:8080"),
        ("x-request-id", &id),
    ] {
        let found: Vec<_> = seen.lines().filter_map(|l| l.strip_prefix(name)?.strip_prefix(": ")).collect();
        assert_eq!(found, [value], "{name} in {seen}");
    }
    for gone in ["expect", "transfer-encoding", ":authority"] {
        assert!(!seen.contains(gone), "{gone} in {seen}");
    }
    bed.end().await;
}

#[tokio::test]
async fn requests_beside_each_other_each_get_their_own_answer() {
    let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
        loop {
            let head = peer.head().await;
            if head.is_empty() {
                return;
            }
            let path = head.split(' ').nth(1).unwrap().to_owned();
            // The later asked, the earlier answered.
            let number: u64 = path.trim_start_matches('/').parse().unwrap();
            tokio::time::sleep(ms(200 - 2 * number)).await;
            peer.send_or_lose(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len())).await;
        }
    })
    .await;
    let (sender, _connection) = connect(&bed).await;
    let asked = (0..100).map(|n| {
        let mut sender = sender.clone();
        async move { text_of(within(sender.send_request(ask(&format!("{URL}{n}")))).await.unwrap()).await }
    });
    let heard = join_all(asked).await;
    assert_eq!(heard, (0..100).map(|n| format!("/{n}")).collect::<Vec<_>>());
    assert_eq!(bed.proxy.stats().connections, 1);
    bed.end().await;
}

#[tokio::test]
async fn bodies_and_trailers_pass_both_ways_at_once() {
    let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
        let head = peer.head().await;
        assert_eq!(field(&head, "transfer-encoding"), Some("chunked"), "{head}");
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Back\r\n\r\n").await;
        for _ in 0..3 {
            let chunk = peer.chunk().await;
            peer.send(&format!("{:x}\r\n{chunk}\r\n", chunk.len())).await;
        }
        assert_eq!(peer.chunk().await, "");
        assert_eq!(peer.head().await, "x-sum: 42\r\n\r\n");
        peer.send("0\r\nX-Back: 7\r\n\r\n").await;
        peer.head().await;
    })
    .await;
    let (mut sender, _connection) = connect(&bed).await;
    let (feed, mut request) = fed(URL);
    request.headers_mut().insert("trailer", "x-sum".parse().unwrap());
    let mut response = within(sender.send_request(request)).await.unwrap();
    for word in ["one", "two", "three"] {
        feed.send(Frame::data(Bytes::from_static(word.as_bytes()))).await.unwrap();
        let frame = within(response.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), word);
    }
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "42".parse().unwrap())]);
    feed.send(Frame::trailers(trailers)).await.unwrap();
    drop(feed);
    let frame = within(response.frame()).await.unwrap().unwrap();
    assert_eq!(frame.into_trailers().unwrap()["x-back"], "7");
    bed.end().await;
}

#[tokio::test]
async fn what_only_http_1_1_may_say_is_not_said_to_a_client_of_http_2() {
    let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
        peer.head().await;
        peer.send(
            "HTTP/1.1 426 Upgrade Required\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
             Upgrade: x\r\nContent-Length: 0\r\n\r\n",
        )
        .await;
        peer.head().await;
    })
    .await;
    let (mut sender, _connection) = connect(&bed).await;
    let response = within(sender.send_request(ask(URL))).await.unwrap();
    assert_eq!(response.status(), StatusCode::UPGRADE_REQUIRED);
    for gone in ["connection", "keep-alive", "upgrade", "x-hop", "transfer-encoding"] {
        assert!(!response.headers().contains_key(gone), "{gone}");
    }
    bed.end().await;
}

#[tokio::test]
async fn a_refusal_is_told_in_http_2_as_well() {
    let bed = Bed::start(fast()).await;
    let (mut sender, _connection) = connect(&bed).await;
    for (url, status, code) in [
        ("http://nobody.node1.localhost/", StatusCode::NOT_FOUND, "UNKNOWN_HOST"),
        ("http://user@acme.node1.localhost/", StatusCode::BAD_REQUEST, "BAD_HOST"),
    ] {
        let response = within(sender.send_request(ask(url))).await.unwrap();
        assert_eq!(response.status(), status, "{url}");
        assert!(text_of(response).await.contains(code), "{url}");
    }
    let mut many = ask(URL);
    for n in 0..98 {
        many.headers_mut().insert(format!("x-{n}").parse::<hyper::header::HeaderName>().unwrap(), "1".parse().unwrap());
    }
    let mut large = ask(URL);
    large.headers_mut().insert("x-large", "a".repeat(40 * 1024).parse().unwrap());
    let mut huge = ask(URL);
    huge.headers_mut().insert("x-huge", "a".repeat(80 * 1024).parse().unwrap());
    for request in [many, large, huge] {
        // The last is refused by the protocol's own bound.
        let Ok(response) = within(sender.send_request(request)).await else { continue };
        assert_eq!(response.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
    bed.end().await;
}

#[tokio::test]
async fn a_client_that_opens_no_window_stalls_the_container_and_is_cut() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let config = ProxyConfig { write_stall_ms_max: ms(400), ..fast() };
    let (bed, _container) = Bed::with(config, move |mut peer: Peer| {
        let count = Arc::clone(&count);
        async move {
            peer.head().await;
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n").await;
            let block = vec![b'x'; 64 * 1024];
            while peer.stream.get_mut().write_all(&block).await.is_ok() {
                count.fetch_add(block.len(), Ordering::SeqCst);
            }
        }
    })
    .await;
    let (mut sender, connection) = connect(&bed).await;
    let response = within(sender.send_request(ask(URL))).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    // The body is held and never read.
    let _ended = within(connection).await;
    assert!(sent.load(Ordering::SeqCst) < 32 << 20, "{sent:?} bytes went into a body nobody reads");
    until(|| bed.proxy.stats().exchanges == 0 && bed.proxy.stats().connections == 0).await;
    drop(response);
    bed.end().await;
}

#[tokio::test]
async fn a_response_that_is_silent_for_long_is_not_a_client_that_stalls() {
    let config = ProxyConfig { write_stall_ms_max: ms(100), keep_alive_idle_ms_max: ms(100), ..fast() };
    let (bed, _container) = Bed::with(config, |mut peer: Peer| async move {
        peer.head().await;
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsl").await;
        tokio::time::sleep(ms(600)).await;
        peer.send("ow").await;
        peer.head().await;
    })
    .await;
    let (mut sender, _connection) = connect(&bed).await;
    let response = within(sender.send_request(ask(URL))).await.unwrap();
    assert_eq!(text_of(response).await, "slow");
    bed.end().await;
}

#[tokio::test]
async fn a_container_that_does_not_read_stalls_the_client() {
    let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
        peer.head().await;
        std::future::pending::<()>().await;
    })
    .await;
    let (mut sender, _connection) = connect(&bed).await;
    let (feed, request) = fed(URL);
    let asked = tokio::spawn(async move { sender.send_request(request).await });
    let block = Bytes::from(vec![b'x'; 64 * 1024]);
    let mut sent = 0;
    while let Ok(fed) = tokio::time::timeout(ms(300), feed.send(Frame::data(block.clone()))).await {
        fed.unwrap();
        sent += block.len();
        assert!(sent < 32 << 20, "the proxy collects the body");
    }
    asked.abort();
    bed.stop.cancel();
    bed.served.abort();
}

#[tokio::test]
async fn streams_beyond_the_bound_wait_in_the_client() {
    let config = ProxyConfig { streams_max: 2, ..fast() };
    let (bed, _container) = Bed::with(config, |mut peer: Peer| async move {
        peer.rest().await;
    })
    .await;
    let (sender, _connection) = connect(&bed).await;
    // The client learns the bound with the first answer.
    until(|| bed.proxy.stats().connections == 1).await;
    tokio::time::sleep(ms(50)).await;
    for _ in 0..5 {
        let mut sender = sender.clone();
        tokio::spawn(async move { sender.send_request(ask(URL)).await });
    }
    until(|| bed.proxy.stats().exchanges == 2).await;
    tokio::time::sleep(ms(100)).await;
    assert_eq!(bed.proxy.stats().exchanges, 2);
    bed.stop.cancel();
    bed.served.abort();
}

#[tokio::test]
async fn a_client_without_requests_is_let_go_with_a_farewell() {
    let config = ProxyConfig { keep_alive_idle_ms_max: ms(1_000), ..fast() };
    let (bed, _container) = Bed::with(config, mirror).await;
    let (mut sender, connection) = connect(&bed).await;
    for _ in 0..4 {
        let response = within(sender.send_request(ask(URL))).await.unwrap();
        text_of(response).await;
        tokio::time::sleep(ms(400)).await;
    }
    let began = std::time::Instant::now();
    within(connection).await.unwrap().expect("an end without an error");
    assert!((ms(50)..ms(5_000)).contains(&began.elapsed()), "{:?}", began.elapsed());
    bed.end().await;
}

#[tokio::test]
async fn one_who_begins_and_asks_nothing_is_cut_when_the_time_for_a_head_is_over() {
    let config = ProxyConfig { header_read_ms_max: ms(200), ..fast() };
    let (bed, _container) = Bed::with(config, mirror).await;
    for begun in ["", "PRI * HT", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut client = bed.client().await;
        client.send(begun).await;
        let began = std::time::Instant::now();
        client.rest().await;
        assert!((ms(100)..ms(5_000)).contains(&began.elapsed()), "{begun:?}: {:?}", began.elapsed());
    }
    until(|| bed.proxy.stats().connections == 0).await;
    bed.end().await;
}

#[tokio::test]
async fn shutdown_lets_open_streams_finish_and_takes_no_new_ones() {
    let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
        peer.head().await;
        tokio::time::sleep(ms(300)).await;
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await;
        peer.head().await;
    })
    .await;
    let (mut sender, connection) = connect(&bed).await;
    let asked = tokio::spawn(sender.send_request(ask(URL)));
    until(|| bed.proxy.stats().exchanges == 1).await;
    bed.stop.cancel();
    let response = within(asked).await.unwrap().unwrap();
    assert_eq!(text_of(response).await, "done");
    within(connection).await.unwrap().unwrap();
    assert!(within(sender.send_request(ask(URL))).await.is_err());
    let proxy = Arc::clone(&bed.proxy);
    bed.end().await;
    assert_eq!(proxy.stats(), Stats { connections: 0, exchanges: 0, tunnels: 0, idle_upstreams: 0 });
}

#[tokio::test]
async fn a_stream_that_its_client_resets_lets_go_of_the_container() {
    let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
        peer.rest().await;
    })
    .await;
    let (mut sender, _connection) = connect(&bed).await;
    let asked = tokio::spawn(sender.send_request(ask(URL)));
    until(|| bed.proxy.stats().exchanges == 1).await;
    asked.abort();
    until(|| bed.proxy.stats().exchanges == 0).await;
    assert_eq!(bed.proxy.stats().idle_upstreams, 0);
    bed.end().await;
}

/// A frame of HTTP/2 (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Fields as HPACK has them without a table or Huffman's code (RFC 7541 §6.2.2).
fn block(fields: &[(&str, &[u8])]) -> Vec<u8> {
    let length = |bytes: &[u8]| u8::try_from(bytes.len()).ok().filter(|length| *length < 127).unwrap();
    fields
        .iter()
        .flat_map(|(name, value)| [&[0, length(name.as_bytes())], name.as_bytes(), &[length(value)], value].concat())
        .collect()
}

const GOOD: [(&str, &[u8]); 4] =
    [(":method", b"POST"), (":scheme", b"http"), (":authority", b"acme.node1.localhost"), (":path", b"/")];

/// Opens a connection by hand.
async fn begin(bed: &Bed) -> TcpStream {
    let mut stream = TcpStream::connect(bed.addr).await.unwrap();
    let hello = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &[])].concat();
    stream.write_all(&hello).await.unwrap();
    stream
}

/// How a stream was answered: by a status, a reset, or the end of the connection.
#[derive(Debug, PartialEq)]
enum Fate {
    Answered(u16),
    Reset,
    Gone,
}

async fn fate(stream: &mut TcpStream) -> Fate {
    loop {
        let mut head = [0; 9];
        if within(stream.read_exact(&mut head)).await.is_err() {
            return Fate::Gone;
        }
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        within(stream.read_exact(&mut payload)).await.unwrap();
        match (head[3], payload.first()) {
            // `:status` of the static table, or its name with a value (RFC 7541, appendix A).
            (HEADERS, Some(0x88)) => return Fate::Answered(200),
            (HEADERS, Some(0x8c)) => return Fate::Answered(400),
            (HEADERS, Some(0x8d)) => return Fate::Answered(404),
            (HEADERS, _) => return Fate::Answered(0),
            (RST_STREAM, _) => return Fate::Reset,
            (GOAWAY, _) => return Fate::Gone,
            _ => {}
        }
    }
}

#[tokio::test]
async fn what_http_1_1_would_read_in_another_way_never_reaches_a_container() {
    let (bed, container) = Bed::with(fast(), mirror).await;
    let with = |more: &[(&'static str, &'static [u8])]| [&GOOD[..], more].concat();
    let but = |name: &str, value: &'static [u8]| {
        GOOD.map(|(known, old)| if known == name { (known, value) } else { (known, old) }).to_vec()
    };
    let without = |name: &str| GOOD.into_iter().filter(|(known, _)| *known != name).collect::<Vec<_>>();
    for (what, fields) in [
        ("a line break in a value", with(&[("x-a", b"1\r\ntransfer-encoding: chunked")])),
        ("a bare LF in a value", with(&[("x-a", b"1\ntransfer-encoding: chunked")])),
        ("a bare CR in a value", with(&[("x-a", b"1\r2")])),
        ("a NUL in a value", with(&[("x-a", b"1\x002")])),
        ("a line break in a name", with(&[("x-a: 1\r\nx-b", b"1")])),
        ("a colon in a name", with(&[("x-a:b", b"1")])),
        ("a space in a name", with(&[("x a", b"1")])),
        ("upper case in a name", with(&[("X-A", b"1")])),
        ("an empty name", with(&[("", b"1")])),
        ("a transfer coding", with(&[("transfer-encoding", b"chunked")])),
        ("connection", with(&[("connection", b"close")])),
        ("upgrade", with(&[("upgrade", b"h2c")])),
        ("keep-alive", with(&[("keep-alive", b"1")])),
        ("proxy-connection", with(&[("proxy-connection", b"keep-alive")])),
        ("te", with(&[("te", b"gzip")])),
        ("another host", with(&[("host", b"other.node1.localhost")])),
        ("two hosts", with(&[("host", b"acme.node1.localhost"), ("host", b"acme.node1.localhost")])),
        ("two lengths", with(&[("content-length", b"4"), ("content-length", b"5")])),
        ("two equal lengths", with(&[("content-length", b"4"), ("content-length", b"4")])),
        ("a list of lengths", with(&[("content-length", b"4, 4")])),
        ("a signed length", with(&[("content-length", b"+4")])),
        ("a line break in the authority", but(":authority", b"acme.node1.localhost\r\nx: 1")),
        ("a user in the authority", but(":authority", b"x@acme.node1.localhost")),
        ("a path in the authority", but(":authority", b"acme.node1.localhost/x")),
        ("no authority", without(":authority")),
        ("no path", without(":path")),
        ("an empty path", but(":path", b"")),
        ("a path without a slash", but(":path", b"x")),
        ("a space in the path", but(":path", b"/ HTTP/1.1\r\nhost: b")),
        ("a star for POST", but(":path", b"*")),
        ("a space in the method", but(":method", b"GET / HTTP/1.1\r\nx: 1\r\n\r\nGET")),
        ("an unknown scheme", but(":scheme", b"ftp")),
        ("no method", without(":method")),
        ("two paths", with(&[(":path", b"/b")])),
        ("an unknown pseudo field", with(&[(":x", b"1")])),
        ("a pseudo field at the end", [&GOOD[..3], &[("x-a", b"1")], &GOOD[3..]].concat()),
    ] {
        let mut stream = begin(&bed).await;
        let request = [frame(HEADERS, END_HEADERS, 1, &block(&fields)), frame(DATA, END_STREAM, 1, b"four")].concat();
        stream.write_all(&request).await.unwrap();
        let fate = fate(&mut stream).await;
        assert!(matches!(fate, Fate::Answered(400) | Fate::Reset | Fate::Gone), "{what}: {fate:?}");
    }
    assert_eq!(container.accepted(), 0);
    bed.end().await;
}

#[tokio::test]
async fn a_good_request_by_hand_is_answered() {
    let (bed, container) = Bed::with(fast(), mirror).await;
    let mut stream = begin(&bed).await;
    let fields = [&GOOD[..], &[("host", b"ACME.node1.localhost"), ("content-length", b"0")]].concat();
    stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields))).await.unwrap();
    assert_eq!(fate(&mut stream).await, Fate::Answered(200));
    assert_eq!(container.accepted(), 1);
    bed.end().await;
}

#[tokio::test]
async fn a_body_that_is_not_as_long_as_it_says_never_becomes_a_whole_one() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&seen);
    let (bed, _container) = Bed::with(fast(), move |mut peer: Peer| {
        let record = Arc::clone(&record);
        async move {
            let all = peer.rest().await;
            record.lock().unwrap().push(all);
        }
    })
    .await;
    for (length, body) in [(&b"2"[..], &b"four"[..]), (b"9", b"four"), (b"1", b"")] {
        let fields = [&GOOD[..], &[("content-length", length)]].concat();
        let mut stream = begin(&bed).await;
        let (flags, rest) = if body.is_empty() {
            (END_HEADERS | END_STREAM, Vec::new())
        } else {
            (END_HEADERS, frame(DATA, END_STREAM, 1, body))
        };
        stream.write_all(&[frame(HEADERS, flags, 1, &block(&fields)), rest].concat()).await.unwrap();
        let fate = fate(&mut stream).await;
        assert!(matches!(fate, Fate::Answered(400) | Fate::Reset | Fate::Gone), "{length:?}: {fate:?}");
    }
    bed.end().await;
    for request in seen.lock().unwrap().iter() {
        let body = request.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        assert!(body != "four" || field(request, "content-length") == Some("9"), "{request}");
    }
}

#[tokio::test]
async fn a_client_that_resets_all_it_opens_is_told_to_go() {
    let config = ProxyConfig { resets_max: 8, ..fast() };
    let (bed, _container) = Bed::with(config, |mut peer: Peer| async move {
        peer.rest().await;
    })
    .await;
    let mut stream = begin(&bed).await;
    let cancel = 8u32.to_be_bytes();
    let flood: Vec<u8> = (0..2_000u32)
        .flat_map(|n| {
            let id = 2 * n + 1;
            [frame(HEADERS, END_HEADERS | END_STREAM, id, &block(&GOOD)), frame(RST_STREAM, 0, id, &cancel)].concat()
        })
        .collect();
    let (mut read, mut write) = stream.split();
    let sent = async { drop(write.write_all(&flood).await) };
    let heard = async {
        let mut all = Vec::new();
        let _ = within(read.read_to_end(&mut all)).await;
        all
    };
    let ((), heard) = tokio::join!(sent, heard);
    // ENHANCE_YOUR_CALM (RFC 9113 §7).
    let goaway = heard.windows(17).any(|w| w[3] == GOAWAY && w[13..17] == 11u32.to_be_bytes());
    assert!(goaway || heard.is_empty(), "{heard:?}");
    until(|| bed.proxy.stats().connections == 0 && bed.proxy.stats().exchanges == 0).await;
    bed.end().await;
}
