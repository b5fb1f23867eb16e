use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType, Mount};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// A specification as containerd writes it for a container of a pod, with changes.
fn spec(change: impl FnOnce(&mut Value)) -> Spec {
    let mut spec = json!({
        "ociVersion": "1.1.0",
        "root": { "path": "rootfs", "readonly": true },
        "process": {
            "terminal": true, "user": { "uid": 0, "gid": 0 }, "args": ["sh"], "cwd": "/", "apparmorProfile": "cri",
            "selinuxLabel": "x", "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
        },
        "hooks": { "prestart": [{ "path": "/bin/true" }] },
        "annotations": { "io.kubernetes.cri.container-type": "container" },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "relatime"] },
            { "destination": "/etc/hosts", "type": "bind", "source": "/var/lib/kubelet/hosts", "options": ["rbind", "rprivate", "rw"] },
            { "destination": "/dev/shm", "type": "bind", "source": "/run/containerd/sandboxes/x/shm", "options": ["rbind", "rw"] },
            { "destination": "/config", "type": "bind", "source": "/volumes/config", "options": ["bind", "ro"] },
        ],
        "linux": {
            "cgroupsPath": "/kubepods/x",
            "mountLabel": "x",
            "namespaces": [
                { "type": "pid" }, { "type": "ipc", "path": "/proc/7/ns/ipc" }, { "type": "uts", "path": "/proc/7/ns/uts" },
                { "type": "mount" }, { "type": "network", "path": "/proc/7/ns/net" }, { "type": "cgroup", "path": "" },
            ],
            "devices": [
                { "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229 },
                { "path": "/pipe", "type": "p" },
            ],
            "sysctl": { "net.ipv4.ip_forward": "1" },
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
            "seccomp": { "defaultAction": "SCMP_ACT_ALLOW" },
            "resources": {
                "memory": { "limit": 64, "swap": 64, "swappiness": 10 },
                "cpu": { "shares": 512, "quota": 1000, "period": 10000, "cpus": "4-7", "mems": "1" },
                "blockIO": { "weight": 100, "throttleReadBpsDevice": [{ "major": 8, "minor": 0, "rate": 1 }] },
                "hugepageLimits": [{ "pageSize": "1GB", "limit": 0 }, { "pageSize": "2MB", "limit": 4 }],
                "pids": { "limit": 9 },
            },
        },
    });
    change(&mut spec);
    serde_json::from_value(spec).unwrap()
}

fn translated(change: impl FnOnce(&mut Value)) -> Result<Translated, BundleError> {
    translate("c1", spec(change), false)
}

/// The field of the error that a change makes.
fn refused(change: impl FnOnce(&mut Value)) -> String {
    translated(change).unwrap_err().field
}

fn mount<'a>(translated: &'a Translated, destination: &str) -> &'a Mount {
    let mounts = translated.spec.mounts().as_ref().unwrap();
    mounts.iter().find(|mount| mount.destination().as_os_str() == destination).unwrap()
}

fn add_mount(mount: Value) -> impl FnOnce(&mut Value) {
    move |spec| spec["mounts"].as_array_mut().unwrap().push(mount)
}

fn bind(destination: &str, source: &str, options: &[&str]) -> impl FnOnce(&mut Value) {
    add_mount(json!({ "destination": destination, "type": "none", "source": source, "options": options }))
}

#[test]
fn files_of_the_host_come_from_the_shared_directory() {
    let translated = translated(|_| ()).unwrap();
    let hosts = mount(&translated, "/etc/hosts");
    assert_eq!(hosts.source().as_ref().unwrap().to_str(), Some("/run/hull/shared/c1/mounts/0"));
    assert_eq!((hosts.typ().as_deref(), hosts.options().as_ref().unwrap().len()), (Some("bind"), 3));
    assert_eq!(mount(&translated, "/config").source().as_ref().unwrap().to_str(), Some("/run/hull/shared/c1/mounts/1"));
    let binds = [("/var/lib/kubelet/hosts", true, false), ("/volumes/config", false, true)];
    let binds = binds.map(|(source, recursive, read_only)| BindMount { source: source.into(), recursive, read_only });
    assert_eq!(translated.binds, binds);
    assert!(translated.read_only);
    // What the kernel makes stays as it is.
    assert_eq!(mount(&translated, "/proc").options().as_deref(), Some(&["nosuid".to_owned()][..]));
    assert_eq!(mount(&translated, "/sys/fs/cgroup").typ().as_deref(), Some("cgroup"));
}

#[test]
fn memory_of_a_pod_is_shared_in_the_guest_and_a_volume_is_not_taken_for_it() {
    let pod = translated(|_| ()).unwrap();
    assert_eq!(mount(&pod, "/dev/shm").source().as_ref().unwrap().to_str(), Some("/run/hull/shm"));
    let source = |host: &str| {
        let translated = translated(|spec| spec["mounts"][3]["source"] = host.into()).unwrap();
        mount(&translated, "/dev/shm").source().clone().unwrap()
    };
    for engine in [
        "/dev/shm",
        "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/1f/shm",
        "/var/lib/docker/containers/1f/mounts/shm",
        "/run/containers/storage/overlay-containers/1f/userdata/shm",
    ] {
        assert_eq!(source(engine), Path::new("/run/hull/shm"), "{engine}");
    }
    for volume in [
        "/var/lib/kubelet/volumes/cache",
        "/var/lib/kubelet/pods/1f/volumes/kubernetes.io~empty-dir/shm",
        "/var/lib/kubelet/pods/1f/volumes/kubernetes.io~empty-dir/sandboxes/a/shm",
        "/data/shm",
        "/containers/shm",
        "/shm",
    ] {
        assert_eq!(source(volume), Path::new("/run/hull/shared/c1/mounts/1"), "{volume}");
    }
}

#[test]
fn trees_of_the_machine_are_the_guests_own() {
    let own = translated(bind("/host/sys", "/sys", &["rbind", "ro"])).unwrap();
    assert_eq!(mount(&own, "/host/sys").source().as_ref().unwrap().to_str(), Some("/sys"));
    let cgroup = translated(bind("/cg", "/sys/fs/cgroup", &["rbind", "ro", "rslave"])).unwrap();
    assert_eq!(mount(&cgroup, "/cg").typ().as_deref(), Some("cgroup"));
    assert_eq!(mount(&cgroup, "/cg").options().as_deref(), Some(&["ro".to_owned()][..]));
    assert!(own.binds.len() == 2 && cgroup.binds.len() == 2);
    // A name that only begins alike.
    assert_eq!(translated(bind("/x", "/system", &["rbind"])).unwrap().binds.len(), 3);
}

#[test]
fn the_last_of_contradicting_options_counts() {
    for (options, read_only) in [
        (&["bind", "ro", "rw"][..], false),
        (&["bind", "rw", "ro"], true),
        (&["bind", "rro"], true),
        (&["bind"], false),
    ] {
        let translated = translated(bind("/x", "/y", options)).unwrap();
        assert_eq!(translated.binds.last().unwrap().read_only, read_only, "{options:?}");
    }
}

#[test]
fn namespaces_of_the_host_become_the_guests() {
    let kinds = |translated: &Translated| -> Vec<LinuxNamespaceType> {
        let namespaces = translated.spec.linux().as_ref().unwrap().namespaces().as_ref().unwrap();
        assert!(namespaces.iter().all(|namespace| namespace.path().is_none()));
        namespaces.iter().map(|namespace| namespace.typ()).collect()
    };
    let own = translated(|_| ()).unwrap();
    assert_eq!(kinds(&own), [LinuxNamespaceType::Pid, LinuxNamespaceType::Mount, LinuxNamespaceType::Cgroup]);
    assert!(!own.sandbox_pid_namespace);
    let joined = translated(|spec| spec["linux"]["namespaces"][0]["path"] = "/proc/7/ns/pid".into()).unwrap();
    assert_eq!(kinds(&joined), [LinuxNamespaceType::Mount, LinuxNamespaceType::Cgroup]);
    assert!(joined.sandbox_pid_namespace);
    let user = |spec: &mut Value| spec["linux"]["namespaces"][0] = json!({ "type": "user", "path": "/proc/7/ns/user" });
    assert_eq!(refused(user), "linux.namespaces[0].path");
    assert_eq!(refused(|spec| spec["linux"]["namespaces"] = json!([{ "type": "pid" }])), "linux.namespaces");
}

#[test]
fn what_is_the_hosts_is_taken_out_and_what_protects_stays() {
    let Translated { spec, .. } = translated(|_| ()).unwrap();
    let (linux, process) = (spec.linux().as_ref().unwrap(), spec.process().as_ref().unwrap());
    assert!(spec.hooks().is_none() && spec.annotations().is_none() && spec.root().is_none());
    assert!(linux.cgroups_path().is_none() && linux.mount_label().is_none());
    assert!(process.apparmor_profile().is_none() && process.selinux_label().is_none());
    assert_eq!(process.terminal(), Some(false), "the streams decide");
    assert!(linux.seccomp().is_some() && linux.masked_paths().is_some() && linux.readonly_paths().is_some());
    assert_eq!(linux.sysctl().as_ref().unwrap().len(), 1);
    assert_eq!(process.rlimits().as_ref().unwrap().len(), 1);
    assert_eq!(linux.devices().as_ref().unwrap().len(), 2);
}

#[test]
fn block_devices_get_the_numbers_and_rights_of_the_guest() {
    let devices = json!([
        { "path": "/dev/null", "type": "c", "major": 1, "minor": 3 },
        { "path": "/dev/disk", "type": "b", "major": 7, "minor": 0, "fileMode": 432, "uid": 5, "gid": 6 },
        { "path": "/dev/once/more", "type": "b", "major": 7, "minor": 0 },
        { "path": "/dev/read", "type": "b", "major": 7, "minor": 1 },
        { "path": "/dev/nothing", "type": "b", "major": 254, "minor": 16 },
    ]);
    let rules = json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" },
        { "allow": true, "type": "b", "major": 7, "access": "rw" },
        { "allow": false, "type": "b", "major": 7, "minor": 1, "access": "w" },
        // Of a device that the container is not given: in the guest it is one of those above.
        { "allow": true, "type": "b", "major": 254, "minor": 0, "access": "rwm" },
    ]);
    let mut translated = translated(|spec| {
        spec["linux"]["devices"] = devices;
        spec["linux"]["resources"]["devices"] = rules;
    })
    .unwrap();
    let read_only: Vec<_> = translated.block_devices.iter().map(BlockDevice::is_read_only).collect();
    assert_eq!(read_only, [false, false, true, true]);
    let guest = |minor| crate::block_devices::DeviceNumber { major: 254, minor };
    let plugged: Vec<_> =
        translated.block_devices.into_iter().zip([guest(0), guest(0), guest(16), guest(32)]).collect();
    devices::renumber(&mut translated.spec, &plugged).unwrap();
    let linux = serde_json::to_value(translated.spec.linux().as_ref().unwrap()).unwrap();
    let numbers =
        |value: &Value| (value["path"].as_str().map(String::from), value["major"].as_i64(), value["minor"].as_i64());
    let of = |path: &str, major, minor| (Some(path.to_owned()), Some(major), Some(minor));
    assert_eq!(
        linux["devices"].as_array().unwrap().iter().map(numbers).collect::<Vec<_>>(),
        [
            of("/dev/null", 1, 3),
            of("/dev/disk", 254, 0),
            of("/dev/once/more", 254, 0),
            of("/dev/read", 254, 16),
            of("/dev/nothing", 254, 32),
        ]
    );
    assert_eq!((&linux["devices"][1]["fileMode"], &linux["devices"][1]["uid"]), (&json!(432), &json!(5)));
    let rule = |value: &Value| {
        let number = |name: &str| value[name].as_i64().unwrap_or(-1);
        (
            value["allow"].as_bool().unwrap(),
            number("major"),
            number("minor"),
            value["access"].as_str().unwrap().to_owned(),
        )
    };
    let of = |allow: bool, major, minor, access: &str| (allow, major, minor, access.to_owned());
    assert_eq!(
        linux["resources"]["devices"].as_array().unwrap().iter().map(rule).collect::<Vec<_>>(),
        [
            of(false, -1, -1, "rwm"),
            of(true, 1, 3, "rwm"),
            of(true, 254, 0, "rw"),
            of(true, 254, 0, "rw"),
            of(true, 254, 16, "r"),
        ]
    );
}

#[test]
fn limits_keep_what_a_guest_has() {
    let Translated { spec, .. } = translated(|_| ()).unwrap();
    let resources = serde_json::to_value(spec.linux().as_ref().unwrap().resources()).unwrap();
    let expected = json!({
        "memory": { "limit": 64, "swap": 64 },
        "cpu": { "shares": 512, "quota": 1000, "period": 10000 },
        "blockIO": { "weight": 100 },
        "hugepageLimits": [{ "pageSize": "2MB", "limit": 4 }],
        "pids": { "limit": 9 },
    });
    for key in ["memory", "cpu", "blockIO", "hugepageLimits", "pids"] {
        assert_eq!(resources[key], expected[key], "{key}");
    }
}

#[test]
fn a_privileged_container_has_the_devices_of_the_guest_and_those_that_a_rule_names() {
    let devices = json!([{ "path": "/dev/sda", "type": "b", "major": 8, "minor": 0 },
        { "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229 },
        { "path": "/dev/kvm", "type": "c", "major": 10, "minor": 232 },
        { "path": "/dev/sdb", "type": "b", "major": 8, "minor": 16 }]);
    let with_rules = |rules: Value| {
        translated(|spec| {
            spec["linux"]["devices"] = devices.clone();
            spec["linux"]["resources"]["devices"] = rules;
        })
    };
    let paths = |translated: &Translated| {
        let devices = translated.spec.linux().as_ref().unwrap().devices().clone().unwrap();
        devices.iter().map(|device| device.path().display().to_string()).collect::<Vec<_>>()
    };
    let deny = json!({ "allow": false, "access": "rwm" });
    let [all, all_by_number] =
        [json!({ "allow": true, "access": "rwm" }), json!({ "allow": true, "type": "a", "major": -1, "minor": -1 })];
    let disk = json!({ "allow": true, "type": "b", "major": 8, "minor": 16, "access": "rw" });
    for all in [&all, &all_by_number] {
        let translated = with_rules(json!([deny, all])).unwrap();
        assert_eq!((paths(&translated), translated.block_devices.len()), (vec!["/dev/fuse".into()], 0), "{all}");
    }
    let translated = with_rules(json!([all, disk])).unwrap();
    assert_eq!((paths(&translated), translated.block_devices.len()), (vec!["/dev/fuse".into(), "/dev/sdb".into()], 1));
    // Not everything is allowed: the container is no privileged one.
    for some in
        [json!({ "allow": true, "type": "c", "access": "rwm" }), json!({ "allow": true, "major": 8, "minor": 0 })]
    {
        assert_eq!(with_rules(json!([deny, some])).unwrap_err().field, "linux.devices[2]");
    }
}

#[test]
fn an_error_names_the_field() {
    let kvm = json!([{ "path": "/dev/null", "type": "c", "major": 1, "minor": 3 },
        { "path": "/dev/kvm", "type": "c", "major": 10, "minor": 232 }]);
    let error = translated(|spec| spec["linux"]["devices"] = kvm).unwrap_err();
    assert_eq!(
        error.to_string(),
        "linux.devices[1]: the guest doesn't have the device /dev/kvm (c 10:232) of the host"
    );
    let block =
        |path: &str, major: i64, minor: i64| json!({ "path": path, "type": "b", "major": major, "minor": minor });
    for (device, reason) in [
        (block("mnt/disk", 7, 0), "mnt/disk (b 7:0) is not an absolute path"),
        (block("/dev/x", -1, 0), "/dev/x (b -1:0) has a number that no device has"),
        (block("/dev/x", 7, 1 << 20), "/dev/x (b 7:1048576) has a number that no device has"),
    ] {
        let error = translated(|spec| spec["linux"]["devices"] = json!([device])).unwrap_err();
        assert_eq!(error.to_string(), format!("linux.devices[0]: {reason}"));
    }
    let many: Vec<_> = (0..17).map(|minor| block("/dev/x", 7, minor)).collect();
    let error = translated(|spec| spec["linux"]["devices"] = many.into()).unwrap_err();
    assert_eq!(error.to_string(), "linux.devices: has 17 block devices; at most 16 are possible");
    assert_eq!(refused(|spec| drop(spec.as_object_mut().unwrap().remove("linux"))), "linux");
    assert_eq!(refused(|spec| drop(spec.as_object_mut().unwrap().remove("process"))), "process");
    assert_eq!(refused(|spec| spec["mounts"][0]["destination"] = "proc".into()), "mounts[0].destination");
    assert_eq!(refused(|spec| spec["mounts"][0]["type"] = "nfs".into()), "mounts[0].type");
    assert_eq!(refused(|spec| spec["mounts"][2]["source"] = "/a/../b".into()), "mounts[2].source");
    assert_eq!(refused(|spec| spec["mounts"][2]["source"] = "relative".into()), "mounts[2].source");
    assert_eq!(refused(|spec| drop(spec["mounts"][2].as_object_mut().unwrap().remove("source"))), "mounts[2].source");
    let mapped = json!([{ "containerID": 0, "hostID": 1, "size": 1 }]);
    assert_eq!(refused(|spec| spec["mounts"][2]["uidMappings"] = mapped), "mounts[2].uidMappings");
    let many = vec![json!({ "destination": "/x", "type": "tmpfs" }); 2000];
    assert_eq!(refused(|spec| spec["mounts"] = many.into()), "mounts");
    for id in ["", "../x", "a/b", ".a", "a b", &"x".repeat(129)] {
        assert_eq!(translate(id, spec(|_| ()), false).unwrap_err().field, "id", "{id:?}");
    }
}

proptest! {
    #[test]
    fn no_mount_leads_out_of_the_shared_directory(source in "[a-z./]{0,20}", destination in "/[a-z./]{0,20}", option in "(r?bind|ro|rw)") {
        let mount = json!({ "destination": destination, "type": "bind", "source": source, "options": [option] });
        if let Ok(translated) = translated(add_mount(mount)) {
            prop_assert!(translated.binds.iter().all(|bind| bind.source.is_absolute()));
            prop_assert!(translated.binds.iter().all(|bind| !bind.source.to_str().unwrap().split('/').any(|part| part == "..")));
        }
    }
}
