//! Certificates by ACME.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ConfigError, one_or_many};
use crate::domain::host::CustomDomain;

/// Certificates by ACME, for verified domains of customers and for names given here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Acme {
    /// Whether any are ordered. Whoever switches it on agrees to the server's terms.
    pub enabled: bool,
    /// The server's directory.
    pub directory: String,
    /// Who is told of trouble, as `mailto:` URLs. From the environment: with commas.
    #[serde(deserialize_with = "one_or_many")]
    pub contact: Vec<String>,
    /// How names are proven: the server comes to port 80 for `http-01`, to port 443 for `tls-alpn-01`.
    pub challenge: AcmeChallenge,
    /// Names to have certificates, beside verified domains of aliases. From the environment: with commas.
    #[serde(deserialize_with = "one_or_many")]
    pub domains: Vec<CustomDomain>,
    /// Whom the server's own certificate is signed by (PEM), where that is not one whom this host trusts.
    pub ca_file: Option<PathBuf>,
}

/// How a name is proven to an ACME server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AcmeChallenge {
    /// A text under a path (RFC 8555 §8.3).
    #[serde(rename = "http-01")]
    Http01,
    /// A certificate in a handshake (RFC 8737).
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
}

impl Default for Acme {
    fn default() -> Self {
        Self {
            enabled: false,
            directory: "https://acme-v02.api.letsencrypt.org/directory".to_owned(),
            contact: Vec::new(),
            challenge: AcmeChallenge::Http01,
            domains: Vec::new(),
            ca_file: None,
        }
    }
}

impl Acme {
    pub(super) fn validate(&self, tls_is_spoken: bool) -> Result<(), ConfigError> {
        let wrong = |key, problem: String| Err(ConfigError::Value { key, problem });
        if !self.directory.starts_with("https://") {
            return wrong("acme.directory", format!("`{}` is no https URL", self.directory));
        }
        if let Some(contact) = self.contact.iter().find(|contact| !contact.starts_with("mailto:")) {
            return wrong("acme.contact", format!("`{contact}` does not begin with mailto:"));
        }
        if self.enabled && !tls_is_spoken {
            return wrong("acme.enabled", "nobody would be shown certificates: proxy.tls_listen is not set".to_owned());
        }
        Ok(())
    }
}
