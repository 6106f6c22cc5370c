//! Scripts as those who write them and those who call them meet them: a real daemon, real workers, real files.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use reqwest::Method;
use serde_json::json;

use crate::support::daemon::{Daemon, Reply, answer, patience, play_in_lab, play_with};
use crate::support::net::{INTERNET, METADATA};

const CONFIG: &str = "[exec]\nhost = true\nwarm = 1\nworkers = 4\n";

/// As a visitor without a token.
async fn post(daemon: &Daemon, path: &str, body: &str) -> Reply {
    let visitor = daemon.client.with_token("");
    answer(visitor.request(Method::POST, &format!("/exec{path}")).body(body.to_owned())).await
}

#[test]
fn a_file_is_an_endpoint_at_once_and_an_edit_is_live() {
    play_with(CONFIG, async |daemon| {
        post(daemon, "/hello", "").await.refused(404, "SCRIPT_NOT_FOUND");
        daemon.write_script("hello.js", "return { n: 1, got: req.body.toString() }");
        let reply = post(daemon, "/hello", "abc").await;
        assert_eq!((reply.status, reply.json), (200, json!({ "n": 1, "got": "abc" })));
        for n in 2..20 {
            daemon.write_script("hello.js", &format!("return {{ n: {n} }}"));
            assert_eq!(post(daemon, "/hello", "").await.json, json!({ "n": n }));
        }
        daemon.write_script("shop/[id].ts", "const id: string = req.params.id; return { id }");
        assert_eq!(post(daemon, "/shop/a%20b", "").await.json, json!({ "id": "a b" }));
        fs::remove_file(daemon.scratch().join("scripts/hello.js")).unwrap();
        post(daemon, "/hello", "").await.refused(404, "SCRIPT_NOT_FOUND");
    });
}

#[test]
fn a_script_that_does_not_parse_tells_the_place_and_the_others_go_on() {
    play_with(CONFIG, async |daemon| {
        daemon.write_script("good.js", "return 'good'");
        daemon.write_script("bad.js", "// a comment\nlet x = ;\n");
        daemon.write_script("throws.js", "throw new Error('for the log alone')");
        let reply = post(daemon, "/bad", "").await;
        reply.refused(500, "SCRIPT_SYNTAX");
        assert!(reply.field().unwrap().starts_with("bad.js:2:"), "{}", reply.text);
        let reply = post(daemon, "/throws", "").await;
        reply.refused(500, "SCRIPT_FAILED");
        assert!(!reply.text.contains("for the log alone"));
        assert_eq!(post(daemon, "/good", "").await.text, "good");
        let log = daemon.client.get("/exec/logs/throws.js").await.data(200);
        assert!(log.to_string().contains("for the log alone"), "{log}");
    });
}

#[test]
fn what_the_comments_say_holds() {
    play_with(CONFIG, async |daemon| {
        daemon.write_script(
            "a.js",
            "// @cors https://shop.example\n// @token\nreturn { authorization: req.headers.authorization ?? null }",
        );
        post(daemon, "/a", "").await.refused(401, "MISSING_TOKEN");
        let reply =
            answer(daemon.client.request(Method::GET, "/exec/a").header("origin", "https://shop.example")).await;
        assert_eq!(reply.headers["access-control-allow-origin"], "https://shop.example");
        assert_eq!((reply.status, reply.json), (200, json!({ "authorization": null })));
        daemon.write_script("slow.js", "// @timeout 200ms\nawait new Promise((done) => setTimeout(done, 5000))");
        post(daemon, "/slow", "").await.refused(504, "SCRIPT_TIMEOUT");
        daemon.write_script("secret.js", "return secrets.KEY");
        daemon.client.put("/exec/secrets/KEY", json!({ "value": "s3cret" })).await.data(200);
        assert_eq!(post(daemon, "/secret", "").await.text, "s3cret");
        // At their own host, by the proxy.
        let url = "http://exec.node1.localhost:8080/secret";
        assert_eq!(answer(daemon.client.open(Method::GET, url)).await.text, "s3cret");
    });
}

#[test]
fn a_delivery_is_handled_once_also_by_the_next_daemon() {
    play_with(CONFIG, async |daemon| {
        daemon.write_script("hook.js",
            "// @idempotency body.id\nconst { id } = JSON.parse(req.rawBody.toString());\n\
             const project = (await tenantry.projects.list({})).length;\n\
             await new Promise((done) => setTimeout(done, 100));\nconsole.log('ran', id);\nres.status(201).json({ id, project })",
        );
        let both = tokio::join!(post(daemon, "/hook", r#"{"id":"evt_1"}"#), post(daemon, "/hook", r#"{"id":"evt_1"}"#));
        assert_eq!((both.0.status, &both.0.json), (201, &both.1.json), "{} {}", both.0.text, both.1.text);
        let replayed = |reply: &Reply| reply.headers.contains_key("idempotent-replayed");
        assert!(replayed(&both.0) != replayed(&both.1));
        daemon.kill9();
        daemon.restart().await;
        let again = post(daemon, "/hook", r#"{"id":"evt_1"}"#).await;
        assert!(replayed(&again) && again.json == both.0.json, "{}", again.text);
        assert!(!replayed(&post(daemon, "/hook", r#"{"id":"evt_2"}"#).await));
        let log = daemon.client.get("/exec/logs/hook.js").await.data(200).to_string();
        assert_eq!((log.matches("ran evt_1").count(), log.matches("ran evt_2").count()), (1, 1), "{log}");
        assert!(daemon.stop().success());
        daemon.restart().await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    });
}

#[test]
fn a_script_is_written_by_the_api_if_it_can_be() {
    play_with(CONFIG, async |daemon| {
        let put = async |text: &str| {
            answer(daemon.client.request(Method::PUT, "/exec/scripts/shop/a.js").body(text.to_owned())).await
        };
        put("return 1 +").await.refused(422, "SCRIPT_SYNTAX");
        put("// @timeout never\nreturn 1").await.refused(422, "SCRIPT_COMMENT");
        assert_eq!(put("return 'written'").await.data(201)["route"], "/shop/a");
        assert_eq!(post(daemon, "/shop/a", "").await.text, "written");
        daemon.client.delete("/exec/scripts/shop/a.js").await.data(200);
        post(daemon, "/shop/a", "").await.refused(404, "SCRIPT_NOT_FOUND");
    });
}

#[test]
fn what_was_changed_meanwhile_is_not_deleted() {
    play_with(CONFIG, async |daemon| {
        let project = daemon.client.create_project("shop").await;
        daemon.client.create_template(&project, "app").await;
        daemon.write_script("a.js",
            "const made = await tenantry.containers.ensure('app', { external_id: 'cus_1', start: false });\n\
             const changed = await tenantry.containers.patch(made.id, { comment: 'x' }, { if_match: made.generation });\n\
             const refused = [];\n\
             for (const stale of [() => tenantry.containers.delete(made.id, { if_match: made.generation }),\n\
                                  () => tenantry.containers.patch(made.id, { comment: 'y' }, { if_match: made.generation })]) {\n\
               try { await stale(); refused.push(0) } catch (error) { refused.push(error.status) }\n\
             }\n\
             const there = await tenantry.containers.get(made.id);\n\
             await tenantry.containers.delete(made.id, { if_match: changed.generation });\n\
             return { refused, comment: there.comment, left: await tenantry.containers.get({ external_id: 'cus_1' }) }",
        );
        let reply = post(daemon, "/a", "").await;
        assert_eq!(reply.json, json!({ "refused": [412, 412], "comment": "x", "left": null }), "{}", reply.text);
    });
}

#[test]
fn nobody_but_the_clock_is_the_clock() {
    play_with(CONFIG, async |daemon| {
        daemon.write_script("a.js", "return req.method");
        let clock = Method::from_bytes(b"SCHEDULE").unwrap();
        answer(daemon.client.request(clock, "/exec/a")).await.refused(405, "METHOD_NOT_ALLOWED");
        let own = Method::from_bytes(b"REPORT").unwrap();
        assert_eq!(answer(daemon.client.request(own, "/exec/a")).await.text, "REPORT");
    });
}

#[test]
fn a_script_fetches_from_the_internet_and_not_from_tenants_or_a_metadata_service() {
    play_in_lab(CONFIG, async |daemon, lab| {
        // One server for every address out there: whoever gets to it first is answered, and nobody else.
        let server = lab.internet.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap());
        let answered = std::thread::spawn(move || {
            let (mut peer, from) = server.accept().unwrap();
            let to = peer.local_addr().unwrap();
            let _head = peer.read(&mut [0; 1024]).unwrap();
            peer.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok").unwrap();
            (server, from.ip(), to.ip())
        });
        let project = daemon.client.create_project("fetched").await;
        let tenant = daemon.client.create_template(&project, "crm").await;
        let address = tenant["ip"].as_str().unwrap();
        assert_eq!(daemon.client.page(&tenant, "/").await.status, 200);
        daemon.write_script(
            "fetch.js",
            "// @timeout 20s\nconst told = [];\nfor (const url of JSON.parse(req.rawBody.toString())) {\n  \
             try { told.push((await fetch(url)).status) } catch (error) { told.push(String(error)) }\n}\nreturn told",
        );
        let clouds = ["100.100.100.200", "168.63.129.16", "192.0.0.192"].map(|address| format!("http://{address}/"));
        let mut urls = vec![format!("http://{address}:8080/"), format!("http://{METADATA}/")];
        urls.extend(clouds);
        urls.push(format!("http://{INTERNET}/"));
        let began = std::time::Instant::now();
        let reply = post(daemon, "/fetch", &json!(urls).to_string()).await;
        let told = reply.json.as_array().expect(&reply.text);
        assert_eq!(told.last().unwrap(), 200, "{told:?}");
        let refused = |answer: &serde_json::Value| answer.as_str().is_some_and(|text| text.contains("Error"));
        assert!(told.len() == urls.len() && told[..told.len() - 1].iter().all(refused), "{told:?}");
        assert!(began.elapsed() < patience(5), "it is refused, not left to wait");
        let (server, _from, to) = answered.join().unwrap();
        assert_eq!(to, INTERNET);
        server.set_nonblocking(true).unwrap();
        assert_eq!(server.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "somebody else came");
    });
}
