//! Tenantry gives every customer of a SaaS product a container of their own.
//!
//! The crate is built in floors, and imports point down only (`tests/it/floors.rs` holds that):
//!
//! | floor | modules | what lives there |
//! |---|---|---|
//! | 4 | [`api`], [`proxy`], [`egress`], [`exec`], [`cli`], [`telemetry`] | surfaces; only `api`, `proxy` and `egress::dial` know HTTP |
//! | 3 | [`lifecycle`] | what may happen to a container, and how it is undone |
//! | 2 | [`store`] | records, journals, events |
//! | 1 | [`sys`] | one driver a folder; the only code that touches the kernel |
//! | 0 | [`domain`], [`config`], [`metrics`] | pure values: ids, quantities, records, policies; counts |

pub mod acme;
pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod domain;
pub mod egress;
pub mod exec;
pub mod lifecycle;
pub mod metrics;
pub mod proxy;
pub mod store;
pub mod sys;
pub mod telemetry;
