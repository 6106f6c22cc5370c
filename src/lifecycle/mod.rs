//! What may happen to a container, in which order, and how it is undone.
//!
//! ```text
//!  surfaces ──► Service ──► Directory   what there is: records in memory, names and slots reserved
//!                  │            │
//!                  │            └──► store   the same records, on the disk
//!                  ▼
//!              Supervisor ──► Worker (one per container, verbs queue there)
//!                                │
//!                                ├─ plan      pure: which steps, in which stages
//!                                └─ execute   journalled; undone in reverse when a step fails
//! ```
//!
//! Invariants:
//! - a container's phase is changed by its worker alone; DELETE sets a mark beside it that nothing takes back;
//! - no kernel object without a journal entry, no entry left open after recovery;
//! - a tenant's link is taken up only when its rules are in;
//! - whatever a failed verb made is gone when its error is answered.

mod activity;
mod alarms;
mod aliases;
mod bundle;
mod catalog;
mod directory;
mod drowse;
mod erasure;
mod error;
mod execute;
mod happenings;
mod ledger;
mod metrics;
mod names;
mod plan;
mod ports;
mod ready;
mod recover;
mod requests;
mod room;
mod rules;
mod service;
mod sleep;
#[cfg(test)]
mod sleep_tests;
mod starts;
mod strays;
mod supervisor;
#[cfg(test)]
pub(crate) mod tests;
mod wake;
mod worker;

pub use activity::{InUse, Open, Sign, Usage, Use};
pub use alarms::ALARM_LOOK_MS;
pub use error::{DriverError, Error, What};
pub use execute::{Drivers, Timings};
pub use names::{Names, NamesError};
pub use ports::HostPorts;
pub use recover::Report;
pub use requests::*;
pub use rules::{RulesChange, RulesChanged, RulesEffect};
pub use service::{Named, Service};
pub use strays::Stray;
pub use wake::{NotAwake, Wanted, Woken};
