//! The same copy three ways: by the API, by a script, and by a script that a signed webhook sets off and that is handled once.
//!
//! Each is measured once a round, in turns from another one on, so that none is always the one behind a deletion.

use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use ring::hmac;
use serde_json::json;

use crate::client::{Client, Reply};
use crate::report::Report;

/// What the deliveries are signed by.
const SECRET: &str = "whsec_of_the_bench";
/// The scripts: a name and a text.
pub const FILES: [(&str, &str); 2] = [
    (
        "copy.js",
        "const made = await tenantry.containers.copy('template', {})\n\
         return { data: { id: made.id, url: made.url } }\n",
    ),
    (
        "webhook.js",
        "// @idempotency body.id\n\
         const event = stripe.verify(req.rawBody, req.headers['stripe-signature'], secrets.STRIPE_WEBHOOK_SECRET)\n\
         const made = await tenantry.containers.copy('template', { external_id: event.data.object.customer })\n\
         return { data: { id: made.id, url: made.url } }\n",
    ),
];
/// Between a deletion and the next copy, in milliseconds: what the filesystem and the kernel do behind it is not the copy's.
const REST_MS: u64 = 50;

/// A way to a copy.
#[derive(Debug, Clone, Copy)]
enum Way {
    Api,
    Script,
    Webhook,
}

const WAYS: [Way; 3] = [Way::Api, Way::Script, Way::Webhook];

/// What the rounds have in common.
#[derive(Debug)]
pub struct Script {
    round: usize,
}

impl Script {
    pub async fn prepare(client: &Client) -> Result<Self> {
        client.put("/exec/secrets/STRIPE_WEBHOOK_SECRET", json!({"value": SECRET})).await?.expect(200)?;
        Ok(Self { round: 0 })
    }

    /// Measures each way once.
    pub async fn play(&mut self, report: &mut Report, client: &Client, template: &str) -> Result<()> {
        self.round += 1;
        let mut took = [Duration::ZERO; WAYS.len()];
        for turn in 0..WAYS.len() {
            let n = (turn + self.round) % WAYS.len();
            tokio::time::sleep(Duration::from_millis(REST_MS)).await;
            let began = Instant::now();
            let made = self.copy(WAYS[n], client, template).await?;
            took[n] = began.elapsed();
            client.delete(&format!("/containers/{}", made.id()?)).await?.expect(200)?;
        }
        let [api, script, webhook] = took;
        report.took("copy by the API, alone", api);
        report.took("copy by a script", script);
        report.took("copy by a signed webhook, once", webhook);
        report.longer("  a script adds", script, api);
        report.longer("  a signed webhook, once, adds", webhook, api);
        Ok(())
    }

    async fn copy(&self, way: Way, client: &Client, template: &str) -> Result<Reply> {
        match way {
            Way::Api => client.post(&format!("/containers/{template}/copy"), json!({})).await?.expect(201),
            Way::Script => client.deliver("copy", "{}".to_owned(), "").await?.expect(200),
            Way::Webhook => {
                let object = json!({"object": {"customer": format!("cus_{}", self.round)}});
                let body = json!({"id": format!("evt_{}", self.round), "data": object}).to_string();
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
                let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
                let signature = hex::encode(hmac::sign(&key, format!("{now}.{body}").as_bytes()));
                client.deliver("webhook", body, &format!("t={now},v1={signature}")).await?.expect(200)
            }
        }
    }
}
