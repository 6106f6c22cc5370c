//! The door: whether a visitor may open a URL, asked before anybody looks whether the container is awake, let alone wakes it.
//!
//! ```text
//!  Routes::gate ─► no groups ───────────────────────────────────────────────────► on
//!               └► too many wrong tries from there ─► without its credentials? ─► on, else 429
//!               └► Access::decide ─► admitted ───────────────────────────────────► on, without what let it in
//!                                  ├ ask about a password ─► right ──────────────┘
//!                                  │                       └ wrong ─► counted ─► 401
//!                                  └ refused ─► counted where it may have guessed ─► 401 or 403
//! ```
//!
//! What let a visitor in does not reach the container: it belongs to the door, copies of a template share it, and what one of them is told it
//! could try at another. What did not count stays as it is: the container may want credentials of its own.

mod given;
mod passwords;
mod tries;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hyper::http::request::Parts;
use ipnetwork::IpNetwork;
use jiff::Timestamp;

use super::refusal::Refusal;
use crate::config::TRUSTED_PROXIES_MAX;
use crate::domain::Container;
use crate::domain::access::{Access, PasswordGroup, Verdict};
use given::Given;
use passwords::Passwords;
use tries::{Tries, Who};

/// A container whose URL not everybody may open.
#[derive(Debug, Clone)]
pub struct Gate {
    /// Its record, which says who may.
    pub container: Arc<Container>,
    /// The port that the request goes to.
    pub port: u16,
}

/// Networks of proxies whose `X-Forwarded-For` is believed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrustedProxies([Option<IpNetwork>; TRUSTED_PROXIES_MAX]);

impl TrustedProxies {
    /// These, as far as there is room.
    pub fn new(networks: &[IpNetwork]) -> Self {
        let mut all = [None; TRUSTED_PROXIES_MAX];
        for (place, network) in all.iter_mut().zip(networks) {
            *place = Some(*network);
        }
        Self(all)
    }

    fn has(&self, address: IpAddr) -> bool {
        self.0.iter().map_while(Option::as_ref).any(|network| network.contains(address))
    }

    /// Where a request comes from: the peer, or what the trusted ones before this one say, back to the first who is not one of them.
    /// `said` are the values of `X-Forwarded-For`.
    pub(super) fn client<'a>(&self, peer: SocketAddr, said: impl Iterator<Item = &'a str>) -> SocketAddr {
        let mut client = peer.ip().to_canonical();
        if self.0[0].is_none() || !self.has(client) {
            return peer;
        }
        let said: Vec<&str> = said.flat_map(|value| value.split(',')).collect();
        for text in said.iter().rev() {
            // Who writes what cannot be read is the last of whom anything is known.
            let Some(address) = given::address(text.trim()) else { break };
            client = address;
            if !self.has(client) {
                break;
            }
        }
        SocketAddr::new(client, 0)
    }
}

/// What is remembered of visitors between their requests.
pub(super) struct Guard {
    tries: Tries,
    passwords: Passwords,
}

impl Guard {
    pub(super) fn new() -> Self {
        Self { tries: Tries::default(), passwords: Passwords::new() }
    }

    /// Lets a request in, without what it was let in by, or refuses it.
    pub(super) async fn pass(&self, gate: &Gate, client: IpAddr, parts: &mut Parts) -> Result<(), Refusal> {
        let Some(access) = gate.container.settings.access.as_deref() else { return Ok(()) };
        let who = Who::new(gate.container.id, client);
        let spent = match self.judge(access, gate.port, who, client, parts).await? {
            Verdict::Admitted { spent } => spent,
            Verdict::Refused { unknown: true, .. } => {
                return Err(Refusal::Unauthorized { basic: access.takes_passwords(), bearer: access.takes_tokens() });
            }
            Verdict::Refused { unknown: false, .. } | Verdict::Ask { .. } => return Err(Refusal::Forbidden),
        };
        given::strip(parts, &spent, access);
        Ok(())
    }

    /// Lets a connection in by where it comes from alone, as it brings nothing else, or refuses it.
    pub(super) fn pass_bare(&self, gate: &Gate, client: IpAddr) -> Result<(), Refusal> {
        let Some(access) = gate.container.settings.access.as_deref() else { return Ok(()) };
        match Given::bare(gate.port, client, Timestamp::now(), |visit| access.decide(visit)) {
            Verdict::Admitted { .. } => Ok(()),
            Verdict::Refused { .. } | Verdict::Ask { .. } => Err(Refusal::Forbidden),
        }
    }

    async fn judge<'a>(
        &self,
        access: &'a Access,
        port: u16,
        who: Who,
        client: IpAddr,
        parts: &Parts,
    ) -> Result<Verdict<'a>, Refusal> {
        let given = Given::new(parts);
        let now = Timestamp::now();
        if let Some(rest) = self.tries.rest(who) {
            // What it names is not looked at: whoever guesses must not learn that it is right this time, and pays no processor.
            let verdict = Given::bare(port, client, now, |visit| access.decide(visit));
            let tried = given.visit(port, client, now, |visit| access.is_tried_by(visit));
            return match verdict {
                Verdict::Refused { .. } if tried => Err(Refusal::TooManyTries(rest)),
                verdict => Ok(verdict),
            };
        }
        match given.visit(port, client, now, |visit| access.decide(visit)) {
            Verdict::Ask { group, known } => {
                let right = self.is_right(who, group, known, given.password()).await?;
                Ok(given.visit(port, client, now, |visit| access.settle(visit, right)))
            }
            verdict => {
                if matches!(verdict, Verdict::Refused { tried: true, .. }) {
                    self.tries.wrong(who);
                }
                Ok(verdict)
            }
        }
    }

    /// Whether a password is right; once for all who name the same at once, and for a while after.
    async fn is_right(
        &self,
        who: Who,
        group: &PasswordGroup,
        known: bool,
        (user, password): (&str, &str),
    ) -> Result<bool, Refusal> {
        let proof = self.passwords.proof(who.container, group, user, password);
        let mut is_first = false;
        let right = proof
            .get_or_try_init(async || {
                is_first = true;
                // Counted before it is known, so that many guesses at once are no way around.
                self.tries.wrong(who);
                let looked = self.passwords.verify(who.container, group, password).await;
                if looked.is_err() {
                    self.tries.forgive(who);
                }
                looked
            })
            .await?;
        let right = *right && known;
        match (is_first, right) {
            (true, true) => self.tries.forgive(who),
            (false, false) => self.tries.wrong(who),
            _ => {}
        }
        Ok(right)
    }
}
