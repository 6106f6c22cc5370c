//! A Stripe webhook's signature: `t=<seconds>,v1=<hex>[,v1=<hex>…]`, each `v1` an HMAC-SHA256 of `<t>.<raw body>`.

use ring::hmac;

/// A header's largest size, in bytes, and how many signatures of it are looked at.
const HEADER_BYTES_MAX: usize = 8 * 1024;
const SIGNATURES_MAX: usize = 16;

/// Why a body is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StripeError {
    /// It does not have the form.
    #[error("the Stripe-Signature header is missing or has no t= and v1=")]
    Header,
    /// None of its signatures is by any of the secrets.
    #[error("no signature matches: is it the secret of this endpoint, and the raw body?")]
    NoMatch,
    /// It was signed too long ago, or in the future.
    #[error("the signature is outside the tolerance of {tolerance_s} s: it was made {age_s} s ago")]
    Time {
        /// How old it is; below 0 where it is of the future.
        age_s: i64,
        /// How old it may be, either way.
        tolerance_s: i64,
    },
}

/// Whether a body is signed by one of the secrets, and lately. The time is judged last, as it is only believed when it is signed.
///
/// # Errors
/// It is not.
pub fn verify(raw: &[u8], header: &str, secrets: &[String], now_s: i64, tolerance_s: i64) -> Result<(), StripeError> {
    let (signed_at, signatures) = parse(header).ok_or(StripeError::Header)?;
    let text = [signed_at.to_string().as_bytes(), b".", raw].concat();
    let matches = |secret: &String| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        // `verify` compares in constant time.
        signatures.iter().any(|signature| hmac::verify(&key, &text, signature).is_ok())
    };
    if !secrets.iter().any(matches) {
        return Err(StripeError::NoMatch);
    }
    let age_s = now_s.saturating_sub(signed_at);
    if age_s.saturating_abs() > tolerance_s {
        return Err(StripeError::Time { age_s, tolerance_s });
    }
    Ok(())
}

fn parse(header: &str) -> Option<(i64, Vec<Vec<u8>>)> {
    if header.len() > HEADER_BYTES_MAX {
        return None;
    }
    let (mut time, mut signatures) = (None, Vec::new());
    for (name, value) in header.split(',').filter_map(|part| part.trim().split_once('=')) {
        match name {
            "t" if time.is_none() => time = value.parse::<i64>().ok(),
            "v1" if signatures.len() < SIGNATURES_MAX => signatures.extend(hex::decode(value)),
            // Other schemes, such as v0 of test events, prove nothing.
            _ => {}
        }
    }
    Some((time?, signatures)).filter(|(_, signatures)| !signatures.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = br#"{"id":"evt_1"}"#;
    const NOW: i64 = 1_700_000_000;

    fn sign(secret: &str, at: i64, body: &[u8]) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        hex::encode(hmac::sign(&key, &[at.to_string().as_bytes(), b".", body].concat()))
    }

    fn check(header: &str, secrets: &[&str]) -> Result<(), StripeError> {
        let secrets: Vec<String> = secrets.iter().map(|&secret| secret.to_owned()).collect();
        verify(BODY, header, &secrets, NOW, 300)
    }

    #[test]
    fn a_signature_by_any_of_several_secrets_is_believed() {
        let good = sign("whsec_b", NOW - 10, BODY);
        let header = format!("t={},v1={},v1={good},v0=00", NOW - 10, "00".repeat(32));
        assert_eq!(check(&header, &["whsec_a", "whsec_b"]), Ok(()));
        assert_eq!(check(&header, &["whsec_a"]), Err(StripeError::NoMatch));
        assert_eq!(check(&header, &[]), Err(StripeError::NoMatch));
    }

    #[test]
    fn a_signature_of_another_time_or_body_is_not() {
        let at = |at: i64| format!("t={at},v1={}", sign("s", at, BODY));
        assert_eq!(check(&at(NOW - 300), &["s"]), Ok(()));
        assert_eq!(check(&at(NOW + 300), &["s"]), Ok(()));
        assert_eq!(check(&at(NOW - 301), &["s"]), Err(StripeError::Time { age_s: 301, tolerance_s: 300 }));
        assert_eq!(check(&at(NOW + 301), &["s"]), Err(StripeError::Time { age_s: -301, tolerance_s: 300 }));
        let moved = format!("t={},v1={}", NOW, sign("s", NOW - 500, BODY));
        assert_eq!(check(&moved, &["s"]), Err(StripeError::NoMatch), "the time is signed too");
        let other = format!("t={NOW},v1={}", sign("s", NOW, b"{}"));
        assert_eq!(check(&other, &["s"]), Err(StripeError::NoMatch));
    }

    #[test]
    fn what_is_no_signature_is_told_as_such() {
        for header in ["", "t=1", "v1=00", "t=x,v1=00", "t=1,v1=zz", "t=1,v0=00"] {
            assert_eq!(check(header, &["s"]), Err(StripeError::Header), "{header}");
        }
    }
}
