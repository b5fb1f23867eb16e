#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests stop at the first surprise")]

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::super::http::Body;
use super::*;
use crate::config::VmConfig;
use crate::device::Alarm;
use crate::events::EventStream;
use crate::kvm::System;
use crate::vm::EndSignal;

/// An instance that isn't started, and a directory for its files.
pub(super) struct Bench {
    pub api: Api,
    pub dir: TempDir,
}

impl Bench {
    pub(super) fn new() -> Self {
        let end = Arc::new(EndSignal::for_tests());
        let (alarm, events) = (Arc::new(Alarm::new().unwrap()), Arc::new(EventStream::none()));
        let instance = Instance::new("vm".to_owned(), VmConfig::default(), end, alarm, events, Arc::default());
        Self { api: Rc::new(RefCell::new(instance)), dir: tempfile::tempdir().unwrap() }
    }

    /// Status and JSON of an answer.
    pub(super) fn ask(&self, method: &str, target: &str, body: &str) -> (u16, Value) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let request = Request {
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            body: body.as_bytes().to_vec(),
            keep_alive: true,
        };
        let response = answer(&self.api, &request);
        let value = match response.body {
            Some(Body::Json(value)) => value,
            Some(Body::OpenMetrics(text)) => Value::String(text),
            None => Value::Null,
        };
        (response.status, value)
    }

    fn ok(&self, method: &str, target: &str, body: Value) -> Value {
        let (status, value) = self.ask(method, target, &body.to_string());
        assert!((200..300).contains(&status), "{method} {target}: {status} {value}");
        value
    }

    /// The message of a refusal.
    fn refused(&self, status: u16, method: &str, target: &str, body: Value) -> String {
        let before = self.api.borrow().config().clone();
        let (got, value) = self.ask(method, target, &body.to_string());
        assert_eq!(got, status, "{method} {target}: {value}");
        assert_eq!(*self.api.borrow().config(), before, "a refused request changes nothing");
        value["fault_message"].as_str().unwrap().to_owned()
    }

    pub(super) fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// Configures a kernel that does nothing, and starts it. False, said loudly, where there is no KVM.
    pub(super) fn start(&self, test: &str) -> bool {
        if let Err(error) = System::open_checked() {
            let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {error}");
            return false;
        }
        let kernel = self.file("kernel", &idle_kernel());
        self.ok("PUT", "/boot-source", json!({ "kernel_image_path": kernel }));
        self.ok("PUT", "/actions", json!({ "action_type": "InstanceStart" }));
        true
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // The threads of a VM end only when they are told to.
        let end = Arc::new(EndSignal::for_tests());
        let (alarm, events) = (Arc::new(Alarm::new().unwrap()), Arc::new(EventStream::none()));
        let empty = Instance::new(String::new(), VmConfig::default(), end, alarm, events, Arc::default());
        assert!(self.api.replace(empty).shut_down() || std::thread::panicking());
    }
}

/// A 64-bit ELF file with one segment at 1 MiB: `hlt` with interrupts disabled, in a loop.
pub(super) fn idle_kernel() -> Vec<u8> {
    const CODE: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd];
    const ENTRY: u64 = 16 << 20;
    const VIRTUAL: u64 = 0xffff_ffff_8100_0000;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // Type, machine, version; entry; program headers; section headers; flags; sizes and counts.
    elf.extend([2u16.to_le_bytes(), 62u16.to_le_bytes()].concat());
    elf.extend(1u32.to_le_bytes());
    elf.extend([ENTRY.to_le_bytes(), 64u64.to_le_bytes(), 0u64.to_le_bytes()].concat());
    elf.extend(0u32.to_le_bytes());
    elf.extend([64u16, 56, 1, 64, 0, 0].iter().flat_map(|n| n.to_le_bytes()));
    // PT_LOAD, readable and executable.
    elf.extend([1u32.to_le_bytes(), 5u32.to_le_bytes()].concat());
    let len = CODE.len() as u64;
    elf.extend([120, VIRTUAL, ENTRY, len, len, 4096].iter().flat_map(|n: &u64| n.to_le_bytes()));
    elf.extend(CODE);
    elf
}

#[test]
fn paths_fit_patterns_segment_by_segment() {
    for (pattern, path, id) in [
        ("/", "/", Some("")),
        ("/vm", "/vm", Some("")),
        ("/vm", "/vm/config", None),
        ("/vm/config", "/vm", None),
        ("/vm", "/vm/", None),
        ("/drives/{drive_id}", "/drives/a", Some("a")),
        ("/drives/{drive_id}", "/drives/", None),
        ("/drives/{drive_id}", "/drives", None),
        ("/drives/{drive_id}", "/drives/a/b", None),
        ("/a/{id}/b", "/a/x/b", Some("x")),
    ] {
        assert_eq!(match_path(pattern, path), id, "{pattern} {path}");
    }
}

#[test]
fn names_may_be_escaped() {
    for (segment, name) in [
        ("a", Some("a")),
        ("a%2Fb%20", Some("a/b ")),
        ("%c3%a4", Some("ä")),
        ("%", None),
        ("%4", None),
        ("%+1", None),
        ("%ff", None),
        ("%4ä", None),
    ] {
        assert_eq!(percent_decoded(segment).as_deref(), name, "{segment}");
    }
    let bench = Bench::new();
    bench.ok("PUT", "/shares/a%2Fb", json!({ "tag": "a/b", "path_on_host": "/" }));
    assert!(bench.refused(400, "PUT", "/shares/a%2", json!({ "tag": "a%2", "path_on_host": "/" })).contains('%'));
    bench.ok("DELETE", "/shares/a%2fb", json!({}));
}

#[test]
fn no_row_hides_another() {
    for (index, row) in ROUTES.iter().enumerate() {
        let twin = ROUTES[..index].iter().find(|other| {
            other.method == row.method && (match_path(other.path, row.path).is_some() || other.path == row.path)
        });
        assert!(twin.is_none(), "{} {}", row.method, row.path);
    }
}

#[test]
fn unknown_paths_and_methods_say_so() {
    let bench = Bench::new();
    assert!(bench.refused(404, "GET", "/nothing", json!({})).contains("/nothing"));
    assert!(bench.refused(405, "DELETE", "/vm", json!({})).contains("GET, PATCH"));
    let request = Request {
        method: "POST".to_owned(),
        path: "/drives/a".to_owned(),
        query: String::new(),
        body: vec![],
        keep_alive: true,
    };
    assert_eq!(answer(&bench.api, &request).allow.as_deref(), Some("PUT, PATCH, DELETE"));
}

#[test]
fn a_configuration_grows_and_can_be_saved() {
    let bench = Bench::new();
    assert_eq!(
        bench.ok("GET", "/vm/config", json!({})),
        json!({ "machine-config": {
        "vcpu_count": 1, "mem_size_mib": 128, "huge_pages": "Transparent" } })
    );
    bench.ok("PUT", "/boot-source", json!({ "kernel_image_path": "/k", "boot_args": "quiet" }));
    bench.ok("PUT", "/machine-config", json!({ "vcpu_count": 2, "mem_size_mib": 64, "smt": false }));
    bench.ok("PATCH", "/machine-config", json!({ "mem_size_mib": 96 }));
    assert_eq!(bench.ok("GET", "/machine-config", json!({}))["vcpu_count"], 2);
    assert_eq!(
        bench.ok("GET", "/vm", json!({})),
        json!({ "state": "Not started", "vcpu_count": 2, "mem_size_mib": 96 })
    );
    bench.ok("PUT", "/drives/a", json!({ "drive_id": "a", "path_on_host": "/1", "is_root_device": true }));
    bench.ok("PUT", "/drives/b", json!({ "drive_id": "b", "path_on_host": "/2" }));
    bench.ok("PUT", "/drives/a", json!({ "drive_id": "a", "path_on_host": "/3", "is_read_only": true }));
    bench.ok("PUT", "/pmem/p", json!({ "id": "p", "path_on_host": "/1" }));
    bench.ok("PUT", "/pmem/p", json!({ "id": "p", "path_on_host": "/2", "read_only": true }));
    bench.ok("PUT", "/vsock", json!({ "guest_cid": 3, "uds_path": "/v", "vsock_id": "x" }));
    bench.ok("PUT", "/entropy", json!({}));
    bench.ok("PUT", "/watchdog", json!({ "action": "Report" }));
    bench.ok("PUT", "/console", json!({ "to_stderr": false }));
    let saved = bench.ok("GET", "/vm/config", json!({}));
    assert_eq!(saved["drives"][0]["path_on_host"], "/3", "a second PUT replaces the first");
    assert_eq!(saved["drives"][1]["drive_id"], "b");
    assert_eq!(saved["pmem"], json!([{ "id": "p", "path_on_host": "/2", "root_device": false, "read_only": true }]));
    let config = VmConfig::from_json(saved.to_string().as_bytes()).unwrap();
    assert_eq!(config, *bench.api.borrow().config());
    bench.ok("DELETE", "/drives/a", json!({}));
    assert!(bench.refused(404, "DELETE", "/drives/a", json!({})).contains("no drive a"));
    assert_eq!(bench.ok("GET", "/vm/config", json!({}))["drives"].as_array().unwrap().len(), 1);
}

#[test]
fn errors_name_the_field_as_the_client_sees_it() {
    let bench = Bench::new();
    let long = "x".repeat(5000);
    for (target, body, words) in [
        ("/boot-source", json!({}), "kernel_image_path"),
        ("/boot-source", json!({ "kernel_image_path": "" }), "Field kernel_image_path: must not be empty"),
        ("/boot-source", json!({ "kernel_image_path": 1 }), "Field kernel_image_path: invalid type"),
        ("/boot-source", json!({ "kernel_image_path": "/k", "initrd_path": "a\0b" }), "Field initrd_path"),
        ("/boot-source", json!({ "kernel_image_path": "/k", "boot_args": "a\nb" }), "Field boot_args"),
        ("/boot-source", json!({ "kernel_image_path": "/k", "kernel": 1 }), "unknown field `kernel`"),
        ("/machine-config", json!({ "vcpu_count": 0 }), "Field vcpu_count: must be 1 to 64, not 0"),
        ("/machine-config", json!({ "mem_size_mib": 1 }), "Field mem_size_mib"),
        ("/machine-config", json!({ "huge_pages": "1G" }), "Field huge_pages: unknown variant `1G`"),
        ("/machine-config", json!({ "smt": true }), "Field smt"),
        ("/machine-config", json!({ "track_dirty_pages": true }), "Field track_dirty_pages"),
        ("/machine-config", json!({ "cpu_template": "T2" }), "Field cpu_template"),
        ("/drives/a", json!({ "drive_id": "b", "path_on_host": "/x" }), "does not match"),
        ("/drives/a", json!({ "drive_id": "a" }), "missing field `path_on_host`"),
        ("/drives/a", json!({ "drive_id": "a", "path_on_host": long }), "Field path_on_host: must have at most"),
        ("/drives/a.b", json!({ "drive_id": "a.b", "path_on_host": "/x" }), "Field drive_id"),
        ("/vsock", json!({ "guest_cid": 2, "uds_path": "/v" }), "Field guest_cid"),
        ("/vsock", json!({ "guest_cid": 3, "uds_path": "" }), "Field uds_path"),
        ("/pmem/a", json!({ "id": "b", "path_on_host": "/x" }), "does not match"),
        ("/pmem/a", json!({ "id": "a", "path_on_host": "" }), "Field path_on_host: must not be empty"),
        ("/entropy", json!({ "x": 1 }), "unknown field `x`"),
        ("/watchdog", json!({ "action": "Bark" }), "Field action: unknown variant `Bark`"),
        ("/console", json!({ "log_path": "" }), "Field log_path"),
        ("/logger", json!({ "show_log_origin": true }), "Field show_log_origin"),
        ("/logger", json!({ "level": "loud" }), "Field level"),
        ("/logger", json!({ "log_path": "/nowhere/log" }), "Field log_path"),
        ("/metrics", json!({}), "metrics_path"),
        ("/metrics", json!({ "metrics_path": "/dev/null" }), "neither a file nor a FIFO"),
        ("/actions", json!({ "action_type": "Dance" }), "Field action_type: unknown variant"),
        ("/actions", json!({ "action_type": "SendCtrlAltDel" }), "no keyboard"),
        ("/actions", json!({ "action_type": "FlushMetrics" }), "PUT /metrics"),
        ("/actions", json!({ "action_type": "InstanceStart" }), "PUT /boot-source first"),
    ] {
        let message = bench.refused(400, "PUT", target, body.clone());
        assert!(message.contains(words) && !message.contains('\n'), "{target} {body}: {message}");
    }
    for (target, body) in [("/vsock", ""), ("/vsock", "{"), ("/vsock", "[]"), ("/vsock", "{} {}"), ("/vsock", "\u{0}")]
    {
        assert_eq!(bench.ask("PUT", target, body).0, 400, "{body:?}");
    }
    assert_eq!(bench.ask("PUT", "/vsock", &"[".repeat(60_000)).0, 400, "a deep body");
    assert!(bench.refused(400, "PATCH", "/machine-config", json!({ "vcpus": 1 })).contains("unknown field `vcpus`"));
    assert!(bench.refused(400, "PATCH", "/machine-config", json!([])).contains("invalid type"));
    assert!(bench.refused(400, "PATCH", "/vm", json!({ "state": "Paused" })).contains("not supported before starting"));
}

#[test]
fn a_start_that_fails_leaves_everything_ready_for_another() {
    let bench = Bench::new();
    let (vsock, log) = (bench.path("v"), bench.path("console"));
    bench.ok("PUT", "/vsock", json!({ "guest_cid": 3, "uds_path": vsock }));
    bench.ok("PUT", "/console", json!({ "log_path": log }));
    bench.ok("PUT", "/boot-source", json!({ "kernel_image_path": bench.path("missing") }));
    let start = json!({ "action_type": "InstanceStart" });
    let message = bench.refused(400, "PUT", "/actions", start.clone());
    assert!(message.contains("missing") && message.contains("No such file"), "{message}");
    assert_eq!(bench.ok("GET", "/", json!({}))["state"], "Not started");
    if System::open_checked().is_err() {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED rest of a_start_that_fails_leaves_everything_ready_for_another: no KVM"
        );
        return;
    }

    let kernel = bench.file("kernel", &idle_kernel());
    bench.ok("PUT", "/boot-source", json!({ "kernel_image_path": kernel }));
    bench.ok("PUT", "/drives/a", json!({ "drive_id": "a", "path_on_host": bench.path("missing") }));
    assert!(bench.refused(400, "PUT", "/actions", start.clone()).contains("missing"));
    bench.ok("DELETE", "/drives/a", json!({}));
    bench.ok("PUT", "/actions", start.clone());
    assert!(Path::new(&vsock).exists());
    assert_eq!(bench.ok("GET", "/", json!({}))["state"], "Running");
    let phases = bench.ok("GET", "/stats", json!({}))["phases"].as_array().unwrap().clone();
    assert_eq!(phases.iter().filter(|phase| phase["phase"] == "memory_ready").count(), 1, "{phases:?}");
    assert!(bench.refused(400, "PUT", "/actions", start).contains("not supported after starting"));
}

#[test]
fn what_is_for_the_start_is_refused_after_it() {
    let bench = Bench::new();
    if !bench.start("what_is_for_the_start_is_refused_after_it") {
        return;
    }
    for (method, target, body) in [
        ("PUT", "/boot-source", json!({ "kernel_image_path": "/k" })),
        ("PUT", "/machine-config", json!({ "vcpu_count": 1 })),
        ("PATCH", "/machine-config", json!({ "vcpu_count": 1 })),
        ("PUT", "/vsock", json!({ "guest_cid": 3, "uds_path": "/v" })),
        ("PUT", "/entropy", json!({})),
        ("PUT", "/watchdog", json!({})),
        ("PUT", "/console", json!({})),
        ("PUT", "/pmem/p", json!({ "id": "p", "path_on_host": "/p" })),
        ("PUT", "/logger", json!({})),
        ("PUT", "/metrics", json!({ "metrics_path": "/m" })),
    ] {
        let message = bench.refused(400, method, target, body);
        assert_eq!(
            message, "The requested operation is not supported after starting the microVM.",
            "{method} {target}"
        );
    }
}

#[test]
fn a_balloon_is_changed_before_and_after_the_start() {
    let bench = Bench::new();
    assert!(bench.refused(404, "GET", "/balloon", json!({})).contains("no balloon"));
    assert!(bench.refused(404, "PATCH", "/balloon", json!({ "amount_mib": 1 })).contains("no balloon"));
    assert!(bench.refused(400, "PUT", "/balloon", json!({ "amount_mib": 129 })).contains("Field amount_mib"));
    bench.ok("PUT", "/balloon", json!({ "amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 1 }));
    bench.ok("PATCH", "/balloon", json!({ "amount_mib": 2 }));
    bench.ok("PATCH", "/balloon/statistics", json!({ "stats_polling_interval_s": 3 }));
    let balloon = json!({
        "amount_mib": 2, "deflate_on_oom": true, "stats_polling_interval_s": 3, "free_page_reporting": true
    });
    assert_eq!(bench.ok("GET", "/balloon", json!({})), balloon);
    assert!(bench.refused(400, "GET", "/balloon/statistics", json!({})).contains("before starting"));
    if !bench.start("a_balloon_is_changed_before_and_after_the_start") {
        return;
    }
    bench.ok("PATCH", "/balloon", json!({ "amount_mib": 4 }));
    assert!(bench.refused(400, "PATCH", "/balloon", json!({ "amount_mib": 129 })).contains("amount_mib"));
    assert!(
        bench
            .refused(400, "PATCH", "/balloon/statistics", json!({ "stats_polling_interval_s": 0 }))
            .contains("1 s or more")
    );
    let balloon = bench.ok("GET", "/balloon", json!({}));
    assert_eq!((&balloon["amount_mib"], &balloon["actual_mib"]), (&json!(4), &json!(0)));
    assert_eq!(bench.ok("GET", "/balloon/statistics", json!({}))["target_mib"], 4);
    assert!(bench.refused(400, "PUT", "/balloon", json!({})).contains("not supported after starting"));
}

#[test]
fn a_running_vm_is_paused_resumed_and_stopped() {
    let bench = Bench::new();
    if !bench.start("a_running_vm_is_paused_resumed_and_stopped") {
        return;
    }
    for (wanted, state) in [("Resumed", "Running"), ("Paused", "Paused"), ("Paused", "Paused"), ("Resumed", "Running")]
    {
        bench.ok("PATCH", "/vm", json!({ "state": wanted }));
        assert_eq!(bench.ok("GET", "/", json!({}))["state"], state);
    }
    bench.ok("PUT", "/actions", json!({ "action_type": "Stop" }));
    assert!(bench.api.borrow().end_signal().is_set());
}

#[test]
fn drives_are_plugged_into_and_taken_out_of_a_running_vm() {
    let bench = Bench::new();
    if !bench.start("drives_are_plugged_into_and_taken_out_of_a_running_vm") {
        return;
    }
    let image = bench.file("image", &[0; 4096]);
    let drive = json!({ "drive_id": "a", "path_on_host": image, "is_read_only": true });
    assert_eq!(bench.ok("PUT", "/drives/a", drive.clone())["pci_address"], "0000:00:01.0");
    assert!(bench.refused(409, "PUT", "/drives/a", drive).contains("already"));
    let other = json!({ "drive_id": "b", "path_on_host": image, "is_read_only": true });
    assert_eq!(bench.ok("PUT", "/drives/b", other)["pci_address"], "0000:00:02.0");
    let missing = json!({ "drive_id": "c", "path_on_host": bench.path("missing") });
    assert!(bench.refused(400, "PUT", "/drives/c", missing).contains("missing"));
    let root = json!({ "drive_id": "c", "path_on_host": image, "is_read_only": true, "is_root_device": true });
    assert!(bench.refused(400, "PUT", "/drives/c", root).contains("Field is_root_device"));
    let stats = bench.ok("GET", "/stats", json!({}));
    assert_eq!(stats["devices"][1]["pci_address"], "0000:00:02.0");

    let limits =
        json!({ "drive_id": "a", "path_on_host": image, "rate_limiter": { "ops": { "size": 1, "refill_time": 2 } } });
    std::fs::write(&image, [0; 8192]).unwrap();
    bench.ok("PATCH", "/drives/a", limits);
    assert_eq!(bench.ok("GET", "/vm/config", json!({}))["drives"][0]["rate_limiter"]["ops"]["size"], 1);
    let elsewhere = json!({ "drive_id": "a", "path_on_host": "/elsewhere" });
    assert!(bench.refused(400, "PATCH", "/drives/a", elsewhere).contains("Field path_on_host"));
    assert!(bench.refused(404, "PATCH", "/drives/z", json!({ "drive_id": "z" })).contains("no drive device z"));
    bench.ok("DELETE", "/drives/a", json!({}));
    assert!(bench.refused(404, "DELETE", "/drives/a", json!({})).contains("no drive a"));
    let config = bench.ok("GET", "/vm/config", json!({}));
    assert_eq!(config["drives"].as_array().unwrap().len(), 1, "the configuration follows");
    let again = json!({ "drive_id": "a", "path_on_host": image, "is_read_only": true });
    assert_eq!(bench.ok("PUT", "/drives/a", again)["pci_address"], "0000:00:01.0", "the slot is free again");
    // 31 slots in all.
    for n in 0..26 {
        let id = format!("n{n}");
        bench.ok(
            "PUT",
            &format!("/drives/{id}"),
            json!({ "drive_id": id, "path_on_host": image, "is_read_only": true }),
        );
    }
    assert!(
        bench
            .refused(400, "PUT", "/drives/z", json!({ "drive_id": "z", "path_on_host": image, "is_read_only": true }))
            .contains("at most")
    );
}

#[test]
fn metrics_are_flushed_into_a_file_or_fifo() {
    let bench = Bench::new();
    let path = bench.path("metrics");
    bench.ok("PUT", "/metrics", json!({ "metrics_path": path }));
    assert!(bench.refused(400, "PUT", "/metrics", json!({ "metrics_path": path })).contains("already"));
    bench.ok("PUT", "/actions", json!({ "action_type": "FlushMetrics" }));
    bench.ok("PUT", "/actions", json!({ "action_type": "FlushMetrics" }));
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0]["memory"]["resident_kib"].as_u64().unwrap() > 0);

    let bench = Bench::new();
    let fifo = bench.dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    bench.ok("PUT", "/metrics", json!({ "metrics_path": fifo }));
    for _ in 0..10_000 {
        if bench.ask("PUT", "/actions", r#"{"action_type": "FlushMetrics"}"#).0 == 500 {
            return;
        }
    }
    panic!("a FIFO that nobody reads is full at some time");
}

#[test]
fn metrics_can_be_read_at_any_time() {
    let bench = Bench::new();
    let text = bench.ok("GET", "/metrics", json!({}));
    assert!(text.as_str().unwrap().contains("hull_vm_state{hull_vm_state=\"Not started\"} 1\n"));
    if !bench.start("metrics_can_be_read_at_any_time") {
        return;
    }
    let text = bench.ok("GET", "/metrics", json!({}));
    let text = text.as_str().unwrap();
    assert!(text.contains("hull_vm_state{hull_vm_state=\"Running\"} 1\n") && text.ends_with("# EOF\n"), "{text}");
    assert!(text.contains("hull_vcpu_monitor_exits_total{vcpu=\"0\",reason=\"port\"}"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn no_request_panics(
        method in "(GET|PUT|PATCH|DELETE|POST)",
        row in 0..ROUTES.len(),
        id in "[a-z/%.]{0,5}",
        body in prop_oneof![
            any::<String>(),
            r#"\{"(drive_id|path_on_host|state|action_type|level|vcpu_count|log_path)":("[a-zA-Z/]{0,8}"|-?[0-9]{1,20}|null|\[\]|\{\})\}"#,
        ],
    ) {
        let bench = Bench::new();
        let path = ROUTES[row].path.split('{').next().unwrap().to_owned() + &id;
        // Log and metrics would make files with made-up names.
        prop_assume!(!path.starts_with("/logger") && !path.starts_with("/metrics"));
        let (status, _) = bench.ask(&method, &path, &body);
        prop_assert!(status < 500, "{status}");
    }
}

#[test]
fn limits_of_the_socket_device_change_one_by_one() {
    let bench = Bench::new();
    bench.refused(404, "PATCH", "/vsock", json!({}));
    bench.ok(
        "PUT",
        "/vsock",
        json!({ "guest_cid": 3, "uds_path": "/v", "rx_rate_limiter": { "ops": { "size": 1, "refill_time": 2 } } }),
    );
    let bandwidth = json!({ "size": 3, "refill_time": 4 });
    bench.ok("PATCH", "/vsock", json!({ "rx_rate_limiter": { "bandwidth": bandwidth } }));
    let limiter = bench.ok("GET", "/vsock", json!({}))["rx_rate_limiter"].clone();
    assert_eq!(limiter, json!({ "bandwidth": bandwidth, "ops": { "size": 1, "refill_time": 2 } }));
    let refusal = bench.refused(
        400,
        "PATCH",
        "/vsock",
        json!({ "tx_rate_limiter": { "ops": { "size": 1, "refill_time": 1u64 << 40 } } }),
    );
    assert!(refusal.contains("Field tx_rate_limiter.ops.refill_time"), "{refusal}");
}
