//! Certificates by ACME (RFC 8555), for names that are wanted and have none, or one that ends soon.
//!
//! ```text
//! wanted names ─► plan (pure: whose is next, when again) ─► order ─► files in the folder of certificates ─► the proxy shows them
//!                                                             └ challenge, shown by the proxy
//! ```
//!
//! One order at a time. What fails is tried again after a pause that grows; there is a bound of orders an hour, so that a slip in the DNS
//! does not use up what the server grants.

mod order;
mod plan;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::AcmeChallenge;
use crate::domain::host::CustomDomain;
use crate::proxy::Challenges;
use crate::proxy::tls::Certificates;
use plan::Plan;

/// Between two looks for what is to be ordered.
const LOOK_MS: Duration = Duration::from_millis(2_000);
/// For one order, altogether.
const ORDER_MS_MAX: Duration = Duration::from_millis(180_000);

/// Whom is asked, and how.
#[derive(Debug, Clone)]
pub struct AcmeConfig {
    /// The server's directory.
    pub directory: String,
    /// Who is told of trouble, as `mailto:` URLs.
    pub contact: Vec<String>,
    /// How names are proven.
    pub challenge: AcmeChallenge,
    /// Whom the server's own certificate is signed by, where that is not one of those whom all trust.
    pub ca_file: Option<PathBuf>,
    /// Where the account is kept.
    pub account: PathBuf,
    /// Where certificates go.
    pub folder: PathBuf,
}

/// Which names are to have certificates.
pub trait Wanted: Debug + Send + Sync + 'static {
    /// Now.
    fn names(&self) -> BTreeSet<CustomDomain>;
}

/// Orders certificates.
#[derive(Debug)]
pub struct Acme {
    /// Whom to ask.
    pub config: AcmeConfig,
    /// What there is.
    pub certificates: Arc<Certificates>,
    /// Where challenges are shown.
    pub challenges: Arc<Challenges>,
    /// What is wanted.
    pub wanted: Arc<dyn Wanted>,
}

impl Acme {
    /// Orders what is wanted, until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut plan = Plan::default();
        loop {
            tokio::select! {
                // An order that is left is one that ends by itself at the server.
                () = shutdown.cancelled() => return,
                () = self.look(&mut plan) => {}
            }
            tokio::select! {
                // Both only wait.
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(LOOK_MS) => {}
            }
        }
    }

    async fn look(&self, plan: &mut Plan) {
        let now = || Timestamp::now().as_second();
        let shown = |domain: &CustomDomain| self.certificates.validity(domain.as_str());
        let Some(domain) = plan.next(&self.wanted.names(), shown, now()) else { return };
        plan.ordered(now());
        tracing::info!(%domain, directory = %self.config.directory, "a certificate is ordered");
        let ordered = timeout(ORDER_MS_MAX, order::order(&self.config, &self.challenges, &domain)).await;
        match ordered.unwrap_or(Err(order::OrderError::Late)) {
            Ok(()) => {
                plan.succeeded(&domain);
                let certificates = Arc::clone(&self.certificates);
                // It is looked at every second anyway; so the next look here does not order it again.
                let looked = tokio::task::spawn_blocking(move || certificates.look_at_once()).await;
                if let Ok(Err(error)) = looked {
                    tracing::warn!(error = &error as &dyn std::error::Error, "a new certificate is not shown yet");
                }
            }
            Err(error) => {
                let pause_s = plan.failed(&domain, now()).as_secs();
                tracing::warn!(%domain, pause_s, error = &error as &dyn std::error::Error, "there is no certificate for it");
            }
        }
    }
}
