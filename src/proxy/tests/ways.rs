//! The short way beside the long one: the same bytes by each, and the same said to either end.

use proptest::prelude::*;

use super::*;

/// A request that goes the long way for the last of its fields, which ends there.
fn the_long_way(request: &str) -> String {
    request.replacen("\r\n\r\n", "\r\nTE: x\r\n\r\n", 1)
}

/// The fields of a head in order of their names; of those that differ from request to request the names alone.
fn fields(head: &str) -> Vec<String> {
    let same = |line: &str| match line.split_once(": ") {
        Some((name @ ("x-request-id" | "date"), _)) => vec![name.to_owned()],
        // In one line or in several.
        Some(("connection", list)) => list.split(", ").map(|what| format!("connection: {what}")).collect(),
        _ => vec![line.to_owned()],
    };
    let mut fields: Vec<_> = head.lines().skip(1).flat_map(same).collect();
    fields.sort();
    fields
}

/// What a client is told: the first line, the fields, and what comes until the end.
async fn told(bed: &Bed, request: &str) -> (String, Vec<String>, String) {
    let mut client = bed.client().await;
    client.send(request).await;
    let head = client.head().await;
    let body = client.rest().await;
    let is_ours = body.starts_with('{');
    let status = head.lines().next().unwrap_or_default().to_owned();
    let fields = fields(&head).into_iter().filter(|line| !is_ours || !line.starts_with("content-length")).collect();
    (status, fields, if is_ours { String::new() } else { body })
}

/// What clients of the two ways are told where a container says this, and nothing more.
async fn told_by_both(answer: String, verb: &str) -> [(String, Vec<String>, String); 2] {
    let (bed, _container) = Bed::with(fast(), move |mut peer: Peer| {
        let answer = answer.clone();
        async move {
            peer.head().await;
            peer.send_or_lose(&answer).await;
        }
    })
    .await;
    let request = format!("{verb} / HTTP/1.1\r\nHost: acme.node1.localhost\r\nConnection: close\r\n\r\n");
    let both = [told(&bed, &request).await, told(&bed, &the_long_way(&request)).await];
    bed.end().await;
    both
}

#[tokio::test]
async fn odd_responses_mean_the_same_by_either_way() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n";
    for answer in [
        format!("{chunked}\r\n5\r\nhello\r\n\r\n\r\n"),
        format!("{chunked}\r\n5\r\nhello\r\n;x\r\n\r\n"),
        format!("{chunked}\r\n5;a\nb\r\nhello\r\n0\r\n\r\n"),
        format!("{chunked}\r\n5\r\nhello\r\nzz\r\n"),
        format!("{chunked}\r\n5\r\nhello\r\n"),
        format!("{chunked}\r\nzz\r\n"),
        format!("{chunked}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        format!("{chunked}Trailer: X-A\r\n\r\n5\r\nhello\r\n0\r\nX-A: b\r\n\r\n"),
        format!("{chunked}Content-Length: x\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        format!("{chunked}Content-Length: 9\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        format!("{chunked}\r\n5\r\nhello\r\n0\r\n{}\r\n", "X-A: b\r\n".repeat(40)),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: Content-Length\r\n\r\nhello".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello".to_owned(),
        "HTTP/1.1 200 OK\r\nConnection: X-Request-Id, Date\r\nX-Request-Id: a\r\nDate: b\r\nContent-Length: 0\r\n\r\n"
            .to_owned(),
        "HTTP/1.1 204 No Content\r\nContent-Length: x\r\n\r\n".to_owned(),
        "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: gzip\r\n\r\n".to_owned(),
        "HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 426 Upgrade Required\r\nUpgrade: a\r\nUpgrade: b\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n".to_owned(),
        "HTTP/1.1 099 Low\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_owned(),
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
        "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello".to_owned(),
        "HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
        "SSH-2.0-OpenSSH_10\r\n".to_owned(),
        String::new(),
    ] {
        // Of two lengths the long way tells a HEAD none, and the short one the length.
        let verbs = if answer.matches("Content-Length").count() > 1 { &["GET"][..] } else { &["GET", "HEAD"] };
        for verb in verbs {
            let [short, long] = told_by_both(answer.clone(), verb).await;
            assert_eq!(short, long, "{verb}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn a_reset_is_no_end_of_a_body_by_either_way() {
    let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
        peer.head().await;
        peer.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        // Closed like this, a socket sends a reset.
        peer.into_stream().set_zero_linger().unwrap();
    })
    .await;
    for request in [get_once("/"), the_long_way(&get_once("/"))] {
        let said = bed.say(&request).await;
        assert!(said.contains("half") && !said.ends_with("0\r\n\r\n"), "{said}");
    }
    bed.end().await;
}

#[tokio::test]
async fn as_many_answers_come_by_either_way_to_a_client_that_has_said_all() {
    let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
        while !peer.head().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(150)).await;
            peer.send_or_lose("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await;
    for requests in 1..4 {
        let mut answers = Vec::new();
        for request in [get("/"), the_long_way(&get("/"))] {
            let mut client = bed.client().await;
            client.send(&request.repeat(requests)).await;
            client.stream.get_mut().shutdown().await.unwrap();
            answers.push(client.rest().await.matches(" 200 OK").count());
        }
        assert_eq!(answers[0], answers[1], "of {requests}");
    }
    // What comes while the first is served, and is all there is.
    let mut answers = Vec::new();
    for request in [get("/"), the_long_way(&get("/"))] {
        let mut client = bed.client().await;
        client.send(&request).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        client.send(&request).await;
        client.stream.get_mut().shutdown().await.unwrap();
        answers.push(client.rest().await.matches(" 200 OK").count());
    }
    assert_eq!(answers[0], answers[1]);
    bed.end().await;
}

#[tokio::test]
async fn what_came_unasked_while_a_request_waited_for_its_place_is_no_answer_to_it() {
    for is_long in [false, true] {
        let config = ProxyConfig { per_upstream_max: 1, ..fast() };
        let (bed, _container) = Bed::with(config, |mut peer: Peer| async move {
            let head = peer.head().await;
            let wait = if head.contains(" /slow ") { 300 } else { 100 };
            tokio::time::sleep(Duration::from_millis(wait)).await;
            peer.send_or_lose("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            if head.contains(" /first ") {
                tokio::time::sleep(Duration::from_millis(200)).await;
                peer.send_or_lose("HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    .await;
            } else {
                peer.rest().await;
            }
        })
        .await;
        let (mut first, mut slow, mut last) = (bed.client().await, bed.client().await, bed.client().await);
        // It holds the only place; the next one waits for that and dials; its connection is idle meanwhile.
        first.send(&get("/first")).await;
        tokio::time::sleep(Duration::from_millis(30)).await;
        slow.send(&get("/slow")).await;
        first.head().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        // It takes that connection along and waits, and meanwhile that says something.
        last.send(&if is_long { the_long_way(&get("/last")) } else { get("/last") }).await;
        let head = last.head().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "long way {is_long}: {head}");
        drop((first, slow, last));
        bed.end().await;
    }
}

#[tokio::test]
async fn the_idle_bound_holds_by_either_way_after_an_answer_that_was_there_at_once() {
    let config = ProxyConfig { header_read_ms_max: Duration::from_millis(300), ..fast() };
    let bed = Bed::start(config).await;
    let nobody = "GET / HTTP/1.1\r\nHost: nobody.node1.localhost\r\n\r\n";
    for request in [nobody.to_owned(), the_long_way(nobody)] {
        let mut client = bed.client().await;
        for _ in 0..2 {
            client.send(&request).await;
            let head = client.head().await;
            assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
            client.exactly(field(&head, "content-length").unwrap().parse().unwrap()).await;
            tokio::time::sleep(Duration::from_millis(600)).await;
        }
    }
    bed.end().await;
}

#[tokio::test]
async fn a_stream_that_says_nothing_for_too_long_is_cut_by_either_way() {
    let config = ProxyConfig { response_body_idle_ms_max: Duration::from_millis(200), ..fast() };
    let (bed, _container) = Bed::with(config, |mut peer: Peer| async move {
        peer.head().await;
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n").await;
        peer.rest().await;
    })
    .await;
    for request in [get("/"), the_long_way(&get("/"))] {
        let said = bed.say(&request).await;
        assert!(said.ends_with("2\r\nok\r\n"), "{said}");
    }
    bed.end().await;
}

#[tokio::test]
async fn a_drain_ends_a_connection_after_what_it_is_at_by_either_way() {
    for is_long in [false, true] {
        let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
            while !peer.head().await.is_empty() {
                peer.send_or_lose("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha").await;
                tokio::time::sleep(Duration::from_millis(200)).await;
                peer.send_or_lose("lf").await;
            }
        })
        .await;
        let mut client = bed.client().await;
        let request = if is_long { the_long_way(&get("/")) } else { get("/") };
        client.send(&request.repeat(3)).await;
        client.head().await;
        bed.stop.cancel();
        let said = client.rest().await;
        assert!(said.starts_with("half"), "{said}");
        assert!(said.matches(" 200 OK").count() <= 1, "long way {is_long}: {said}");
        within(bed.served).await.unwrap();
    }
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "Accept",
            "Cookie",
            "Connection",
            "X-Forwarded-For",
            "x_forwarded_proto",
            "Forwarded",
            "X-Real-IP",
            "X-Request-Id",
            "Content-Type",
            "Keep-Alive",
            "Via",
            "Range",
            "X-Back",
            "ETag",
            "Vary",
            "Date",
            "User-Agent",
        ])
        .prop_map(str::to_owned),
        "[!#$%&'*+.^_`|~a-zA-Z0-9-]{1,12}",
    ]
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "close",
            "keep-alive",
            "X-Back, close",
            "date, x-request-id",
            "text/html",
            "10.1.2.3",
            "",
            "a, b",
        ])
        .prop_map(str::to_owned),
        "[ -~\t]{0,24}",
    ]
}

fn lines() -> impl Strategy<Value = String> {
    let line = (name(), value()).prop_filter_map("it would frame the message", |(name, value)| {
        let own = ["host", "content-length", "transfer-encoding", "expect", "upgrade", "te", "trailer"];
        (!own.contains(&name.to_lowercase().as_str())).then(|| format!("{name}: {value}\r\n"))
    });
    prop::collection::vec(line, 0..8).prop_map(|lines| lines.concat())
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_container_is_told_the_same_by_either_way(
        verb in prop::sample::select(vec!["GET", "HEAD"]),
        target in "/[a-zA-Z0-9._~!$&'()*+,;=:@%/-]{0,20}(\\?[a-zA-Z0-9._~=&%/?-]{0,12})?",
        lines in lines(),
    ) {
        let request = format!("{verb} {target} HTTP/1.1\r\nHost: acme.node1.localhost\r\n{lines}\r\n");
        run(async {
            let told = Arc::new(Mutex::new(Vec::new()));
            let tell = Arc::clone(&told);
            let (bed, _container) = Bed::with(fast(), move |mut peer: Peer| {
                let tell = Arc::clone(&tell);
                async move {
                    let head = peer.head().await;
                    tell.lock().unwrap().push(head);
                    peer.send_or_lose("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
                }
            })
            .await;
            for request in [request.clone(), the_long_way(&request)] {
                let mut client = bed.client().await;
                client.send(&request).await;
                let head = client.head().await;
                assert!(head.starts_with("HTTP/1.1 204 ") || head.starts_with("HTTP/1.1 400 "), "{head}");
            }
            bed.end().await;
            let told = told.lock().unwrap();
            let both: Vec<_> = told.iter().map(|head| (head.lines().next().unwrap_or_default(), fields(head))).collect();
            // Refused by both, or by none.
            assert!(both.is_empty() || (both.len() == 2 && both[0] == both[1]), "{request}: {both:#?}");
        });
    }

    #[test]
    fn a_client_is_told_the_same_by_either_way(
        verb in prop::sample::select(vec!["GET", "HEAD"]),
        status in prop::sample::select(vec!["200 OK", "204 No Content", "304 Not Modified", "404 Not Found", "500 Own Words"]),
        framing in prop::sample::select(vec!["Content-Length: 4\r\n", "Transfer-Encoding: chunked\r\n", "Connection: close\r\n"]),
        lines in lines(),
    ) {
        let body = match framing {
            _ if verb == "HEAD" || status.starts_with("204") || status.starts_with("304") => "",
            "Transfer-Encoding: chunked\r\n" => "4\r\nbody\r\n0\r\n\r\n",
            _ => "body",
        };
        let response = format!("HTTP/1.1 {status}\r\n{framing}{lines}\r\n{body}");
        let [short, long] = run(told_by_both(response.clone(), verb));
        assert_eq!(short, long, "{response}");
    }
}
