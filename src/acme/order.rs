//! One order: the account, the challenge, the files.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeHandle, ChallengeType, Identifier, NewAccount, NewOrder,
    Order, OrderStatus, Problem, RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use serde::{Deserialize, Serialize};

use super::AcmeConfig;
use crate::config::AcmeChallenge;
use crate::domain::host::CustomDomain;
use crate::proxy::{Challenges, Showing};

/// For the server to look at a challenge, and then again for it to sign.
const POLL_MS_MAX: Duration = Duration::from_millis(80_000);
/// Of files that hold a key, or credentials.
const PRIVATE_MODE: u32 = 0o600;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum OrderError {
    #[error("the order took too long")]
    Late,
    #[error("cannot {action}")]
    Acme {
        action: &'static str,
        #[source]
        source: instant_acme::Error,
    },
    #[error("the server does not offer the challenge {0:?}")]
    NotOffered(ChallengeType),
    #[error("the server did not find the challenge: the name must lead to this proxy from outside, at port {port}")]
    NotProven {
        port: u16,
        #[source]
        source: Option<Problem>,
    },
    #[error("a certificate for the challenge cannot be made")]
    Certificate(#[from] rcgen::Error),
    #[error("a certificate for the challenge cannot be shown")]
    Shown(#[from] tokio_rustls::rustls::Error),
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} does not read", path.display())]
    Account {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

fn failed(action: &'static str) -> impl FnOnce(instant_acme::Error) -> OrderError {
    move |source| OrderError::Acme { action, source }
}

/// The account as it is kept: of one server.
#[derive(Serialize, Deserialize)]
struct Kept {
    directory: String,
    credentials: AccountCredentials,
}

/// Orders a certificate and puts it into the folder.
pub(super) async fn order(
    config: &AcmeConfig,
    challenges: &Arc<Challenges>,
    domain: &CustomDomain,
) -> Result<(), OrderError> {
    let account = account(config).await?;
    let names = [Identifier::Dns(domain.to_string())];
    let mut order = account.new_order(&NewOrder::new(&names)).await.map_err(failed("make an order"))?;
    let mut showing = Vec::new();
    let mut proofs = order.authorizations();
    while let Some(proof) = proofs.next().await {
        let mut proof = proof.map_err(failed("learn what proves the name"))?;
        if proof.status == AuthorizationStatus::Valid {
            continue;
        }
        let kind = kind_of(config.challenge);
        let mut challenge = proof.challenge(kind.clone()).ok_or(OrderError::NotOffered(kind))?;
        showing.push(show(config.challenge, challenges, domain, &challenge)?);
        challenge.set_ready().await.map_err(failed("say that the challenge is shown"))?;
    }
    let patience = RetryPolicy::new().timeout(POLL_MS_MAX);
    let status = order.poll_ready(&patience).await.map_err(failed("wait for the proof"))?;
    drop(showing);
    if status != OrderStatus::Ready {
        return Err(OrderError::NotProven { port: port_of(config.challenge), source: problem_of(&mut order).await });
    }
    let key = order.finalize().await.map_err(failed("ask for the certificate"))?;
    let chain = order.poll_certificate(&patience).await.map_err(failed("fetch the certificate"))?;
    let stem = config.folder.join(format!("{domain}.acme"));
    in_background(move || {
        // With the key before it, a certificate never stands without its own: until both are there the last good pair stays.
        write_private(&with_end(&stem, "key"), key.as_bytes())?;
        write_private(&with_end(&stem, "crt"), chain.as_bytes())
    })
    .await
}

/// What the server says of the challenge that it did not find, where it does.
async fn problem_of(order: &mut Order) -> Option<Problem> {
    let mut proofs = order.authorizations();
    while let Some(Ok(mut proof)) = proofs.next().await {
        proof.refresh().await.ok()?;
        if let Some(problem) = proof.challenges.iter().find_map(|challenge| challenge.error.clone()) {
            return Some(problem);
        }
    }
    None
}

/// `Path::with_extension` would take the place of what follows the last dot of a name.
fn with_end(stem: &Path, end: &str) -> PathBuf {
    let mut path = stem.as_os_str().to_owned();
    path.push(".");
    path.push(end);
    path.into()
}

fn kind_of(challenge: AcmeChallenge) -> ChallengeType {
    match challenge {
        AcmeChallenge::Http01 => ChallengeType::Http01,
        AcmeChallenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
    }
}

/// Where the server looks, whatever port is listened on.
fn port_of(challenge: AcmeChallenge) -> u16 {
    match challenge {
        AcmeChallenge::Http01 => 80,
        AcmeChallenge::TlsAlpn01 => 443,
    }
}

fn show(
    kind: AcmeChallenge,
    challenges: &Arc<Challenges>,
    domain: &CustomDomain,
    challenge: &ChallengeHandle<'_>,
) -> Result<Showing, OrderError> {
    let authorization = challenge.key_authorization();
    if kind == AcmeChallenge::Http01 {
        return Ok(challenges.show_text(&challenge.token, authorization.as_str()));
    }
    let mut params = CertificateParams::new([domain.to_string()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(authorization.digest().as_ref())];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok(challenges.show_certificate(domain.as_str(), certificate.der().clone(), key.into())?)
}

/// The account of this server: the one that is kept, or a new one.
async fn account(config: &AcmeConfig) -> Result<Account, OrderError> {
    let builder = || match &config.ca_file {
        Some(path) => Account::builder_with_root(path),
        None => Account::builder(),
    };
    let builder = builder().map_err(failed("speak TLS to the server"))?;
    let path = config.account.clone();
    let kept = in_background(move || read_account(&path)).await?.filter(|kept| kept.directory == config.directory);
    if let Some(kept) = kept {
        return builder.from_credentials(kept.credentials).await.map_err(failed("use the account"));
    }
    let contact: Vec<&str> = config.contact.iter().map(String::as_str).collect();
    let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
    let made = builder.create(&new, config.directory.clone(), None).await;
    let (account, credentials) = made.map_err(failed("make an account"))?;
    let (path, kept) = (config.account.clone(), Kept { directory: config.directory.clone(), credentials });
    in_background(move || {
        let text = serde_json::to_vec(&kept).map_err(|source| OrderError::Account { path: path.clone(), source })?;
        write_private(&path, &text)
    })
    .await?;
    Ok(account)
}

fn read_account(path: &Path) -> Result<Option<Kept>, OrderError> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| OrderError::Account { path: path.to_owned(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(OrderError::File { action: "read", path: path.to_owned(), source }),
    }
}

/// Runs what waits for the disk beside other tasks.
async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, OrderError> + Send + 'static,
) -> Result<T, OrderError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

/// Puts a file in its place in one step, for its owner alone.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), OrderError> {
    let failed = |source| OrderError::File { action: "write", path: path.to_owned(), source };
    let beside = with_end(path, "new");
    let write = || {
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(PRIVATE_MODE).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(failed)
}
