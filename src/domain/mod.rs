//! Pure values of the domain: what a tenant is, without how one is run.
//!
//! Nothing here reads a clock, a file or a random source; those are handed in.

pub mod env;
pub mod id;
pub mod limits;
pub mod name;
pub mod policy;
pub mod quantity;
pub mod secret;
pub mod slot;

pub use env::{EnvError, EnvKey, EnvVars};
pub use id::{ContainerId, ImageId, OperationId, ProjectId, ReceiptId, TokenId};
pub use limits::Limits;
pub use name::{ContainerName, Instance, NameError};
pub use quantity::{Bytes, BytesPerSecond, CpuMillis, Pids};
pub use secret::Secret;
pub use slot::{Slot, Subnet};
