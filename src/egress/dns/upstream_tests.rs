use std::sync::Arc;

use hickory_proto::op::{MessageType, OpCode, Query};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::net::TcpListener;

use super::super::message::{Packet, read};
use super::*;

fn question(kind: RecordType) -> Question {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii("example.com.").unwrap(), kind));
    match read(&message.to_vec().unwrap()) {
        Packet::Question(question) => *question,
        other => panic!("{other:?}"),
    }
}

fn answer_to(packet: &[u8], records: usize) -> Message {
    let asked = Message::from_vec(packet).unwrap();
    let mut answer = Message::response(asked.metadata.id, OpCode::Query);
    answer.add_queries(asked.queries.clone());
    for n in 0..records {
        let data = match asked.queries[0].query_type {
            RecordType::TXT => RData::TXT(TXT::new(vec![format!("{n:0200}")])),
            _ => RData::A(A::new(198, 51, 100, 1)),
        };
        answer.add_answer(Record::from_rdata(asked.queries[0].name.clone(), 60, data));
    }
    answer
}

/// A name server on a port of its own: what it makes of each packet it sends back, in order.
async fn server(make: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> NameServer {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2_048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            for packet in make(&buffer[..length]) {
                socket.send_to(&packet, from).await.unwrap();
            }
        }
    });
    address.to_string().parse().unwrap()
}

/// Asks these.
async fn ask(servers: Vec<NameServer>, kind: RecordType) -> Result<Message, Unanswered> {
    let dialer = Dialer::new("10.201.0.0/16".parse().unwrap(), false);
    Servers::new(servers).ask(&dialer, &[], &question(kind)).await
}

async fn silent() -> (UdpSocket, NameServer) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let server = socket.local_addr().unwrap().to_string().parse().unwrap();
    (socket, server)
}

#[tokio::test]
async fn forged_and_malformed_packets_before_the_answer_are_passed_over() {
    let server = server(|packet| {
        let mut forged = answer_to(packet, 9);
        forged.metadata.id = forged.metadata.id.wrapping_add(1);
        let mut other = answer_to(packet, 9);
        other.queries[0].name = Name::from_ascii("example.net.").unwrap();
        let honest = answer_to(packet, 1).to_vec().unwrap();
        vec![b"nonsense".to_vec(), forged.to_vec().unwrap(), other.to_vec().unwrap(), packet.to_vec(), honest]
    });
    assert_eq!(ask(vec![server.await], RecordType::A).await.unwrap().answers.len(), 1);
}

#[tokio::test]
async fn the_next_one_is_asked_where_one_is_silent_or_fails() {
    let (_held, nobody) = silent().await;
    let failing = server(|packet| {
        let mut failure = answer_to(packet, 0);
        failure.metadata.response_code = ResponseCode::ServFail;
        vec![failure.to_vec().unwrap()]
    });
    let failing = failing.await;
    let able = server(|packet| vec![answer_to(packet, 1).to_vec().unwrap()]).await;
    let began = Instant::now();
    let answer = ask(vec![failing, nobody, able], RecordType::A).await.unwrap();
    assert_eq!(answer.answers.len(), 1);
    assert!(began.elapsed() < Duration::from_millis(ANSWER_MS_MAX));
    // What a name server said stands where the others say nothing at all.
    let answer = ask(vec![failing, nobody], RecordType::A).await.unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn a_lost_packet_is_sent_again_and_silence_has_an_end() {
    let seen = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let count = seen.clone();
    let forgetful = server(move |packet| match count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
        0 => vec![],
        _ => vec![answer_to(packet, 1).to_vec().unwrap()],
    });
    assert!(ask(vec![forgetful.await], RecordType::A).await.is_ok());
    let (_held, nobody) = silent().await;
    let asked = ask(vec![nobody], RecordType::A).await;
    assert!(matches!(asked, Err(Unanswered::Silence)), "{asked:?}");
}

#[tokio::test]
async fn an_answer_too_long_for_udp_is_fetched_by_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let udp = UdpSocket::bind(address).await.unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2_048];
        let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
        let short = answer_to(&buffer[..length], 0).truncate();
        udp.send_to(&short.to_vec().unwrap(), from).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut packet = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut packet).await.unwrap();
        stream.write_all(&framed(&answer_to(&packet, 50).to_vec().unwrap())).await.unwrap();
    });
    let server = address.to_string().parse().unwrap();
    assert_eq!(ask(vec![server], RecordType::TXT).await.unwrap().answers.len(), 50);
}

#[tokio::test]
async fn a_tenants_own_name_servers_come_first_and_are_none_of_this_hosts() {
    let server = server(|packet| vec![answer_to(packet, 1).to_vec().unwrap()]).await;
    let subnet = "10.201.0.0/16".parse().unwrap();
    let ask = async |allow_local, own: &[NameServer]| {
        let servers = Servers::new(vec!["192.0.2.1".parse().unwrap()]);
        servers.ask(&Dialer::new(subnet, allow_local), own, &question(RecordType::A)).await
    };
    assert_eq!(ask(true, &[server]).await.unwrap().answers.len(), 1);
    assert!(matches!(ask(false, &[server]).await, Err(Unanswered::NoServer)), "it listens on loopback");
}

#[tokio::test]
async fn no_name_server_that_only_this_host_reaches_is_asked_through_a_proxy() {
    let proxy = "socks5://192.0.2.7:1080".parse().unwrap();
    let dialer = Dialer::new("10.201.0.0/16".parse().unwrap(), false);
    for server in ["127.0.0.53", "192.168.1.1", "10.0.0.2"] {
        let servers = Servers::new(vec![server.parse().unwrap()]);
        let asked = servers.ask_through(&dialer, &proxy, &[], &question(RecordType::A)).await;
        assert!(matches!(asked, Err(Unanswered::NoServer)), "{server}");
    }
}
