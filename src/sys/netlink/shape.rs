//! How much may pass over a link: a token bucket (`tbf`) in front of each end's sending side.
//!
//! ```text
//!   host's end, root qdisc ──► what goes to the tenant      (net_rx_bps)
//!   eth0 inside, root qdisc ──► what comes from the tenant  (net_tx_bps)
//! ```
//!
//! A queue can only hold back what is sent, so each direction is limited where it sets out. For what the tenant sends that is
//! inside its own namespace: there the tenant's sockets wait, and nothing has to be dropped at the host. Its root cannot change
//! it, since that takes CAP_NET_ADMIN, which no container has. The other way to do it, redirecting what arrives at
//! the host's end into an `ifb` device, costs every container one more device and a hook on each packet, and drops what a
//! tenant's processor has already paid for.
//!
//! Pure: requests and answers as values. Layouts are those of linux/pkt_sched.h.

use rtnetlink::packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_ECHO, NLM_F_REPLACE, Nla, NlasIterator};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

use super::message::{Request, request};
use crate::domain::BytesPerSecond;

/// The queue's kind.
const KIND: &str = "tbf";
/// The handle our queues have.
const HANDLE: TcHandle = TcHandle { major: 1, minor: 0 };

/// `TCA_TBF_PARMS`, `TCA_TBF_RATE64` and `TCA_TBF_BURST`.
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// `struct tc_tbf_qopt`: two `tc_ratespec` of 12 bytes, then limit, buffer and mtu.
const PARMS_BYTES: usize = 36;
const LINKLAYER_AT: usize = 1;
const RATE_AT: usize = 8;
const LIMIT_AT: usize = 24;
/// `TC_LINKLAYER_ETHERNET`: with it the kernel computes times itself and wants no table of them.
const LINKLAYER_ETHERNET: u8 = 1;

/// The bucket holds what flows in this long, in milliseconds: tc-tbf(8) wants a tick of the kernel's timer, and its slowest
/// has 100 a second.
const BURST_MS: u64 = 10;
/// The bucket's least size, in bytes: half of a segment that a socket hands down whole (64 KiB, GSO), far above one packet.
/// Below one packet nothing would ever pass.
const BURST_BYTES_MIN: u64 = 32 << 10;
/// How long what waits may wait at most, in milliseconds (the `latency` of tc-tbf(8) and of its examples); what would wait longer is
/// dropped, and TCP slows down.
const QUEUE_MS: u64 = 50;

/// A token bucket's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bucket {
    /// Bytes a second.
    pub(super) rate: u64,
    /// Bytes that may go at once.
    burst: u32,
    /// Bytes that may wait.
    queue: u32,
}

/// What is in front of a link's end as the kernel tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) rate: u64,
    pub(super) queue: u32,
}

impl Bucket {
    pub(super) fn of(rate: BytesPerSecond) -> Self {
        let within = |ms: u64| rate.0.saturating_mul(ms) / 1_000;
        let fits = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        let burst = within(BURST_MS).max(BURST_BYTES_MIN);
        Self { rate: rate.0, burst: fits(burst), queue: fits(within(QUEUE_MS).saturating_add(burst)) }
    }

    /// Whether this is what the kernel holds.
    pub(super) fn is(self, found: Found) -> bool {
        Found { rate: self.rate, queue: self.queue } == found
    }

    fn options(self) -> Vec<TcOption> {
        let mut parms = vec![0; PARMS_BYTES];
        let rate = u32::try_from(self.rate).unwrap_or(u32::MAX);
        parms[LINKLAYER_AT] = LINKLAYER_ETHERNET;
        parms[RATE_AT..RATE_AT + 4].copy_from_slice(&rate.to_ne_bytes());
        parms[LIMIT_AT..LIMIT_AT + 4].copy_from_slice(&self.queue.to_ne_bytes());
        let option = |kind, bytes| TcOption::Other(DefaultNla::new(kind, bytes));
        vec![
            option(TCA_TBF_PARMS, parms),
            option(TCA_TBF_RATE64, self.rate.to_ne_bytes().to_vec()),
            option(TCA_TBF_BURST, self.burst.to_ne_bytes().to_vec()),
        ]
    }
}

fn at_root(index: u32) -> TcMessage {
    // The kernel's indexes are positive `int`s.
    let mut message = TcMessage::with_index(i32::try_from(index).unwrap_or(i32::MAX));
    message.header.parent = TcHandle::ROOT;
    message
}

/// Puts a bucket in front of a link's end, or changes the one that is there.
pub(super) fn set(index: u32, bucket: Bucket) -> Request {
    let mut message = at_root(index);
    message.header.handle = HANDLE;
    message.attributes.push(TcAttribute::Kind(KIND.to_owned()));
    message.attributes.push(TcAttribute::Options(bucket.options()));
    request("limit what is sent over", NLM_F_CREATE | NLM_F_REPLACE, RouteNetlinkMessage::NewQueueDiscipline(message))
}

/// Takes whatever is in front of a link's end away.
pub(super) fn clear(index: u32) -> Request {
    request("lift the limit of", 0, RouteNetlinkMessage::DelQueueDiscipline(at_root(index)))
}

/// Asks what is in front of a link's end. The kernel answers with what it tells everybody who listens to changes, and to
/// the asker only on ECHO.
pub(super) fn get(index: u32) -> Request {
    request("read the limit of", NLM_F_ECHO, RouteNetlinkMessage::GetQueueDiscipline(at_root(index)))
}

/// The bucket that an answer to [`get`] speaks of; `None` where it is another kind of queue.
pub(super) fn read(message: &RouteNetlinkMessage) -> Option<Found> {
    let RouteNetlinkMessage::NewQueueDiscipline(message) = message else { return None };
    let kind = message.attributes.iter().any(|attribute| *attribute == TcAttribute::Kind(KIND.to_owned()));
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    kind.then_some(options?).and_then(|options| found_in(options))
}

/// The crate hands the options of a kind that it does not know down as one attribute, whose value holds them.
fn found_in(options: &[TcOption]) -> Option<Found> {
    let mut bytes = vec![0; options.first()?.value_len()];
    options.first()?.emit_value(&mut bytes);
    let value = |kind| {
        let option = NlasIterator::new(&bytes).filter_map(Result::ok).find(|option| option.kind() == kind)?;
        Some(option.value().to_vec())
    };
    let parms = value(TCA_TBF_PARMS)?;
    let word = |at: usize| Some(u32::from_ne_bytes(parms.get(at..at + 4)?.try_into().ok()?));
    let whole = value(TCA_TBF_RATE64).and_then(|bytes| bytes.try_into().ok()).map(u64::from_ne_bytes);
    Some(Found { rate: whole.unwrap_or(u64::from(word(RATE_AT)?)), queue: word(LIMIT_AT)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};

    /// What the kernel would answer to a [`set`]: it says the rate in 64 bits only where 32 do not hold it.
    fn answered(bucket: Bucket) -> Option<Found> {
        let mut options = bucket.options();
        options.retain(|option| option.kind() == TCA_TBF_PARMS || bucket.rate > u64::from(u32::MAX));
        let mut message = at_root(3);
        message.attributes = vec![TcAttribute::Kind(KIND.to_owned()), TcAttribute::Options(options)];
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).unwrap().payload {
            NetlinkPayload::InnerMessage(message) => read(&message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_bucket_holds_a_tick_and_never_less_than_a_packet() {
        let slow = Bucket::of(BytesPerSecond(1));
        assert_eq!((slow.burst, slow.queue), (32 << 10, 32 << 10));
        let fast = Bucket::of(BytesPerSecond(100_000_000));
        assert_eq!((fast.burst, fast.queue), (1_000_000, 6_000_000));
    }

    #[test]
    fn another_kind_of_queue_is_no_limit() {
        let mut message = at_root(3);
        message.attributes = vec![TcAttribute::Kind("noqueue".to_owned())];
        assert_eq!(read(&RouteNetlinkMessage::NewQueueDiscipline(message)), None);
    }

    proptest! {
        #[test]
        fn what_is_set_is_what_is_read(rate in 1..=i64::MAX as u64) {
            let bucket = Bucket::of(BytesPerSecond(rate));
            let found = answered(bucket).unwrap();
            prop_assert!(bucket.is(found), "{bucket:?} {found:?}");
            prop_assert!(!Bucket::of(BytesPerSecond(rate - 1)).is(found));
            prop_assert!(bucket.queue >= bucket.burst);
        }
    }
}
