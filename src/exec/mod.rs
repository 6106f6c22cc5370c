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
//! a control group of their own.

pub mod pool;
pub mod protocol;
pub mod run;
pub mod runs;
pub mod shared;
pub mod worker;
