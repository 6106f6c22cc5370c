//! Who is reached, who is not, and what the client is told then.

use super::*;

#[tokio::test]
async fn an_unknown_host_gets_a_page_in_a_browser_and_the_error_form_elsewhere() {
    let bed = Bed::start(fast()).await;
    let host = "Host: nobody.node1.localhost\r\nConnection: close\r\n";
    let json = bed.say(&format!("GET / HTTP/1.1\r\n{host}\r\n")).await;
    let (head, body) = json.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    let value: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(value["statusCode"], 404);
    assert_eq!(value["error"], "UNKNOWN_HOST");
    assert_eq!(value["retryable"], false);
    assert_eq!(value["request_id"].as_str(), field(head, "x-request-id"));
    let page = bed.say(&format!("GET / HTTP/1.1\r\n{host}Accept: text/html,*/*;q=0.8\r\n\r\n")).await;
    assert!(page.contains("content-type: text/html") && page.contains("<!doctype html>"), "{page}");
    let foreign = bed.say("GET / HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n").await;
    assert!(foreign.starts_with("HTTP/1.1 404 "), "{foreign}");
    let only_head = bed.say(&format!("HEAD / HTTP/1.1\r\n{host}\r\n")).await;
    assert!(only_head.starts_with("HTTP/1.1 404 ") && only_head.ends_with("\r\n\r\n"), "{only_head}");
    bed.end().await;
}

#[tokio::test]
async fn a_container_that_does_not_run_is_503_with_a_time_to_retry() {
    let bed = Bed::start(fast()).await;
    for (resolution, code) in [
        (Resolution::NotRunning { status: "stopped".into() }, "CONTAINER_NOT_RUNNING"),
        (Resolution::NotReady { status: "starting".into() }, "CONTAINER_NOT_READY"),
    ] {
        bed.table.set("acme", resolution);
        let answer = bed.say(&get_once("/")).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(field(&answer, "retry-after").is_some() && answer.contains(code), "{answer}");
    }
    bed.end().await;
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_502() {
    let (bed, container) = Bed::with(fast(), mirror).await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    bed.table.run("acme", bed.acme, 1, free);
    let answer = bed.say(&get_once("/")).await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("CONTAINER_UNREACHABLE"), "{answer}");
    assert_eq!(container.accepted(), 0);
    bed.end().await;
}

#[tokio::test]
async fn a_container_that_closes_or_speaks_no_http_is_502() {
    for garbage in ["", "HTTP/1.1 200", "SSH-2.0-OpenSSH\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"] {
        let (bed, _container) = Bed::with(fast(), move |mut peer: Peer| async move {
            peer.head().await;
            peer.send(garbage).await;
        })
        .await;
        let answer = bed.say(&get_once("/")).await;
        assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("CONTAINER_BROKE"), "{garbage}: {answer}");
        bed.end().await;
    }
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let (bed, container) = Bed::with(fast(), mirror).await;
    for _ in 0..20 {
        assert!(bed.say(&get_once("/")).await.starts_with("HTTP/1.1 200"));
    }
    assert_eq!(container.accepted(), 1, "twenty clients, one connection");
    assert_eq!(bed.proxy.stats().idle_upstreams, 1);
    bed.end().await;
}

/// A container that answers one request and, asked again on the same connection, closes without an answer.
async fn answers_once(mut peer: Peer) {
    peer.head().await;
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    peer.head().await;
}

#[tokio::test]
async fn a_request_that_met_a_dead_pooled_connection_is_sent_once_more() {
    let (bed, container) = Bed::with(fast(), answers_once).await;
    for round in 1..=3 {
        let answer = bed.say(&get_once("/")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "round {round}: {answer}");
        assert_eq!(container.accepted(), round);
    }
    bed.end().await;
}

#[tokio::test]
async fn a_post_that_was_sent_is_never_sent_again() {
    let (bed, container) = Bed::with(fast(), answers_once).await;
    assert!(bed.say(&get_once("/")).await.starts_with("HTTP/1.1 200"));
    let post = "POST / HTTP/1.1\r\nHost: acme.node1.localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let answer = bed.say(post).await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert_eq!(container.accepted(), 1);
    bed.end().await;
}

#[tokio::test]
async fn a_post_goes_to_a_fresh_connection_when_the_pooled_one_is_known_to_be_closed() {
    let (bed, container) = Bed::with(fast(), |mut peer: Peer| async move {
        let head = peer.head().await;
        let length = field(&head, "content-length").map_or(0, |l| l.parse().unwrap());
        let body = peer.exactly(length).await;
        peer.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}")).await;
    })
    .await;
    for round in 1..=3 {
        let post =
            "POST / HTTP/1.1\r\nHost: acme.node1.localhost\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody";
        let answer = bed.say(post).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("body"), "{answer}");
        assert_eq!(container.accepted(), round);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bed.end().await;
}

#[tokio::test]
async fn a_new_start_closes_what_was_pooled_for_the_old_one() {
    let closed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&closed);
    let (bed, container) = Bed::with(fast(), move |peer| {
        let count = Arc::clone(&count);
        async move {
            mirror(peer).await;
            count.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    assert!(bed.say(&get_once("/")).await.starts_with("HTTP/1.1 200"));
    bed.table.run("acme", bed.acme, 2, container.addr);
    assert!(bed.say(&get_once("/")).await.starts_with("HTTP/1.1 200"));
    assert_eq!(container.accepted(), 2);
    until(|| closed.load(Ordering::SeqCst) == 1).await;
    assert_eq!(bed.proxy.stats().idle_upstreams, 1);
    bed.end().await;
}

#[tokio::test]
async fn a_connection_of_one_tenant_is_never_used_for_another_at_the_same_address() {
    let (bed, container) = Bed::with(fast(), mirror).await;
    assert!(bed.say(&get_once("/")).await.starts_with("HTTP/1.1 200"));
    // The slot was reused: same address, other container.
    bed.table.run("other", ContainerId::generate(), 1, container.addr);
    let answer = bed.say("GET / HTTP/1.1\r\nHost: other.node1.localhost\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(container.accepted(), 2);
    bed.end().await;
}

#[tokio::test]
async fn nothing_is_sent_to_an_address_that_changed_hands_while_connecting() {
    let got = Arc::new(Mutex::new(String::new()));
    let record = Arc::clone(&got);
    let (bed, container) = Bed::with(fast(), move |mut peer: Peer| {
        let record = Arc::clone(&record);
        async move {
            let all = peer.rest().await;
            record.lock().unwrap().push_str(&all);
        }
    })
    .await;
    bed.table.outdated.store(true, Ordering::SeqCst);
    let answer = bed.say(&get_once("/secret")).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    until(|| container.accepted() == 1).await;
    bed.end().await;
    assert_eq!(*got.lock().unwrap(), "");
}

#[tokio::test]
async fn a_forgotten_container_has_no_idle_connections() {
    let (bed, _container) = Bed::with(fast(), mirror).await;
    bed.say(&get_once("/")).await;
    assert_eq!(bed.proxy.stats().idle_upstreams, 1);
    bed.proxy.forget(bed.acme);
    assert_eq!(bed.proxy.stats().idle_upstreams, 0);
    bed.end().await;
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_by_the_container() {
    let gone = Arc::new(tokio::sync::Notify::new());
    let notify = Arc::clone(&gone);
    let (bed, _container) = Bed::with(fast(), move |mut peer: Peer| {
        let notify = Arc::clone(&notify);
        async move {
            let head = peer.head().await;
            if head.starts_with("GET /events") {
                peer.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n").await;
            }
            peer.rest().await;
            notify.notify_one();
        }
    })
    .await;
    // Once while events flow, once before any answer.
    let mut client = bed.client().await;
    client.send(&get("/events")).await;
    client.head().await;
    client.chunk().await;
    drop(client);
    within(gone.notified()).await;
    until(|| bed.proxy.stats().exchanges == 0).await;
    let mut client = bed.client().await;
    client.send(&get("/slow")).await;
    until(|| bed.proxy.stats().exchanges == 1).await;
    drop(client);
    within(gone.notified()).await;
    until(|| bed.proxy.stats().exchanges == 0).await;
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_of_many_tenants_each_get_their_own_answer_while_tenants_restart() {
    const TENANTS: usize = 8;
    const CLIENTS: usize = 40;
    const REQUESTS: usize = 25;
    let bed = Arc::new(Bed::start(fast()).await);
    let mut containers = Vec::new();
    for tenant in 0..TENANTS {
        let container = Container::start(move |mut peer: Peer| async move {
            while !peer.head().await.is_empty() {
                peer.send_or_lose(&format!("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\ntenant {tenant}")).await;
            }
        })
        .await;
        let id = ContainerId::generate();
        bed.table.run(&format!("tenant-{tenant}"), id, 1, container.addr);
        containers.push((id, container));
    }
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let bed = Arc::clone(&bed);
            tokio::spawn(async move {
                let mut peer = bed.client().await;
                for request in 0..REQUESTS {
                    let tenant = (client + request) % TENANTS;
                    peer.send(&format!("GET / HTTP/1.1\r\nHost: tenant-{tenant}.node1.localhost\r\n\r\n")).await;
                    let head = peer.head().await;
                    // A start that was over while its connection was made is told, never mixed up.
                    if head.starts_with("HTTP/1.1 503") {
                        peer.exactly(field(&head, "content-length").unwrap().parse().unwrap()).await;
                        continue;
                    }
                    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
                    assert_eq!(peer.exactly(8).await, format!("tenant {tenant}"));
                }
            })
        })
        .collect();
    for epoch in 2..20 {
        for (tenant, (id, container)) in containers.iter().enumerate() {
            bed.table.run(&format!("tenant-{tenant}"), *id, epoch, container.addr);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for client in clients {
        within(client).await.unwrap();
    }
    until(|| bed.proxy.stats().connections == 0).await;
    assert_eq!(bed.proxy.stats().exchanges, 0);
    Arc::try_unwrap(bed).ok().unwrap().end().await;
}
