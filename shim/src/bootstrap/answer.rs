//! How `start` answers: each containerd in the manner that it understands.

use containerd_shim_protos::bootstrap_api::BootstrapResult;
use protobuf::Message as _;
use serde_json::json;

use super::{Address, Parameters};

/// Set by containerd since 1.7, to the newest version of the answer that it knows.
const MAX_VERSION_VARIABLE: &str = "MAX_SHIM_VERSION";

/// The task API's version in the answer. The daemon serves version 3 too, but version 3 would also promise streams over
/// RPC, which Hull doesn't have.
const VERSION: i32 = 2;
const PROTOCOL: &str = "ttrpc";

/// The bytes of the answer: protobuf to whom asked in protobuf, JSON to whom knows versions, else the address alone.
pub fn answer(address: &Address, parameters: &Parameters) -> anyhow::Result<Vec<u8>> {
    let knows_versions = std::env::var_os(MAX_VERSION_VARIABLE).is_some_and(|version| !version.is_empty());
    encode(address, parameters.is_bootstrap(), knows_versions)
}

fn encode(address: &Address, bootstrap: bool, knows_versions: bool) -> anyhow::Result<Vec<u8>> {
    let address = address.to_string();
    if bootstrap {
        let result = BootstrapResult { version: VERSION, address, protocol: PROTOCOL.into(), ..Default::default() };
        return Ok(result.write_to_bytes()?);
    }
    if knows_versions {
        return Ok(serde_json::to_vec(&json!({"version": VERSION, "address": address, "protocol": PROTOCOL}))?);
    }
    Ok(address.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_containerd_gets_the_answer_that_it_understands() {
        let address = Address::parse("unix:///s").unwrap();
        assert_eq!(encode(&address, false, false).unwrap(), b"unix:///s");
        let json: serde_json::Value = serde_json::from_slice(&encode(&address, false, true).unwrap()).unwrap();
        assert_eq!(json, json!({"version": 2, "address": "unix:///s", "protocol": "ttrpc"}));
        let result = BootstrapResult::parse_from_bytes(&encode(&address, true, true).unwrap()).unwrap();
        assert_eq!((result.version, result.address.as_str(), result.protocol.as_str()), (2, "unix:///s", "ttrpc"));
    }
}
