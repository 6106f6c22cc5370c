//! Server-sent events, as they come in.

/// Bytes of one event, at most.
const EVENT_BYTES_MAX: usize = 4 << 20;

/// Bytes of an event stream that are not read yet.
#[derive(Debug, Default)]
pub struct Events(Vec<u8>);

impl Events {
    /// Takes what came in.
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next whole event: its kind and its data.
    pub fn next(&mut self) -> anyhow::Result<Option<(String, String)>> {
        let Some(end) = self.0.windows(2).position(|pair| pair == b"\n\n") else {
            anyhow::ensure!(self.0.len() <= EVENT_BYTES_MAX, "an event is longer than {EVENT_BYTES_MAX} bytes");
            return Ok(None);
        };
        let rest = self.0.split_off(end + 2);
        let text = String::from_utf8_lossy(&std::mem::replace(&mut self.0, rest)).into_owned();
        let field = |name: &str| {
            let values = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            values.map(|value| value.strip_prefix(' ').unwrap_or(value)).collect::<Vec<_>>().join("\n")
        };
        Ok(Some((field("event"), field("data"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_as_they_come_in() {
        let mut events = Events::default();
        events.0.extend_from_slice(b"event: progress\ndata: {\"done\":1}");
        assert_eq!(events.next().unwrap(), None);
        events.0.extend_from_slice(b"\n\n: keep-alive\n\nevent: done\ndata: {}\n\n");
        assert_eq!(events.next().unwrap(), Some(("progress".into(), "{\"done\":1}".into())));
        assert_eq!(events.next().unwrap(), Some((String::new(), String::new())));
        assert_eq!(events.next().unwrap(), Some(("done".into(), "{}".into())));
        events.0.resize(EVENT_BYTES_MAX + 1, b'x');
        assert!(events.next().is_err());
    }
}
