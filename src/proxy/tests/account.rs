//! What is noted of requests: lines for the access log, and counts.

use super::raw::{Raw, echo};
use super::*;
use crate::metrics::{Format, Source, Text};

fn logged() -> ProxyConfig {
    ProxyConfig { access_log: true, ..fast() }
}

/// As Prometheus would read it.
fn scraped(proxy: &Proxy) -> String {
    let mut text = Text::new(Format::Prometheus);
    proxy.write(&mut text);
    text.finish()
}

#[tokio::test]
async fn a_request_leaves_a_line_without_its_query() {
    let (bed, _container) = Bed::with(logged(), mirror).await;
    let answer = bed.say(&get_once("/notes/7?token=secret")).await;
    let id = field(&answer.to_lowercase(), "x-request-id").unwrap().to_owned();
    within(bed.proxy.access().collected()).await;
    let lines = bed.proxy.access().take();
    let [(container, line)] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!(*container, bed.acme);
    assert_eq!((&*line.method, line.path.as_str(), line.status), ("GET", "/notes/7", Some(200)));
    assert_eq!((line.client.to_string(), line.request_id.as_str()), ("127.0.0.1".to_owned(), id.as_str()));
    assert_eq!(line.bytes, answer.split_once("\r\n\r\n").unwrap().1.len() as u64);
    assert!(line.upstream_us.is_some_and(|us| us <= line.duration_us) && !line.woken, "{line:?}");
    bed.end().await;
}

#[tokio::test]
async fn a_request_that_does_not_get_there_is_counted_and_one_to_nobody_is_in_no_log() {
    let bed = Bed::start(logged()).await;
    // Nobody listens there.
    bed.table.run("acme", bed.acme, 1, "127.0.0.1:1".parse().unwrap());
    bed.say(&get_once("/")).await;
    bed.say("GET / HTTP/1.1\r\nHost: nobody.node1.localhost\r\nConnection: close\r\n\r\n").await;
    within(bed.proxy.access().collected()).await;
    let lines = bed.proxy.access().take();
    assert_eq!(lines.iter().map(|(_, line)| line.status).collect::<Vec<_>>(), [Some(502)]);
    let text = scraped(&bed.proxy);
    for line in [
        "tenantry_proxy_requests_total{class=\"4xx\"} 1".to_owned(),
        "tenantry_proxy_requests_total{class=\"5xx\"} 1".to_owned(),
        format!("tenantry_container_requests_total{{container=\"{}\",class=\"5xx\"}} 1", bed.acme),
        "tenantry_container_response_bytes_total{container=\"other\"} 0".to_owned(),
        "tenantry_proxy_request_duration_seconds_count 2".to_owned(),
    ] {
        assert!(text.contains(&format!("\n{line}\n")), "{line} is not in {text}");
    }
    bed.end().await;
}

#[tokio::test]
async fn a_client_that_goes_away_is_noted_without_a_status() {
    let (bed, _container) = Bed::with(logged(), |mut peer: Peer| async move {
        peer.head().await;
        std::future::pending::<()>().await;
    })
    .await;
    let mut client = bed.client().await;
    client.send(&get("/slow")).await;
    until(|| bed.proxy.stats().exchanges == 1).await;
    drop(client);
    within(bed.proxy.access().collected()).await;
    let lines = bed.proxy.access().take();
    assert_eq!(lines.iter().map(|(_, line)| line.status).collect::<Vec<_>>(), [None]);
    assert!(scraped(&bed.proxy).contains("tenantry_proxy_requests_total{class=\"none\"} 1\n"));
    bed.end().await;
}

#[tokio::test]
async fn a_connection_of_raw_tcp_leaves_a_line_when_it_has_ended_and_is_counted_apart() {
    let (raw, _container) = Raw::with(logged(), echo).await;
    let mut client = Peer::connect(raw.addr).await;
    client.send("hello").await;
    assert_eq!(client.exactly(5).await, "hello");
    drop(client);
    until(|| raw.bed.proxy.stats().connections == 0).await;
    // Let go without a word.
    raw.bed.table.lead_port(Resolution::Asleep);
    assert_eq!(Peer::connect(raw.addr).await.rest().await, "");
    until(|| scraped(&raw.bed.proxy).contains("tenantry_proxy_tcp_connections_total 2\n")).await;
    let lines = raw.bed.proxy.access().take();
    let told: Vec<_> =
        lines.iter().map(|(id, line)| (*id, &*line.method, line.path.as_str(), line.status, line.bytes)).collect();
    assert_eq!(told, [5, 0].map(|bytes| (raw.bed.acme, "TCP", ":65535", None, bytes)));
    let text = scraped(&raw.bed.proxy);
    for line in [
        "tenantry_proxy_tcp_sent_bytes_total 5".to_owned(),
        format!("tenantry_container_tcp_connections_total{{container=\"{}\"}} 2", raw.bed.acme),
        format!("tenantry_container_tcp_sent_bytes_total{{container=\"{}\"}} 5", raw.bed.acme),
        "tenantry_proxy_request_duration_seconds_count 0".to_owned(),
    ] {
        assert!(text.contains(&format!("\n{line}\n")), "{line} is not in {text}");
    }
    raw.end().await;
}

#[tokio::test]
async fn a_log_that_is_switched_off_keeps_nothing() {
    let (bed, _container) = Bed::with(fast(), mirror).await;
    bed.say(&get_once("/")).await;
    assert!(bed.proxy.access().take().is_empty());
    assert!(scraped(&bed.proxy).contains("tenantry_proxy_requests_total{class=\"2xx\"} 1\n"));
    bed.end().await;
}
