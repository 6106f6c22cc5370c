//! A thousand deliveries, sixteen at a time, every second one for the second time: five hundred customers have one tenant each.
//!
//! The example's own script, with one change: tenants are made stopped, since five hundred at once do not fit into a test. What it looks
//! up, copies, marks and stores is the same.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures_util::future::join;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use crate::support::daemon::{Client, Daemon, Reply, in_vm, play_with};
use crate::support::stripe::{self, CONFIG, Stripe, TEMPLATE, deliver_until_taken, paid};

const CUSTOMERS: usize = 500;
const CUSTOMERS_IN_VM: usize = 16;
const AT_ONCE: usize = 16;
/// Deliveries of so many events come twice: at once in one such batch, one batch behind the other in the next.
const BATCH: usize = 50;
/// How far the deliveries have come when the daemon is killed, in hundredths, and by how much further at most.
const KILLED_AT: [usize; 2] = [10, 50];
const FURTHER: usize = 30;
/// And by how much later at most, in milliseconds: about what a delivery takes.
const LATER_MS: u64 = 200;
const LOOK_MS: u64 = 2;
/// Tenants that are started in the end, to see that they can be.
const STARTED: usize = 5;

fn customers() -> usize {
    if in_vm() { CUSTOMERS_IN_VM } else { CUSTOMERS }
}

/// Which customer each delivery is of.
fn deliveries() -> Vec<usize> {
    let all: Vec<usize> = (0..customers()).collect();
    let twice = |(n, batch): (usize, &[usize])| match n % 2 {
        0 => batch.iter().flat_map(|&customer| [customer, customer]).collect(),
        _ => [batch, batch].concat(),
    };
    all.chunks(BATCH).enumerate().flat_map(twice).collect()
}

async fn shop(daemon: &Daemon) -> Stripe {
    let project = daemon.client.create_project("shop").await;
    daemon.client.create_template(&project, TEMPLATE).await;
    let stripe = Stripe::set_up(daemon).await;
    stripe::install(daemon, "stripe-signup.js", |text| {
        let changed = text.replace("external_id: session.customer,", "external_id: session.customer, start: false,");
        assert_ne!(changed, text);
        changed
    });
    stripe
}

/// Delivers all; each answer with its customer.
async fn deliver_all(client: &Client) -> Vec<(usize, Reply)> {
    let one = async |customer: usize| {
        let body = paid(&format!("evt_{customer}"), &format!("cus_{customer}"), &format!("sub_{customer}"), 100);
        (customer, deliver_until_taken(client, &body).await)
    };
    stream::iter(deliveries()).map(one).buffer_unordered(AT_ONCE).collect().await
}

/// All containers, page by page.
async fn containers(client: &Client) -> Vec<Value> {
    let mut found = Vec::new();
    for page in 1.. {
        let data = client.get(&format!("/containers/?limit=100&page={page}")).await.data(200);
        let list = data["containers"].as_array().unwrap();
        found.extend(list.iter().cloned());
        if page >= data["pagination"]["totalPages"].as_u64().unwrap() {
            break;
        }
    }
    found
}

/// Exactly one tenant for each customer, and every delivery was answered with it.
async fn hold(client: &Client, stripe: &Stripe, replies: &[(usize, Reply)]) {
    assert_eq!(replies.len(), 2 * customers());
    let all = containers(client).await;
    let of: BTreeMap<&str, &Value> =
        all.iter().filter_map(|one| Some((one["external_id"].as_str()?, &one["url"]))).collect();
    assert_eq!((all.len(), of.len()), (1 + customers(), customers()), "the template, and a tenant for each customer");
    assert_eq!(client.containers_total().await, 1 + customers() as u64);
    let told: BTreeSet<(String, String)> = stripe.told().into_iter().collect();
    assert_eq!(told.len(), customers(), "each customer's URL is stored, and none has had two");
    for (customer, reply) in replies {
        let name = format!("cus_{customer}");
        let url = of[name.as_str()];
        assert_eq!(reply.json, json!({ "url": url }), "{name}: {}", reply.text);
        assert!(told.contains(&(name.clone(), url.as_str().unwrap().to_owned())), "{name} is told {url}");
    }
    for one in all.iter().filter(|one| !one["external_id"].is_null()).step_by((customers() / STARTED).max(1)) {
        assert_eq!(client.page(one, "/").await.status, 200, "a request wakes it: {one}");
    }
    assert_eq!(client.get("/leaks").await.data(200)["leaks"], json!([]));
}

#[test]
fn a_thousand_deliveries_of_which_half_are_duplicates_make_five_hundred_tenants() {
    play_with(CONFIG, async |daemon| {
        let stripe = shop(daemon).await;
        let began = Instant::now();
        let replies = deliver_all(&daemon.client).await;
        eprintln!("{} deliveries took {:?}", replies.len(), began.elapsed());
        let replayed = replies.iter().filter(|(_, reply)| reply.headers.contains_key("idempotent-replayed")).count();
        assert_eq!(replayed, customers(), "nothing was tried twice");
        assert_eq!(stripe.told().len(), customers());
        hold(&daemon.client, &stripe, &replies).await;
    });
}

#[test]
fn the_same_with_a_daemon_that_is_killed_in_between_loses_none() {
    play_with(CONFIG, async |daemon| {
        let stripe = shop(daemon).await;
        let client = daemon.client.clone();
        let kills = async {
            for at in KILLED_AT {
                let at = customers() * (at + rand::random::<u32>() as usize % FURTHER) / 100;
                // Bounded: deliveries are, and fail where they are not taken.
                while stripe.told().len() < at {
                    tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
                }
                tokio::time::sleep(Duration::from_millis(rand::random::<u64>() % LATER_MS)).await;
                daemon.kill9();
                eprintln!("killed when {} URLs were stored", stripe.told().len());
                daemon.restart().await;
            }
        };
        let (replies, ()) = join(deliver_all(&client), kills).await;
        hold(&client, &stripe, &replies).await;
    });
}
