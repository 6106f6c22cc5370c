//! What several integration tests need.

pub mod attacker;
pub mod container;
pub mod daemon;
pub mod machine;
pub mod name_server;
pub mod net;
pub mod proxies;
pub mod stripe;
