//! What several integration tests need.

pub mod container;
pub mod net;
