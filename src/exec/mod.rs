//! Scripts: a file dropped into the scripts folder is an HTTP endpoint, at once.
//!
//! ```text
//!  request ─► route (folder) ─► comments (@token, @cors, @idempotency …) ─► delivery kept? ─► engine ─► answer
//!                                                                                            │
//!                                     a worker process, never this daemon ◄──────────────────┘
//!                                     └─ unix socket, with this run's key ─► the API, as the identity `scripts`
//! ```
//!
//! The daemon decides which file answers and what it may use; it never evaluates a line of it. That happens behind
//! [`run::Engine`] in processes that own nothing: an unprivileged user, the scripts folder read-only, a seccomp filter,
//! a control group of their own. Nothing here knows HTTP: the API turns requests into [`run::Asked`] and
//! [`fault::Fault`]s into answers.

pub mod comments;
pub mod cron;
pub mod deliveries;
pub mod fault;
pub mod folder;
mod gates;
pub mod headers;
pub mod keys;
pub mod log;
pub mod manage;
pub mod pool;
pub mod protocol;
pub mod routes;
pub mod run;
pub mod runs;
pub mod schedule;
pub mod scripts;
pub mod secrets;
pub mod shared;
mod stamp;
#[cfg(test)]
pub mod testing;
pub mod worker;

pub use fault::Fault;
pub use scripts::{Scripts, ScriptsConfig, ScriptsError};
