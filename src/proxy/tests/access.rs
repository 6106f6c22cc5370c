//! The door: who is let through, what of their credentials goes with them, and that nobody else gets as far as being routed.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::*;
use crate::domain::access::tests::signed_by;
use crate::domain::access::{
    Access, Algorithm, Entry, Group, IpGroup, JwtGroup, Place, PlainPassword, Policy, Reach, TokenGroup,
};
use crate::domain::{Container as Record, ProjectId, Secret, Slot};
use crate::lifecycle::tests::record;

const TOKEN: &str = "a-token-of-some-length";
const KEY: &str = "0123456789abcdef0123456789abcdef";

fn password(user: &str, password: &str) -> Group {
    let plain = PlainPassword::new(user.into(), Secret::new(password), None).unwrap();
    Group::Password(plain.generate_group().unwrap())
}

fn token(place: &str) -> Group {
    Group::Token(TokenGroup::new(place.parse().unwrap(), &Secret::new(TOKEN)).unwrap())
}

fn jwt(places: &[&str]) -> Group {
    let places = places.iter().map(|place| place.parse::<Place>().unwrap()).collect();
    Group::Jwt(JwtGroup::new(Algorithm::HS256, Secret::new(KEY), places, Default::default()).unwrap())
}

fn ip(range: &str) -> Group {
    Group::Ip(IpGroup::new(vec![range.parse().unwrap()]).unwrap())
}

/// A proxy in front of a mirror whose URL only these groups open.
async fn bed(config: ProxyConfig, groups: Vec<Group>) -> (Bed, Container) {
    let (bed, container) = Bed::with(config, mirror).await;
    let mut access = Access::new(Policy::Deny);
    for (n, group) in groups.into_iter().enumerate() {
        access.put(format!("g{n}").parse().unwrap(), Entry { group, reach: Reach::default() }).unwrap();
    }
    let mut record: Record = record(ProjectId::NIL, "acme", Slot(1));
    record.settings.access = Some(Box::new(access));
    *bed.table.gate.lock().unwrap() = Some(Gate { container: Arc::new(record), port: 8080 });
    (bed, container)
}

#[tokio::test]
async fn a_connection_of_raw_tcp_is_let_in_by_its_address_alone() {
    let own = "127.0.0.0/8";
    for (groups, enters) in [
        (vec![ip(own)], true),
        (vec![token("header:x-key"), password("ann", "long enough")], false),
        (vec![ip("10.0.0.0/8")], false),
    ] {
        let (bed, container) = bed(fast(), groups).await;
        bed.table.lead_port(Resolution::Upstream(Upstream { container: bed.acme, epoch: 1, addr: container.addr }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let served = tokio::spawn(Arc::clone(&bed.proxy).serve_raw(listener, NonZeroU16::MAX, bed.stop.clone()));
        let mut client = Peer::connect(addr).await;
        client.send_or_lose("GET / HTTP/1.1\r\n\r\n").await;
        assert_eq!(client.head().await.starts_with("HTTP/1.1 200"), enters);
        assert_eq!((bed.resolved(), container.accepted()), (usize::from(enters), usize::from(enters)));
        drop(client);
        bed.end().await;
        within(served).await.unwrap();
    }
}

impl Bed {
    /// A request with more headers.
    async fn ask(&self, target: &str, fields: &[&str]) -> String {
        let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
        let head = "Host: acme.node1.localhost\r\nConnection: close\r\n";
        self.say(&format!("GET {target} HTTP/1.1\r\n{head}{fields}\r\n")).await
    }

    fn resolved(&self) -> usize {
        self.table.resolved.load(Ordering::SeqCst)
    }
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn basic(user: &str, password: &str) -> String {
    format!("Authorization: Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

#[tokio::test]
async fn whoever_has_no_credentials_is_asked_for_them_and_gets_no_further() {
    let (bed, container) = bed(fast(), vec![password("ada", "correct horse"), token("header:authorization")]).await;
    let answer = bed.ask("/", &[]).await;
    assert_eq!(status(&answer), 401, "{answer}");
    let head = answer.to_lowercase();
    assert!(head.contains("www-authenticate: basic realm=\"access\", charset=\"utf-8\"\r\n"), "{answer}");
    assert!(head.contains("www-authenticate: bearer realm=\"access\"\r\n"), "{answer}");
    assert!(answer.contains("\"UNAUTHORIZED\"") && head.contains("cache-control: no-store"), "{answer}");
    // As it would be told of a container that is stopped, failing, or gone meanwhile.
    bed.table.set("acme", Resolution::NotRunning { status: "stopped".into() });
    let asleep = bed.ask("/", &[]).await;
    let same = |text: &str| {
        let differs = |line: &&str| ["x-request-id", "date", "{"].iter().any(|start| line.starts_with(start));
        text.lines().filter(|line| !differs(line)).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(same(&asleep), same(&answer));
    let upgrade = "GET / HTTP/1.1\r\nHost: acme.node1.localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let mut client = bed.client().await;
    client.send(upgrade).await;
    assert_eq!(status(&client.head().await), 401);
    let post = "POST / HTTP/1.1\r\nHost: acme.node1.localhost\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody";
    let posted = bed.say(post).await;
    assert_eq!(status(&posted), 401, "{posted}");
    assert_eq!((bed.resolved(), container.accepted()), (0, 0));
    bed.end().await;
}

#[tokio::test]
async fn whoever_is_refused_is_in_the_log_of_the_container_that_was_asked_for() {
    let config = ProxyConfig { access_log: true, ..fast() };
    let (bed, _container) = bed(config, vec![password("ada", "correct horse")]).await;
    bed.ask("/private?key=1", &[&basic("eve", "guess")]).await;
    within(bed.proxy.access().collected()).await;
    let lines = bed.proxy.access().take();
    let [(container, line)] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!((line.path.as_str(), line.status, line.upstream_us), ("/private", Some(401), None));
    assert_eq!(*container, bed.table.gate.lock().unwrap().as_ref().unwrap().container.id);
    bed.end().await;
}

#[tokio::test]
async fn a_password_lets_in_and_does_not_reach_the_container() {
    let (bed, _container) = bed(fast(), vec![password("ada", "correct horse")]).await;
    let answer = bed.ask("/page?x=1", &[&basic("ada", "correct horse"), "Cookie: theme=dark"]).await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(answer.contains("GET /page?x=1 ") && answer.contains("cookie: theme=dark"), "{answer}");
    assert!(!answer.contains("authorization"), "{answer}");
    for (user, wrong) in [("ada", "incorrect horse"), ("eve", "correct horse"), ("ada", ""), ("", "correct horse")] {
        assert_eq!(status(&bed.ask("/", &[&basic(user, wrong)]).await), 401, "{user}:{wrong}");
    }
    bed.end().await;
}

#[tokio::test]
async fn many_requests_of_one_visitor_at_once_cost_one_look_at_the_password() {
    let (bed, _container) = bed(fast(), vec![password("ada", "correct horse")]).await;
    let credentials = basic("ada", "correct horse");
    let asked = (0..60).map(|_| async { bed.ask("/", &[&credentials]).await });
    for answer in futures_util::future::join_all(asked).await {
        assert_eq!(status(&answer), 200, "{answer}");
    }
    bed.end().await;
}

#[tokio::test]
async fn a_token_lets_in_from_where_it_is_to_stand_and_is_taken_away() {
    for (place, target, field, left) in [
        ("header:authorization", "/a", format!("Authorization: Bearer {TOKEN}"), "GET /a HTTP"),
        ("header:authorization", "/a", format!("Authorization: {TOKEN}"), "GET /a HTTP"),
        ("header:x-key", "/a", format!("X-Key: {TOKEN}"), "GET /a HTTP"),
        ("cookie:door", "/a", format!("Cookie: a=1; door={TOKEN}; b=2"), "cookie: a=1; b=2\r\n"),
        ("param:key", &format!("/a?x=1&key={TOKEN}&y=2"), "X-None: 1".into(), "GET /a?x=1&y=2 HTTP"),
        ("param:key", &format!("/a?key={TOKEN}"), "X-None: 1".into(), "GET /a HTTP"),
        ("param:key", &format!("/a?%6bey={TOKEN}"), "X-None: 1".into(), "GET /a HTTP"),
        (
            "param:key",
            &format!("/a?key={TOKEN}"),
            format!("Referer: http://acme.node1.localhost/?key={TOKEN}&x=1"),
            "referer: http://acme.node1.localhost/?x=1\r\n",
        ),
    ] {
        let (bed, container) = bed(fast(), vec![token(place)]).await;
        let answer = bed.ask(target, &[&field]).await;
        assert_eq!(status(&answer), 200, "{place}: {answer}");
        assert!(answer.contains(left) && !answer.contains(TOKEN), "{place}: {answer}");
        for (target, field) in [
            ("/a?key=another-token-than-that", "X-Key: no"),
            (&format!("/a?key={TOKEN}&key={TOKEN}"), "Cookie: door=no"),
        ] {
            assert_eq!(status(&bed.ask(target, &[field]).await), 401, "{place} {target}");
        }
        assert_eq!(container.accepted(), 1);
        bed.end().await;
    }
}

#[tokio::test]
async fn what_let_nobody_in_is_the_containers_own() {
    let (bed, _container) =
        bed(fast(), vec![ip("127.0.0.0/8"), token("header:authorization"), token("cookie:door")]).await;
    let answer = bed.ask("/", &["Authorization: Bearer of-the-application", "Cookie: door=of-the-application"]).await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(
        answer.contains("authorization: bearer of-the-application") && answer.contains("cookie: door="),
        "{answer}"
    );
    for _ in 0..30 {
        assert_eq!(
            status(&bed.ask("/", &["Authorization: Bearer of-the-application"]).await),
            200,
            "never a wrong try"
        );
    }
    bed.end().await;
}

#[tokio::test]
async fn who_has_a_token_that_has_ended_has_not_guessed() {
    let (bed, _container) = bed(fast(), vec![jwt(&["cookie:session"])]).await;
    let signed = |exp: i64| {
        let claims = json!({ "exp": jiff::Timestamp::now().as_second() + exp });
        format!("Cookie: session={}", signed_by(KEY.as_bytes(), &json!({ "alg": "HS256" }), &claims))
    };
    for _ in 0..30 {
        assert_eq!(status(&bed.ask("/", &[&signed(-60)]).await), 401);
    }
    assert_eq!(status(&bed.ask("/", &[&signed(60)]).await), 200);
    bed.end().await;
}

#[tokio::test]
async fn a_signed_token_lets_in_and_one_of_another_algorithm_does_not() {
    let (bed, container) = bed(fast(), vec![jwt(&["header:authorization", "cookie:session", "param:jwt"])]).await;
    let claims = |exp: i64| json!({ "exp": jiff::Timestamp::now().as_second() + exp });
    let signed = |alg: &str, exp| signed_by(KEY.as_bytes(), &json!({ "alg": alg }), &claims(exp));
    let good = signed("HS256", 60);
    for (target, field) in [
        ("/", format!("Authorization: Bearer {good}")),
        ("/", format!("Cookie: session={good}")),
        (&format!("/?jwt={good}"), "X-None: 1".into()),
    ] {
        let answer = bed.ask(target, &[&field]).await;
        assert_eq!(status(&answer), 200, "{answer}");
        assert!(!answer.contains(&good.to_lowercase()) && !answer.contains(&good), "{answer}");
    }
    let accepted = container.accepted();
    let none = signed("none", 60);
    let unsigned = format!("{}.", none.rsplit_once('.').unwrap().0);
    for bad in [signed("HS384", 60), signed("RS256", 60), none, unsigned, signed("HS256", -60)] {
        assert_eq!(status(&bed.ask("/", &[&format!("Authorization: Bearer {bad}")]).await), 401, "{bad}");
    }
    assert_eq!((container.accepted(), bed.resolved()), (accepted, 3));
    bed.end().await;
}

#[tokio::test]
async fn guessing_ends_in_429_also_for_the_right_one() {
    let (bed, container) = bed(fast(), vec![password("ada", "correct horse"), token("header:x-key")]).await;
    let guesses: Vec<String> = (0..30).map(|n| basic("ada", &format!("guess number {n}"))).collect();
    let asked = guesses.iter().map(|guess| async { bed.ask("/", &[guess]).await });
    let answers = futures_util::future::join_all(asked).await;
    let count = |wanted| answers.iter().filter(|answer| status(answer) == wanted).count();
    assert_eq!((count(401), count(429)), (10, 20), "also where they come all at once");
    while status(&bed.ask("/", &["X-Key: not-the-one-that-it-is"]).await) == 401 {}
    let late = bed.ask("/", &[&basic("ada", "correct horse")]).await;
    assert_eq!(status(&late), 429, "{late}");
    assert!(field(&late.to_lowercase(), "retry-after").unwrap().parse::<u64>().unwrap() >= 1, "{late}");
    assert_eq!(status(&bed.ask("/", &[&format!("X-Key: {TOKEN}")]).await), 429);
    assert_eq!(status(&bed.ask("/", &[]).await), 401, "who names nothing has not guessed");
    assert_eq!((container.accepted(), bed.resolved()), (0, 0));
    bed.end().await;
}

#[tokio::test]
async fn who_comes_from_the_right_network_is_let_in_also_after_wrong_tries() {
    let (bed, _container) = bed(fast(), vec![token("header:x-key")]).await;
    while status(&bed.ask("/", &["X-Key: not-the-one-that-it-is"]).await) == 401 {}
    let mut gate = bed.table.gate.lock().unwrap().clone().unwrap();
    let access = Arc::make_mut(&mut gate.container).settings.access.as_mut().unwrap();
    access.put("office".parse().unwrap(), Entry { group: ip("127.0.0.0/8"), reach: Reach::default() }).unwrap();
    *bed.table.gate.lock().unwrap() = Some(gate);
    assert_eq!(status(&bed.ask("/", &["X-Key: not-the-one-that-it-is"]).await), 200);
    assert_eq!(status(&bed.ask("/", &[]).await), 200);
    bed.end().await;
}

#[tokio::test]
async fn the_address_is_the_peers_unless_a_trusted_proxy_says_otherwise() {
    let groups = || vec![ip("192.0.2.0/24")];
    let forwarded = "X-Forwarded-For: 192.0.2.9";
    let (plain, _container) = bed(fast(), groups()).await;
    let answer = plain.ask("/", &[forwarded]).await;
    assert_eq!(status(&answer), 403, "anybody can write that: {answer}");
    assert!(!answer.to_lowercase().contains("www-authenticate"), "no credential helps: {answer}");
    plain.end().await;
    let trusted_proxies = TrustedProxies::new(&["127.0.0.0/8".parse().unwrap(), "10.0.0.0/8".parse().unwrap()]);
    let (behind, _container) = bed(ProxyConfig { trusted_proxies, ..fast() }, groups()).await;
    for (fields, want) in [
        (vec![forwarded], 200),
        (vec!["X-Forwarded-For: 203.0.113.1, 192.0.2.9"], 200),
        (vec!["X-Forwarded-For: 192.0.2.9, 10.0.0.1"], 200),
        (vec!["X-Forwarded-For: 192.0.2.9", "X-Forwarded-For: 10.0.0.1"], 200),
        (vec!["X-Forwarded-For: 192.0.2.9:4711"], 200),
        (vec!["X-Forwarded-For: 192.0.2.9, 203.0.113.1"], 403),
        (vec!["X-Forwarded-For: 192.0.2.9, nonsense"], 403),
        (vec![], 403),
    ] {
        let answer = behind.ask("/", &fields).await;
        assert_eq!(status(&answer), want, "{fields:?}: {answer}");
        if want == 200 {
            assert!(answer.contains("x-forwarded-for: 192.0.2.9\r\n"), "the container is told the same: {answer}");
        }
    }
    behind.end().await;
}
