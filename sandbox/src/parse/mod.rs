//! The texts that people type, parsed into values that are valid by construction.

mod cpus;
mod env;
mod memory;
mod name;
mod sysctl;
mod tmpfs;
mod ulimit;

use thiserror::Error;

pub use cpus::{Cpus, PERIOD_US};
pub use env::{EnvVar, parse_env_file};
pub use memory::MemorySize;
pub use name::ContainerName;
pub use sysctl::Sysctl;
pub use tmpfs::Tmpfs;
pub use ulimit::Ulimit;

/// A text that does not have the form it should.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("{0}")]
pub struct ParseError(pub(crate) String);

impl ParseError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}
