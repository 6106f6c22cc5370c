//! A chunked body (RFC 9112 §7.1), taken apart and put together anew. Pure; httparse reads sizes and trailers.
//!
//! Extensions and trailers end here: a client that takes trailers says so, and is not plain then. What httparse lets pass and hyper
//! does not is refused: a size without a digit, which it reads as the last one, and a line's end within an extension.

use std::io::Write as _;

use super::response::Malformed;

/// Bytes of a chunk's size and its extensions; hyper takes 16 KiB of these for a whole body.
const LINE_BYTES_MAX: usize = 1_024;
/// Fields of trailers, at most, and their bytes: what hyper takes.
const TRAILERS_MAX: usize = 100;
const TRAILERS_BYTES_MAX: usize = 16 * 1_024;
/// What ends a body.
const LAST: &[u8] = b"0\r\n\r\n";

/// How far a body has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunks {
    /// A chunk's size is next.
    Size,
    /// So much of a chunk is still to come.
    Data(u64),
    /// The line's end behind a chunk.
    End,
    /// The trailers, and the empty line behind them.
    Trailers,
    Done,
}

/// What a step took of the input, and how much of that was data.
struct Step {
    taken: usize,
    data: usize,
}

impl Chunks {
    /// Takes as much as is whole and appends it to `out`; how much it took, and how many bytes of data were in it.
    ///
    /// # Errors
    /// What comes next is none of a chunked body; what was good before it is passed first.
    pub fn pass(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(usize, u64), Malformed> {
        let (mut at, mut data) = (0, 0);
        while *self != Self::Done {
            match self.step(input.get(at..).unwrap_or_default(), out) {
                Ok(Some(step)) => {
                    at += step.taken;
                    data += step.data as u64;
                }
                Err(Malformed) if at == 0 => return Err(Malformed),
                Ok(None) | Err(Malformed) => break,
            }
        }
        Ok((at, data))
    }

    /// One piece; `None` where there is no whole one.
    fn step(&mut self, rest: &[u8], out: &mut Vec<u8>) -> Result<Option<Step>, Malformed> {
        let framing = |taken| Ok(Some(Step { taken, data: 0 }));
        match *self {
            Self::Size => match size_of(rest)? {
                None => Ok(None),
                Some((line, size)) => {
                    *self = if size == 0 { Self::Trailers } else { Self::Data(size) };
                    framing(line)
                }
            },
            Self::Data(left) => {
                let length = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                if length == 0 {
                    return Ok(None);
                }
                put(&rest[..length], out);
                let left = left - length as u64;
                *self = if left == 0 { Self::End } else { Self::Data(left) };
                Ok(Some(Step { taken: length, data: length }))
            }
            Self::End => match rest {
                [b'\r', b'\n', ..] => {
                    *self = Self::Size;
                    framing(2)
                }
                [] | [b'\r'] => Ok(None),
                _ => Err(Malformed),
            },
            Self::Trailers => {
                let mut fields = [httparse::EMPTY_HEADER; TRAILERS_MAX];
                match httparse::parse_headers(rest, &mut fields).map_err(|_| Malformed)? {
                    httparse::Status::Partial if rest.len() > TRAILERS_BYTES_MAX => Err(Malformed),
                    httparse::Status::Partial => Ok(None),
                    httparse::Status::Complete((length, _)) => {
                        end(out);
                        *self = Self::Done;
                        framing(length)
                    }
                }
            }
            Self::Done => Ok(None),
        }
    }
}

/// A chunk's size, and the bytes of its line; `None` where that is not whole.
fn size_of(rest: &[u8]) -> Result<Option<(usize, u64)>, Malformed> {
    let line = &rest[..rest.len().min(LINE_BYTES_MAX)];
    if line.first().is_some_and(|byte| !byte.is_ascii_hexdigit()) {
        return Err(Malformed);
    }
    match httparse::parse_chunk_size(line).map_err(|_| Malformed)? {
        httparse::Status::Partial if rest.len() > LINE_BYTES_MAX => Err(Malformed),
        httparse::Status::Partial => Ok(None),
        httparse::Status::Complete((length, size)) => {
            let ends_once = line.iter().take(length).filter(|byte| **byte == b'\n').count() == 1;
            if ends_once { Ok(Some((length, size))) } else { Err(Malformed) }
        }
    }
}

/// A chunk of our own; nothing where there is no data, which would end the body.
pub(super) fn put(data: &[u8], out: &mut Vec<u8>) {
    if data.is_empty() {
        return;
    }
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{:x}\r\n", data.len());
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// The end of a body.
pub(super) fn end(out: &mut Vec<u8>) {
    out.extend_from_slice(LAST);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds pieces as they come from a socket: what is not taken comes again, with more behind it.
    fn feed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<(Chunks, Vec<u8>, u64, usize), Malformed> {
        let (mut chunks, mut out, mut data) = (Chunks::Size, Vec::new(), 0);
        let mut held: Vec<u8> = Vec::new();
        for piece in pieces {
            held.extend_from_slice(piece);
            let (taken, bytes) = chunks.pass(&held, &mut out)?;
            held.drain(..taken);
            data += bytes;
        }
        Ok((chunks, out, data, held.len()))
    }

    #[test]
    fn a_body_is_put_together_without_extensions_and_trailers() {
        let body = b"5;a=b\r\nfirst\r\n4\r\nlast\r\n0;x\r\nX-Sum: 1\r\n\r\nmore";
        let (chunks, out, data, left) = feed([body.as_slice()]).unwrap();
        assert_eq!(chunks, Chunks::Done);
        assert_eq!(out, b"5\r\nfirst\r\n4\r\nlast\r\n0\r\n\r\n");
        assert_eq!((data, left), (9, 4), "what is behind it is not taken");
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        let long = format!("1;{}\r\na\r\n", "x".repeat(LINE_BYTES_MAX));
        for body in [
            "zz\r\n",
            "-3\r\nabc",
            "3\r\nabcd\r\n",
            "3 3\r\nabc",
            "fffffffffffffffff\r\n",
            "0\r\nno colon\r\n\r\n",
            "\r\n\r\n",
            ";x\r\n\r\n",
            "5;a\nb\r\nhello\r\n0\r\n\r\n",
            &long,
            &long[..LINE_BYTES_MAX + 1],
        ] {
            // What was good before it is told first, and it is looked at again.
            assert!(feed([body.as_bytes(), b""]).is_err(), "{body:?}");
        }
        let mut out = Vec::new();
        assert_eq!(Chunks::Size.pass(b"5\r\nhello\r\nzz\r\n", &mut out), Ok((10, 5)));
        assert_eq!(out, b"5\r\nhello\r\n");
    }

    proptest! {
        #[test]
        fn however_a_body_is_cut_into_pieces_its_data_is_the_same(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            cuts in prop::collection::vec(1usize..20, 0..60),
        ) {
            let mut body = Vec::new();
            parts.iter().for_each(|part| put(part, &mut body));
            end(&mut body);
            let mut pieces = Vec::new();
            let mut rest = body.as_slice();
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            let (chunks, out, data, left) = feed(pieces).unwrap();
            prop_assert_eq!(chunks, Chunks::Done);
            prop_assert_eq!((data, left), (parts.iter().map(|part| part.len() as u64).sum(), 0));
            // Read again in one piece, it says what went in.
            let mut said = Vec::new();
            let mut rest = out.as_slice();
            while let Ok(httparse::Status::Complete((line, size))) = httparse::parse_chunk_size(rest) {
                let size = size as usize;
                said.extend_from_slice(&rest[line..line + size]);
                rest = &rest[line + size + 2..];
            }
            prop_assert_eq!(said, parts.concat());
        }
    }
}
