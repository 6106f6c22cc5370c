//! What passes, and in which shape.

use super::*;

#[tokio::test]
async fn a_request_reaches_its_container_and_the_container_learns_who_asked() {
    let (bed, _container) = Bed::with(fast(), mirror).await;
    let answer = bed
        .say(
            "GET /a%20b?q=1 HTTP/1.1\r\nHost: ACME.node1.localhost:8080\r\nX-Forwarded-For: 6.6.6.6\r\n\
             Forwarded: for=6.6.6.6\r\nX-Request-Id: theirs\r\nCookie: a=b\r\nConnection: close\r\n\r\n",
        )
        .await;
    let (head, seen) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(seen.starts_with("GET /a%20b?q=1 HTTP/1.1\r\n"), "{seen}");
    assert_eq!(field(seen, "host"), Some("acme.node1.localhost:8080"), "the test's head() lowers the case");
    assert_eq!(field(seen, "x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(field(seen, "x-forwarded-proto"), Some("http"));
    assert_eq!(field(seen, "x-forwarded-host"), Some("acme.node1.localhost:8080"));
    assert_eq!(field(seen, "forwarded"), Some("for=127.0.0.1;host=\"acme.node1.localhost:8080\";proto=http"));
    assert_eq!(field(seen, "cookie"), Some("a=b"));
    assert_eq!(field(seen, "connection"), None);
    assert!(!seen.contains("6.6.6.6"));
    let id = field(seen, "x-request-id").unwrap();
    assert_eq!(id.len(), 32);
    assert_eq!(field(head, "x-request-id"), Some(id), "client and container know the request by one id");
    bed.end().await;
}

#[tokio::test]
async fn the_first_chunk_of_a_response_arrives_before_the_last_is_made() {
    let (go, wait) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let (told, waits) = (Arc::clone(&go), Arc::clone(&wait));
    let (bed, _container) = Bed::with(fast(), move |mut peer| {
        let waits = Arc::clone(&waits);
        let told = Arc::clone(&told);
        async move {
            peer.head().await;
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
            waits.notified().await;
            peer.send("4\r\nlast\r\n0\r\n\r\n").await;
            told.notify_one();
        }
    })
    .await;
    let mut client = bed.client().await;
    client.send(&get("/")).await;
    client.head().await;
    assert_eq!(client.chunk().await, "first");
    wait.notify_one();
    assert_eq!(client.chunks().await, "last");
    within(go.notified()).await;
    bed.end().await;
}

#[tokio::test]
async fn both_bodies_flow_at_once() {
    let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
        peer.head().await;
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        loop {
            let chunk = peer.chunk().await;
            if chunk.is_empty() {
                break;
            }
            peer.send(&format!("{:x}\r\n{chunk}\r\n", chunk.len())).await;
        }
        peer.send("0\r\n\r\n").await;
    })
    .await;
    let mut client = bed.client().await;
    client.send("POST / HTTP/1.1\r\nHost: acme.node1.localhost\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    assert!(client.head().await.starts_with("HTTP/1.1 200"));
    for word in ["one", "two", "three"] {
        client.send(&format!("{:x}\r\n{word}\r\n", word.len())).await;
        assert_eq!(client.chunk().await, word);
    }
    client.send("0\r\n\r\n").await;
    assert_eq!(client.chunks().await, "");
    bed.end().await;
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways_and_its_close() {
    let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
        let head = peer.head().await;
        assert_eq!(field(&head, "upgrade"), Some("websocket"));
        assert_eq!(field(&head, "connection"), Some("upgrade"));
        peer.send(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Own: 1\r\n\r\nhello",
        )
        .await;
        let mut stream = peer.into_stream();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    })
    .await;
    let mut client = bed.client().await;
    client
        .send(
            "GET /ws HTTP/1.1\r\nHost: acme.node1.localhost\r\nConnection: keep-alive, Upgrade\r\n\
             Upgrade: websocket\r\n\r\n",
        )
        .await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(field(&head, "upgrade"), Some("websocket"));
    assert_eq!(field(&head, "connection"), Some("upgrade"));
    assert_eq!(field(&head, "x-own"), Some("1"));
    assert_eq!(client.exactly(5).await, "hello", "bytes that came with the head are not lost");
    for round in 0..100 {
        let text = format!("frame {round:04}");
        client.send(&text).await;
        assert_eq!(client.exactly(text.len()).await, text);
    }
    assert_eq!(bed.proxy.stats().tunnels, 1);
    client.stream.get_mut().shutdown().await.unwrap();
    assert_eq!(client.rest().await, "");
    until(|| bed.proxy.stats().tunnels == 0).await;
    assert_eq!(bed.proxy.stats().idle_upstreams, 0, "a switched connection is never pooled");
    bed.end().await;
}

#[tokio::test]
async fn a_refused_upgrade_is_an_ordinary_response() {
    let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
        peer.head().await;
        peer.send(
            "HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.0\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nno",
        )
        .await;
        peer.head().await;
    })
    .await;
    let mut client = bed.client().await;
    client.send("GET / HTTP/1.1\r\nHost: acme.node1.localhost\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 426"), "{head}");
    assert_eq!(field(&head, "upgrade"), Some("tls/1.0"));
    assert_eq!(client.exactly(2).await, "no");
    bed.end().await;
}

#[tokio::test]
async fn h2c_is_not_tunnelled() {
    let (bed, _container) = Bed::with(fast(), mirror).await;
    let seen = bed
        .say(
            "GET / HTTP/1.1\r\nHost: acme.node1.localhost\r\nConnection: Upgrade, HTTP2-Settings, close\r\n\
             Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
        )
        .await;
    let (head, seen) = seen.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(!seen.contains("upgrade") && !seen.contains("http2-settings"), "{seen}");
    bed.end().await;
}

#[tokio::test]
async fn a_container_that_switches_unasked_is_broken() {
    let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
        peer.head().await;
        peer.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n").await;
        peer.rest().await;
    })
    .await;
    assert!(bed.say(&get_once("/")).await.starts_with("HTTP/1.1 502 "));
    bed.end().await;
}

#[tokio::test]
async fn hop_by_hop_fields_end_at_the_proxy_on_both_sides() {
    let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
        let head = peer.head().await;
        for gone in ["keep-alive", "x-hop", "proxy-connection", "upgrade", "transfer-encoding"] {
            assert_eq!(field(&head, gone), None, "{gone}");
        }
        assert_eq!(field(&head, "connection"), Some("te"));
        assert_eq!(field(&head, "te"), Some("trailers"));
        peer.send(
            "HTTP/1.1 200 OK\r\nConnection: X-Back\r\nX-Back: secret\r\nKeep-Alive: timeout=5\r\nX-End: kept\r\n\
             Content-Length: 0\r\n\r\n",
        )
        .await;
        peer.head().await;
    })
    .await;
    let answer = bed
        .say(
            "GET / HTTP/1.1\r\nHost: acme.node1.localhost\r\nConnection: close, X-Hop, TE\r\nX-Hop: 1\r\n\
             TE: trailers, gzip\r\nKeep-Alive: 1\r\nProxy-Connection: keep-alive\r\nUpgrade: x\r\n\r\n",
        )
        .await
        .to_lowercase();
    assert!(answer.starts_with("http/1.1 200"), "{answer}");
    assert!(!answer.contains("secret") && !answer.contains("timeout=5"), "{answer}");
    assert_eq!(field(&answer, "x-end"), Some("kept"));
    bed.end().await;
}

#[tokio::test]
async fn a_body_waits_for_100_continue_from_the_container() {
    let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
        let head = peer.head().await;
        assert_eq!(field(&head, "expect"), Some("100-continue"));
        let early = tokio::time::timeout(Duration::from_millis(200), peer.stream.fill_buf()).await;
        assert!(early.is_err(), "the body came before it was asked for");
        peer.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        let body = peer.exactly(4).await;
        peer.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{body}")).await;
        peer.head().await;
    })
    .await;
    let mut client = bed.client().await;
    client
        .send("PUT / HTTP/1.1\r\nHost: acme.node1.localhost\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        .await;
    assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("data").await;
    assert!(client.head().await.starts_with("HTTP/1.1 200"));
    assert_eq!(client.exactly(4).await, "data");
    bed.end().await;
}

#[tokio::test]
async fn a_refused_expectation_asks_for_no_body() {
    let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
        peer.head().await;
        peer.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig").await;
        assert_eq!(peer.rest().await, "", "no byte of the body came");
    })
    .await;
    let mut client = bed.client().await;
    client
        .send("PUT / HTTP/1.1\r\nHost: acme.node1.localhost\r\nExpect: 100-continue\r\nContent-Length: 9999\r\n\r\n")
        .await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 413"), "{head}");
    assert_eq!(client.exactly(3).await, "big");
    bed.end().await;
}

#[tokio::test]
async fn a_container_that_does_not_know_100_continue_gets_the_body_after_a_moment() {
    let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
        peer.head().await;
        let body = peer.exactly(4).await;
        peer.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{body}")).await;
        peer.head().await;
    })
    .await;
    let mut client = bed.client().await;
    client
        .send("PUT / HTTP/1.1\r\nHost: acme.node1.localhost\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\ndata")
        .await;
    assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(client.head().await.starts_with("HTTP/1.1 200"));
    bed.end().await;
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
        let head = peer.head().await;
        assert_eq!(field(&head, "trailer"), Some("x-sum"));
        assert_eq!(peer.chunk().await, "data");
        assert_eq!(peer.chunk().await, "");
        assert_eq!(peer.head().await, "x-sum: 42\r\n\r\n");
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Back\r\n\r\n").await;
        peer.send("2\r\nok\r\n0\r\nX-Back: 7\r\n\r\n").await;
        peer.head().await;
    })
    .await;
    let mut client = bed.client().await;
    client
        .send(
            "POST / HTTP/1.1\r\nHost: acme.node1.localhost\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\
             Trailer: X-Sum\r\n\r\n4\r\ndata\r\n0\r\nX-Sum: 42\r\n\r\n",
        )
        .await;
    assert!(client.head().await.starts_with("HTTP/1.1 200"));
    assert_eq!(client.chunk().await, "ok");
    assert_eq!(client.chunk().await, "");
    assert_eq!(client.head().await, "x-back: 7\r\n\r\n");
    bed.end().await;
}

#[tokio::test]
async fn a_body_that_ends_with_the_connection_becomes_chunks() {
    let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
        peer.head().await;
        peer.send("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nold style").await;
    })
    .await;
    let mut client = bed.client().await;
    client.send(&get("/")).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(field(&head, "transfer-encoding"), Some("chunked"));
    assert_eq!(client.chunks().await, "old style");
    bed.end().await;
}

#[tokio::test]
async fn an_http_1_0_client_gets_no_chunks() {
    let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
        let head = peer.head().await;
        assert!(head.starts_with("GET / HTTP/1.1\r\n"), "{head}");
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n").await;
        peer.head().await;
    })
    .await;
    let answer = bed.say("GET / HTTP/1.0\r\nHost: acme.node1.localhost\r\n\r\n").await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(!head.to_lowercase().contains("transfer-encoding"), "{head}");
    assert_eq!(body, "abcdef");
    bed.end().await;
}

#[tokio::test]
async fn lengths_and_chunks_are_kept_as_what_they_are() {
    let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
        let head = peer.head().await;
        assert_eq!(field(&head, "content-length"), Some("4"));
        assert_eq!(field(&head, "transfer-encoding"), None);
        assert_eq!(peer.exactly(4).await, "data");
        // A length beside a coding means nothing and must not survive.
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
            .await;
        let head = peer.head().await;
        assert_eq!(
            field(&head, "transfer-encoding"),
            Some("chunked"),
            "a GET's body of unknown length is kept: {head}"
        );
        assert_eq!(peer.chunks().await, "body");
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok").await;
        peer.head().await;
    })
    .await;
    let mut client = bed.client().await;
    client.send("POST / HTTP/1.1\r\nHost: acme.node1.localhost\r\nContent-Length: 4\r\n\r\ndata").await;
    let head = client.head().await;
    assert_eq!(field(&head, "content-length"), None);
    assert_eq!(field(&head, "transfer-encoding"), Some("chunked"));
    assert_eq!(client.chunks().await, "ok");
    client
        .send(
            "GET / HTTP/1.1\r\nHost: acme.node1.localhost\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        )
        .await;
    let head = client.head().await;
    assert_eq!(field(&head, "content-length"), Some("2"));
    assert_eq!(head.matches("content-length").count(), 1, "{head}");
    assert_eq!(client.exactly(2).await, "ok");
    bed.end().await;
}

#[tokio::test]
async fn responses_without_a_body_stay_without_one_and_keep_the_connection() {
    let (bed, container) = Bed::with(fast(), |mut peer: Peer| async move {
        loop {
            let head = peer.head().await;
            let answer = match head.split(' ').nth(1) {
                Some("/head") => "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n",
                Some("/head-chunked") => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                Some("/304") => "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 1234\r\n\r\n",
                Some("/204") => "HTTP/1.1 204 No Content\r\n\r\n",
                Some(_) => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
                None => return,
            };
            peer.send(answer).await;
        }
    })
    .await;
    let mut client = bed.client().await;
    let host = "Host: acme.node1.localhost\r\n\r\n";
    client.send(&format!("HEAD /head HTTP/1.1\r\n{host}")).await;
    assert_eq!(field(&client.head().await, "content-length"), Some("1234"));
    client.send(&format!("HEAD /head-chunked HTTP/1.1\r\n{host}")).await;
    let head = client.head().await;
    assert_eq!(field(&head, "content-length"), None, "{head}");
    client.send(&format!("GET /304 HTTP/1.1\r\n{host}")).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 304") && field(&head, "etag") == Some("\"a\""), "{head}");
    client.send(&format!("GET /204 HTTP/1.1\r\n{host}")).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 204") && field(&head, "content-length").is_none(), "{head}");
    client.send(&format!("GET /x HTTP/1.1\r\n{host}")).await;
    assert!(client.head().await.starts_with("HTTP/1.1 200"));
    assert_eq!(client.exactly(2).await, "ok");
    assert_eq!(container.accepted(), 1, "one pooled connection served all five");
    bed.end().await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (bed, _container) = Bed::with(fast(), mirror).await;
    let answer = bed.say(&format!("{}{}{}", get("/1"), get("/2"), get_once("/3"))).await;
    let order: Vec<_> = answer.lines().filter(|l| l.contains("GET /")).collect();
    assert_eq!(order, ["GET /1 HTTP/1.1", "GET /2 HTTP/1.1", "GET /3 HTTP/1.1"]);
    bed.end().await;
}

#[tokio::test]
async fn a_response_that_breaks_off_is_seen_to_break_off() {
    let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
        peer.head().await;
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n").await;
    })
    .await;
    let answer = bed.say(&get("/")).await;
    assert!(answer.ends_with("4\r\nhalf\r\n"), "no last chunk may be made up: {answer}");
    bed.end().await;
}

#[tokio::test]
async fn an_answer_before_the_upload_is_done_reaches_the_client() {
    let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
        peer.head().await;
        peer.send("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno").await;
        peer.rest().await;
    })
    .await;
    let mut client = bed.client().await;
    client.send("POST / HTTP/1.1\r\nHost: acme.node1.localhost\r\nContent-Length: 700000\r\n\r\n").await;
    let half = "x".repeat(350_000);
    client.send(&half).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    client.send_or_lose(&half).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 401"), "the answer was lost to a reset: {head}");
    assert_eq!(client.exactly(2).await, "no");
    bed.end().await;
}
