//! What several integration tests need.

pub mod container;
pub mod daemon;
pub mod net;
