//! A reader of tar streams for input that nobody vouches for.
//!
//! The `tar` crate collects long names and PAX records of any size in memory and reads binary xattrs wrong (it ends a record at a newline);
//! a daemon that runs as root can afford neither. Read are: ustar, GNU long names and sparse files, PAX records with
//! xattrs and all three sparse forms (POSIX.1-2008 pax; the GNU tar manual, "Sparse Formats"). Everything that a header makes
//! us keep is bounded here; how much data may come is for the caller to bound, from [`Member::size`], before reading it.

use std::io::{self, Read};

/// Size of a tar block.
const BLOCK: usize = 512;
/// Bytes of one long name or one PAX header.
pub const META_BYTES_MAX: u64 = 1 << 20;
/// Chunks of one sparse file.
const SPARSE_CHUNKS_MAX: usize = 16_384;
const SPARSE_CHUNKS_A_BLOCK: usize = 21;
/// Extra headers (long names, PAX) one member may have.
const EXTRA_HEADERS_MAX: usize = 8;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberKind {
    File,
    HardLink,
    Symlink,
    /// A character or block device.
    Device,
    Folder,
    Fifo,
}

/// One member, as its headers describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// As written: not checked for anything.
    pub path: Vec<u8>,
    /// Target of a link, as written.
    pub link: Vec<u8>,
    pub kind: MemberKind,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Size of the file once unpacked.
    pub size: u64,
    /// Bytes of data in the archive; another number for a sparse file.
    pub stored: u64,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the stored bytes go, as offset and length; `None`: all in one.
    pub chunks: Option<Vec<(u64, u64)>>,
}

/// A stream that cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream ended too early, or its decompressor failed.
    #[error("cannot read the archive on")]
    Read(#[source] io::Error),
    /// Something in a header makes no sense.
    #[error("{0}")]
    Malformed(&'static str),
}

impl From<io::Error> for TarError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

/// What PAX records say of the member behind them.
#[derive(Debug, Default)]
struct Extra {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, i64)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse_1_0: bool,
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
    sparse_map: Vec<u64>,
    is_sparse: bool,
}

/// Reads one archive from front to back.
#[derive(Debug)]
pub struct TarReader<R> {
    stream: R,
    /// Bytes of the present member that were not read yet, and the padding behind them.
    left: u64,
    padding: u64,
    position: u64,
}

impl<R: Read> TarReader<R> {
    pub fn new(stream: R) -> Self {
        Self { stream, left: 0, padding: 0, position: 0 }
    }

    /// Bytes read from the stream so far; right behind [`TarReader::next`]: where the member's data begins.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next member; `None` behind the last. What was not read of the one before is skipped.
    pub fn next(&mut self) -> Result<Option<Member>, TarError> {
        let mut extra = Extra::default();
        for _ in 0..=EXTRA_HEADERS_MAX {
            self.skip(self.left + self.padding)?;
            let Some(header) = self.header()? else { return Ok(None) };
            let stored = number(&header[124..136])?;
            match header[156] {
                b'L' => extra.path = Some(until_nul(&self.meta(stored)?).to_vec()),
                b'K' => extra.link = Some(until_nul(&self.meta(stored)?).to_vec()),
                b'x' => extra.read(&self.meta(stored)?)?,
                // Records for all that follows; what they hold in practice (a comment) says nothing to us.
                b'g' => drop(self.meta(stored)?),
                _ => return self.member(&header, extra).map(Some),
            }
        }
        Err(TarError::Malformed("a member has too many extra headers"))
    }

    /// Reads the present member's stored data; 0 at its end.
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let read = self.stream.read(&mut buffer[..wanted])?;
        if read == 0 {
            return Err(TarError::Read(io::ErrorKind::UnexpectedEof.into()));
        }
        self.left -= read as u64;
        self.position += read as u64;
        Ok(read)
    }

    /// The stream, for what comes behind the archive's end.
    pub fn into_inner(self) -> R {
        self.stream
    }

    fn member(&mut self, header: &[u8; BLOCK], mut extra: Extra) -> Result<Member, TarError> {
        let kind = match header[156] {
            // Old archives have no type for a folder, but a slash behind its name.
            0 | b'0' if header_path(header).ends_with(b"/") && extra.path.is_none() => MemberKind::Folder,
            0 | b'0' | b'7' | b'S' => MemberKind::File,
            b'1' => MemberKind::HardLink,
            b'2' => MemberKind::Symlink,
            b'3' | b'4' => MemberKind::Device,
            b'5' => MemberKind::Folder,
            b'6' => MemberKind::Fifo,
            _ => return Err(TarError::Malformed("a member is of a kind this archive format does not have here")),
        };
        let mut stored = extra.size.map_or_else(|| number(&header[124..136]), Ok)?;
        if kind != MemberKind::File {
            // Links and folders may state a size; no data follows.
            stored = 0;
        }
        (self.left, self.padding) = (stored, padding(stored)?);
        let (mut size, mut chunks) = (stored, None);
        if header[156] == b'S' {
            size = number(&header[483..495])?;
            chunks = Some(self.old_sparse_chunks(header)?);
        } else if extra.is_sparse && kind == MemberKind::File {
            size = extra.sparse_size.unwrap_or(stored);
            let map = if extra.sparse_1_0 { self.leading_map()? } else { std::mem::take(&mut extra.sparse_map) };
            chunks = Some(pairs(&map)?);
            stored = self.left;
        }
        if let Some(chunks) = &chunks {
            check_chunks(chunks, stored, size)?;
        }
        let mode = u32::try_from(number(&header[100..108])? & 0o7777).unwrap_or(0);
        let mtime = number(&header[136..148]).ok().and_then(|seconds| i64::try_from(seconds).ok()).unwrap_or(0);
        Ok(Member {
            path: extra.sparse_name.or(extra.path).unwrap_or_else(|| header_path(header)),
            link: extra.link.unwrap_or_else(|| until_nul(&header[157..257]).to_vec()),
            kind,
            mode,
            uid: extra.uid.map_or_else(|| number(&header[108..116]), Ok)?,
            gid: extra.gid.map_or_else(|| number(&header[116..124]), Ok)?,
            mtime: extra.mtime.unwrap_or((mtime, 0)),
            size,
            stored,
            xattrs: extra.xattrs,
            chunks,
        })
    }

    /// The next header block, its checksum held; `None` at the archive's end.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        self.fill(&mut block)?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        let field: u64 = block[148..156].iter().map(|byte| u64::from(*byte)).sum();
        // The checksum is made with eight spaces in its own place.
        if number(&block[148..156])? != sum - field + 8 * u64::from(b' ') {
            return Err(TarError::Malformed("a header's checksum is wrong"));
        }
        Ok(Some(block))
    }

    fn meta(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > META_BYTES_MAX {
            return Err(TarError::Malformed("a long name or PAX header is longer than 1 MiB"));
        }
        let mut bytes = vec![0; size as usize];
        self.fill(&mut bytes)?;
        (self.left, self.padding) = (0, padding(size)?);
        Ok(bytes)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), TarError> {
        self.stream.read_exact(buffer)?;
        self.position += buffer.len() as u64;
        Ok(())
    }

    fn skip(&mut self, bytes: u64) -> Result<(), TarError> {
        let skipped = io::copy(&mut self.stream.by_ref().take(bytes), &mut io::sink())?;
        if skipped < bytes {
            return Err(TarError::Read(io::ErrorKind::UnexpectedEof.into()));
        }
        self.position += bytes;
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    /// The chunks of an old GNU sparse header and of the blocks that continue it.
    fn old_sparse_chunks(&mut self, header: &[u8; BLOCK]) -> Result<Vec<(u64, u64)>, TarError> {
        let mut chunks = Vec::new();
        let mut add = |fields: &[u8]| {
            for field in fields.chunks_exact(24).filter(|field| field[0] != 0) {
                chunks.push((number(&field[..12])?, number(&field[12..])?));
            }
            Ok::<(), TarError>(())
        };
        add(&header[386..482])?;
        let mut goes_on = header[482] != 0;
        // Blocks may be empty and yet say that another one follows, so they are what is counted.
        for _ in 0..=SPARSE_CHUNKS_MAX / SPARSE_CHUNKS_A_BLOCK {
            if !goes_on {
                return Ok(chunks);
            }
            let mut block = [0; BLOCK];
            self.fill(&mut block)?;
            add(&block[..504])?;
            goes_on = block[504] != 0;
        }
        Err(too_many_chunks())
    }

    /// The map that PAX sparse 1.0 puts in front of the data: decimal numbers, one a line, padded to a block.
    fn leading_map(&mut self) -> Result<Vec<u64>, TarError> {
        let mut numbers: Vec<u64> = Vec::new();
        let mut digits = Vec::new();
        loop {
            let mut block = [0; BLOCK];
            if self.left < BLOCK as u64 {
                return Err(TarError::Malformed("a sparse file's map is cut off"));
            }
            self.fill(&mut block)?;
            self.left -= BLOCK as u64;
            for byte in block {
                match byte {
                    b'0'..=b'9' if digits.len() < 20 => digits.push(byte),
                    b'\n' => {
                        numbers.push(decimal(&digits)?);
                        digits.clear();
                        if numbers.len() as u64 == numbers[0].saturating_mul(2).saturating_add(1) {
                            return Ok(numbers.split_off(1));
                        }
                    }
                    _ => return Err(TarError::Malformed("a sparse file's map is not made of numbers")),
                }
            }
            if numbers.len() > 2 * SPARSE_CHUNKS_MAX {
                return Err(too_many_chunks());
            }
        }
    }
}

impl Extra {
    /// Reads PAX records: `<length> <key>=<value>\n`, the length counting all of it.
    fn read(&mut self, mut records: &[u8]) -> Result<(), TarError> {
        let wrong = || TarError::Malformed("a PAX record is damaged");
        while !records.is_empty() {
            let space = records.iter().position(|byte| *byte == b' ').ok_or_else(wrong)?;
            let length = usize::try_from(decimal(&records[..space])?).map_err(|_| wrong())?;
            let record = records.get(space + 1..length).ok_or_else(wrong)?;
            records = &records[length..];
            let (b'\n', record) = record.split_last().ok_or_else(wrong)? else { return Err(wrong()) };
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
            self.take(&record[..equals], &record[equals + 1..])?;
        }
        Ok(())
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(decimal(value)?),
            b"gid" => self.gid = Some(decimal(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            b"GNU.sparse.major" => (self.is_sparse, self.sparse_1_0) = (true, value == b"1"),
            b"GNU.sparse.name" => self.sparse_name = Some(value.to_vec()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => {
                (self.is_sparse, self.sparse_size) = (true, Some(decimal(value)?));
            }
            b"GNU.sparse.map" => {
                self.sparse_map = value.split(|byte| *byte == b',').map(decimal).collect::<Result<_, _>>()?;
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse_map.push(decimal(value)?),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

fn header_path(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(&header[..100]);
    let prefix = until_nul(&header[345..500]);
    // GNU headers (`ustar  `) have other fields where POSIX has the prefix.
    if &header[257..263] != b"ustar\0" || prefix.is_empty() {
        return name.to_vec();
    }
    [prefix, name].join(&b'/')
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number of a header: octal digits, or base 256 where the first bit is set.
fn number(field: &[u8]) -> Result<u64, TarError> {
    let wrong = || TarError::Malformed("a number in a header is damaged or too large");
    let Some((first, rest)) = field.split_first() else { return Err(wrong()) };
    if *first & 0x80 != 0 {
        // 0xff leads a negative number; no field of ours may be one.
        let digits = std::iter::once(first & 0x7f).chain(rest.iter().copied());
        return digits
            .clone()
            .try_fold(0u64, |sum, byte| sum.checked_mul(256)?.checked_add(u64::from(byte)))
            .ok_or_else(wrong);
    }
    let text = std::str::from_utf8(until_nul(field)).map_err(|_| wrong())?.trim_matches(' ');
    if text.is_empty() { Ok(0) } else { u64::from_str_radix(text, 8).map_err(|_| wrong()) }
}

fn decimal(text: &[u8]) -> Result<u64, TarError> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    number.ok_or(TarError::Malformed("a number in a PAX record is damaged or too large"))
}

/// `<seconds>[.<fraction>]`, perhaps before 1970.
fn time(text: &[u8]) -> Result<(i64, i64), TarError> {
    let wrong = TarError::Malformed("a time in a PAX record is damaged");
    let Ok(text) = std::str::from_utf8(text) else { return Err(wrong) };
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanoseconds: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    match (seconds.parse(), nanoseconds.parse()) {
        (Ok(seconds), Ok(nanoseconds)) => Ok((seconds, nanoseconds)),
        _ => Err(wrong),
    }
}

fn padding(size: u64) -> Result<u64, TarError> {
    let padded = size.checked_next_multiple_of(BLOCK as u64);
    padded.map(|padded| padded - size).ok_or(TarError::Malformed("a member's size is too large"))
}

fn too_many_chunks() -> TarError {
    TarError::Malformed("a sparse file has more than 16384 chunks")
}

fn pairs(map: &[u64]) -> Result<Vec<(u64, u64)>, TarError> {
    if map.len() > 2 * SPARSE_CHUNKS_MAX {
        return Err(too_many_chunks());
    }
    match map.len() % 2 {
        0 => Ok(map.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()),
        _ => Err(TarError::Malformed("a sparse file's map is cut off")),
    }
}

/// Chunks come in order, do not overlap, end within the file, and are exactly what is stored.
fn check_chunks(chunks: &[(u64, u64)], stored: u64, size: u64) -> Result<(), TarError> {
    let wrong = || TarError::Malformed("a sparse file's map does not fit its size");
    let (mut end, mut sum) = (0u64, 0u64);
    for (offset, length) in chunks {
        if *offset < end {
            return Err(wrong());
        }
        end = offset.checked_add(*length).filter(|end| *end <= size).ok_or_else(wrong)?;
        sum += length;
    }
    if sum == stored { Ok(()) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(bytes: &[u8]) -> Result<Vec<(Member, Vec<u8>)>, TarError> {
        let mut reader = TarReader::new(bytes);
        let mut members = Vec::new();
        while let Some(member) = reader.next()? {
            let mut data = Vec::new();
            let mut buffer = [0; 100];
            loop {
                match reader.read_data(&mut buffer)? {
                    0 => break,
                    read => data.extend_from_slice(&buffer[..read]),
                }
            }
            members.push((member, data));
        }
        Ok(members)
    }

    /// What the system's own tar makes of a folder.
    fn gnu_tar(folder: &std::path::Path, options: &[&str]) -> Vec<u8> {
        let output =
            std::process::Command::new("tar").args(options).arg("-C").arg(folder).args(["-cf", "-", "."]).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }

    #[test]
    fn every_format_of_gnu_tar_reads_alike() {
        let folder = tempfile::tempdir().unwrap();
        let long = "n".repeat(180);
        std::fs::create_dir_all(folder.path().join(&long)).unwrap();
        std::fs::write(folder.path().join(&long).join(&long), "long").unwrap();
        let mut expected = 0;
        for format in ["gnu", "posix"] {
            let members = read_all(&gnu_tar(folder.path(), &[&format!("--format={format}")])).unwrap();
            let file = members.iter().find(|(member, _)| member.kind == MemberKind::File).unwrap();
            assert_eq!(file.0.path, format!("./{long}/{long}").into_bytes(), "{format}");
            assert_eq!(file.1, b"long");
            expected += members.len();
        }
        assert_eq!(expected, 6);
    }

    #[test]
    fn every_sparse_form_of_gnu_tar_reads_alike() {
        use std::os::unix::fs::FileExt;
        let folder = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(folder.path().join("sparse")).unwrap();
        file.set_len(8 << 20).unwrap();
        for n in 0..30u64 {
            file.write_all_at(&[n as u8 + 1; 4096], n * 256 * 1024).unwrap();
        }
        let forms: [&[&str]; 4] = [
            &["--format=gnu"],
            &["--format=posix", "--sparse-version=0.0"],
            &["--format=posix", "--sparse-version=0.1"],
            &["--format=posix", "--sparse-version=1.0"],
        ];
        for form in forms {
            let members = read_all(&gnu_tar(folder.path(), &[form, &["-S"]].concat())).unwrap();
            let (member, data) = members.iter().find(|(member, _)| member.kind == MemberKind::File).unwrap();
            assert_eq!((member.path.as_slice(), member.size), (b"./sparse".as_slice(), 8 << 20), "{form:?}");
            assert_eq!(data.len() as u64, member.stored);
            let chunks: Vec<_> = member.chunks.as_ref().unwrap().iter().filter(|chunk| chunk.1 > 0).collect();
            assert_eq!(chunks.len(), 30, "{form:?}");
            assert_eq!(*chunks[29], (29 * 256 * 1024, 4096), "{form:?}");
            assert_eq!(data[29 * 4096], 30);
        }
    }

    #[test]
    fn a_value_with_a_newline_is_one_record() {
        let mut extra = Extra::default();
        let record = |text: &str| {
            let length = text.len() + 4;
            format!("{length} {text}\n").into_bytes()
        };
        extra.read(&record("SCHILY.xattr.user.a=1\n2=3")).unwrap();
        extra.read(b"17 path=a\nb=c\nd\n\n").unwrap();
        assert_eq!(extra.xattrs, [(b"user.a".to_vec(), b"1\n2=3".to_vec())]);
        assert_eq!(extra.path.unwrap(), b"a\nb=c\nd\n");
        for damaged in ["", "x", "9999 a=b\n", "5 a=b\n", "7 ab\n", "0 a=b\n"] {
            let read = Extra::default().read(damaged.as_bytes());
            assert_eq!(read.is_ok(), damaged.is_empty(), "{damaged:?}");
        }
    }

    #[test]
    fn a_sparse_header_that_never_ends_is_refused() {
        let mut header = [0u8; BLOCK];
        (header[0], header[156], header[482]) = (b'f', b'S', 1);
        header[148..156].copy_from_slice(b"        ");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let mut block = [0u8; BLOCK];
        block[504] = 1;
        let endless = header.as_slice().chain(Endless(block));
        assert!(matches!(TarReader::new(endless).next(), Err(TarError::Malformed(_))));
    }

    /// The same block again and again.
    struct Endless([u8; BLOCK]);

    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = buffer.len().min(BLOCK);
            buffer[..length].copy_from_slice(&self.0[..length]);
            Ok(length)
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048), kind: u8, size: u64) {
            let _ = read_all(&bytes);
            // And with a header that is good enough to get past the checksum.
            let mut header = [0u8; BLOCK];
            for (place, byte) in header.iter_mut().zip(&bytes) {
                *place = *byte;
            }
            header[124] = 0x80;
            header[128..136].copy_from_slice(&size.to_be_bytes());
            header[156] = kind;
            header[148..156].copy_from_slice(b"        ");
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            let _ = read_all(&[&header, bytes.as_slice()].concat());
        }
    }
}
