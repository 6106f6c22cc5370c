//! What a tenant may send and be sent: rules, a container's own rules, and the whole set that is in force.
//!
//! ```text
//!  policy (a file) ┐
//!                  ├─► Ruleset ─► rendered for the kernel, and Ruleset::verdict: the same answers, in memory
//!  own rules ──────┘   own rules first; the first match decides
//! ```
//!
//! Values are kept in one form each (ports sorted and merged, networks without those inside others), so that rules that read
//! the same are equal, and are the same rules in the kernel.

mod given;
mod host;
mod own;
mod peer;
mod port;
mod rule;
mod ruleset;

pub use given::{Given, Step, Told};
pub use host::{HostPattern, HostPatternError};
pub use own::{Added, OWN_RULES_MAX, OwnRule, OwnRules, OwnRulesError, Removal, Selector, State};
pub use peer::{Peer, PeerError, Peers, WasGiven};
pub use port::{PortRange, PortRangeError, Ports};
pub use rule::{
    Action, DESCRIPTION_BYTES_MAX, Description, DescriptionError, Ends, Icmp, Protocol, RawRule, Rule, RuleError,
    Traffic,
};
pub use ruleset::{Base, Direction, METADATA, Packet, Payload, Ruleset, Side};
