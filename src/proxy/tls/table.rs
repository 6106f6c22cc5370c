//! Which certificate is shown for a name. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_rustls::rustls::sign::CertifiedKey;

use super::pair::Pair;

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
    not_after: i64,
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
                let shown = Shown { not_after: pair.not_after, key: Arc::clone(&pair.key) };
                match map.get_mut(name) {
                    Some(other) if other.not_after >= shown.not_after => {}
                    Some(other) => *other = shown,
                    None => drop(map.insert(name.into(), shown)),
                }
            }
        }
        table
    }

    /// The one for this name, in lower case.
    pub(super) fn pick(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let named = name.and_then(|name| {
            let wildcard = || self.wildcards.get(name.split_once('.')?.1);
            self.exact.get(name).or_else(wildcard)
        });
        named.map(|shown| Arc::clone(&shown.key)).or_else(|| self.default.clone())
    }
}
