use hickory_proto::rr::Name;
use hickory_proto::rr::rdata::{CNAME, TXT};
use proptest::prelude::*;

use super::*;

fn subnet() -> Subnet {
    "10.201.0.0/16".parse().unwrap()
}

fn asking(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn question(message: &Message) -> Question {
    match read(&message.to_vec().unwrap()) {
        Packet::Question(question) => *question,
        other => panic!("{other:?}"),
    }
}

fn refusal(packet: &[u8]) -> ResponseCode {
    match read(packet) {
        Packet::Refused(message) => message.metadata.response_code,
        other => panic!("{other:?}"),
    }
}

fn address(name: &str, address: &str) -> Record {
    let data = match address.parse().unwrap() {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    };
    Record::from_rdata(Name::from_ascii(name).unwrap(), 60, data)
}

#[test]
fn a_question_reaches_a_name_server_under_another_id_and_without_its_options() {
    let mut asked = asking("Example.com.", RecordType::A);
    let mut edns = extension(4_096, true);
    edns.options_mut().insert(hickory_proto::rr::rdata::opt::EdnsOption::Unknown(8, vec![0, 1, 24, 0, 10, 1, 2]));
    asked.set_edns(edns);
    let question = question(&asked);
    let sent = Message::from_vec(&question.for_name_server(99).to_vec().unwrap()).unwrap();
    assert_eq!(sent.metadata.id, 99);
    assert_eq!(sent.queries, asked.queries);
    let edns = sent.edns.unwrap();
    assert!(edns.options().as_ref().is_empty() && edns.flags().dnssec_ok);
    assert_eq!(edns.max_payload(), UDP_BYTES_MAX);
}

#[test]
fn what_is_no_question_is_refused_or_not_answered_at_all() {
    let bytes = asking("example.com.", RecordType::A).to_vec().unwrap();
    assert_eq!(read(&bytes[..11]), Packet::Noise);
    let mut answer = bytes.clone();
    answer[2] |= IS_ANSWER;
    assert_eq!(read(&answer), Packet::Noise, "two resolvers that answer answers never stop");
    let mut notify = bytes.clone();
    notify[2] |= 4 << 3;
    assert_eq!(refusal(&notify), ResponseCode::NotImp);
    assert_eq!(refusal(&bytes[..bytes.len() - 1]), ResponseCode::FormErr);
    let mut two = asking("example.com.", RecordType::A);
    two.add_query(Query::query(Name::root(), RecordType::A));
    assert_eq!(refusal(&two.to_vec().unwrap()), ResponseCode::FormErr);
    for (kind, code) in [(RecordType::AXFR, ResponseCode::Refused), (RecordType::ANY, ResponseCode::NotImp)] {
        assert_eq!(refusal(&asking("example.com.", kind).to_vec().unwrap()), code);
    }
    let mut chaos = asking("version.bind.", RecordType::TXT);
    chaos.queries[0].query_class = DNSClass::CH;
    assert_eq!(refusal(&chaos.to_vec().unwrap()), ResponseCode::Refused);
    let mut later = asking("example.com.", RecordType::A);
    later.set_edns(Edns::new().set_version(1).clone());
    assert_eq!(refusal(&later.to_vec().unwrap()), ResponseCode::BADVERS);
}

#[test]
fn only_the_answer_to_this_very_question_counts() {
    let question = question(&asking("example.com.", RecordType::A));
    let answer = |id, name| {
        let mut answer = asking(name, RecordType::A);
        answer.metadata.id = id;
        answer.metadata.message_type = MessageType::Response;
        answer
    };
    assert!(question.is_answered_by(&answer(99, "example.com."), 99));
    assert!(!question.is_answered_by(&answer(98, "example.com."), 99));
    assert!(!question.is_answered_by(&answer(99, "example.net."), 99));
    assert!(!question.is_answered_by(&question.for_name_server(99), 99), "a question is no answer");
}

#[test]
fn addresses_of_tenants_and_of_metadata_services_are_left_out_and_private_ones_are_not() {
    let question = question(&asking("example.com.", RecordType::A));
    let mut answer = Message::response(99, OpCode::Query);
    for text in ["198.51.100.1", "10.201.0.9", "169.254.169.254", "::ffff:169.254.169.254", "10.99.0.1", "2001:db8::1"]
    {
        answer.add_answer(address("example.com.", text));
    }
    let reply = question.pass_on(answer, subnet());
    let left: Vec<_> = reply.answers.iter().filter_map(address_in).map(|address| address.to_string()).collect();
    assert_eq!(left, ["198.51.100.1", "10.99.0.1", "2001:db8::1"]);
    assert_eq!((reply.metadata.id, reply.metadata.recursion_available), (7, true));
}

#[test]
fn what_is_told_of_a_host_are_its_public_addresses_behind_its_own_aliases() {
    let question = question(&asking("Shop.Example.com.", RecordType::A));
    let alias = |from: &str, to: &str, ttl_s| {
        Record::from_rdata(Name::from_ascii(from).unwrap(), ttl_s, RData::CNAME(CNAME(Name::from_ascii(to).unwrap())))
    };
    let told = |records: Vec<Record>| {
        let mut answer = Message::response(99, OpCode::Query);
        answer.add_answers(records);
        question.told(&question.pass_on(answer, subnet()))
    };
    let found = told(vec![
        address("edge.test.", "198.51.100.2"),
        address("elsewhere.test.", "198.51.100.3"),
        alias("a.test.", "edge.test.", 30),
        alias("SHOP.example.com.", "a.test.", 300),
        address("edge.test.", "10.99.0.1"),
        address("edge.test.", "198.51.100.4"),
    ]);
    let addresses = ["198.51.100.2", "198.51.100.4"].map(|text| text.parse().unwrap()).into();
    assert_eq!(found, Some(Told { name: "shop.example.com".into(), addresses, ttl_s: 30 }));
    for closed in [
        "10.0.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "168.63.129.16",
        "10.201.0.9",
        "100.64.0.1",
        "0.0.0.0",
        "2001:db8::1",
    ] {
        assert_eq!(told(vec![address("shop.example.com.", closed)]), None, "{closed}");
    }
    assert_eq!(told(vec![address("other.example.com.", "198.51.100.1")]), None);
    // Aliases in a circle end.
    assert_eq!(told(vec![alias("shop.example.com.", "a.test.", 9), alias("a.test.", "shop.example.com.", 9)]), None);
}

#[test]
fn a_dot_within_a_label_is_no_dot_between_two() {
    let name = Name::from_labels(["x.example".as_bytes(), b"com"]).unwrap();
    let mut asked = asking("example.com.", RecordType::A);
    asked.queries[0] = Query::query(name.clone(), RecordType::A);
    let question = question(&asked);
    let mut answer = Message::response(99, OpCode::Query);
    answer.add_answer(Record::from_rdata(name, 60, RData::A(A::new(198, 51, 100, 1))));
    assert_eq!(question.told(&question.pass_on(answer, subnet())), None);
}

#[test]
fn names_of_the_tenant_itself_are_answered_here() {
    let here = |name: &str, kind| question(&asking(name, kind)).answer_here(subnet());
    let own = here("app.localhost.", RecordType::A).unwrap();
    assert_eq!(address_in(&own.answers[0]), Some(Ipv4Addr::LOCALHOST.into()));
    assert!(here("localhost.", RecordType::TXT).unwrap().answers.is_empty());
    for name in ["9.0.201.10.in-addr.arpa.", "201.10.in-addr.arpa.", "254.169.254.169.in-addr.arpa."] {
        assert_eq!(here(name, RecordType::PTR).unwrap().metadata.response_code, ResponseCode::NXDomain, "{name}");
    }
    for name in ["1.100.51.198.in-addr.arpa.", "10.in-addr.arpa.", "example.com.", "x.9.0.201.10.in-addr.arpa."] {
        assert_eq!(here(name, RecordType::PTR), None, "{name}");
    }
}

#[test]
fn an_answer_too_long_for_udp_says_so() {
    let question = question(&asking("example.com.", RecordType::TXT));
    let mut answer = Message::response(99, OpCode::Query);
    for _ in 0..10 {
        let data = RData::TXT(TXT::new(vec!["x".repeat(200)]));
        answer.add_answer(Record::from_rdata(Name::from_ascii("example.com.").unwrap(), 60, data));
    }
    let reply = question.pass_on(answer, subnet());
    let short = Message::from_vec(&encode(&reply, question.udp_bytes_max()).unwrap()).unwrap();
    assert!(short.metadata.truncation && short.answers.is_empty());
    let long = Message::from_vec(&encode(&reply, TCP_BYTES_MAX).unwrap()).unwrap();
    assert!(!long.metadata.truncation && long.answers.len() == 10);
}

#[test]
fn a_code_that_needs_edns_is_not_said_to_whoever_has_none() {
    let question = question(&asking("example.com.", RecordType::A));
    assert_eq!(question.reply(ResponseCode::BADCOOKIE).metadata.response_code, ResponseCode::ServFail);
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = read(&bytes);
    }

    #[test]
    fn a_damaged_question_is_read_without_harm(
        at in proptest::collection::vec((0usize..64, any::<u8>()), 1..6),
        cut in 0usize..64,
    ) {
        let mut asked = asking("a.long.name.of.an.example.com.", RecordType::AAAA);
        asked.set_edns(extension(1_232, true));
        let mut bytes = asked.to_vec().unwrap();
        for (place, value) in at {
            let place = place % bytes.len();
            bytes[place] = value;
        }
        bytes.truncate(bytes.len() - cut % bytes.len());
        match read(&bytes) {
            Packet::Question(question) => {
                // What is passed on reads back, and so does what is answered.
                let sent = question.for_name_server(1).to_vec().unwrap();
                prop_assert!(Message::from_vec(&sent).is_ok());
                let _ = question.answer_here(subnet());
                prop_assert!(encode(&question.reply(ResponseCode::NoError), 512).is_some());
            }
            Packet::Refused(message) => prop_assert!(encode(&message, 512).is_some()),
            Packet::Noise => {}
        }
    }

    #[test]
    fn no_encoding_is_longer_than_its_bound(records in 0usize..60, bytes_max in 512usize..1_232) {
        let question = question(&asking("example.com.", RecordType::A));
        let mut answer = Message::response(1, OpCode::Query);
        for n in 0..records {
            answer.add_answer(address("example.com.", &format!("198.51.100.{n}")));
        }
        let bytes = encode(&question.pass_on(answer, subnet()), bytes_max).unwrap();
        prop_assert!(bytes.len() <= bytes_max);
    }
}
