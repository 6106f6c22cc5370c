use proptest::prelude::*;

use super::*;

fn proxy(text: &str) -> Proxy {
    text.parse().unwrap()
}

fn patch(kind: Option<Kind>, url: Option<&str>) -> NetworkPatch {
    NetworkPatch { kind: Some(kind), proxy: Some(url.map(proxy)), ..NetworkPatch::default() }
}

fn replaced(kind: Option<Kind>, url: Option<&str>) -> Network {
    let mut network = None;
    NetworkChange::Replace(patch(kind, url)).apply(&mut network).unwrap();
    network.unwrap()
}

fn field(error: NetworkError) -> &'static str {
    match error {
        NetworkError::Settings(error) => error.field,
        NetworkError::NotSet => "none",
    }
}

#[test]
fn a_proxys_url_is_read_in_its_parts() {
    let read = proxy("socks5://us%40er:p%3Ass@Proxy.Example:1080");
    assert_eq!((read.protocol, read.port.get()), (Protocol::Socks5, 1080));
    assert_eq!(read.host, ProxyHost::Name("proxy.example".into()));
    let credentials = read.credentials.unwrap();
    assert_eq!((credentials.user.reveal(), credentials.password.reveal()), ("us@er", "p:ss"));
    assert_eq!(proxy("socks5://192.0.2.7:1080").host, ProxyHost::Address("192.0.2.7".parse().unwrap()));
    assert_eq!(proxy("http://[2001:db8::7]:3128/").to_string(), "http://[2001:db8::7]:3128");
    assert_eq!(proxy("https://proxy.example").port.get(), 443, "the scheme's own");
}

#[test]
fn neither_an_error_nor_a_debug_line_shows_what_was_in_the_url() {
    for text in [
        "ftp://user:hunter2@proxy.example:21",
        "socks5://user:hunter2@proxy.example",
        "socks5://user:hunter2@:1080",
        "socks5://user:hunter2@proxy.example:1080/path",
        "http://:hunter2@proxy.example:3128",
        "http://us%3Aer:hunter2@proxy.example:3128",
        "http://user:hunter2%00@proxy.example:3128",
        "http://user:hunter2@-proxy-:3128",
        "socks5://user:hunter2@10.1:1080",
        "hunter2",
    ] {
        let error = text.parse::<Proxy>().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{text}");
    }
    let shown = proxy("socks5://user:hunter2@proxy.example:1080");
    assert_eq!(shown.to_string(), "socks5://proxy.example:1080");
    assert!(!format!("{shown:?}").contains("hunter2"));
}

#[test]
fn a_type_and_its_proxy_go_together() {
    assert_eq!(replaced(None, None).way, None);
    assert_eq!(way_out(Some(&replaced(Some(Kind::Block), None))), WayOut::Blocked);
    let network = replaced(Some(Kind::Http), Some("http://proxy.example:3128"));
    assert_eq!((way_out(Some(&network)), network.enabled), (WayOut::Relayed, true));
    for (kind, url) in [
        (Some(Kind::Block), Some("http://proxy.example:3128")),
        (None, Some("http://proxy.example:3128")),
        (Some(Kind::Socks5), Some("http://proxy.example:3128")),
        (Some(Kind::Socks5), None),
    ] {
        let refused = NetworkChange::Replace(patch(kind, url)).apply(&mut None).unwrap_err();
        assert_eq!(field(refused), "proxy", "{kind:?} {url:?}");
    }
}

#[test]
fn a_merge_keeps_what_it_does_not_name_credentials_too() {
    let mut network = Some(replaced(Some(Kind::Http), Some("http://user:hunter2@proxy.example:3128")));
    let servers = vec!["192.0.2.53".parse().unwrap()];
    let merge = NetworkPatch { name_servers: Some(servers.clone()), ..NetworkPatch::default() };
    NetworkChange::Merge(merge).apply(&mut network).unwrap();
    let merged = network.as_ref().unwrap();
    assert!(merged.proxy().unwrap().credentials.is_some());
    assert_eq!(merged.name_servers, servers);
    // Another type has no use for it.
    let block = NetworkPatch { kind: Some(Some(Kind::Block)), ..NetworkPatch::default() };
    NetworkChange::Merge(block).apply(&mut network).unwrap();
    assert_eq!(network.as_ref().unwrap().way, Some(Way::Block));
    let socks = NetworkPatch { kind: Some(Some(Kind::Socks5)), ..NetworkPatch::default() };
    assert_eq!(field(NetworkChange::Merge(socks).apply(&mut network).unwrap_err()), "proxy");
    assert_eq!(network.unwrap().name_servers, servers, "a refused change changes nothing");
}

#[test]
fn the_switch_forgets_nothing_and_survives_a_change() {
    let mut network = None;
    assert_eq!(NetworkChange::Switch(true).apply(&mut network), Err(NetworkError::NotSet));
    network = Some(replaced(Some(Kind::Block), None));
    NetworkChange::Switch(false).apply(&mut network).unwrap();
    assert_eq!(
        (way_out(network.as_ref()), network.as_ref().unwrap().way.as_ref()),
        (WayOut::Direct, Some(&Way::Block))
    );
    let socks = patch(Some(Kind::Socks5), Some("socks5://192.0.2.7:1080"));
    NetworkChange::Replace(socks).apply(&mut network).unwrap();
    assert_eq!(way_out(network.as_ref()), WayOut::Direct, "still off");
    NetworkChange::Switch(true).apply(&mut network).unwrap();
    assert_eq!(way_out(network.as_ref()), WayOut::Relayed);
    NetworkChange::Clear.apply(&mut network).unwrap();
    assert_eq!(network, None);
}

#[test]
fn bounds_are_named_by_their_field() {
    let servers = NetworkPatch {
        name_servers: Some(vec!["192.0.2.53".parse().unwrap(); NAME_SERVERS_MAX + 1]),
        ..NetworkPatch::default()
    };
    assert_eq!(field(NetworkChange::Merge(servers).apply(&mut None).unwrap_err()), "dns_servers");
    let comment = NetworkPatch { comment: Some(Some("x".repeat(COMMENT_CHARS_MAX + 1))), ..NetworkPatch::default() };
    assert_eq!(field(NetworkChange::Merge(comment).apply(&mut None).unwrap_err()), "comment");
}

#[test]
fn settings_read_back_from_the_store() {
    let network = replaced(Some(Kind::Https), Some("https://user:hunter2@[2001:db8::7]:8443"));
    let json = serde_json::to_string(&network).unwrap();
    assert_eq!(serde_json::from_str::<Network>(&json).unwrap(), network);
}

proptest! {
    #[test]
    fn any_text_is_read_without_harm(text in "(socks5|http|https)?(://)?\\PC{0,80}") {
        if let Ok(proxy) = text.parse::<Proxy>() {
            let again = proxy.to_string().parse::<Proxy>().unwrap();
            prop_assert_eq!((again.protocol, again.host, again.port), (proxy.protocol, proxy.host, proxy.port));
        }
    }
}
