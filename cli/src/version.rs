//! `hull version`.

use serde_json::json;

use crate::args::VersionArgs;
use crate::failure::Failure;
use crate::output::line;

pub fn show(args: &VersionArgs) -> Result<u8, Failure> {
    let version = env!("CARGO_PKG_VERSION");
    match args.json {
        true => line(json!({ "version": version, "arch": std::env::consts::ARCH }))?,
        false => line(format!("hull {version}"))?,
    }
    Ok(0)
}
