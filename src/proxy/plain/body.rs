//! A response's body on its way through: as much as was read is passed, and it is known where it ends. Pure.

use super::chunks::{self, Chunks};
use super::response::{Framing, Malformed};

/// What is still to come of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    Length(u64),
    Chunked(Chunks),
    /// All until the connection ends, passed on as chunks.
    Close,
    Done,
}

impl Body {
    pub fn of(framing: Framing) -> Self {
        match framing {
            Framing::Nothing | Framing::Length(0) => Self::Done,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Chunks::Size),
            Framing::Close => Self::Close,
        }
    }

    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// Appends what can be passed of `input` to `out`; how much it took, and how many bytes of the body were in it.
    ///
    /// # Errors
    /// It is not framed as its head says.
    pub fn pass(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(usize, u64), Malformed> {
        match self {
            Self::Length(left) => {
                let length = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                out.extend_from_slice(input.get(..length).unwrap_or_default());
                *left -= length as u64;
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok((length, length as u64))
            }
            Self::Chunked(chunks) => {
                let passed = chunks.pass(input, out)?;
                if *chunks == Chunks::Done {
                    *self = Self::Done;
                }
                Ok(passed)
            }
            Self::Close => {
                chunks::put(input, out);
                Ok((input.len(), input.len() as u64))
            }
            Self::Done => Ok((0, 0)),
        }
    }

    /// The connection has ended: whether the body has too, whose end is appended then.
    pub fn end(&mut self, out: &mut Vec<u8>) -> bool {
        if *self == Self::Close {
            chunks::end(out);
            *self = Self::Done;
        }
        self.is_done()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_of_a_length_takes_no_byte_behind_it() {
        let (mut body, mut out) = (Body::of(Framing::Length(5)), Vec::new());
        assert_eq!(body.pass(b"abc", &mut out), Ok((3, 3)));
        assert!(!body.is_done() && !body.end(&mut out), "it is not whole");
        assert_eq!(body.pass(b"defg", &mut out), Ok((2, 2)));
        assert!(body.is_done());
        assert_eq!((body.pass(b"fg", &mut out), out.as_slice()), (Ok((0, 0)), b"abcde".as_slice()));
    }

    #[test]
    fn a_body_that_ends_with_its_connection_becomes_chunks() {
        let (mut body, mut out) = (Body::of(Framing::Close), Vec::new());
        assert_eq!(body.pass(b"old style", &mut out), Ok((9, 9)));
        assert_eq!(body.pass(b"", &mut out), Ok((0, 0)));
        assert!(!body.is_done() && body.end(&mut out));
        assert_eq!(out, b"9\r\nold style\r\n0\r\n\r\n");
    }

    #[test]
    fn a_chunked_body_ends_with_its_last_chunk_alone() {
        let (mut body, mut out) = (Body::of(Framing::Chunked), Vec::new());
        assert_eq!(body.pass(b"2\r\nok\r\n", &mut out), Ok((7, 2)));
        assert!(!body.end(&mut out), "broken off");
        assert_eq!(body.pass(b"0\r\n\r\nHTTP", &mut out), Ok((5, 0)));
        assert!(body.is_done());
        assert_eq!(out, b"2\r\nok\r\n0\r\n\r\n");
    }
}
