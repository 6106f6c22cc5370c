//! The example of a shop, end to end: what Stripe delivers goes in, and a customer has one sandbox or none, whatever comes twice,
//! late, in the wrong order or to a daemon that is killed under it.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::future::join;
use serde_json::{Value, json};

use crate::support::daemon::{API, Client, Daemon, Reply, id_of, patience, play_with};
use crate::support::stripe::{
    CONFIG, SECRET, Stripe, TEMPLATE, containers_of, deliver, deliver_until_taken, ended, install, now_s, paid, send,
    signature, signed,
};

/// When within a delivery the daemon is killed, in milliseconds: before, within and after the copy.
const KILLED_AFTER_MS: [u64; 6] = [2, 10, 25, 50, 90, 160];

/// A project with what tenants are copies of, and Stripe.
async fn shop(daemon: &Daemon) -> Stripe {
    let project = daemon.client.create_project("shop").await;
    daemon.client.create_template(&project, TEMPLATE).await;
    Stripe::set_up(daemon).await
}

/// The one tenant of a customer.
#[track_caller]
fn only(mut containers: Vec<Value>) -> Value {
    assert_eq!(containers.len(), 1, "{containers:?}");
    containers.remove(0)
}

async fn tenant(client: &Client, customer: &str) -> Value {
    let listed = only(containers_of(client, customer).await);
    client.container(&id_of(&listed)).await
}

async fn has_none(client: &Client, customer: &str) {
    let found = containers_of(client, customer).await;
    assert!(found.is_empty(), "{found:?}");
}

fn is_replayed(reply: &Reply) -> bool {
    reply.headers.contains_key("idempotent-replayed")
}

/// What it answered with 200.
#[track_caller]
fn taken(reply: &Reply) -> &Value {
    assert_eq!(reply.status, 200, "{}", reply.text);
    &reply.json
}

#[test]
fn a_customer_who_pays_has_a_sandbox_and_one_who_cancels_has_none() {
    play_with(CONFIG, async |daemon| {
        let client = &daemon.client;
        let stripe = shop(daemon).await;
        let reply = deliver(client, &paid("evt_1", "cus_1", "sub_1", 100)).await;
        let url = taken(&reply)["url"].as_str().unwrap().to_owned();
        let made = tenant(client, "cus_1").await;
        assert_eq!((&made["url"], &made["status"]), (&json!(url), &json!("running")));
        assert_eq!(client.page(&made, "/").await.status, 200, "the URL answers when the delivery is answered");
        assert_eq!(made["environment_vars"]["CUSTOMER"], "Name of cus_1");
        assert_eq!(made["environment_vars"]["PLAN"], "pro");
        assert_eq!(stripe.told(), [("cus_1".to_owned(), url)]);

        let ignored = json!({ "id": "evt_2", "type": "invoice.paid", "created": 1, "data": {} }).to_string();
        assert_eq!(taken(&deliver(client, &ignored).await), &json!({ "ignored": "invoice.paid" }));
        assert_eq!(
            taken(&deliver(client, &ended("evt_3", "cus_1", "sub_1")).await),
            &json!({ "deleted": true }),
            "its answer is the script's, also where it deleted what it tells of"
        );
        has_none(client, "cus_1").await;
        assert_eq!(client.page(&made, "/").await.status, 404);
        let mark = tenant(client, "cancelled:sub_1").await;
        assert_eq!((&mark["status"], &mark["external_id"]), (&json!("stopped"), &json!("cancelled:sub_1")));
        assert_eq!(client.containers_total().await, 2, "the template and the mark");
        // The signup, delivered once more, brings nothing back.
        assert_eq!(deliver(client, &paid("evt_1", "cus_1", "sub_1", 100)).await.status, 200);
        has_none(client, "cus_1").await;
    });
}

#[test]
fn what_stripe_did_not_sign_makes_nothing() {
    play_with(CONFIG, async |daemon| {
        let client = &daemon.client;
        let stripe = shop(daemon).await;
        let (body, now) = (paid("evt_1", "cus_1", "sub_1", 100), now_s());
        let of = |at: i64| format!("t={at},v1={}", signature(SECRET, at, &body));
        let wrong = signature("whsec_of_another", now, &body);
        let right = signature(SECRET, now, &body);
        let bad = [
            String::new(),
            format!("t={now}"),
            format!("t={now},v1={wrong}"),
            format!("t={now},v0={right}"),
            format!("t={},v1={right}", now - 1),
            of(now - 320),
            of(now + 320),
            format!("t={now},v1={}", signature(SECRET, now, &paid("evt_1", "cus_2", "sub_1", 100))),
        ];
        for header in bad {
            let reply = send(client, &body, &header).await.unwrap();
            assert_eq!(reply.status, 400, "{header}: {}", reply.text);
            assert!(reply.json["error"].is_string(), "{header}: {}", reply.text);
        }
        send(client, "not json", &signed("not json")).await.unwrap().refused(400, "DELIVERY_KEY_MISSING");
        assert_eq!(client.containers_total().await, 1, "the template");
        assert!(stripe.told().is_empty());
        // While the endpoint's secret is changed, Stripe signs by both; none of the refusals was kept as the delivery's answer.
        let both = format!("t={now},v1={wrong},v1={right},v0=00");
        let reply = send(client, &body, &both).await.unwrap();
        assert_eq!(taken(&reply)["url"], tenant(client, "cus_1").await["url"]);
        assert!(!is_replayed(&reply));
        // On this side it is changed by having both for a while.
        let secrets = json!({ "value": format!("whsec_of_another {SECRET}") });
        client.put("/exec/secrets/STRIPE_WEBHOOK_SECRET", secrets).await.data(200);
        for (n, secret) in [SECRET, "whsec_of_another", ""].into_iter().enumerate() {
            let body = paid(&format!("evt_b{n}"), "cus_1", "sub_1", 100);
            let reply = send(client, &body, &format!("t={now},v1={}", signature(secret, now, &body))).await.unwrap();
            assert_eq!(reply.status, if secret.is_empty() { 400 } else { 200 }, "{}", reply.text);
        }
    });
}

#[test]
fn a_delivery_that_comes_twice_is_answered_twice_and_handled_once() {
    play_with(CONFIG, async |daemon| {
        let client = &daemon.client;
        let stripe = shop(daemon).await;
        let body = paid("evt_1", "cus_1", "sub_1", 100);
        let (first, again) = (deliver(client, &body).await, deliver(client, &body).await);
        assert_eq!((taken(&first), is_replayed(&first)), (taken(&again), false));
        assert!(is_replayed(&again));
        for n in 2..8 {
            let customer = format!("cus_{n}");
            let body = paid(&format!("evt_{n}"), &customer, &format!("sub_{n}"), 100);
            let (one, other) = join(deliver(client, &body), deliver(client, &body)).await;
            assert_eq!(taken(&one), taken(&other));
            assert!(is_replayed(&one) != is_replayed(&other));
            assert_eq!(tenant(client, &customer).await["url"], one.json["url"]);
        }
        assert_eq!(stripe.told().len(), 7);
        // Two events of one customer at once: two runs, and one tenant.
        let bodies = ["evt_a", "evt_b"].map(|event| paid(event, "cus_8", "sub_8", 100));
        let (one, other) = join(deliver_until_taken(client, &bodies[0]), deliver_until_taken(client, &bodies[1])).await;
        assert_eq!(taken(&one), taken(&other));
        assert_eq!(tenant(client, "cus_8").await["url"], one.json["url"]);
        assert_eq!(client.containers_total().await, 1 + 8);
    });
}

#[test]
fn a_cancellation_before_its_signup_or_amid_it_leaves_no_tenant() {
    play_with(CONFIG, async |daemon| {
        let client = &daemon.client;
        let stripe = shop(daemon).await;
        let cancelled = json!({ "cancelled": true });
        assert_eq!(taken(&deliver(client, &ended("evt_1", "cus_1", "sub_1")).await), &json!({ "deleted": false }));
        assert_eq!(taken(&deliver(client, &paid("evt_2", "cus_1", "sub_1", 100)).await), &cancelled);
        has_none(client, "cus_1").await;
        assert!(stripe.told().is_empty(), "nobody is told of a tenant that is not there");
        for (n, later_ms) in [0, 5, 15, 30, 60, 100].into_iter().enumerate() {
            let (customer, subscription) = (format!("cus_m{n}"), format!("sub_m{n}"));
            let signup = paid(&format!("evt_m{n}"), &customer, &subscription, 100);
            let cancel = ended(&format!("evt_n{n}"), &customer, &subscription);
            let late = async {
                tokio::time::sleep(Duration::from_millis(later_ms)).await;
                deliver_until_taken(client, &cancel).await
            };
            let (signed_up, ended) = join(deliver_until_taken(client, &signup), late).await;
            has_none(client, &customer).await;
            // Either of them has seen the other.
            let seen = signed_up.json == cancelled || ended.json == json!({ "deleted": true });
            assert!(seen, "{later_ms} ms: {} {}", signed_up.text, ended.text);
        }
    });
}

#[test]
fn a_customer_who_subscribes_anew_keeps_or_gets_a_tenant() {
    play_with(CONFIG, async |daemon| {
        let client = &daemon.client;
        shop(daemon).await;
        deliver(client, &paid("evt_1", "cus_1", "sub_1", 100)).await;
        let first = tenant(client, "cus_1").await;
        let renewed = deliver(client, &paid("evt_2", "cus_1", "sub_2", 200)).await;
        assert_eq!(taken(&renewed)["url"], first["url"], "it is the customer's, and not a subscription's");
        assert_eq!(taken(&deliver(client, &ended("evt_3", "cus_1", "sub_1")).await), &json!({ "deleted": false }));
        assert_eq!(tenant(client, "cus_1").await["id"], first["id"]);
        assert_eq!(taken(&deliver(client, &ended("evt_4", "cus_1", "sub_2")).await), &json!({ "deleted": true }));
        has_none(client, "cus_1").await;
        let anew = deliver(client, &paid("evt_5", "cus_1", "sub_3", 300)).await;
        let second = tenant(client, "cus_1").await;
        assert_eq!(taken(&anew)["url"], second["url"]);
        assert_ne!(second["id"], first["id"]);
        // Late news of subscriptions that have ended.
        for (event, subscription, created) in [("evt_6", "sub_1", 100), ("evt_7", "sub_2", 200)] {
            let late = deliver(client, &paid(event, "cus_1", subscription, created)).await;
            assert_eq!(taken(&late), &json!({ "cancelled": true }));
        }
        assert_eq!(taken(&deliver(client, &ended("evt_8", "cus_1", "sub_2")).await), &json!({ "deleted": false }));
        let left = tenant(client, "cus_1").await;
        assert_eq!((&left["id"], &left["status"]), (&second["id"], &json!("running")));
        assert_eq!(client.page(&left, "/").await.status, 200);
    });
}

/// Waits until the URL of a customer is stored.
async fn until_told(stripe: &Stripe, customer: &str) {
    let deadline = Instant::now() + patience(20);
    while !stripe.told().iter().any(|(told, _)| told == customer) {
        assert!(Instant::now() < deadline, "{customer} is not stored");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Sends a delivery, kills the daemon so long after it, and starts it again.
async fn killed_amid(daemon: &mut Daemon, body: &str, after_ms: u64) {
    let sent = tokio::spawn({
        let (client, body) = (daemon.client.clone(), body.to_owned());
        async move { drop(send(&client, &body, &signed(&body)).await) }
    });
    tokio::time::sleep(Duration::from_millis(after_ms)).await;
    daemon.kill9();
    sent.await.unwrap();
    daemon.restart().await;
}

#[test]
fn a_daemon_that_is_killed_amid_a_delivery_loses_none_and_makes_no_second() {
    play_with(CONFIG, async |daemon| {
        let stripe = shop(daemon).await;
        let client = daemon.client.clone();
        // The tenant is there and stored, the delivery is not answered.
        stripe.hang();
        let body = paid("evt_h", "cus_h", "sub_h", 100);
        let sent = tokio::spawn({
            let (client, body) = (client.clone(), body.clone());
            async move { send(&client, &body, &signed(&body)).await.is_ok_and(|reply| reply.status == 200) }
        });
        until_told(&stripe, "cus_h").await;
        daemon.kill9();
        assert!(!sent.await.unwrap(), "it was cut off");
        stripe.recover();
        daemon.restart().await;
        let before = tenant(&client, "cus_h").await;
        let reply = deliver_until_taken(&client, &body).await;
        assert_eq!(taken(&reply)["url"], before["url"]);
        assert_eq!(tenant(&client, "cus_h").await["id"], before["id"]);
        assert!(stripe.told().iter().all(|(_, url)| *url == before["url"].as_str().unwrap()));

        for (n, after_ms) in KILLED_AFTER_MS.into_iter().enumerate() {
            let customer = format!("cus_{n}");
            let body = paid(&format!("evt_{n}"), &customer, &format!("sub_{n}"), 100);
            killed_amid(daemon, &body, after_ms).await;
            let reply = deliver_until_taken(&client, &body).await;
            let made = tenant(&client, &customer).await;
            assert_eq!((taken(&reply)["url"].clone(), &made["status"]), (made["url"].clone(), &json!("running")));
            assert_eq!(client.page(&made, "/").await.status, 200, "killed after {after_ms} ms");
            let told = stripe.told();
            assert!(told.iter().any(|(told, url)| *told == customer && made["url"] == json!(url)), "{told:?}");
        }
        // And a cancellation.
        for (n, after_ms) in KILLED_AFTER_MS.into_iter().enumerate() {
            let customer = format!("cus_{n}");
            let body = ended(&format!("evt_e{n}"), &customer, &format!("sub_{n}"));
            killed_amid(daemon, &body, after_ms).await;
            deliver_until_taken(&client, &body).await;
            has_none(&client, &customer).await;
        }
        assert_eq!(client.get("/leaks").await.data(200)["leaks"], json!([]));
        let marks = KILLED_AFTER_MS.len() as u64;
        // The last daemon's deletion may still be under way.
        let deadline = Instant::now() + patience(20);
        while client.containers_total().await != 2 + marks {
            assert!(Instant::now() < deadline, "not the template, cus_h and a mark for each cancellation");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

/// The sweep as the clock sets it off; what it answered.
fn sweep(daemon: &Daemon) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenantry"));
    let token = fs::read_to_string(daemon.data_dir().join("admin.token")).unwrap();
    command.env_clear().env("TENANTRY_URL", API).env("TENANTRY_TOKEN", token.trim());
    command.args(["exec", "run", "--method", "SCHEDULE"]).arg(daemon.scratch().join("scripts/stripe-sweep.js"));
    let done = command.output().unwrap();
    assert!(done.status.success(), "{done:?}");
    serde_json::from_slice(&done.stdout).unwrap()
}

#[test]
fn a_sweep_leaves_young_marks_and_tenants() {
    play_with(CONFIG, async |daemon| {
        let client = &daemon.client;
        shop(daemon).await;
        deliver(client, &paid("evt_1", "cus_1", "sub_1", 100)).await;
        deliver(client, &ended("evt_2", "cus_2", "sub_2")).await;
        let asked = client.post("/exec/stripe-sweep", json!({})).await;
        assert_eq!((asked.status, &asked.json["error"]), (404, &json!("this one is for the clock")));
        assert_eq!(sweep(daemon), json!({ "removed": 0 }));
        assert_eq!(client.containers_total().await, 3);
        // A week cannot be waited for: the same script with a mark's age of nothing.
        install(daemon, "stripe-sweep.js", |text| text.replace("7 * 24 * 3600 * 1000", "0"));
        assert_eq!(sweep(daemon), json!({ "removed": 1 }));
        has_none(client, "cancelled:sub_2").await;
        assert_eq!(tenant(client, "cus_1").await["status"], "running");
        assert_eq!(client.containers_total().await, 2);
    });
}
