//! Bytes that were read and are not used yet, in memory that is kept.

/// A buffer that grows to a bound and no further.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    from: usize,
    to: usize,
    /// The last read filled it: whoever reads on may find more than it holds.
    was_filled: bool,
}

impl Buffer {
    /// What was read and not taken.
    pub fn unread(&self) -> &[u8] {
        self.bytes.get(self.from..self.to).unwrap_or_default()
    }

    /// So much of it was used.
    pub fn take(&mut self, bytes: usize) {
        self.from = (self.from + bytes).min(self.to);
        if self.from == self.to {
            self.clear();
        }
    }

    /// Forgets all of it.
    pub fn clear(&mut self) {
        (self.from, self.to) = (0, 0);
    }

    /// Room to read into, empty where it holds `most` bytes that nobody took. What is unread is moved to the front where that makes room;
    /// a buffer that is full, or was filled by one read, grows to twice its size.
    pub fn room(&mut self, least: usize, most: usize) -> &mut [u8] {
        if self.to == self.bytes.len() && self.from > 0 {
            self.bytes.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
        }
        if self.to == self.bytes.len() || self.was_filled {
            let grown = (self.bytes.len() * 2).clamp(least, most.max(least));
            self.bytes.resize(grown.max(self.bytes.len()), 0);
            self.was_filled = false;
        }
        self.bytes.get_mut(self.to..).unwrap_or_default()
    }

    /// So many bytes were read into the room.
    pub fn came(&mut self, bytes: usize) {
        self.to = (self.to + bytes).min(self.bytes.len());
        self.was_filled = self.to == self.bytes.len();
    }

    /// Bytes that were read elsewhere, behind those that are unread.
    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes.truncate(self.to);
        self.bytes.extend_from_slice(bytes);
        self.to = self.bytes.len();
    }

    /// Gives memory back that only few need.
    pub fn shrink(&mut self, to: usize) {
        self.was_filled = false;
        if self.bytes.len() > to && self.to <= to {
            self.bytes.truncate(to);
            self.bytes.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(buffer: &mut Buffer, text: &[u8]) -> usize {
        let room = buffer.room(4, 8);
        let length = text.len().min(room.len());
        room[..length].copy_from_slice(&text[..length]);
        buffer.came(length);
        length
    }

    #[test]
    fn it_grows_to_its_bound_and_what_is_taken_makes_room() {
        let mut buffer = Buffer::default();
        assert_eq!(read(&mut buffer, b"abcdefghij"), 4);
        assert_eq!(read(&mut buffer, b"efghij"), 4);
        assert_eq!(read(&mut buffer, b"ij"), 0);
        buffer.take(3);
        assert_eq!(buffer.unread(), b"defgh");
        assert_eq!(read(&mut buffer, b"ijklm"), 3);
        assert_eq!(buffer.unread(), b"defghijk");
        buffer.take(99);
        assert_eq!(buffer.unread(), b"");
        buffer.shrink(4);
        assert_eq!(read(&mut buffer, b"abcdefghij"), 4);
        buffer.take(4);
        assert_eq!(read(&mut buffer, b"abcdefghij"), 8, "more came than it held");
        buffer.take(6);
        buffer.put(b"klm");
        assert_eq!(buffer.unread(), b"ghklm", "nothing is lost of what comes from elsewhere");
    }
}
