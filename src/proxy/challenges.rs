//! What an ACME server is shown when it looks whether a name leads here: a text under a path (RFC 8555 §8.3), or a certificate in a
//! handshake of its own (RFC 8737). No container is asked, or woken.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use hyper::Response;
use hyper::body::Bytes;
use hyper::header::{self, HeaderValue};
use tokio_rustls::rustls;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;

use super::body::ResponseBody;
use super::refusal::Refusal;

/// Below which texts are asked for.
const PATH: &str = "/.well-known/acme-challenge/";

/// A map that many read and one writes.
#[derive(Debug)]
struct Shared<V>(RwLock<HashMap<Box<str>, V>>);

impl<V: Clone> Shared<V> {
    fn get(&self, key: &str) -> Option<V> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn put(&self, key: &str, value: V) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(key.into(), value);
    }

    fn remove(&self, key: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

impl<V> Default for Shared<V> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

/// What is shown now.
#[derive(Debug, Default)]
pub struct Challenges {
    texts: Shared<Arc<str>>,
    certificates: Shared<Arc<CertifiedKey>>,
}

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Text,
    Certificate,
}

/// Something that is shown until this is dropped.
#[derive(Debug)]
#[must_use = "it is shown no longer than this lives"]
pub struct Showing {
    challenges: Arc<Challenges>,
    kind: Kind,
    key: Box<str>,
}

impl Drop for Showing {
    fn drop(&mut self) {
        match self.kind {
            Kind::Text => self.challenges.texts.remove(&self.key),
            Kind::Certificate => self.challenges.certificates.remove(&self.key),
        }
    }
}

impl Challenges {
    /// Shows a text to whoever asks for its token.
    pub fn show_text(self: &Arc<Self>, token: &str, text: &str) -> Showing {
        self.texts.put(token, text.into());
        Showing { challenges: Arc::clone(self), kind: Kind::Text, key: token.into() }
    }

    /// Shows a certificate to whoever shakes hands for an ACME challenge of this name, in lower case.
    ///
    /// # Errors
    /// The key is none that can sign.
    pub fn show_certificate(
        self: &Arc<Self>,
        name: &str,
        certificate: CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Showing, rustls::Error> {
        // Whether they belong together is not looked at: a challenge's certificate has an extension that no other may have.
        let key = ring::sign::any_supported_type(&key)?;
        self.certificates.put(name, Arc::new(CertifiedKey::new(vec![certificate], key)));
        Ok(Showing { challenges: Arc::clone(self), kind: Kind::Certificate, key: name.into() })
    }

    /// The answer to a request for a path, where that is a challenge's.
    pub(super) fn answer(&self, path: &str) -> Option<Result<Response<ResponseBody>, Refusal>> {
        let Some(text) = self.text_at(path)? else { return Some(Err(Refusal::NoChallenge)) };
        let mut response = Response::new(ResponseBody::full(Bytes::copy_from_slice(text.as_bytes())));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        Some(Ok(response))
    }

    /// Whether a path is a challenge's.
    pub(super) fn is_asked_for(path: &str) -> bool {
        path.starts_with(PATH)
    }

    /// Whether a path is a challenge's, and if so what is shown there.
    fn text_at(&self, path: &str) -> Option<Option<Arc<str>>> {
        Some(self.texts.get(path.strip_prefix(PATH)?))
    }

    /// The certificate that is shown for a name.
    pub(super) fn certificate_of(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        self.certificates.get(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_shown_under_its_own_path_and_not_for_longer_than_asked_for() {
        let challenges = Arc::new(Challenges::default());
        let shown = challenges.show_text("token", "token.thumb");
        let at = |path: &str| challenges.text_at(path).map(|text| text.map(|text| text.to_string()));
        assert_eq!(at("/.well-known/acme-challenge/token"), Some(Some("token.thumb".to_owned())));
        assert_eq!(at("/.well-known/acme-challenge/other"), Some(None));
        assert_eq!(at("/.well-known/acme-challenge"), None);
        assert_eq!(at("/"), None);
        drop(shown);
        assert_eq!(at("/.well-known/acme-challenge/token"), Some(None));
    }
}
