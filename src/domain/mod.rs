//! Pure values of the domain: what a tenant is, without how one is run.
//!
//! Nothing here reads a file or talks to the kernel; the clock and the random source are read only by `generate`.

pub mod access;
pub mod access_log;
pub mod alias;
pub mod causes;
pub mod confinement;
pub mod container;
pub mod dns;
pub mod env;
pub mod event;
pub mod firewall;
pub mod host;
pub mod id;
pub mod idle;
pub mod image;
pub mod limits;
pub mod may;
pub mod name;
pub mod network;
pub mod phase;
pub mod policy;
pub mod process;
pub mod project;
pub mod quantity;
pub mod receipt;
pub mod secret;
pub mod slot;
pub mod token;

pub use access_log::AccessLine;
pub use alias::ProxyAlias;
pub use causes::chain;
pub use confinement::Confinement;
pub use container::{Container, Settings, SettingsPatch};
pub use env::{EnvError, EnvKey, EnvVars};
pub use id::{AliasId, ContainerId, ImageId, OperationId, ProjectId, ReceiptId, TokenId};
pub use idle::{ActivityPatch, ActivitySources, IdleAction};
pub use image::{Image, ImageConfig, UserIds};
pub use limits::Limits;
pub use name::{ContainerName, Instance, NameError};
pub use phase::{Desired, PauseReason, Phase, Status, StopReason, Verb};
pub use process::{Exit, Init};
pub use project::Project;
pub use quantity::{Bytes, BytesPerSecond, CpuMillis, Pids};
pub use receipt::Receipt;
pub use secret::Secret;
pub use slot::{Slot, Subnet};
pub use token::Token;
