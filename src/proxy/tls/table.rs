//! Which certificate is shown for a name. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_rustls::rustls::sign::CertifiedKey;

use super::pair::{Pair, Validity};

/// Certificates by what they are for.
#[derive(Debug, Default)]
pub(super) struct Table {
    exact: HashMap<Box<str>, Shown>,
    /// By what follows the `*.`, which stands for one label (RFC 6125 §6.4.3).
    wildcards: HashMap<Box<str>, Shown>,
    default: Option<Arc<CertifiedKey>>,
}

#[derive(Debug, Clone)]
struct Shown {
    validity: Validity,
    key: Arc<CertifiedKey>,
}

impl Table {
    /// Of these pairs; `default` is for clients that name no host, or one that has no certificate. Of two for one name the one that
    /// is good for longer is shown.
    pub(super) fn new<'a>(pairs: impl IntoIterator<Item = &'a Pair>, default: Option<&Pair>) -> Self {
        let mut table = Self { default: default.map(|pair| Arc::clone(&pair.key)), ..Self::default() };
        for pair in pairs {
            for name in &pair.names {
                let (map, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut table.wildcards, parent),
                    None => (&mut table.exact, &**name),
                };
                let shown = Shown { validity: pair.validity, key: Arc::clone(&pair.key) };
                match map.get_mut(name) {
                    Some(other) if other.validity.not_after >= shown.validity.not_after => {}
                    Some(other) => *other = shown,
                    None => drop(map.insert(name.into(), shown)),
                }
            }
        }
        table
    }

    /// The one for this name, in lower case.
    pub(super) fn pick(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        name.and_then(|name| self.named(name)).map(|shown| Arc::clone(&shown.key)).or_else(|| self.default.clone())
    }

    /// How long the one for this name is good.
    pub(super) fn validity(&self, name: &str) -> Option<Validity> {
        self.named(name).map(|shown| shown.validity)
    }

    fn named(&self, name: &str) -> Option<&Shown> {
        let wildcard = || self.wildcards.get(name.split_once('.')?.1);
        self.exact.get(name).or_else(wildcard)
    }
}
