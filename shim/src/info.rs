//! What this program is: for people and for containerd.

use std::io::Write as _;

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::{Message as _, MessageField};

use crate::RUNTIME;
use crate::config::{Config, RuntimeOptions};

/// `-v`.
pub fn print_version() -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "containerd-shim-kata-v2 (Hull):\n  Version:  {}", env!("CARGO_PKG_VERSION"))?;
    Ok(())
}

/// `-info`: a `containerd.types.RuntimeInfo` message. containerd gives its runtime options on standard input. Fails if no VM could
/// be started with this configuration and what is installed.
pub fn print_info() -> anyhow::Result<()> {
    Config::load(&RuntimeOptions::from_stdin()?)?.parts()?;
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), ..Default::default() };
    let info = RuntimeInfo { name: RUNTIME.into(), version: MessageField::some(version), ..Default::default() };
    std::io::stdout().write_all(&info.write_to_bytes()?)?;
    Ok(())
}
