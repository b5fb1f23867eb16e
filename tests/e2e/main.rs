//! End-to-end tests: each one starts `hull`, or `hull-vmm` alone, as a user would and looks at what the user sees. Those of bundles
//! use the library as a front door does.
//!
//! They need a KVM that runs guests, so that `make test` starts them in the testbed where the local one can't.
//! Environment: `HULL_PREFIX` (a prefix tree with `bin/hull` and `bin/hull-vmm`) and `HULL_TEST_IMAGES` (OCI layouts by name).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test fails by panicking"
)]

#[path = "../guest/pattern.rs"]
mod guest_pattern;
mod harness;
mod vmm_harness;

mod bad_input;
mod block;
mod block_data;
mod bundle;
mod bundle_harness;
mod containerd;
mod control_api;
mod devices;
mod docker;
mod hotplug;
mod images;
mod isolation;
mod lifecycle;
mod limits;
mod loop_device;
mod machine;
mod memory;
mod monitor;
mod network;
mod pmem;
mod process;
mod registry;
mod share;
mod stdio;
mod terminal;
mod vhost;
mod volumes;
mod vsock;
mod watchdog;
