//! A name server on the lab's internet.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::net::{INTERNET, METADATA, Netns, PRIVATE, in_ticks};

/// Texts of `long.example`, each of 200 bytes: too long for UDP.
pub const LONG_TEXTS: usize = 20;
/// Where `7.many.example` is the eighth address.
pub const MANY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 0);
/// The longest packet over UDP.
const UDP_BYTES_MAX: usize = 1_232;

/// What is said of a name, absolute, when its texts are asked for.
type Texts = Arc<Mutex<HashMap<String, String>>>;

/// Answers for `*.example`; remembers how it was asked for what.
#[derive(Debug)]
pub struct NameServer {
    asked: Arc<Mutex<Vec<String>>>,
    texts: Texts,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl NameServer {
    /// Listens on port 53 of [`INTERNET`], in a namespace that has it: answers come from where was asked.
    pub fn listen(netns: &Netns) -> Self {
        Self::listen_at(netns, INTERNET)
    }

    /// Listens on port 53 of another address.
    pub fn listen_at(netns: &Netns, address: Ipv4Addr) -> Self {
        let at = (address, 53);
        let udp = in_ticks(netns.run(|| UdpSocket::bind(at).unwrap()));
        let tcp = in_ticks(netns.run(|| TcpListener::bind(at).unwrap()));
        let (asked, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let texts = Texts::default();
        let threads = vec![
            thread::spawn({
                let (asked, texts, stop) = (asked.clone(), texts.clone(), stop.clone());
                move || serve_udp(&udp, &asked, &texts, &stop)
            }),
            thread::spawn({
                let (asked, texts, stop) = (asked.clone(), texts.clone(), stop.clone());
                move || serve_tcp(&tcp, &asked, &texts, &stop)
            }),
        ];
        Self { asked, texts, stop, threads }
    }

    /// Says a text of a name from now on, such as `_tenantry.shop.example.`
    pub fn say(&self, name: &str, text: &str) {
        self.texts.lock().unwrap().insert(name.to_owned(), text.to_owned());
    }

    /// What was asked, each with how: `udp a.example.`
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn serve_udp(udp: &UdpSocket, asked: &Mutex<Vec<String>>, texts: &Texts, stop: &AtomicBool) {
    let mut buffer = [0; 2_048];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = udp.recv_from(&mut buffer) else { continue };
        let answer = answer(&buffer[..length], "udp", asked, texts);
        let mut bytes = answer.to_vec().unwrap();
        if bytes.len() > UDP_BYTES_MAX {
            bytes = answer.truncate().to_vec().unwrap();
        }
        let _ = udp.send_to(&bytes, from);
    }
}

fn serve_tcp(tcp: &TcpListener, asked: &Mutex<Vec<String>>, texts: &Texts, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = tcp.accept() else { continue };
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let Ok(packet) = read_framed(&mut stream) else { continue };
        let _ = stream.write_all(&framed(&answer(&packet, "tcp", asked, texts).to_vec().unwrap()));
    }
}

fn answer(packet: &[u8], how: &str, asked: &Mutex<Vec<String>>, texts: &Texts) -> Message {
    let question = Message::from_vec(packet).unwrap();
    let query = question.queries[0].clone();
    asked.lock().unwrap().push(format!("{how} {}", query.name));
    let mut answer = Message::response(question.metadata.id, OpCode::Query);
    let host = |address: Ipv4Addr| RData::A(A(address));
    let data = match (query.name.to_ascii().to_ascii_lowercase().as_str(), query.query_type) {
        ("long.example.", RecordType::TXT) => {
            (0..LONG_TEXTS).map(|n| RData::TXT(TXT::new(vec![format!("{n:0200}")]))).collect()
        }
        ("metadata.example.", RecordType::A) => {
            vec![host(Ipv4Addr::new(169, 254, 169, 254)), host(Ipv4Addr::new(10, 201, 0, 2))]
        }
        ("inside.example.", RecordType::A) => vec![host(PRIVATE), host(Ipv4Addr::LOCALHOST), host(METADATA)],
        (name, RecordType::A) if name.ends_with(".many.example.") => {
            let digits: String = name.chars().filter(char::is_ascii_digit).collect();
            vec![host(Ipv4Addr::from_bits(MANY.to_bits() + digits.parse::<u32>().unwrap()))]
        }
        (name, RecordType::TXT) if texts.lock().unwrap().contains_key(name) => {
            vec![RData::TXT(TXT::new(vec![texts.lock().unwrap()[name].clone()]))]
        }
        (name, RecordType::A) if name.ends_with(".example.") => vec![host(INTERNET)],
        (name, _) if name.ends_with(".example.") => vec![],
        _ => {
            answer.metadata.response_code = ResponseCode::NXDomain;
            vec![]
        }
    };
    answer.answers = data.into_iter().map(|data| Record::from_rdata(query.name.clone(), 60, data)).collect();
    answer.add_query(query);
    answer
}

/// A question as a tenant's resolver asks it.
pub fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

/// Asks from a namespace by UDP; `None` where no answer comes in time.
pub fn ask(from: &Netns, server: Ipv4Addr, message: &Message, patience: Duration) -> Option<Message> {
    from.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.connect((server, 53)).unwrap();
        socket.set_read_timeout(Some(patience)).unwrap();
        socket.send(&message.to_vec().unwrap()).unwrap();
        let mut buffer = [0; 4_096];
        let length = socket.recv(&mut buffer).ok()?;
        Some(Message::from_vec(&buffer[..length]).unwrap())
    })
}

/// Asks from a namespace by TCP.
pub fn ask_by_tcp(from: &Netns, server: Ipv4Addr, message: &Message) -> io::Result<Message> {
    from.run(|| {
        let mut stream = TcpStream::connect((server, 53))?;
        stream.set_read_timeout(Some(super::net::PATIENCE))?;
        stream.write_all(&framed(&message.to_vec().unwrap()))?;
        Ok(Message::from_vec(&read_framed(&mut stream)?).unwrap())
    })
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut packet = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut packet)?;
    Ok(packet)
}

/// The addresses in an answer.
pub fn addresses(answer: &Message) -> Vec<Ipv4Addr> {
    let address = |record: &Record| match record.data {
        RData::A(A(address)) => Some(address),
        _ => None,
    };
    answer.answers.iter().filter_map(address).collect()
}
