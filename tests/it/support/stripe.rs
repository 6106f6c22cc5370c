//! Stripe, as a shop's server meets it: signed deliveries that come until they are taken, and an API that is told of customers' URLs.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::{Form, Path as Part, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use reqwest::{Method, header};
use ring::hmac;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::daemon::{Client, Daemon, Reply, try_answer};

/// Workers as they are in production; few of them warm.
pub const CONFIG: &str = "[exec]\nwarm = 2\nworkers = 8\n";
/// What the endpoint's deliveries are signed by.
pub const SECRET: &str = "whsec_of_the_endpoint";
const API_KEY: &str = "sk_test_1";
/// What tenants are copies of.
pub const TEMPLATE: &str = "shop-app";
/// How often a delivery is repeated at most, and after how long; in production it is three days, with growing pauses.
const TRIES_MAX: u32 = 100;
const PAUSE_MS: u64 = 100;

/// Seconds since 1970.
pub fn now_s() -> i64 {
    i64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

/// One signature, as it stands behind `v1=`.
pub fn signature(secret: &str, at_s: i64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    hex::encode(hmac::sign(&key, format!("{at_s}.{body}").as_bytes()))
}

/// The header `Stripe-Signature` of a body that is sent now.
pub fn signed(body: &str) -> String {
    let now = now_s();
    format!("t={now},v1={}", signature(SECRET, now, body))
}

/// A customer has paid.
pub fn paid(event: &str, customer: &str, subscription: &str, created: i64) -> String {
    let session = json!({
        "object": "checkout.session", "customer": customer, "subscription": subscription,
        "customer_details": { "name": format!("Name of {customer}") }, "metadata": { "plan": "pro" },
    });
    let object = json!({ "object": session });
    json!({ "id": event, "type": "checkout.session.completed", "created": created, "data": object }).to_string()
}

/// A subscription has ended.
pub fn ended(event: &str, customer: &str, subscription: &str) -> String {
    let object = json!({ "object": { "object": "subscription", "id": subscription, "customer": customer } });
    json!({ "id": event, "type": "customer.subscription.deleted", "created": 1, "data": object }).to_string()
}

/// Sends a body once, by a sender without a token.
pub async fn send(client: &Client, body: &str, signature: &str) -> reqwest::Result<Reply> {
    let request = client.with_token("").request(Method::POST, "/exec/stripe-signup");
    let request = request.header("stripe-signature", signature).header(header::CONTENT_TYPE, "application/json");
    try_answer(request.body(body.to_owned())).await
}

/// Sends a body once, signed.
pub async fn deliver(client: &Client, body: &str) -> Reply {
    send(client, body, &signed(body)).await.unwrap()
}

/// Sends a body until it is taken, each time signed anew.
pub async fn deliver_until_taken(client: &Client, body: &str) -> Reply {
    let mut last = String::new();
    for _ in 0..TRIES_MAX {
        match send(client, body, &signed(body)).await {
            Ok(reply) if (200..300).contains(&reply.status) => return reply,
            Ok(reply) => last = format!("{}: {}", reply.status, reply.text),
            Err(error) => last = format!("{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(PAUSE_MS)).await;
    }
    panic!("not taken in {TRIES_MAX} tries: {body}: {last}");
}

/// Stripe's API, of which only the change of a customer is asked.
#[derive(Debug, Clone)]
pub struct Stripe {
    /// Which customer's URL was stored, in the order it was.
    told: Arc<Mutex<Vec<(String, String)>>>,
    /// A permit for each answer.
    answers: Arc<Semaphore>,
}

impl Stripe {
    /// Listens in the test's own network, puts the example's scripts into the daemon's folder and tells them of it.
    pub async fn set_up(daemon: &Daemon) -> Self {
        let stripe = Self { told: Arc::default(), answers: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)) };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().route("/v1/customers/{id}", post(change_customer)).with_state(stripe.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        for name in ["stripe-signup.js", "stripe-sweep.js"] {
            install(daemon, name, |text| text);
        }
        for (name, value) in [("WEBHOOK_SECRET", SECRET), ("API_KEY", API_KEY), ("API_BASE", base.as_str())] {
            let path = format!("/exec/secrets/STRIPE_{name}");
            daemon.client.put(&path, json!({ "value": value })).await.data(200);
        }
        stripe
    }

    /// What is stored with customers.
    pub fn told(&self) -> Vec<(String, String)> {
        self.told.lock().unwrap().clone()
    }

    /// From now on, what comes is stored, but not answered.
    pub fn hang(&self) {
        self.answers.forget_permits(Semaphore::MAX_PERMITS);
    }

    /// Answers again.
    pub fn recover(&self) {
        self.answers.add_permits(Semaphore::MAX_PERMITS);
    }
}

async fn change_customer(
    State(stripe): State<Stripe>,
    Part(customer): Part<String>,
    headers: HeaderMap,
    Form(form): Form<Vec<(String, String)>>,
) -> StatusCode {
    assert_eq!(headers["authorization"], format!("Bearer {API_KEY}"));
    let [(name, url)] = form.try_into().unwrap();
    assert_eq!(name, "metadata[tenant_url]");
    stripe.told.lock().unwrap().push((customer, url));
    let _answer = stripe.answers.acquire().await.unwrap();
    StatusCode::OK
}

/// Copies a script of the example, changed or not, into the daemon's folder.
pub fn install(daemon: &Daemon, name: &str, change: impl FnOnce(String) -> String) {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/stripe/scripts").join(name);
    daemon.write_script(name, &change(fs::read_to_string(example).unwrap()));
}

/// The containers of an external id; those that are going are not among them.
pub async fn containers_of(client: &Client, external_id: &str) -> Vec<Value> {
    let list = client.get(&format!("/containers/?external_id={external_id}")).await.data(200);
    list["containers"].as_array().unwrap().clone()
}
