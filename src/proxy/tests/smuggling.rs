//! Requests made to be read in two ways: refused, or made unambiguous before the container sees them.

use super::*;

/// Sends bytes and says how the proxy answered and what reached the container.
async fn attempt(bytes: &str) -> (String, String) {
    let seen = Arc::new(Mutex::new(String::new()));
    let record = Arc::clone(&seen);
    let (bed, _container) = Bed::with(fast(), move |mut peer| {
        let record = Arc::clone(&record);
        async move {
            loop {
                let head = peer.head().await;
                if head.is_empty() {
                    return;
                }
                record.lock().unwrap().push_str(&head);
                if field(&head, "transfer-encoding").is_some() {
                    let body = peer.chunks().await;
                    record.lock().unwrap().push_str(&body);
                } else if let Some(length) = field(&head, "content-length") {
                    let body = peer.exactly(length.parse().unwrap()).await;
                    record.lock().unwrap().push_str(&body);
                }
                peer.send_or_lose("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            }
        }
    })
    .await;
    let mut client = bed.client().await;
    client.send_or_lose(bytes).await;
    client.stream.get_mut().shutdown().await.unwrap();
    let answer = client.rest().await;
    bed.end().await;
    let seen = seen.lock().unwrap().clone();
    (answer, seen)
}

#[tokio::test]
async fn ambiguous_framing_is_refused_before_a_container_sees_it() {
    let post = "POST / HTTP/1.1\r\nHost: acme.node1.localhost\r\n";
    for (what, bytes) in [
        ("two lengths", format!("{post}Content-Length: 1\r\nContent-Length: 2\r\n\r\nab")),
        ("a list of lengths", format!("{post}Content-Length: 1, 2\r\n\r\nab")),
        ("a signed length", format!("{post}Content-Length: +1\r\n\r\na")),
        ("a negative length", format!("{post}Content-Length: -1\r\n\r\na")),
        ("a length in hex", format!("{post}Content-Length: 0x1\r\n\r\na")),
        ("a huge length", format!("{post}Content-Length: 99999999999999999999999\r\n\r\na")),
        ("an unknown coding", format!("{post}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n")),
        ("chunked not last", format!("{post}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n")),
        ("a space before the colon", format!("{post}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n")),
        ("a folded field", format!("{post}X-A: 1\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")),
        ("a null in a value", format!("{post}X-A: a\0b\r\n\r\n")),
        ("a bare CR in a value", format!("{post}X-A: a\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")),
        ("a space in a name", format!("{post}X A: 1\r\n\r\n")),
        ("no colon", format!("{post}nothing\r\n\r\n")),
        ("a space in the target", "GET / x HTTP/1.1\r\nHost: acme.node1.localhost\r\n\r\n".to_owned()),
        ("an old version with chunks", post.replace("1.1", "1.0") + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("another version", "GET / HTTP/3.7\r\nHost: acme.node1.localhost\r\n\r\n".to_owned()),
        ("two hosts", format!("{post}Host: other.node1.localhost\r\n\r\n")),
        ("two equal hosts", format!("{post}Host: acme.node1.localhost\r\n\r\n")),
        ("no host", "GET / HTTP/1.1\r\n\r\n".to_owned()),
        ("an empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n".to_owned()),
        ("a host with a user", "GET / HTTP/1.1\r\nHost: x@acme.node1.localhost\r\n\r\n".to_owned()),
        (
            "an absolute target elsewhere",
            "GET http://b.node1.localhost/ HTTP/1.1\r\nHost: acme.node1.localhost\r\n\r\n".to_owned(),
        ),
        (
            "a target that is no path",
            "GET acme.node1.localhost HTTP/1.1\r\nHost: acme.node1.localhost\r\n\r\n".to_owned(),
        ),
        ("a star for GET", "GET * HTTP/1.1\r\nHost: acme.node1.localhost\r\n\r\n".to_owned()),
    ] {
        let (answer, seen) = attempt(&bytes).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{what}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count().max(1), 1, "{what}: more than one answer: {answer}");
        assert_eq!(seen, "", "{what}: reached the container");
    }
}

#[tokio::test]
async fn connect_is_refused() {
    let (bed, container) = Bed::with(fast(), |_peer| async { panic!("it reached the container") }).await;
    let mut client = bed.client().await;
    // The client's side stays open: hyper takes its end for a client that has gone.
    client.send("CONNECT acme.node1.localhost:80 HTTP/1.1\r\nHost: acme.node1.localhost:80\r\n\r\n").await;
    let answer = client.head().await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    assert_eq!(container.accepted(), 0);
    bed.end().await;
}

#[tokio::test]
async fn a_length_beside_chunks_loses_and_the_connection_ends_after_the_answer() {
    for fields in ["Content-Length: 4\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 4"]
    {
        let hidden = get("/hidden");
        let bytes =
            format!("POST / HTTP/1.1\r\nHost: acme.node1.localhost\r\n{fields}\r\n\r\n3\r\nabc\r\n0\r\n\r\n{hidden}");
        let seen = Arc::new(Mutex::new(String::new()));
        let record = Arc::clone(&seen);
        let (bed, _container) = Bed::with(fast(), move |mut peer| {
            let record = Arc::clone(&record);
            async move {
                let head = peer.head().await;
                assert_eq!(field(&head, "content-length"), None, "{head}");
                let body = peer.chunks().await;
                record.lock().unwrap().push_str(&(head + &body));
                peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
                let next = peer.head().await;
                record.lock().unwrap().push_str(&next);
            }
        })
        .await;
        let answer = bed.say(&bytes).await;
        assert_eq!(answer.matches("HTTP/1.1 200").count(), 1, "{answer}");
        bed.end().await;
        let seen = seen.lock().unwrap().clone();
        assert!(seen.ends_with("abc"), "{seen}");
        assert!(!seen.contains("hidden"), "{seen}");
    }
}

#[tokio::test]
async fn a_broken_chunk_never_becomes_a_whole_body() {
    for chunk in ["zz\r\nabc", "3\r\nabcd\r\n0\r\n\r\n", "-3\r\nabc", "fffffffffffffffff\r\nabc", "3 3\r\nabc"] {
        let ended_well = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let flag = Arc::clone(&ended_well);
        let (bed, _container) = Bed::with(fast(), move |mut peer: Peer| {
            let flag = Arc::clone(&flag);
            async move {
                peer.head().await;
                if peer.rest().await.ends_with("0\r\n\r\n") {
                    flag.store(true, Ordering::SeqCst);
                }
            }
        })
        .await;
        let post = "POST / HTTP/1.1\r\nHost: acme.node1.localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
        let answer = bed.say(&format!("{post}{chunk}")).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{chunk}: {answer}");
        bed.end().await;
        assert!(!ended_well.load(Ordering::SeqCst), "{chunk}");
    }
}

#[tokio::test]
async fn an_absolute_target_of_the_same_host_becomes_a_path() {
    let (bed, _container) = Bed::with(fast(), mirror).await;
    let answer = bed
        .say("GET http://Acme.node1.localhost/a?b HTTP/1.1\r\nHost: acme.node1.localhost\r\nConnection: close\r\n\r\n")
        .await;
    assert!(answer.contains("\r\n\r\nGET /a?b HTTP/1.1\r\n"), "{answer}");
    bed.end().await;
}

#[tokio::test]
async fn a_container_cannot_answer_twice() {
    let (bed, container) = Bed::with(fast(), |mut peer: Peer| async move {
        peer.head().await;
        // The second response would be taken for the next client's, were the connection used again.
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
            .await;
        peer.rest().await;
    })
    .await;
    for _ in 0..3 {
        let answer = bed.say(&get_once("/")).await;
        assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
    }
    assert_eq!(container.accepted(), 3);
    bed.end().await;
}
