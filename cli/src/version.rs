//! `hull version`.

use serde_json::json;

use crate::args::VersionArgs;
use crate::failure::Failure;

pub fn show(args: &VersionArgs) -> Result<u8, Failure> {
    let version = env!("CARGO_PKG_VERSION");
    match args.json {
        true => println!("{}", json!({ "version": version, "arch": std::env::consts::ARCH })),
        false => println!("hull {version}"),
    }
    Ok(0)
}
