//! The reverse proxy in front of the tenants: the Host says which container, the bytes go there and back.
//!
//! ```text
//! client ──► server (accept, bounds) ──► forward (Host → Routes → Upstream) ──► pool ──► container
//!                                          │ headers: hop-by-hop off, forwarded on
//!                                          │ body: streamed, back-pressure kept
//!                                          └ 101 ──► tunnel
//! ```
//!
//! Invariants
//! - No connection of one tenant ever carries another's bytes. Addresses are reused, so a pooled connection belongs
//!   to (container, epoch, address), and a new one counts only after [`Routes::is_current`] confirmed that the
//!   address still was that container's after the connection stood.
//! - A body is never collected: a chunk is read from one side only when the other can take it.
//! - A message is never passed on as it was framed: both sides are parsed and written anew, so the two ends cannot
//!   disagree about where a message ends.
//! - Every wait, buffer and count is bounded by a field of [`ProxyConfig`] or a named constant.
//!
//! Not here yet, and where it will go: TLS and HTTP/2 in front of `server::serve_connection`, which takes any byte
//! stream; waking in [`Routes::resolve`], which may take its time.

pub mod host;

pub use host::{Alias, AliasError, HostError, HostNames, HostNamesError, Route, Scheme};
