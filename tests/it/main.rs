//! Tests against the real kernel, in one binary: it is linked once, and can be carried into a virtual machine.

#![allow(clippy::unwrap_used, reason = "helpers of tests; a panic is how they fail")]

mod bad_input;
mod cgroup;
mod cli;
mod faults;
mod floors;
mod images;
mod main_job;
mod network;
mod proxy_live;
mod recovery;
mod runtime;
mod skips;
mod support;
