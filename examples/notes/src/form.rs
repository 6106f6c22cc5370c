//! The one thing wanted of `application/x-www-form-urlencoded`: a field's value.

/// The first value of a field, when it is there and is UTF-8.
pub fn value(body: &[u8], name: &str) -> Option<String> {
    body.split(|b| *b == b'&').find_map(|pair| {
        let mut halves = pair.splitn(2, |b| *b == b'=');
        let key = decode(halves.next()?)?;
        let value = halves.next().unwrap_or_default();
        (key == name).then(|| decode(value)).flatten()
    })
}

fn decode(text: &[u8]) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16));
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            other => *other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::value;

    #[test]
    fn fields_are_decoded() {
        let body = b"a=1&text=one+two%0Athr%65e&text=second";
        assert_eq!(value(body, "text").unwrap(), "one two\nthree");
        assert_eq!(value(body, "a").unwrap(), "1");
        assert_eq!(value(b"text", "text").unwrap(), "");
    }

    #[test]
    fn broken_escapes_and_other_encodings_are_no_value() {
        for body in [&b"text=%"[..], b"text=%4", b"text=%zz", b"text=%FF", b"other=1", b""] {
            assert_eq!(value(body, "text"), None, "{body:?}");
        }
    }
}
