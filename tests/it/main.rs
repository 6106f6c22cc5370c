//! Tests against the real kernel, in one binary: it is linked once, and can be carried into a virtual machine.

#![allow(clippy::unwrap_used, reason = "helpers of tests; a panic is how they fail")]

mod access;
mod acme;
mod aliases;
mod attacks;
mod bad_input;
mod cgroup;
mod cli;
mod deliveries;
mod dns;
mod faults;
mod firewall;
mod firewall_api;
mod firewall_many;
mod floors;
mod hosts;
mod idle;
mod images;
mod limits;
mod main_job;
mod measures;
mod network;
mod orphans;
mod proxy_live;
mod recovery;
mod relay;
mod runtime;
mod scripts;
mod scripts_engine;
mod scripts_hostile;
mod skips;
mod starve;
mod stripe;
mod support;
mod tcp;
mod tls;
mod tokens;
mod wake;
