#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests stop at the first surprise")]

use proptest::prelude::*;

use super::*;

const SMALLEST: &str = r#"{"boot-source": {"kernel_image_path": "/k"}}"#;

fn error(text: &str) -> String {
    VmConfig::from_json(text.as_bytes()).unwrap_err().to_string()
}

fn with(member: &str) -> String {
    format!(r#"{{"boot-source": {{"kernel_image_path": "/k"}}, {member}}}"#)
}

#[test]
fn the_smallest_configuration_gets_defaults() {
    let config = VmConfig::from_json(SMALLEST.as_bytes()).unwrap();
    assert_eq!(
        config.machine_config,
        MachineConfig { vcpu_count: 1, mem_size_mib: 128, huge_pages: HugePages::Transparent, ..Default::default() }
    );
    assert!(config.drives.is_empty() && config.vsock.is_none() && config.console.is_none());
}

#[test]
fn what_is_written_can_be_read() {
    let text = with(
        r#""machine-config": {"vcpu_count": 2, "mem_size_mib": 64, "huge_pages": "None"},
        "drives": [{"drive_id": "root", "path_on_host": "/r", "is_read_only": true}],
        "network-interfaces": [{"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "02:00:00:00:00:0A", "mtu": 1400, "vhost": false,
            "rx_rate_limiter": {"ops": {"size": 10, "refill_time": 100}}}, {"iface_id": "eth1", "socket_path": "/s"}],
        "vsock": {"guest_cid": 3, "uds_path": "/v"}, "entropy": {}, "watchdog": {"action": "Report"}, "pmem": [{"id": "p", "path_on_host": "/p", "read_only": true}],
        "balloon": {"amount_mib": 1, "deflate_on_oom": true},
        "memory-hotplug": {"total_size_mib": 1024, "block_size_mib": 4}, "console": {"log_path": "/l", "to_stderr": true},
        "control_socket": "/c""#,
    );
    let config = VmConfig::from_json(text.as_bytes()).unwrap();
    let again = VmConfig::from_json(&serde_json::to_vec(&config).unwrap()).unwrap();
    assert_eq!(config, again);
}

#[test]
fn errors_name_the_field() {
    for (member, field, problem) in [
        (r#""machine-config": {"vcpu_count": "two"}"#, "machine-config.vcpu_count", "invalid type"),
        (r#""machine-config": {"vcpu_count": 0}"#, "machine-config.vcpu_count", "must be 1 to 64, not 0"),
        (
            r#""machine-config": {"vcpu_count": 2, "max_vcpu_count": 1}"#,
            "machine-config.max_vcpu_count",
            "must be 2 (vcpu_count) to 64, not 1",
        ),
        (r#""machine-config": {"max_vcpu_count": 65}"#, "machine-config.max_vcpu_count", "to 64, not 65"),
        (r#""machine-config": {"vcpu_count": 65}"#, "machine-config.vcpu_count", "must be 1 to 64, not 65"),
        (r#""machine-config": {"vcpu_count": 300}"#, "machine-config.vcpu_count", "invalid value"),
        (r#""machine-config": {"mem_size_mib": 0}"#, "machine-config.mem_size_mib", "must be 32 to"),
        (
            r#""machine-config": {"mem_size_mib": 33, "huge_pages": "2M"}"#,
            "machine-config.mem_size_mib",
            "multiple of 2",
        ),
        (r#""machine-config": {"huge_pages": "1G"}"#, "machine-config.huge_pages", "unknown variant"),
        (r#""balloon": {"amount_mib": 129}"#, "balloon.amount_mib", "at most the VM's 128 MiB"),
        (r#""watchdog": {"action": "Bark"}"#, "watchdog.action", "unknown variant `Bark`"),
        (r#""balloon": {"amount_mb": 1}"#, "balloon.amount_mb", "unknown field"),
        (r#""machine-config": {"sockets": 1}"#, "machine-config.sockets", "unknown field"),
        (r#""memory-hotplug": {"total_size_mib": 100}"#, "memory-hotplug.total_size_mib", "multiple of the slot size"),
        (r#""memory-hotplug": {"total_size_mib": 0}"#, "memory-hotplug.total_size_mib", "multiple of the slot size"),
        (r#""memory-hotplug": {"total_size_mib": 2097152}"#, "memory-hotplug.total_size_mib", "at most"),
        (
            r#""memory-hotplug": {"total_size_mib": 256, "block_size_mib": 3}"#,
            "memory-hotplug.block_size_mib",
            "power of two",
        ),
        (
            r#""memory-hotplug": {"total_size_mib": 256, "slot_size_mib": 64}"#,
            "memory-hotplug.slot_size_mib",
            "multiple of 128",
        ),
        (
            r#""machine-config": {"huge_pages": "2M"}, "memory-hotplug": {"total_size_mib": 256}"#,
            "memory-hotplug",
            "2M huge pages",
        ),
        (r#""pmem": [{"id": "a b", "path_on_host": "/x"}]"#, "pmem[0].id", "letters"),
        (r#""pmem": [{"id": "a", "path_on_host": ""}]"#, "pmem[0].path_on_host", "empty"),
        (r#""pmem": [{"id": "a", "path_on_host": "/x"}, {"id": "a", "path_on_host": "/y"}]"#, "pmem[1].id", "another"),
        (
            r#""pmem": [{"id": "a", "path_on_host": "/x", "root_device": true},
                {"id": "b", "path_on_host": "/x", "root_device": true}]"#,
            "pmem",
            "only one",
        ),
        (
            r#""pmem": [{"id": "a", "path_on_host": "/x", "root_device": true}],
                "drives": [{"drive_id": "b", "path_on_host": "/y", "is_root_device": true}]"#,
            "pmem",
            "a drive is the root device already",
        ),
        (r#""nonsense": 1"#, "nonsense", "unknown field"),
        (r#""vsock": {"guest_cid": 2, "uds_path": "/v"}"#, "vsock.guest_cid", "at least 3"),
        (r#""vsock": {"guest_cid": 3, "uds_path": ""}"#, "vsock.uds_path", "empty"),
        (r#""drives": [{"drive_id": "a", "path_on_host": ""}]"#, "drives[0].path_on_host", "empty"),
        (r#""drives": [{"drive_id": "a/b", "path_on_host": "/x"}]"#, "drives[0].drive_id", "letters"),
        (r#""network-interfaces": [{"iface_id": "a"}]"#, "network-interfaces[0]", "exactly one of"),
        (
            r#""network-interfaces": [{"iface_id": "a", "host_dev_name": "t", "socket_path": "/s"}]"#,
            "network-interfaces[0]",
            "exactly one of",
        ),
        (r#""network-interfaces": [{"iface_id": "", "tap_fd": 3}]"#, "network-interfaces[0].iface_id", "letters"),
        (r#""network-interfaces": [{"iface_id": "a", "tap_fd": 2}]"#, "network-interfaces[0].tap_fd", "at least 3"),
        (
            r#""network-interfaces": [{"iface_id": "a", "host_dev_name": "tap%d"}]"#,
            "network-interfaces[0].host_dev_name",
            "1 to 15 printable",
        ),
        (
            r#""network-interfaces": [{"iface_id": "a", "tap_fd": 3}, {"iface_id": "b", "tap_fd": 3}]"#,
            "network-interfaces[1].tap_fd",
            "already",
        ),
        (
            r#""network-interfaces": [{"iface_id": "a", "tap_fd": 3, "guest_mac": "02:00:00:00:00"}]"#,
            "network-interfaces[0].guest_mac",
            "six hexadecimal",
        ),
        (
            r#""network-interfaces": [{"iface_id": "a", "tap_fd": 3, "guest_mac": "01:00:00:00:00:01"}]"#,
            "network-interfaces[0].guest_mac",
            "of one interface",
        ),
        (
            r#""network-interfaces": [{"iface_id": "a", "tap_fd": 3, "mtu": 67}]"#,
            "network-interfaces[0].mtu",
            "68 to 65535",
        ),
        (
            r#""network-interfaces": [{"iface_id": "a", "tap_fd": 3, "vhosts": true}]"#,
            "network-interfaces[0].vhosts",
            "unknown field",
        ),
        (
            r#""network-interfaces": [{"iface_id": "a", "socket_path": "/s", "vhost": true}]"#,
            "network-interfaces[0].vhost",
            "is for taps",
        ),
        (
            r#""network-interfaces": [{"iface_id": "a", "tap_fd": 3, "vhost": true, "tx_rate_limiter": {}}]"#,
            "network-interfaces[0].vhost",
            "no rate limits",
        ),
        (
            r#""network-interfaces": [{"iface_id": "a", "tap_fd": 3, "vhost": true}],
            "memory-hotplug": {"total_size_mib": 1024}"#,
            "network-interfaces[0].vhost",
            "together with memory-hotplug",
        ),
        (r#""drives": [{"drive_id": "a"}]"#, "drives[0]", "missing field `path_on_host`"),
        (
            r#""drives": [{"drive_id": "a", "path_on_host": "/x", "rate_limiter": {"ops": {"size": 1, "refill_time": 86400001}}}]"#,
            "drives[0].rate_limiter.ops.refill_time",
            "at most 86400000",
        ),
        (
            r#""drives": [{"drive_id": "a", "path_on_host": "/x", "format": "qcow2"}]"#,
            "drives[0].format",
            "can only be read",
        ),
        (
            r#""drives": [{"drive_id": "a", "path_on_host": "/x", "format": "qcow2", "is_read_only": true, "io_engine": "Async"}]"#,
            "drives[0].io_engine",
            "Async needs",
        ),
        (r#""control_socket": "a\u0000b""#, "control_socket", "NUL"),
    ] {
        let message = error(&with(member));
        assert!(message.contains(field) && message.contains(problem), "{member}: {message}");
    }
    assert!(error("{}").contains("boot-source"));
    assert!(error(&format!("{SMALLEST} x")).contains("trailing"));
}

#[test]
fn drives_are_unique_and_bounded() {
    let drive = |id: &str| Drive { drive_id: id.to_owned(), path_on_host: "/x".into(), ..Drive::default() };
    let mut config = VmConfig::from_json(SMALLEST.as_bytes()).unwrap();
    config.drives = vec![drive("a"), drive("b"), drive("a")];
    assert!(config.validate().unwrap_err().to_string().contains("drives[2].drive_id"));
    config.drives = (0..29).map(|n| drive(&n.to_string())).collect();
    assert!(config.validate().unwrap_err().to_string().contains("at most 28"));
    config.drives = vec![drive(&"x".repeat(21))];
    assert!(config.validate().is_err());
}

#[test]
fn one_drive_is_the_root_device() {
    let drive = |id: &str, root| Drive {
        drive_id: id.to_owned(),
        path_on_host: "/x".into(),
        is_read_only: id == "0",
        is_root_device: root,
        ..Drive::default()
    };
    let words = |root: usize| {
        let drives: Vec<_> = (0..28).map(|n| drive(&n.to_string(), n == root)).collect();
        root_device_words(&drives)
    };
    assert_eq!(words(99), None);
    assert_eq!(words(0).as_deref(), Some("root=/dev/vda ro"));
    assert_eq!(words(25).as_deref(), Some("root=/dev/vdz rw"));
    assert_eq!(words(27).as_deref(), Some("root=/dev/vdab rw"));
    let mut config = VmConfig::from_json(SMALLEST.as_bytes()).unwrap();
    config.drives = vec![drive("a", true), drive("b", false), drive("c", true)];
    assert!(config.validate().unwrap_err().to_string().contains("drives[2].is_root_device"));
}

#[test]
fn what_firecrackers_clients_always_send_is_accepted_where_it_is_true() {
    let json = |member: &str| with(member);
    assert!(
        VmConfig::from_json(
            json(r#""machine-config": {"smt": false, "track_dirty_pages": false, "cpu_template": "None"}"#).as_bytes()
        )
        .is_ok()
    );
    for (member, field) in [
        ("\"smt\": true", "smt"),
        ("\"track_dirty_pages\": true", "track_dirty_pages"),
        ("\"cpu_template\": \"T2\"", "cpu_template"),
    ] {
        let message = error(&json(&format!("\"machine-config\": {{{member}}}")));
        assert!(message.contains(&format!("machine-config.{field}")), "{message}");
    }
}

#[test]
fn boot_arguments_stay_on_one_line() {
    for args in ["a\nb", "a\0b", "ä", &"x".repeat(MAX_BOOT_ARGS_BYTES + 1)] {
        let mut config = VmConfig::from_json(SMALLEST.as_bytes()).unwrap();
        config.boot_source.boot_args = args.to_owned();
        assert!(config.validate().is_err(), "{args:?}");
    }
}

#[test]
fn socket_paths_have_the_kernels_length() {
    let mut config = VmConfig::from_json(SMALLEST.as_bytes()).unwrap();
    config.control_socket = Some("/".repeat(MAX_SOCKET_PATH_BYTES + 1).into());
    assert!(config.validate().is_err());
    config.control_socket = None;
    config.vsock =
        Some(Vsock { guest_cid: 3, uds_path: "/".repeat(MAX_UDS_PATH_BYTES + 1).into(), ..Vsock::default() });
    assert!(config.validate().is_err());
}

#[test]
fn a_source_without_end_is_cut() {
    let zero = std::fs::File::open("/dev/zero").unwrap();
    assert!(matches!(read_bounded(zero), Err(ReadError::TooLong)));
    assert!(matches!(read_bounded(std::fs::File::open("/").unwrap()), Err(ReadError::Io(_))));
}

proptest! {
    #[test]
    fn no_text_panics(text in any::<Vec<u8>>()) {
        let _ = VmConfig::from_json(&text);
    }

    #[test]
    fn no_json_panics(
        name in "(boot-source|machine-config|drives|vsock|console|control_socket|x)",
        value in prop_oneof![
            Just("null".to_owned()), Just("[]".to_owned()), Just("{}".to_owned()), any::<i64>().prop_map(|n| n.to_string()),
            "\"[a-z/]{0,200}\"", "\\{\"(vcpu_count|mem_size_mib|guest_cid|drive_id)\":-?[0-9]{1,12}\\}",
        ],
    ) {
        let _ = VmConfig::from_json(with(&format!("\"{name}\": {value}")).as_bytes());
    }
}

#[test]
fn shares_are_checked() {
    let parse = |share: &str| {
        let text = format!(r#"{{"boot-source": {{"kernel_image_path": "/k"}}, "shares": [{share}]}}"#);
        VmConfig::from_json(text.as_bytes())
    };
    let share = |more: &str| parse(&format!(r#"{{"tag": "t", "path_on_host": "/x" {more}}}"#));
    let config = share("").unwrap();
    assert_eq!(config.shares[0].cache, ShareCache::Auto);
    assert!(!config.shares[0].is_read_only && !config.shares[0].xattr && !config.shares[0].writeback);
    assert!(
        share(r#", "cache": "always", "writeback": true, "uid_map": [{"guest": 0, "host": 5, "count": 9}]"#).is_ok()
    );
    for (more, problem) in [
        (r#", "cache": "never", "writeback": true"#, "cache"),
        (r#", "cache": "sometimes""#, "shares[0].cache"),
        (r#", "uid_map": [{"guest": 0, "host": 5, "count": 0}]"#, "at least 1"),
        (r#", "gid_map": [{"guest": 4294967295, "host": 5, "count": 1}]"#, "ends behind"),
        (r#", "gid_map": [{"guest": 0, "host": 0, "count": 9}, {"guest": 100, "host": 8, "count": 1}]"#, "overlap"),
    ] {
        let error = share(more).unwrap_err().to_string();
        assert!(error.contains(problem), "{more}: {error}");
    }
    for tag in ["", "a b", "x".repeat(37).as_str()] {
        let error = parse(&format!(r#"{{"tag": "{tag}", "path_on_host": "/x"}}"#)).unwrap_err().to_string();
        assert!(error.contains("shares[0].tag"), "{error}");
    }
    let two = r#"{"tag": "t", "path_on_host": "/x"}, {"tag": "t", "path_on_host": "/y"}"#;
    assert!(parse(two).unwrap_err().to_string().contains("called t already"));
}

#[test]
fn processors_that_are_not_in_use_are_kept_from_the_guests_kernel() {
    let machine = |vcpu_count, max_vcpu_count| MachineConfig { vcpu_count, max_vcpu_count, ..Default::default() };
    assert_eq!((machine(2, None).all_vcpus(), machine(2, None).kernel_words()), (2, None));
    assert_eq!((machine(2, Some(2)).all_vcpus(), machine(2, Some(2)).kernel_words()), (2, None));
    let growing = machine(2, Some(4));
    assert_eq!((growing.all_vcpus(), growing.kernel_words().as_deref()), (4, Some("maxcpus=2")));
}
