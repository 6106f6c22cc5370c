//! Drivers: the only code that touches the kernel.
//!
//! One folder a driver: a small trait, the real implementation, errors that name the object. Drivers hold no
//! policy and remember nothing that the kernel remembers; every `remove` is idempotent, so that an unwind, a
//! DELETE and a sweep at boot may all call it for the same object. [`fake`] has in-memory twins, and a wrapper
//! that makes any driver, real or fake, fail at a chosen step.

pub mod btrfs;
pub mod cgroup;
pub mod fake;
pub mod folders;
pub mod gateway;
pub mod host;
pub mod image;
pub mod netlink;
pub mod nft;
pub mod oci;
pub mod privileges;
pub mod runtime;
pub mod worker;
