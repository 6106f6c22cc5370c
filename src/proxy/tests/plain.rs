//! The short way: what it takes, what it leaves to hyper, and that nobody can tell by which of them a request went.

use super::*;

/// A head as it came: the short way keeps the client's case, and hyper does not.
async fn raw_head(peer: &mut Peer) -> String {
    within(async {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") && peer.stream.read_line(&mut head).await.unwrap_or(0) > 0 {}
        head
    })
    .await
}

/// Answers each request with its head as it came, after its body where it has one.
async fn raw_mirror(mut peer: Peer) {
    loop {
        let head = raw_head(&mut peer).await;
        if head.is_empty() {
            return;
        }
        if let Some(length) = field(&head.to_lowercase(), "content-length") {
            peer.exactly(length.parse().unwrap()).await;
        }
        peer.send_or_lose(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len())).await;
    }
}

/// The next answer's body.
async fn answer(client: &mut Peer) -> String {
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    client.exactly(field(&head, "content-length").unwrap().parse().unwrap()).await
}

fn went_the_short_way(seen: &str) -> bool {
    seen.contains("\r\nHost: ")
}

#[tokio::test]
async fn a_connection_goes_the_long_way_from_its_first_unusual_request_on_and_loses_nothing() {
    let (bed, container) = Bed::with(fast(), raw_mirror).await;
    let mut client = bed.client().await;
    let post = "POST /3 HTTP/1.1\r\nHost: acme.node1.localhost\r\nContent-Length: 4\r\n\r\ndata";
    // The last three come in one piece.
    client.send(&get("/1")).await;
    let first = answer(&mut client).await;
    client.send(&format!("{}{post}{}", get("/2"), get("/4"))).await;
    let mut seen = vec![first];
    for _ in 0..3 {
        seen.push(answer(&mut client).await);
    }
    let paths: Vec<_> = seen.iter().map(|head| head.split(' ').nth(1).unwrap()).collect();
    assert_eq!(paths, ["/1", "/2", "/3", "/4"]);
    assert_eq!(seen.iter().map(|head| went_the_short_way(head)).collect::<Vec<_>>(), [true, true, false, false]);
    assert_eq!(container.accepted(), 1, "a connection to a container serves both ways");
    bed.end().await;
}

#[tokio::test]
async fn a_head_in_two_pieces_is_served_as_well() {
    let (bed, _container) = Bed::with(fast(), raw_mirror).await;
    let mut client = bed.client().await;
    let (head, rest) = (get("/"), 20);
    client.send(&head[..rest]).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    client.send(&head[rest..]).await;
    assert!(!went_the_short_way(&answer(&mut client).await));
    bed.end().await;
}

#[tokio::test]
async fn a_request_that_comes_before_the_answer_to_the_last_one_is_served_after_it() {
    let (go, begun) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let (wait, begins) = (Arc::clone(&go), Arc::clone(&begun));
    let (bed, _container) = Bed::with(fast(), move |mut peer: Peer| {
        let (wait, begins) = (Arc::clone(&wait), Arc::clone(&begins));
        async move {
            loop {
                let head = raw_head(&mut peer).await;
                let Some(path) = head.split(' ').nth(1) else { return };
                begins.notify_one();
                wait.notified().await;
                peer.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len())).await;
            }
        }
    })
    .await;
    let mut client = bed.client().await;
    client.send(&get("/first")).await;
    within(begun.notified()).await;
    // Longer than what is read ahead.
    let long = format!("/{}", "x".repeat(300));
    client.send(&get(&long)).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    go.notify_one();
    assert_eq!(answer(&mut client).await, "/first");
    within(begun.notified()).await;
    go.notify_one();
    assert_eq!(answer(&mut client).await, long);
    bed.end().await;
}

#[tokio::test]
async fn a_large_answer_passes_whole_and_its_connection_serves_on() {
    const TOTAL: usize = 32 << 20;
    let (bed, container) = Bed::with(fast(), |mut peer: Peer| async move {
        while !peer.head().await.is_empty() {
            peer.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {TOTAL}\r\n\r\n")).await;
            for block in 0..TOTAL >> 20 {
                peer.send(&char::from(b'a' + block as u8 % 26).to_string().repeat(1 << 20)).await;
            }
        }
    })
    .await;
    let mut client = bed.client().await;
    for _ in 0..2 {
        client.send(&get("/")).await;
        assert_eq!(field(&client.head().await, "content-length"), Some(TOTAL.to_string().as_str()));
        for block in 0..TOTAL >> 20 {
            let text = client.exactly(1 << 20).await;
            assert!(text.bytes().all(|byte| byte == b'a' + block as u8 % 26), "block {block}");
        }
    }
    assert_eq!(container.accepted(), 1);
    bed.end().await;
}

#[tokio::test]
async fn a_containers_head_may_come_byte_by_byte_and_behind_early_hints() {
    let (bed, container) = Bed::with(fast(), |mut peer: Peer| async move {
        while !peer.head().await.is_empty() {
            let answer = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n\
                          HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n";
            for at in 0..answer.len() {
                peer.send(&answer[at..=at]).await;
                tokio::task::yield_now().await;
            }
        }
    })
    .await;
    let mut client = bed.client().await;
    for _ in 0..3 {
        client.send(&get("/")).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        assert_eq!(client.chunks().await, "ok");
    }
    assert_eq!(container.accepted(), 1);
    bed.end().await;
}

#[tokio::test]
async fn heads_of_a_container_beyond_the_bounds_are_502_and_the_client_is_served_on() {
    for answer in [
        format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(80 * 1024)),
        "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(40),
        format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(101)),
    ] {
        let (bed, _container) = Bed::with(fast(), move |mut peer: Peer| {
            let answer = answer.clone();
            async move {
                if peer.head().await.contains(" /bad ") {
                    peer.send_or_lose(&answer).await;
                } else {
                    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                }
                peer.rest().await;
            }
        })
        .await;
        let mut client = bed.client().await;
        client.send(&get("/bad")).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
        client.exactly(field(&head, "content-length").unwrap().parse().unwrap()).await;
        client.send(&get("/good")).await;
        assert!(client.head().await.starts_with("HTTP/1.1 200 "));
        assert_eq!(client.exactly(2).await, "ok");
        bed.end().await;
    }
}

#[tokio::test]
async fn a_body_that_is_not_framed_as_it_says_is_seen_to_break_off() {
    for (body, begins) in [("3\r\nabcd\r\n0\r\n\r\n", "3\r\nabc\r\n"), ("zz\r\n", ""), ("5\r\nab", "2\r\nab\r\n")] {
        let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        let (bed, _container) = Bed::with(fast(), move |mut peer: Peer| {
            let answer = answer.clone();
            async move {
                peer.head().await;
                peer.send(&answer).await;
            }
        })
        .await;
        let said = bed.say(&get("/")).await;
        let (_, came) = said.split_once("\r\n\r\n").unwrap_or_default();
        assert!(begins.starts_with(came) || came == begins, "{body}: {said}");
        assert!(!came.ends_with("0\r\n\r\n"), "{said}");
        bed.end().await;
    }
}

#[tokio::test]
async fn what_a_container_sends_unasked_is_no_answer_to_the_next_request() {
    let (bed, container) = Bed::with(fast(), |mut peer: Peer| async move {
        while !peer.head().await.is_empty() {
            peer.send_or_lose("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            peer.send_or_lose("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil").await;
        }
    })
    .await;
    let mut client = bed.client().await;
    for n in 1..=3 {
        client.send(&get("/")).await;
        assert_eq!(answer(&mut client).await, "ok");
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(container.accepted(), n);
    }
    bed.end().await;
}

#[tokio::test]
async fn a_refusal_leaves_the_connection_to_the_next_request() {
    let (bed, _container) = Bed::with(fast(), raw_mirror).await;
    let mut client = bed.client().await;
    for verb in ["GET", "HEAD"] {
        client.send(&format!("{verb} / HTTP/1.1\r\nHost: nobody.node1.localhost\r\n\r\n")).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 404 Not Found\r\n"), "{head}");
        assert!(field(&head, "date").is_some() && field(&head, "x-request-id").is_some(), "{head}");
        let length = field(&head, "content-length").unwrap().parse().unwrap();
        if verb == "GET" {
            assert!(client.exactly(length).await.contains("UNKNOWN_HOST"));
        }
    }
    client.send(&get("/")).await;
    assert!(went_the_short_way(&answer(&mut client).await));
    bed.end().await;
}

/// As many requests as a buffer holds and more, sent in one piece; the paths that the container was asked for.
async fn pipelined(requests: &[String]) -> Vec<String> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&seen);
    let (bed, _container) = Bed::with(fast(), move |mut peer: Peer| {
        let tell = Arc::clone(&tell);
        async move {
            loop {
                let head = peer.head().await;
                let Some(path) = head.split(' ').nth(1) else { return };
                tell.lock().unwrap().push(path.to_owned());
                tokio::time::sleep(Duration::from_millis(1)).await;
                peer.send_or_lose("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
        }
    })
    .await;
    let mut client = bed.client().await;
    client.send(&requests.concat()).await;
    for _ in requests {
        assert_eq!(answer(&mut client).await, "ok");
    }
    bed.end().await;
    seen.lock().unwrap().clone()
}

#[tokio::test]
async fn a_long_line_of_short_requests_loses_none_and_no_byte_of_one() {
    let requests: Vec<_> = (0..400).map(|n| get(&format!("/{}", n % 10))).collect();
    let wanted: Vec<_> = (0..400).map(|n| format!("/{}", n % 10)).collect();
    assert_eq!(pipelined(&requests).await, wanted);
}

#[tokio::test]
async fn what_stands_in_a_field_is_never_a_request() {
    // Were a few bytes lost where a buffer of 8 KiB ends, the value would be what is read next.
    let mut requests = vec![get("/"); 180];
    requests.push(get("/long"));
    requests.push("GET / HTTP/1.1\r\nA:GET /e HTTP/1.1\nHost: acme.node1.localhost\n\n".to_owned());
    assert!(requests.concat().len() > 8 * 1024);
    let seen = pipelined(&requests).await;
    assert_eq!(seen.iter().filter(|path| *path != "/").collect::<Vec<_>>(), ["/long"]);
}
