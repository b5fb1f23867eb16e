//! The configuration as JSON.
#![no_main]

use hull_vmm::config::VmConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: hull_fuzz::prepare(), |text: &[u8]| {
    let Ok(config) = VmConfig::from_json(text) else { return };
    // What was accepted can be written down, and is accepted again as the same.
    let json = serde_json::to_vec(&config).expect("a configuration is JSON");
    assert_eq!(VmConfig::from_json(&json).expect("what was accepted once"), config);
});
