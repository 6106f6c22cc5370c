//! JSON Web Tokens (RFC 7519): signed by a key that was told, of one algorithm, for now, with the claims that are wanted.
//!
//! The crate `jsonwebtoken` reads tokens and keys and holds a token to its key's algorithm; ring, which TLS uses too, checks signatures. What
//! a token claims is looked at here, so that it depends on no clock but the caller's.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use jiff::Timestamp;
use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::signature::{self, Verifier};
use jsonwebtoken::{DecodingKey, DecodingKeyKind, Validation};
use ring::{hmac, signature as ring_signature};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Place, Worth, wrong};
use crate::domain::container::SettingsError;
use crate::domain::secret::Secret;

/// How far the clocks of issuer and host may be apart, in seconds.
pub const LEEWAY_S: i64 = 30;
/// Bytes of a token, at most.
const TOKEN_BYTES_MAX: usize = 8_192;
/// Bytes of a shared key: fewer than the hash has weaken it (RFC 7518, 3.2).
const HMAC_BYTES: std::ops::RangeInclusive<usize> = 32..=1_024;
/// Bytes of a public key's text, at most.
const KEY_BYTES_MAX: usize = 8_192;
/// Bytes of an RSA modulus: what ring takes is 2048 to 8192 bits.
const MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1_024;
/// The same in DER, with its exponent and what tells their lengths.
const RSA_DER_BYTES: std::ops::RangeInclusive<usize> = 266..=1_100;
/// An uncompressed point of P-256 (SEC 1, 2.3.3).
const POINT_BYTES: usize = 65;
/// Claims that may be wanted, at most.
const CLAIMS_MAX: usize = 16;
/// Bytes of a claim's name and of a text it is to be, at most.
const CLAIM_BYTES_MAX: usize = 256;
/// Places of one group, at most.
const SOURCES_MAX: usize = 4;

/// How a token is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names of RFC 7518")]
pub enum Algorithm {
    HS256,
    RS256,
    ES256,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::HS256, Self::RS256, Self::ES256];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HS256 => "HS256",
            Self::RS256 => "RS256",
            Self::ES256 => "ES256",
        }
    }

    const fn named(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::HS256 => jsonwebtoken::Algorithm::HS256,
            Self::RS256 => jsonwebtoken::Algorithm::RS256,
            Self::ES256 => jsonwebtoken::Algorithm::ES256,
        }
    }
}

/// Whoever has a token that was signed by a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JwtGroup {
    algorithm: Algorithm,
    key: Secret,
    /// Where it stands.
    pub sources: Vec<Place>,
    claims: BTreeMap<String, Value>,
}

impl JwtGroup {
    /// A group of whoever has a token signed by this key: a shared secret, or a public key as PEM or JWK.
    ///
    /// # Errors
    /// A key that is not one for the algorithm, too many places or claims, a claim that is neither text, number nor flag.
    pub fn new(
        algorithm: Algorithm,
        key: Secret,
        sources: Vec<Place>,
        claims: BTreeMap<String, Value>,
    ) -> Result<Self, SettingsError> {
        decoding_key(algorithm, key.reveal()).map_err(|wanted| wrong("secret", wanted))?;
        if !(1..=SOURCES_MAX).contains(&sources.len()) {
            return Err(wrong("sources", "1 to 4 are wanted"));
        }
        let fits = |value: &Value| match value {
            Value::String(text) => text.len() <= CLAIM_BYTES_MAX,
            Value::Number(_) | Value::Bool(_) => true,
            Value::Null | Value::Array(_) | Value::Object(_) => false,
        };
        let all_fit = claims.iter().all(|(name, value)| (1..=CLAIM_BYTES_MAX).contains(&name.len()) && fits(value));
        if claims.len() > CLAIMS_MAX || !all_fit {
            return Err(wrong("claims", "at most 16 are wanted, each a text of at most 256 bytes, a number or a flag"));
        }
        Ok(Self { algorithm, key, sources, claims })
    }

    /// How tokens are signed.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// What they have to claim.
    pub const fn claims(&self) -> &BTreeMap<String, Value> {
        &self.claims
    }

    /// Whether a token is signed, and if so whether it is in force and claims what it has to.
    pub(super) fn worth(&self, token: &str, now: Timestamp) -> Worth {
        match self.signed_claims(token) {
            Some(claims) if in_force(&claims, now) && self.claims.iter().all(|one| has(&claims, one)) => Worth::Right,
            Some(_) => Worth::Stale,
            None => Worth::Wrong,
        }
    }

    /// What a token claims, if the key has signed that.
    fn signed_claims(&self, token: &str) -> Option<Map<String, Value>> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        LazyLock::force(&INSTALLED);
        let key = decoding_key(self.algorithm, self.key.reveal()).ok()?;
        // The algorithm is the key's, whatever the token says of itself.
        let mut validation = Validation::new(self.algorithm.named());
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        let token = jsonwebtoken::decode::<Map<String, Value>>(token, &key, &validation).ok()?;
        // Extensions that must be understood (RFC 7515, 4.1.11): none is.
        token.header.crit.is_none().then_some(token.claims)
    }
}

/// A token without an end is none: it could not be taken back but by another key.
fn in_force(claims: &Map<String, Value>, now: Timestamp) -> bool {
    let (now, leeway) = (now.as_second() as f64, LEEWAY_S as f64);
    let ends = claims.get("exp").and_then(Value::as_f64);
    let begins = match claims.get("nbf") {
        None => Some(f64::NEG_INFINITY),
        Some(value) => value.as_f64(),
    };
    ends.is_some_and(|at| now < at + leeway) && begins.is_some_and(|at| at - leeway <= now)
}

/// An audience may be a list, of which one has to fit (RFC 7519, 4.1.3).
fn has(claims: &Map<String, Value>, (name, wanted): (&String, &Value)) -> bool {
    match claims.get(name) {
        Some(Value::Array(all)) if name == "aud" => all.contains(wanted),
        Some(found) => found == wanted || matches!((found.as_f64(), wanted.as_f64()), (Some(a), Some(b)) if a == b),
        None => false,
    }
}

fn decoding_key(algorithm: Algorithm, text: &str) -> Result<DecodingKey, &'static str> {
    if text.len() > KEY_BYTES_MAX {
        return Err("at most 8192 bytes are wanted");
    }
    match algorithm {
        Algorithm::HS256 if HMAC_BYTES.contains(&text.len()) => Ok(DecodingKey::from_secret(text.as_bytes())),
        Algorithm::HS256 => Err("32 to 1024 bytes are wanted for HS256"),
        Algorithm::RS256 => rsa_key(text).ok_or("an RSA public key of 2048 to 8192 bits is wanted, as PEM or JWK"),
        Algorithm::ES256 => ec_key(text).ok_or("a public key on P-256 is wanted, as PEM or JWK"),
    }
}

/// A JWK for signatures of this algorithm.
fn jwk(text: &str, algorithm: Algorithm) -> Option<DecodingKey> {
    let fields: Map<String, Value> = serde_json::from_str(text).ok()?;
    let fits = |name, wanted: &str| fields.get(name).is_none_or(|value| value == wanted);
    // The private part is nobody's business here.
    if !fits("alg", algorithm.as_str()) || !fits("use", "sig") || fields.contains_key("d") {
        return None;
    }
    let jwk: Jwk = serde_json::from_value(fields.into()).ok()?;
    DecodingKey::from_jwk(&jwk).ok().filter(|key| key.family() == algorithm.named().family())
}

fn rsa_key(text: &str) -> Option<DecodingKey> {
    let text = text.trim();
    let key = if text.starts_with('{') {
        jwk(text, Algorithm::RS256)?
    } else if text.starts_with("-----BEGIN PUBLIC KEY-----") || text.starts_with("-----BEGIN RSA PUBLIC KEY-----") {
        DecodingKey::from_rsa_pem(text.as_bytes()).ok()?
    } else {
        return None;
    };
    let fits = match key.kind() {
        DecodingKeyKind::SecretOrDer(der) => RSA_DER_BYTES.contains(&der.len()),
        DecodingKeyKind::RsaModulusExponent { n, .. } => MODULUS_BYTES.contains(&n.len()),
    };
    fits.then_some(key)
}

fn ec_key(text: &str) -> Option<DecodingKey> {
    let text = text.trim();
    let key = if text.starts_with('{') {
        jwk(text, Algorithm::ES256)?
    } else if text.starts_with("-----BEGIN PUBLIC KEY-----") {
        DecodingKey::from_ec_pem(text.as_bytes()).ok()?
    } else {
        return None;
    };
    let fits = key.try_get_as_bytes().is_ok_and(|point| point.len() == POINT_BYTES && point[0] == 4);
    fits.then_some(key)
}

/// A key, and what it checks.
struct Ring {
    algorithm: jsonwebtoken::Algorithm,
    key: DecodingKey,
}

impl Verifier<Vec<u8>> for Ring {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        use ring_signature::{ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256 as RSA, UnparsedPublicKey};
        let checked = match (self.algorithm, self.key.kind()) {
            (jsonwebtoken::Algorithm::HS256, DecodingKeyKind::SecretOrDer(secret)) => {
                hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, secret), message, signature)
            }
            (jsonwebtoken::Algorithm::RS256, DecodingKeyKind::SecretOrDer(der)) => {
                UnparsedPublicKey::new(&RSA, der).verify(message, signature)
            }
            (jsonwebtoken::Algorithm::RS256, DecodingKeyKind::RsaModulusExponent { n, e }) => {
                ring_signature::RsaPublicKeyComponents { n, e }.verify(&RSA, message, signature)
            }
            (jsonwebtoken::Algorithm::ES256, DecodingKeyKind::SecretOrDer(point)) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
            }
            _ => return Err(signature::Error::new()),
        };
        checked.map_err(|_unspecified| signature::Error::new())
    }
}

impl JwtVerifier for Ring {
    fn algorithm(&self) -> jsonwebtoken::Algorithm {
        self.algorithm
    }
}

/// Checks by ring, and signs nothing.
static RING: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(Error::from(ErrorKind::UnsupportedAlgorithm)),
    verifier_factory: |algorithm, key| {
        if algorithm.family() != key.family() {
            return Err(Error::from(ErrorKind::InvalidAlgorithm));
        }
        Ok(Box::new(Ring { algorithm: *algorithm, key: key.clone() }))
    },
    key_utils: KeyUtils::new_unimplemented(),
};

/// The crate has one for the process; nothing else in this one sets it.
static INSTALLED: LazyLock<bool> = LazyLock::new(|| RING.install_default().is_ok());
