use super::*;
use serde_json::json;

fn spec(linux: serde_json::Value) -> Spec {
    serde_json::from_value(json!({
        "ociVersion": "1.0.2",
        "process": {"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0},
                    "capabilities": {"bounding": ["CAP_CHOWN"]}},
        "hooks": {"prestart": [{"path": "/host"}], "createContainer": [{"path": "/guest"}]},
        "linux": linux
    }))
    .expect("specification")
}

fn prepared(spec: &mut Spec) -> Result<Extracted, Failure> {
    prepare(spec, "c1", Path::new("/run/root"), false, false)
}

#[test]
fn what_belongs_to_the_host_is_taken_out() {
    let mut spec = spec(json!({
        "namespaces": [{"type": "mount"}, {"type": "network", "path": "/var/run/netns/x"}],
        "cgroupsPath": "system.slice:x:y",
        "sysctl": {"net.ipv4.ip_forward": "1", "kernel.msgmax": "65536"},
        "resources": {"memory": {"limit": 1000, "swap": 2000}, "devices": [{"allow": false, "access": "rwm"}]}
    }));
    let extracted = prepared(&mut spec).expect("prepared");
    assert!(!extracted.new_network);
    assert_eq!(extracted.network_sysctls.len(), 1);
    assert_eq!(extracted.devices.len(), 1);
    let hooks = spec.hooks().as_ref().expect("hooks");
    assert!(hooks.create_runtime().is_none() && hooks.create_container().is_some());
    let linux = spec.linux().as_ref().expect("linux");
    assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/hull/c1")));
    assert_eq!(linux.sysctl().as_ref().map(HashMap::len), Some(1));
    let resources = linux.resources().as_ref().expect("resources");
    assert_eq!(resources.memory().and_then(|memory| memory.swap()), None);
    assert!(resources.devices().is_none());
}

#[test]
fn namespaces_of_the_host_are_refused_and_a_mount_namespace_is_needed() {
    let mut of_host = spec(json!({"namespaces": [{"type": "mount"}, {"type": "pid", "path": "/proc/1/ns/pid"}]}));
    assert!(prepared(&mut of_host).is_err());
    let mut none = spec(json!({"namespaces": []}));
    assert!(prepared(&mut none).is_err());
}

#[test]
fn a_process_needs_a_command_and_an_absolute_directory() {
    let bad = [
        json!({"cwd": "/", "args": [], "user": {"uid": 0, "gid": 0}}),
        json!({"cwd": "tmp", "args": ["sh"], "user": {"uid": 0, "gid": 0}}),
        json!({"cwd": "/", "args": ["s\u{0}h"], "user": {"uid": 0, "gid": 0}}),
    ];
    for json in bad {
        let process: Process = serde_json::from_value(json).expect("process");
        assert!(check_process(&process).is_err());
    }
}

#[test]
fn identifiers_are_mapped_to_the_outside() {
    let mappings: Vec<LinuxIdMapping> =
        serde_json::from_value(json!([{"containerID": 0, "hostID": 100_000, "size": 1000}])).expect("mappings");
    assert_eq!(map_id(Some(&mappings), 5), 100_005);
    assert_eq!(map_id(Some(&mappings), 1000), 1000);
    assert_eq!(map_id(None, 5), 5);
}
