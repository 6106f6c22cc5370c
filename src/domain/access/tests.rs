use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use proptest::prelude::*;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

use super::*;

const SHARED: &str = "0123456789abcdef0123456789abcdef";
/// Made once for this test; nobody has the private part.
const RSA_PEM: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAz9Kq3nZU/6+w/xtLOEso
8A/fqGFHrApFXJjJ2RhBi9TughkWoUO7iKyM6TUJED2MWwuIQ/qztqpauhK97oFl
LgjcrUWcjnLQk01fXnPb2swTYyTpRVuZ6jrP8IlQdcQLBTEBvRF7FckgCKUDes8/
VHNXgT4NapUdOVfbGn1G5R6pS2UUf7c0VdIY9stutGTjVLHicA+Tj/Z+fADjtKRJ
C0vfDmLCcwDUvApf+k3AsnZ8H3Hkq4Rhgk1Tl6BHRX3/7rXZFc6TZF/RfoWy3ch0
5/FYfVuB3Tr2IgCblqcDmRLl5a+CQc7SJyXaKd0WnUg5HHA9lMaoseR7d7hAHAcA
7QIDAQAB
-----END PUBLIC KEY-----";
const RSA_N: &str = "z9Kq3nZU_6-w_xtLOEso8A_fqGFHrApFXJjJ2RhBi9TughkWoUO7iKyM6TUJED2MWwuIQ_qztqpauhK97oFlLgjcrUWcjnLQk01fXnPb2swTYyTpRVuZ6jrP8IlQdcQLBTEBvRF7FckgCKUDes8_VHNXgT4NapUdOVfbGn1G5R6pS2UUf7c0VdIY9stutGTjVLHicA-Tj_Z-fADjtKRJC0vfDmLCcwDUvApf-k3AsnZ8H3Hkq4Rhgk1Tl6BHRX3_7rXZFc6TZF_RfoWy3ch05_FYfVuB3Tr2IgCblqcDmRLl5a-CQc7SJyXaKd0WnUg5HHA9lMaoseR7d7hAHAcA7Q";
/// Signed by it: iss `https://login.example`, aud `shop` and `door`, exp [`RSA_ENDS`].
const RSA_TOKEN: &str = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJodHRwczovL2xvZ2luLmV4YW1wbGUiLCJhdWQiOlsic2hvcCIsImRvb3IiXSwiZXhwIjoyMDAwMDAwMDAwfQ.MRTL_YMQybKlcoOKYfmZXvgs2Su2JCUMFPpzDfVOELivK3v0R9UNL_D6muVRDYr7AD5RTeO0c59ZRndeXF8khp4zVnsRiiMVJ97PAw-jngN2Ya6Ivr7zna_K1eMIyw6qGAMJaGW1YTscadmB0GsuhCfUr32bTmNg5kDZeK0iFuEGol6t4L8lOIA5X59obUfX156pB1QnwJxJR7O9KL3ksPoJ24QBm9cLTlosZ_HfcZ2gG7NlGKdIzqIiSo8z9YR0p_ncLpY312_ePirjx9HQDauKfJQlfa2KtHvDqgfNIaqZ7ooyAnXQooTCg8QfM5JvZnJMyRZSpGJft3AOxPZ_Gw";
const RSA_ENDS: i64 = 2_000_000_000;
/// A key of 1024 bits.
const RSA_SHORT_PEM: &str = "-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDPyHFpDqItIl3PUjr+H0b4uv6y
1hA0tkUnX7UD/pviigKO/iLa9ormPaOd8//wpN5UxuklOqb1qElLblvKUBBp1+EP
SBWNqNBbrRWNA9xSKYH3UKLlM0MxbY+R7PCXC+XSi1UmA47xXwQfftXbWsFUqITU
OZaZcpNlEwvFckDrqQIDAQAB
-----END PUBLIC KEY-----";
/// A key on P-384.
const P384_PEM: &str = "-----BEGIN PUBLIC KEY-----
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEr5QoloOpKcxpfacEWkHHaLKS5osUKk4j
+UyiOsOuNbaKtZLXTly714q9qt4KtA59HQK6nukD+kgngvJYo1FOGjCCdha7mY7G
1xKHKNw4cShudJHpU6WqD8aXTaSztbl+
-----END PUBLIC KEY-----";
/// What goes before the point of a key on P-256 in DER (RFC 5480).
const P256_PREFIX: &str = "3059301306072a8648ce3d020106082a8648ce3d030107034200";

impl JwtGroup {
    fn admits(&self, token: &str, now: Timestamp) -> bool {
        self.worth(token, now) == Worth::Right
    }
}

fn unsigned(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", part(header), part(claims))
}

/// A token signed by HMAC-SHA256, whatever its header says.
pub(crate) fn signed_by(secret: &[u8], header: &Value, claims: &Value) -> String {
    let message = unsigned(header, claims);
    let tag = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret), message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag))
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn jwt(algorithm: Algorithm, key: &str, claims: Value) -> Result<JwtGroup, SettingsError> {
    let claims = serde_json::from_value(claims).unwrap();
    JwtGroup::new(algorithm, Secret::new(key), vec![Place::authorization()], claims)
}

fn ip(range: &str) -> Group {
    Group::Ip(IpGroup::new(vec![range.parse().unwrap()]).unwrap())
}

fn token(value: &str) -> Group {
    Group::Token(TokenGroup::new(Place::header("X-Key").unwrap(), &Secret::new(value)).unwrap())
}

fn password(user: &str, password: &str) -> Group {
    let plain = PlainPassword::new(user.to_owned(), Secret::new(password), None).unwrap();
    Group::Password(plain.generate_group().unwrap())
}

fn access(default: Policy, groups: Vec<(Group, Reach)>) -> Access {
    let mut access = Access::new(default);
    for (n, (group, reach)) in groups.into_iter().enumerate() {
        access.put(format!("g{n}").parse().unwrap(), Entry { group, reach }).unwrap();
    }
    access
}

fn ports(text: &str) -> Reach {
    Reach::Ports(text.parse().unwrap())
}

/// Somebody from an address, with headers, at a port.
fn visit<T>(
    client: &str,
    headers: &[(&str, &str)],
    port: u16,
    basic: Option<(&str, &str)>,
    ask: impl FnOnce(&Visit<'_>) -> T,
) -> T {
    let headers: HashMap<&str, &str> = headers.iter().copied().collect();
    let find = |place: &Place| match place {
        Place::Header(name) => headers.get(name.as_str()).map(|text| (*text).into()),
        _ => None,
    };
    ask(&Visit { port, client: client.parse().unwrap(), now: at(1_000), basic, find: &find })
}

const TOKEN: &str = "a-token-of-some-length";
const HERE: &str = "192.0.2.7";

fn refused(unknown: bool, tried: bool) -> Verdict<'static> {
    Verdict::Refused { unknown, tried }
}

fn admitted(spent: Vec<Place>) -> Verdict<'static> {
    Verdict::Admitted { spent }
}

#[test]
fn whom_no_group_knows_gets_the_default() {
    let open = access(Policy::Allow, vec![(token(TOKEN), Reach::default())]);
    let shut = access(Policy::Deny, vec![(token(TOKEN), Reach::default())]);
    visit(HERE, &[], 80, None, |visit| {
        assert_eq!(open.decide(visit), admitted(vec![]));
        assert_eq!(shut.decide(visit), refused(true, false));
        assert_eq!(access(Policy::Deny, vec![]).decide(visit), refused(false, false), "no credential would help");
        assert_eq!(
            access(Policy::Deny, vec![(ip("10.0.0.0/8"), Reach::default())]).decide(visit),
            refused(false, false)
        );
    });
    visit(HERE, &[("x-key", "another-token-than-that")], 80, None, |visit| {
        assert_eq!(shut.decide(visit), refused(true, true));
        assert_eq!(open.decide(visit), admitted(vec![]), "what is the container's own stays with it");
    });
    let spent = vec![Place::header("x-key").unwrap()];
    visit(HERE, &[("x-key", TOKEN)], 80, None, |visit| assert_eq!(shut.decide(visit), admitted(spent)));
}

#[test]
fn a_group_opens_what_it_reaches_and_one_that_reaches_nothing_shuts_out() {
    let some = access(Policy::Allow, vec![(ip("192.0.2.0/24"), ports("8000-8100,80"))]);
    let out = |port| visit(HERE, &[], port, None, |visit| some.decide(visit) == refused(false, false));
    assert_eq!([80, 8050, 443].map(out), [false, false, true]);
    assert_eq!(visit("198.51.100.1", &[], 443, None, |visit| some.decide(visit).clone()), admitted(vec![]));
    let banned = access(Policy::Allow, vec![(ip("192.0.2.7/32"), Reach::Nothing), (token(TOKEN), Reach::default())]);
    visit(HERE, &[("x-key", TOKEN)], 80, None, |visit| assert_eq!(banned.decide(visit), refused(false, false)));
    visit("192.0.2.8", &[], 80, None, |visit| assert_eq!(banned.decide(visit), admitted(vec![])));
}

#[test]
fn an_address_of_version_4_is_the_same_in_version_6() {
    let local =
        access(Policy::Deny, vec![(ip("192.0.2.0/24"), Reach::default()), (ip("2001:db8::/32"), Reach::default())]);
    for (client, enters) in
        [("::ffff:192.0.2.9", true), ("2001:db8::1", true), ("2001:db9::1", false), ("192.0.3.1", false)]
    {
        let verdict = visit(client, &[], 80, None, |visit| local.decide(visit) == admitted(vec![]));
        assert_eq!(verdict, enters, "{client}");
    }
}

#[test]
fn a_password_is_asked_about_only_where_it_decides() {
    let ada = password("ada", "correct horse");
    let shut = access(Policy::Deny, vec![(ada.clone(), Reach::default()), (ip("10.0.0.0/8"), Reach::default())]);
    let Group::Password(whose) = &ada else { unreachable!() };
    let decide = |client, basic| visit(client, &[], 80, basic, |visit| shut.decide(visit));
    assert_eq!(decide(HERE, Some(("ada", "x"))), Verdict::Ask { group: whose, known: true });
    assert_eq!(decide(HERE, Some(("eve", "x"))), Verdict::Ask { group: whose, known: false }, "nobody costs as much");
    assert_eq!(decide(HERE, None), refused(true, false));
    let settle = |client, right| visit(client, &[], 80, Some(("ada", "x")), |visit| shut.settle(visit, right));
    assert_eq!(settle(HERE, true), admitted(vec![Place::authorization()]));
    assert_eq!(settle(HERE, false), refused(true, true));
    let open = access(Policy::Allow, vec![(token(TOKEN), Reach::default())]);
    assert!(visit(HERE, &[], 80, Some(("ada", "x")), |visit| open.decide(visit) == admitted(vec![])));
}

#[test]
fn a_password_is_known_by_what_it_hashes_to() {
    let plain = PlainPassword::new("ada".into(), Secret::new("correct horse"), None).unwrap();
    let group = plain.generate_group().unwrap();
    assert!(group.is("correct horse") && !group.is("correct house") && !group.is(""));
    assert!(group.hash().reveal().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", group.hash().reveal());
    // SHA-256 of "saltcorrect horse".
    let hashed = hex::encode(<sha2::Sha256 as sha2::Digest>::digest("saltcorrect horse"));
    let brought = PlainPassword::new("ada".into(), Secret::new(&hashed), Some(Secret::new("salt"))).unwrap();
    let group = brought.generate_group().unwrap();
    assert!(group.is("correct horse") && !group.is("saltcorrect horse") && !group.is(&hashed));
    assert!(!serde_json::to_string(&group).unwrap().contains(&hashed), "a fast hash is not kept");
    let not_hashed = PlainPassword::new("ada".into(), Secret::new("correct horse"), Some(Secret::new("salt"))).unwrap();
    assert!(not_hashed.generate_group().unwrap().is("correct horse"));
}

#[test]
fn a_shared_key_admits_what_it_signed_and_nothing_else() {
    let group =
        jwt(Algorithm::HS256, SHARED, json!({ "iss": "https://login.example", "admin": true, "level": 3 })).unwrap();
    let good = json!({ "iss": "https://login.example", "admin": true, "level": 3.0, "exp": 2_000 });
    let hs = json!({ "alg": "HS256", "typ": "JWT" });
    let admits = |token: &str| group.admits(token, at(1_000));
    let signed = |claims: &Value| signed_by(SHARED.as_bytes(), &hs, claims);
    assert!(admits(&signed(&good)));
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        signed(&claims)
    };
    for (name, value) in [
        ("iss", json!("https://evil.example")),
        ("iss", json!(["https://login.example"])),
        ("admin", json!("true")),
        ("level", json!(4)),
        ("exp", json!(969)),
        ("exp", json!("2000")),
        ("exp", Value::Null),
        ("nbf", json!(1_031)),
        ("nbf", json!("500")),
    ] {
        assert!(!admits(&with(name, value.clone())), "{name} {value}");
    }
    assert!(admits(&with("exp", json!(971))) && admits(&with("nbf", json!(1_030))), "clocks differ a little");
    assert_eq!(group.worth(&with("exp", json!(1)), at(1_000)), Worth::Stale, "who has an old one has not guessed");
    let forged = signed_by(b"another key of the same length!!", &hs, &good);
    assert_eq!(group.worth(&forged, at(1_000)), Worth::Wrong);
    let token = signed(&good);
    for bad in ["", ".", "..", "a.b.c", &token[..token.len() - 1], &format!("{token}.x"), &"x".repeat(9_000)] {
        assert!(!admits(bad), "{bad}");
    }
    assert!(!admits(&signed_by(SHARED.as_bytes(), &json!({ "alg": "HS256", "crit": ["b64"], "b64": false }), &good)));
}

#[test]
fn no_algorithm_but_the_keys_own_is_taken() {
    let claims = json!({ "exp": 2_000 });
    let rsa = jwt(Algorithm::RS256, RSA_PEM, json!({})).unwrap();
    // The public key is no secret: signing by it must open nothing.
    for header in [json!({ "alg": "HS256" }), json!({ "alg": "RS256" })] {
        assert!(!rsa.admits(&signed_by(RSA_PEM.as_bytes(), &header, &claims), at(1_000)), "{header}");
    }
    let shared = jwt(Algorithm::HS256, SHARED, json!({})).unwrap();
    for algorithm in ["none", "None", "HS384", "HS512", "RS256", "ES256", "EdDSA"] {
        let header = json!({ "alg": algorithm });
        assert!(!shared.admits(&signed_by(SHARED.as_bytes(), &header, &claims), at(1_000)), "{algorithm}");
        assert!(!shared.admits(&format!("{}.", unsigned(&header, &claims)), at(1_000)), "{algorithm}");
        assert!(!rsa.admits(&format!("{}.", unsigned(&header, &claims)), at(1_000)), "{algorithm}");
    }
}

#[test]
fn a_token_signed_by_rsa_is_taken_with_the_key_in_either_form() {
    let jwk = json!({ "kty": "RSA", "n": RSA_N, "e": "AQAB", "alg": "RS256", "use": "sig", "kid": "1" }).to_string();
    for key in [RSA_PEM, &jwk] {
        let group = jwt(Algorithm::RS256, key, json!({ "iss": "https://login.example", "aud": "door" })).unwrap();
        assert!(group.admits(RSA_TOKEN, at(RSA_ENDS - 1)));
        assert!(!group.admits(RSA_TOKEN, at(RSA_ENDS + LEEWAY_S)));
        assert!(!group.admits(&RSA_TOKEN.replacen("LEIVA", "LEIVB", 1).replacen("_Gw", "_Gx", 1), at(1_000)));
        let other = jwt(Algorithm::RS256, key, json!({ "aud": "elsewhere" })).unwrap();
        assert!(!other.admits(RSA_TOKEN, at(1_000)));
    }
}

#[test]
fn a_token_signed_on_p256_is_taken_with_the_key_in_either_form() {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
    let point = pair.public_key().as_ref();
    let der = [hex::decode(P256_PREFIX).unwrap(), point.to_vec()].concat();
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der));
    let half = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let jwk = json!({ "kty": "EC", "crv": "P-256", "x": half(&point[1..33]), "y": half(&point[33..]) }).to_string();
    let message = unsigned(&json!({ "alg": "ES256" }), &json!({ "exp": 2_000 }));
    let signature = pair.sign(&random, message.as_bytes()).unwrap();
    let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()));
    for key in [&pem, &jwk] {
        let group = jwt(Algorithm::ES256, key, json!({})).unwrap();
        assert!(group.admits(&token, at(1_000)));
        assert!(!group.admits(&token, at(3_000)));
        let zeros = format!("{message}.{}", URL_SAFE_NO_PAD.encode([0; 64]));
        assert!(!group.admits(&zeros, at(1_000)), "no signature of nothing");
    }
}

#[test]
fn keys_that_are_none_for_the_algorithm_are_refused() {
    let jwk = |fields: Value| {
        let mut key = json!({ "kty": "RSA", "n": RSA_N, "e": "AQAB" });
        key.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        key.to_string()
    };
    let private = RSA_PEM.replace("PUBLIC", "PRIVATE");
    for (algorithm, key) in [
        (Algorithm::HS256, "too short".to_owned()),
        (Algorithm::RS256, SHARED.to_owned()),
        (Algorithm::RS256, RSA_SHORT_PEM.to_owned()),
        (Algorithm::RS256, P384_PEM.to_owned()),
        (Algorithm::RS256, private),
        (Algorithm::RS256, jwk(json!({ "alg": "RS512" }))),
        (Algorithm::RS256, jwk(json!({ "use": "enc" }))),
        (Algorithm::RS256, jwk(json!({ "d": "AQAB" }))),
        (Algorithm::RS256, jwk(json!({ "n": "AQAB" }))),
        (Algorithm::RS256, json!({ "kty": "oct", "k": "AQAB" }).to_string()),
        (Algorithm::ES256, P384_PEM.to_owned()),
        (Algorithm::ES256, RSA_PEM.to_owned()),
        (Algorithm::ES256, "{".to_owned()),
    ] {
        assert_eq!(jwt(algorithm, &key, json!({})).unwrap_err().field, "secret", "{algorithm:?} {key}");
    }
    assert_eq!(jwt(Algorithm::HS256, SHARED, json!({ "roles": ["a"] })).unwrap_err().field, "claims");
}

#[test]
fn secrets_are_not_printed() {
    let keys = jwt(Algorithm::HS256, SHARED, json!({})).unwrap();
    let groups = vec![(password("ada", "correct horse"), Reach::default()), (Group::Jwt(keys), Reach::default())];
    let printed = format!("{:?}", access(Policy::Deny, groups));
    assert!(!printed.contains(SHARED) && !printed.contains("argon2"), "{printed}");
}

#[test]
fn groups_read_back_from_the_store_and_have_a_bound() {
    let groups = vec![
        (password("ada", "correct horse"), Reach::Nothing),
        (token(TOKEN), ports("80,8000-8100")),
        (Group::Jwt(jwt(Algorithm::RS256, RSA_PEM, json!({ "iss": "x" })).unwrap()), Reach::default()),
        (ip("2001:db8::/32"), Reach::default()),
    ];
    let mut all = access(Policy::Allow, groups);
    let text = serde_json::to_string(&all).unwrap();
    assert!(!text.contains(TOKEN) && !text.contains("correct horse"), "{text}");
    assert_eq!(serde_json::from_str::<Access>(&text).unwrap(), all);
    let entry = || Entry { group: ip("10.0.0.0/8"), reach: Reach::default() };
    for n in 4..GROUPS_MAX {
        all.put(format!("g{n}").parse().unwrap(), entry()).unwrap();
    }
    assert_eq!(all.put("more".parse().unwrap(), entry()).unwrap_err().field, "groups");
    all.put("g3".parse().unwrap(), entry()).unwrap();
    let twin = Entry { group: password("ada", "another one"), reach: Reach::default() };
    assert_eq!(all.put("g2".parse().unwrap(), twin.clone()).unwrap_err().field, "username");
    all.put("g0".parse().unwrap(), twin).unwrap();
}

#[test]
fn changes_are_made_one_by_one() {
    let mut all = None;
    let name: GroupName = "team".parse().unwrap();
    AccessChange::Put(name.clone(), Box::new(token(TOKEN))).apply(&mut all).unwrap();
    assert_eq!(all.as_ref().unwrap().default, Policy::Deny);
    assert!(all.as_mut().unwrap().set_reach(&name, Reach::Nothing));
    AccessChange::Put(name.clone(), Box::new(ip("10.0.0.0/8"))).apply(&mut all).unwrap();
    assert_eq!(all.as_ref().unwrap().groups().next().unwrap().1.reach, Reach::Nothing, "a new key opens no more");
    AccessChange::Default(Policy::Allow).apply(&mut all).unwrap();
    AccessChange::Remove(name).apply(&mut all).unwrap();
    assert_eq!(all.as_deref(), Some(&Access::new(Policy::Allow)));
    AccessChange::Clear.apply(&mut all).unwrap();
    assert_eq!(all, None);
}

#[test]
fn places_are_read_as_they_are_written() {
    for (text, good) in [
        ("header:Authorization", true),
        ("cookie:session", true),
        ("param:key", true),
        ("header:Cookie", false),
        ("header:Host", false),
        ("header:", false),
        ("param:a b", false),
        ("body:key", false),
    ] {
        assert_eq!(text.parse::<Place>().is_ok(), good, "{text}");
    }
    let place = Place::authorization();
    assert_eq!(
        ["Bearer  x ", "bearer x", "x", "Basic x", "Bearer"].map(|text| place.credential(text)),
        [Some("x"), Some("x"), Some("x"), None, Some("Bearer")]
    );
}

fn policies() -> impl Strategy<Value = Policy> {
    prop_oneof![Just(Policy::Allow), Just(Policy::Deny)]
}

fn reaches() -> impl Strategy<Value = Reach> {
    prop_oneof![Just(Reach::default()), Just(Reach::Nothing), Just(ports("80")), Just(ports("8000-8100"))]
}

proptest! {
    /// Nobody enters a closed URL whom no group knows, and nobody whom a group shuts out.
    #[test]
    fn the_verdict_follows_from_the_groups_that_know(
        default in policies(),
        groups in prop::collection::vec((0u8..4, reaches()), 0..6),
        presented in any::<bool>(),
        port in prop_oneof![Just(80u16), Just(8_050), Just(443)],
    ) {
        let group = |n| match n {
            0 => (ip("192.0.2.0/24"), true),
            1 => (ip("10.0.0.0/8"), false),
            2 => (token(TOKEN), presented),
            _ => (token("a-token-that-nobody-has"), false),
        };
        let knowing: Vec<&Reach> = groups.iter().filter(|(n, _)| group(*n).1).map(|(_, reach)| reach).collect();
        let shut_out = knowing.iter().any(|reach| **reach == Reach::Nothing);
        let opens = |reach: &&Reach| matches!(reach, Reach::Ports(ports) if ports.contains(port));
        let enters = !shut_out && (knowing.iter().any(opens) || (knowing.is_empty() && default == Policy::Allow));
        let all = access(default, groups.iter().map(|(n, reach)| (group(*n).0, reach.clone())).collect());
        let headers: &[_] = if presented { &[("x-key", TOKEN)] } else { &[] };
        visit(HERE, headers, port, None, |visit| {
            let verdict = all.decide(visit);
            prop_assert_eq!(matches!(verdict, Verdict::Admitted { .. }), enters, "{:?}", verdict);
            Ok(())
        })?;
    }

    #[test]
    fn no_text_for_a_token_is_a_panic(text in ".{0,80}") {
        let group = jwt(Algorithm::HS256, SHARED, json!({})).unwrap();
        prop_assert!(!group.admits(&text, at(1_000)));
    }
}
