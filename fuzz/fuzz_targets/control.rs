//! The control API: bytes of a connection, and the JSON in them.
#![no_main]

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use hull_vmm::config::VmConfig;
use hull_vmm::control::answer;
use hull_vmm::control::http::{Parsed, parse};
use hull_vmm::device::Alarm;
use hull_vmm::events::EventStream;
use hull_vmm::instance::Instance;
use hull_vmm::vm::EndSignal;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: hull_fuzz::prepare(), |bytes: &[u8]| {
    let (end, events) = (Arc::new(EndSignal::for_tests()), Arc::new(EventStream::none()));
    let Ok(alarm) = Alarm::new().map(Arc::new) else { return };
    let api = Rc::new(RefCell::new(Instance::new("vm".to_owned(), VmConfig::default(), end, alarm, events, Arc::default())));
    let mut rest = bytes;
    while let Ok(Parsed::Whole(request, length)) = parse(rest) {
        assert!(length > 0 && length <= rest.len(), "a request is longer than what has arrived");
        rest = &rest[length..];
        // These make files with made-up names, or start a VM.
        if ["/logger", "/metrics", "/actions"].iter().any(|path| request.path.starts_with(path)) {
            continue;
        }
        let response = answer(&api, &request);
        assert!(response.status < 500, "{}", response.status);
        assert!(!response.to_bytes(request.keep_alive).is_empty());
        api.borrow().config().validate_draft().expect("a refused change is not kept");
    }
});
