//! Every wait, count and buffer ends where it says.

use super::*;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const MIB: usize = 1 << 20;

#[tokio::test]
async fn a_large_body_passes_up_and_down() {
    const TOTAL: usize = 64 * MIB;
    let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
        peer.head().await;
        let mut left = TOTAL;
        let mut buf = vec![0; 256 * 1024];
        let expected = vec![b'u'; buf.len()];
        while left > 0 {
            let n = peer.stream.read(&mut buf).await.unwrap();
            assert!(n > 0 && buf[..n] == expected[..n]);
            left -= n;
        }
        peer.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {TOTAL}\r\n\r\n")).await;
        let block = "d".repeat(MIB);
        for _ in 0..TOTAL / MIB {
            peer.send(&block).await;
        }
        peer.head().await;
    })
    .await;
    let mut client = bed.client().await;
    client.send(&format!("POST / HTTP/1.1\r\nHost: acme.node1.localhost\r\nContent-Length: {TOTAL}\r\n\r\n")).await;
    let block = "u".repeat(MIB);
    for _ in 0..TOTAL / MIB {
        client.send(&block).await;
    }
    assert!(client.head().await.starts_with("HTTP/1.1 200"));
    let mut left = TOTAL;
    let mut buf = vec![0; 256 * 1024];
    let expected = vec![b'd'; buf.len()];
    while left > 0 {
        let n = within(client.stream.read(&mut buf)).await.unwrap();
        assert!(n > 0 && buf[..n] == expected[..n]);
        left -= n;
    }
    bed.end().await;
}

/// Writes until the other end takes no more for a while; how much went out.
async fn fill(stream: &mut TcpStream) -> usize {
    let block = vec![b'x'; 64 * 1024];
    let mut sent = 0;
    while let Ok(written) = tokio::time::timeout(ms(300), stream.write(&block)).await {
        sent += written.unwrap();
        assert!(sent < 64 * MIB, "the proxy collects the body");
    }
    sent
}

#[tokio::test]
async fn a_container_that_does_not_read_stalls_the_client() {
    let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
        peer.head().await;
        std::future::pending::<()>().await;
    })
    .await;
    let mut client = bed.client().await;
    client.send("POST / HTTP/1.1\r\nHost: acme.node1.localhost\r\nContent-Length: 99999999999\r\n\r\n").await;
    // Two pairs of socket buffers, which the kernel sizes, and two of ours.
    let sent = fill(client.stream.get_mut()).await;
    assert!(sent < 32 * MIB, "{sent} bytes went into a body nobody reads");
    drop(client);
    bed.stop.cancel();
    bed.served.abort();
}

#[tokio::test]
async fn a_client_that_does_not_read_stalls_the_container() {
    let (tell, told) = tokio::sync::oneshot::channel();
    let tell = Mutex::new(Some(tell));
    let (bed, _container) = Bed::with(fast(), move |mut peer: Peer| {
        let tell = tell.lock().unwrap().take();
        async move {
            peer.head().await;
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n").await;
            let sent = fill(peer.stream.get_mut()).await;
            tell.unwrap().send(sent).unwrap();
        }
    })
    .await;
    let mut client = bed.client().await;
    client.send(&get("/")).await;
    let sent = within(told).await.unwrap();
    assert!(sent < 32 * MIB, "{sent} bytes went into a body nobody reads");
    drop(client);
    bed.end().await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut() {
    let config = ProxyConfig { write_stall_ms_max: ms(200), ..fast() };
    let (bed, _container) = Bed::with(config, |mut peer: Peer| async move {
        peer.head().await;
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n").await;
        let block = "x".repeat(MIB);
        while tokio::time::timeout(ms(5_000), peer.stream.get_mut().write_all(block.as_bytes())).await.unwrap().is_ok()
        {
        }
    })
    .await;
    let mut client = bed.client().await;
    client.send(&get("/")).await;
    until(|| bed.proxy.stats().exchanges == 1).await;
    until(|| bed.proxy.stats().connections == 0).await;
    bed.end().await;
}

#[tokio::test]
async fn a_head_that_trickles_is_cut() {
    let config = ProxyConfig { header_read_ms_max: ms(200), ..fast() };
    let (bed, container) = Bed::with(config, mirror).await;
    let began = std::time::Instant::now();
    let mut client = bed.client().await;
    client.send("GET / HTTP/1.1\r\n").await;
    let mut cut = false;
    for _ in 0..200 {
        tokio::time::sleep(ms(20)).await;
        if client.stream.get_mut().write_all(b"X: y\r\n").await.is_err() {
            cut = true;
            break;
        }
    }
    assert!(cut, "not cut after {:?}", began.elapsed());
    // One who says nothing at all is cut as well.
    let mut silent = bed.client().await;
    assert_eq!(silent.rest().await, "");
    assert_eq!(container.accepted(), 0);
    bed.end().await;
}

/// Asks once and takes the whole answer.
async fn ask(client: &mut Peer) {
    client.send(&get("/")).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    client.exactly(field(&head, "content-length").unwrap().parse().unwrap()).await;
}

#[tokio::test]
async fn between_requests_the_idle_bound_holds_and_within_a_head_the_heads() {
    let config = ProxyConfig { header_read_ms_max: ms(200), keep_alive_idle_ms_max: ms(10_000), ..fast() };
    let (bed, _container) = Bed::with(config, mirror).await;
    let mut client = bed.client().await;
    ask(&mut client).await;
    tokio::time::sleep(ms(500)).await;
    ask(&mut client).await;
    let began = std::time::Instant::now();
    client.send("GET / HT").await;
    assert_eq!(client.rest().await, "");
    assert!(began.elapsed() < ms(8_000), "a begun head has the head's bound: {:?}", began.elapsed());
    bed.end().await;
}

#[tokio::test]
async fn an_idle_client_is_let_go() {
    let config = ProxyConfig { keep_alive_idle_ms_max: ms(300), ..fast() };
    let (bed, _container) = Bed::with(config, mirror).await;
    let mut client = bed.client().await;
    ask(&mut client).await;
    let began = std::time::Instant::now();
    assert_eq!(client.rest().await, "");
    let idle_for = began.elapsed();
    assert!((ms(200)..ms(5_000)).contains(&idle_for), "{idle_for:?}");
    bed.end().await;
}

#[tokio::test]
async fn a_slow_answer_is_not_cut_by_the_bounds_of_the_head() {
    let config = ProxyConfig { header_read_ms_max: ms(100), keep_alive_idle_ms_max: ms(100), ..fast() };
    let (bed, _container) = Bed::with(config, |mut peer: Peer| async move {
        peer.head().await;
        tokio::time::sleep(ms(300)).await;
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsl").await;
        tokio::time::sleep(ms(300)).await;
        peer.send("ow").await;
    })
    .await;
    assert!(bed.say(&get_once("/")).await.ends_with("slow"));
    bed.end().await;
}

#[tokio::test]
async fn heads_beyond_the_bounds_are_431() {
    let (bed, container) = Bed::with(fast(), mirror).await;
    let large = format!("GET / HTTP/1.1\r\nHost: acme.node1.localhost\r\nX: {}\r\n\r\n", "a".repeat(40 * 1024));
    let many = "X-Y: 1\r\n".repeat(98);
    let many = format!("GET / HTTP/1.1\r\nHost: acme.node1.localhost\r\n{many}Connection: close\r\n\r\n");
    let long = format!("GET /{} HTTP/1.1\r\nHost: acme.node1.localhost\r\n\r\n", "a".repeat(40 * 1024));
    for request in [large, many, long] {
        let mut client = bed.client().await;
        client.send(&request).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 431 "), "{head}");
        assert!(field(&head, "x-request-id").is_some(), "{head}");
    }
    let huge = format!("GET / HTTP/1.1\r\nHost: acme.node1.localhost\r\nX: {}", "a".repeat(MIB));
    let mut client = bed.client().await;
    client.send_or_lose(&huge).await;
    let head = client.head().await;
    assert!(head.is_empty() || head.starts_with("HTTP/1.1 431 "), "{head}");
    assert_eq!(container.accepted(), 0);
    bed.end().await;
}

#[tokio::test]
async fn silence_of_the_container_is_504() {
    let config = ProxyConfig { response_header_ms_max: ms(150), ..fast() };
    let (bed, _container) = Bed::with(config, |mut peer: Peer| async move {
        peer.rest().await;
    })
    .await;
    let answer = bed.say(&get_once("/")).await;
    assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("CONTAINER_TIMEOUT"), "{answer}");
    bed.end().await;
}

#[tokio::test]
async fn a_slow_upload_is_not_the_containers_silence() {
    let config = ProxyConfig { response_header_ms_max: ms(150), ..fast() };
    let (bed, _container) = Bed::with(config, |mut peer: Peer| async move {
        peer.head().await;
        peer.exactly(8).await;
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        peer.head().await;
    })
    .await;
    let mut client = bed.client().await;
    client.send("POST / HTTP/1.1\r\nHost: acme.node1.localhost\r\nContent-Length: 8\r\n\r\n").await;
    for _ in 0..2 {
        tokio::time::sleep(ms(400)).await;
        client.send("data").await;
    }
    assert!(client.head().await.starts_with("HTTP/1.1 200"));
    bed.end().await;
}

#[tokio::test]
async fn a_body_that_stops_coming_is_408() {
    let config = ProxyConfig { request_body_idle_ms_max: ms(150), ..fast() };
    let (bed, _container) = Bed::with(config, |mut peer: Peer| async move {
        peer.rest().await;
    })
    .await;
    let mut client = bed.client().await;
    client.send("POST / HTTP/1.1\r\nHost: acme.node1.localhost\r\nContent-Length: 8\r\n\r\nhalf").await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 408 "), "{head}");
    bed.end().await;
}

#[tokio::test]
async fn clients_beyond_the_bound_wait_for_a_place() {
    let config = ProxyConfig { connections_max: 1, ..fast() };
    let (bed, _container) = Bed::with(config, mirror).await;
    let mut first = bed.client().await;
    first.send(&get("/")).await;
    first.head().await;
    let mut second = bed.client().await;
    second.send(&get_once("/")).await;
    tokio::time::sleep(ms(100)).await;
    assert_eq!(bed.proxy.stats().connections, 1);
    drop(first);
    assert!(second.head().await.starts_with("HTTP/1.1 200"));
    bed.end().await;
}

#[tokio::test]
async fn one_container_cannot_take_more_than_its_share() {
    let config = ProxyConfig { per_upstream_max: 2, connect_ms_max: ms(150), ..fast() };
    let (bed, _container) = Bed::with(config, |mut peer: Peer| async move {
        peer.rest().await;
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut client = bed.client().await;
        client.send(&get("/")).await;
        held.push(client);
    }
    until(|| bed.proxy.stats().exchanges == 2).await;
    let answer = bed.say(&get_once("/")).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("CONTAINER_BUSY"), "{answer}");
    drop(held);
    bed.end().await;
}

/// Switches when asked to, else never answers.
async fn switches(mut peer: Peer) {
    if field(&peer.head().await, "upgrade").is_none() {
        peer.rest().await;
        return;
    }
    peer.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n").await;
    peer.rest().await;
}

const SWITCH: &str = "GET / HTTP/1.1\r\nHost: acme.node1.localhost\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";

#[tokio::test]
async fn tunnels_beyond_the_bound_are_refused_and_silent_ones_end() {
    let config = ProxyConfig { tunnels_max: 1, tunnel_idle_ms_max: ms(300), ..fast() };
    let (bed, _container) = Bed::with(config, switches).await;
    let mut first = bed.client().await;
    first.send(SWITCH).await;
    assert!(first.head().await.starts_with("HTTP/1.1 101"));
    let mut second = bed.client().await;
    second.send(SWITCH).await;
    assert!(second.head().await.starts_with("HTTP/1.1 503"));
    assert_eq!(first.rest().await, "", "the silent tunnel ended");
    until(|| bed.proxy.stats().tunnels == 0).await;
    drop(second);
    bed.end().await;
}

#[tokio::test]
async fn idle_connections_to_containers_expire() {
    let config = ProxyConfig { upstream_idle_ms_max: ms(100), ..fast() };
    let (bed, container) = Bed::with(config, mirror).await;
    bed.say(&get_once("/")).await;
    assert_eq!(bed.proxy.stats().idle_upstreams, 1);
    tokio::time::sleep(ms(150)).await;
    bed.say(&get_once("/")).await;
    assert_eq!(container.accepted(), 2, "an expired one is not used, swept or not");
    until(|| bed.proxy.stats().idle_upstreams == 0).await;
    bed.end().await;
}

#[tokio::test]
async fn shutdown_lets_open_exchanges_finish_and_takes_no_new_ones() {
    let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
        peer.head().await;
        tokio::time::sleep(ms(300)).await;
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await;
        peer.head().await;
    })
    .await;
    let mut idle = bed.client().await;
    let mut busy = bed.client().await;
    busy.send(&get("/")).await;
    until(|| bed.proxy.stats().exchanges == 1 && bed.proxy.stats().connections == 2).await;
    bed.stop.cancel();
    assert_eq!(idle.rest().await, "", "an idle connection is closed at once");
    assert!(TcpStream::connect(bed.addr).await.is_err(), "the listener is closed");
    assert!(busy.head().await.starts_with("HTTP/1.1 200"));
    assert_eq!(busy.rest().await, "done");
    let proxy = Arc::clone(&bed.proxy);
    bed.end().await;
    assert_eq!(proxy.stats(), Stats { connections: 0, exchanges: 0, tunnels: 0, idle_upstreams: 0 });
}

#[tokio::test]
async fn what_does_not_drain_in_time_is_cut() {
    let config = ProxyConfig { drain_ms_max: ms(200), ..fast() };
    let (bed, _container) = Bed::with(config, switches).await;
    let mut tunnel = bed.client().await;
    tunnel.send(SWITCH).await;
    assert!(tunnel.head().await.starts_with("HTTP/1.1 101"));
    let mut stuck = bed.client().await;
    stuck.send("POST / HTTP/1.1\r\nHost: acme.node1.localhost\r\nContent-Length: 9\r\n\r\n").await;
    until(|| bed.proxy.stats().connections >= 1 && bed.proxy.stats().tunnels == 1).await;
    let began = std::time::Instant::now();
    let proxy = Arc::clone(&bed.proxy);
    bed.end().await;
    assert!(began.elapsed() < ms(8_000), "{:?}", began.elapsed());
    assert_eq!(tunnel.rest().await, "");
    assert_eq!(stuck.rest().await, "");
    assert_eq!(proxy.stats().tunnels, 0);
}
