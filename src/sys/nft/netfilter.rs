//! Asking the kernel's netfilter without a program in between: what costs microseconds and is asked often.
//!
//! The kernel has answered before the call that sends a request comes back, so these calls block for no longer than the work
//! takes; where that is long (a dump), the caller goes to a thread for it.

use std::io;
use std::sync::{Mutex, PoisonError};

use netlink_packet_netfilter::NetfilterMessage;
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

/// How long an answer may take, in seconds. It is there at once; this is for a kernel that is not as we think.
const ANSWER_S_MAX: i64 = 5;

/// Messages of one answer, at most: twice the flows that a large machine tracks.
const MESSAGES_MAX: usize = 1 << 21;

/// Messages begin at multiples of so many bytes (netlink(7)).
const MESSAGE_ALIGNMENT: usize = 4;

/// How much is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// One thing.
    One,
    /// Everything that fits.
    Dump,
}

/// A socket, opened at the first question and again after every failure: what a broken one still held is answered to nobody.
#[derive(Debug, Default)]
pub(super) struct Netfilter(Mutex<Option<Socket>>);

impl Netfilter {
    /// Sends a message and gives what the kernel answers.
    pub(super) fn ask(&self, ask: Ask, message: NetfilterMessage) -> io::Result<Vec<NetfilterMessage>> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = match held.take() {
            Some(socket) => socket,
            None => open()?,
        };
        let answer = exchange(&socket, ask, message);
        // A refusal by the kernel ends its answer; after anything else there may be more to come.
        if !matches!(&answer, Err(Failure::Broken(_))) {
            *held = Some(socket);
        }
        answer.map_err(Failure::into_io)
    }

    /// Sends the messages of one transaction, with what begins and ends it: the kernel takes all of them or none.
    pub(super) fn transact(&self, messages: Vec<NetfilterMessage>) -> io::Result<()> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = match held.take() {
            Some(socket) => socket,
            None => open()?,
        };
        let done = carry_out(&socket, messages);
        if !matches!(&done, Err(Failure::Broken(_))) {
            *held = Some(socket);
        }
        done.map_err(Failure::into_io)
    }
}

#[derive(Debug)]
enum Failure {
    Refused(io::Error),
    Broken(io::Error),
}

impl Failure {
    fn into_io(self) -> io::Error {
        match self {
            Self::Refused(error) | Self::Broken(error) => error,
        }
    }
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(ANSWER_S_MAX))?;
    Ok(socket)
}

fn exchange(socket: &Socket, ask: Ask, message: NetfilterMessage) -> Result<Vec<NetfilterMessage>, Failure> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | if ask == Ask::Dump { NLM_F_DUMP } else { NLM_F_ACK };
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0).map_err(Failure::Broken)?;
    let mut answers = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full().map_err(Failure::Broken)?;
        if read(&bytes, &mut answers)? {
            return Ok(answers);
        }
        if answers.len() > MESSAGES_MAX {
            return Err(Failure::Broken(io::Error::other(format!("more than {MESSAGES_MAX} messages in one answer"))));
        }
    }
}

/// Of the messages between the two ends the last one is acknowledged: behind everything that is refused, since answers come in order.
fn carry_out(socket: &Socket, messages: Vec<NetfilterMessage>) -> Result<(), Failure> {
    let Some(last) = messages.len().checked_sub(2).filter(|last| *last > 0) else { return Ok(()) };
    let mut bytes = Vec::new();
    for (place, message) in messages.into_iter().enumerate() {
        let mut header = NetlinkHeader::default();
        let inner = (1..=last).contains(&place);
        header.flags = NLM_F_REQUEST | if inner { NLM_F_CREATE } else { 0 } | if place == last { NLM_F_ACK } else { 0 };
        header.sequence_number = u32::try_from(place).unwrap_or(u32::MAX);
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let begin = bytes.len();
        bytes.resize(begin + request.buffer_len().next_multiple_of(MESSAGE_ALIGNMENT), 0);
        request.serialize(&mut bytes[begin..]);
    }
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0).map_err(Failure::Broken)?;
    let mut refused = None;
    loop {
        let (bytes, _) = socket.recv_from_full().map_err(Failure::Broken)?;
        for answer in split(&bytes) {
            let message = answer?;
            let place = message.header.sequence_number as usize;
            if let NetlinkPayload::Error(error) = message.payload
                && error.code.is_some()
            {
                refused.get_or_insert(Failure::Refused(error.to_io()));
            }
            // Where the beginning is refused, so is everything, and nothing else is said.
            if place == last || place == 0 {
                return refused.map_or(Ok(()), Err);
            }
        }
    }
}

/// Reads one datagram, which may hold many messages; whether it was the last one.
fn read(bytes: &[u8], answers: &mut Vec<NetfilterMessage>) -> Result<bool, Failure> {
    for message in split(bytes) {
        match message?.payload {
            NetlinkPayload::InnerMessage(inner) => answers.push(inner),
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) if error.code.is_none() => return Ok(true),
            NetlinkPayload::Error(error) => return Err(Failure::Refused(error.to_io())),
            _ => return Err(malformed("a message of an unknown kind".to_owned())),
        }
    }
    Ok(false)
}

fn malformed(error: String) -> Failure {
    Failure::Broken(io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The messages of a datagram; nothing behind one that does not read.
fn split(mut bytes: &[u8]) -> impl Iterator<Item = Result<NetlinkMessage<NetfilterMessage>, Failure>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let message =
            NetlinkMessage::<NetfilterMessage>::deserialize(bytes).map_err(|error| malformed(error.to_string()));
        let length = message.as_ref().map_or(0, |message| message.header.length as usize);
        let next = length.next_multiple_of(MESSAGE_ALIGNMENT).min(bytes.len());
        bytes = &bytes[if next == 0 { bytes.len() } else { next }..];
        match message {
            Ok(_) if next == 0 => Some(Err(malformed("a message without a length".to_owned()))),
            other => Some(other),
        }
    })
}
