//! Streams of blobs: hashed, counted and decompressed on the way.

use std::io::{self, BufReader, Read};

use sha2::{Digest as _, Sha256};

/// Progress is told each time so many bytes were read.
const PROGRESS_EVERY: u64 = 1 << 20;
/// A zstd frame may ask for a window of 128 MiB (`zstd --long=27`), and no more.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// Bytes a stream may have behind the archive's end mark: padding to a tape's record.
const TRAILING_BYTES_MAX: u64 = 64 << 20;

/// How a stream is packed, told from its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    None,
    Gzip,
    Zstd,
    /// Known by name only.
    Other(&'static str),
}

/// First bytes that are needed to tell.
pub const MAGIC_BYTES: usize = 6;

impl Packing {
    pub fn of(first: &[u8]) -> Self {
        match first {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or a skippable frame before it (RFC 8878, 3.1).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Other("xz"),
            [b'B', b'Z', b'h', ..] => Self::Other("bzip2"),
            _ => Self::None,
        }
    }

    /// The unpacked stream.
    pub fn unpack<'a>(self, stream: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::None => Box::new(BufReader::with_capacity(1 << 16, stream)),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(1 << 16, stream))),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::new(stream)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Box::new(decoder)
            }
            Self::Other(name) => return Err(io::Error::other(format!("{name} is not supported"))),
        })
    }
}

/// Hashes and counts what passes.
#[derive(Debug)]
pub struct Hashed<R> {
    inner: R,
    hash: Sha256,
    count: u64,
}

impl<R: Read> Hashed<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new(), count: 0 }
    }

    /// Reads what is left, and gives digest and count of all of it.
    pub fn finish(mut self) -> io::Result<(String, u64)> {
        drain(&mut self, u64::MAX)?;
        Ok((format!("sha256:{}", hex::encode(self.hash.finalize())), self.count))
    }

    /// The same for a decompressed stream, which may be endless where the packed one is short.
    pub fn finish_bounded(mut self) -> io::Result<String> {
        drain(&mut self, TRAILING_BYTES_MAX)?;
        Ok(format!("sha256:{}", hex::encode(self.hash.finalize())))
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        self.count += read as u64;
        Ok(read)
    }
}

fn drain(stream: &mut impl Read, bytes_max: u64) -> io::Result<()> {
    let drained = io::copy(&mut stream.by_ref().take(bytes_max.saturating_add(1)), &mut io::sink())?;
    if drained > bytes_max { Err(io::Error::other("too much data behind the archive's end")) } else { Ok(()) }
}

/// Tells how much was read, now and then.
pub struct Told<'a, R> {
    pub inner: R,
    pub tell: &'a mut dyn FnMut(u64),
    pub read: u64,
}

impl<R> std::fmt::Debug for Told<'_, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Told").field("read", &self.read).finish_non_exhaustive()
    }
}

impl<R: Read> Read for Told<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let before = self.read / PROGRESS_EVERY;
        self.read += read as u64;
        if self.read / PROGRESS_EVERY != before || read == 0 {
            (self.tell)(self.read);
        }
        Ok(read)
    }
}
