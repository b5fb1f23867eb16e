//! Generates the ttrpc service from `proto/agent.proto`.

use std::io::{Error, Result};
use std::path::{Path, PathBuf};

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=proto/agent.proto");
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").ok_or_else(|| Error::other("OUT_DIR is not set"))?);
    ttrpc_codegen::Codegen::new()
        .inputs([Path::new("proto/agent.proto")])
        .include("proto")
        .out_dir(&out_dir)
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize { async_all: true, ..Default::default() })
        .run()?;
    // Inner attributes are not allowed in an included file.
    for name in ["agent.rs", "agent_ttrpc.rs"] {
        let path = out_dir.join(name);
        let text = std::fs::read_to_string(&path)?;
        let text: String = text
            .lines()
            .filter(|line| !line.starts_with("#![") && !line.starts_with("//!"))
            .flat_map(|line| [line, "\n"])
            .collect();
        std::fs::write(&path, text)?;
    }
    Ok(())
}
