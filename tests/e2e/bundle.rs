//! Bundles of the host, as a containerd shim runs them.

use std::fs;
use std::time::Duration;

use hull_sandbox::{
    BundleRoot, ConfigureNetworkRequest, ContainerStatus, IpNetwork, Neighbour, NetworkInterface, RootMount, Route,
    SandboxError, SandboxSettings,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::bundle_harness::{Pod, add_mounts, bind, block_on, finish, line};

#[test]
fn a_bundle_runs_on_the_hosts_files() {
    block_on(async {
        let pod = Pod::start().await;
        let (volume, config) = (pod.directory("volume"), pod.directory("config"));
        fs::write(volume.join("in"), "from the host").unwrap();
        fs::write(config.join("file"), "settings").unwrap();
        fs::create_dir(volume.join("sub")).unwrap();
        mount(Some("sub"), &volume.join("sub"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::write(volume.join("sub/below"), "below").unwrap();
        let image = pod.host("image");
        let options = [
            format!("lowerdir={}", image.display()),
            format!("upperdir={}", pod.directory("upper").display()),
            format!("workdir={}", pod.directory("work").display()),
        ];
        let overlay = RootMount { fs_type: "overlay".into(), source: "overlay".into(), options: options.into() };

        let script = "cat /data/in /data/sub/below /etc/one; echo; echo new > /new; rm /bin/wc; echo out > /data/out
            echo x > /config/file || echo refused; echo x > /etc/one || echo refused; stat -c %u:%a /dev/null; pwd";
        let mounts = add_mounts(vec![
            bind(&volume, "/data", &["rbind", "rprivate", "rw"]),
            bind(&config, "/config", &["rbind", "ro"]),
            bind(&config.join("file"), "/etc/one", &["bind", "ro"]),
        ]);
        let change = |spec: &mut Value| {
            mounts(spec);
            spec["process"]["args"][2] = format!("{{ {script}\n}} 2>/dev/null").into();
            spec["process"]["cwd"] = "/made/for/it".into();
        };
        let root = BundleRoot::Mounts(vec![overlay]);
        let (container, streams) = pod.create_from("c1", root, script, change).await.unwrap();
        let output = finish(&container, streams).await;
        assert_eq!(output, "from the hostbelowsettings\nrefused\nrefused\n0:666\n/made/for/it\n");
        assert_eq!(fs::read_to_string(pod.host("upper/new")).unwrap(), "new\n");
        assert_eq!(fs::read_to_string(volume.join("out")).unwrap(), "out\n");
        assert!(image.join("bin/wc").exists() && !image.join("new").exists());
        assert_eq!(fs::read_to_string(config.join("file")).unwrap(), "settings");

        // Nothing of the container is left on the host while the VM goes on; the guest has let go of the volume.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains("/c1"), "{mounts}");
        let unmounted = || umount2(&volume.join("sub"), MntFlags::empty());
        for _ in 0..600 {
            if unmounted().is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(!volume.join("sub/below").exists(), "the guest keeps the volume in use");
        // The same name again, read-only this time.
        let read_only = |spec: &mut Value| spec["root"]["readonly"] = true.into();
        assert_eq!(pod.run("c1", "touch /x 2>/dev/null || echo refused", read_only).await, "refused\n");
        assert!(!image.join("x").exists());
        pod.end().await;
    });
}

#[test]
fn changes_of_the_host_are_seen() {
    block_on(async {
        let pod = Pod::start().await;
        let volume = pod.directory("volume");
        fs::write(volume.join("file"), "one").unwrap();
        // As Kubernetes replaces a configuration: the directory stays, the file is another.
        let script = "cat /data/file; echo
            while [ \"$(cat /data/file)\" = one ] || ! [ -e /data/late/go ]; do usleep 100000; done; cat /data/file";
        let mounts = add_mounts(vec![bind(&volume, "/data", &["rbind", "rslave", "ro"])]);
        let (container, mut streams) = pod.create("c", script, mounts).await.unwrap();
        container.start().await.unwrap();
        assert_eq!(line(&mut streams).await, "one");
        fs::write(volume.join("new"), "two").unwrap();
        fs::rename(volume.join("new"), volume.join("file")).unwrap();
        // A mount that comes later.
        fs::create_dir(volume.join("late")).unwrap();
        mount(Some("late"), &volume.join("late"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::write(volume.join("late/go"), "").unwrap();
        assert_eq!(line(&mut streams).await, "two");
        container.process().wait().await.unwrap();
        container.delete(false).await.unwrap();
        umount2(&volume.join("late"), MntFlags::MNT_DETACH).unwrap();
        pod.end().await;
    });
}

#[test]
fn containers_of_a_pod_share_what_the_host_says() {
    block_on(async {
        let pod = Pod::start().await;
        let sysctls = [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into();
        let settings = SandboxSettings { hostname: "pod-1".into(), sysctls, shm_size_bytes: 1 << 20 };
        pod.sandbox.configure(settings).await.unwrap();
        let shared = |spec: &mut Value| {
            spec["linux"]["namespaces"][0]["path"] = "/proc/1/ns/pid".into();
            let shm = json!({ "destination": "/dev/shm", "type": "bind", "source": "/run/sandboxes/x/shm", "options": ["rbind", "rw"] });
            spec["mounts"].as_array_mut().unwrap().push(shm);
        };
        let (first, mut streams) =
            pod.create("first", "echo hello > /dev/shm/f; echo up; exec sleep 1234", shared).await.unwrap();
        first.start().await.unwrap();
        assert_eq!(line(&mut streams).await, "up");
        let script = "hostname; cat /proc/sys/net/ipv4/ip_forward /dev/shm/f; ps | { while read -r l; do case $l in *1234) echo \"$l\";; esac; done; }
            dd if=/dev/zero of=/dev/shm/big bs=1M count=2 2>/dev/null || echo full; kill -9 1 2>/dev/null; cat /proc/1/comm";
        let output = pod.run("second", script, shared).await;
        let lines: Vec<_> = output.lines().collect();
        assert_eq!((lines[0], lines[1], lines[2], lines[4]), ("pod-1", "1", "hello", "full"), "{output}");
        assert!(lines[3].ends_with("sleep 1234"), "the other container's process is seen: {output}");
        // A container with a namespace of its own sees nothing of it, and is its first process.
        assert_eq!(pod.run("alone", "echo $$; ls -d /proc/[0-9]* | wc -l", |_| ()).await.lines().next(), Some("1"));
        first.process().signal(9, false).await.unwrap();
        assert_eq!(first.process().wait().await.unwrap().signal, 9);
        first.delete(false).await.unwrap();
        // The last has gone, and the namespace with it; the next one makes another.
        assert!(pod.run("third", "ps", shared).await.lines().count() < 6);
        pod.end().await;
    });
}

#[test]
fn the_first_process_of_a_shared_pid_namespace_is_no_way_out() {
    block_on(async {
        let pod = Pod::start().await;
        let traces = |spec: &mut Value| {
            spec["linux"]["namespaces"][0]["path"] = "/proc/1/ns/pid".into();
            for set in ["bounding", "effective", "permitted"] {
                spec["process"]["capabilities"][set] = json!(["CAP_SYS_PTRACE", "CAP_KILL"]);
            }
        };
        let script = "kill -34 1; usleep 200000; ls -a /proc/1/root/ /proc/1/cwd/
            while read -r name value; do case $name in Cap*) echo \"$name $value\";; esac; done < /proc/1/status
            echo up; exec sleep 1234";
        let (container, mut streams) = pod.create("c", script, traces).await.unwrap();
        container.start().await.unwrap();
        let mut seen = Vec::new();
        while seen.last().is_none_or(|last| last != "up") && seen.len() < 100 {
            seen.push(line(&mut streams).await);
        }
        seen.retain(|line| !matches!(line.as_str(), "." | ".." | ""));
        let capabilities = ["Inh", "Prm", "Eff", "Bnd", "Amb"].map(|set| format!("Cap{set}: 0000000000000000"));
        let expected = ["/proc/1/cwd/:", "/proc/1/root/:"].map(String::from).into_iter().chain(capabilities);
        assert_eq!(seen, expected.chain(["up".to_owned()]).collect::<Vec<_>>());

        let process = json!({ "args": ["true"], "cwd": "/proc/1/root", "user": { "uid": 0, "gid": 0 } }).to_string();
        let io = hull_sandbox::ProcessIo { stdin: false, terminal: None };
        let refused = container.exec("e", process, "", io).await.err().unwrap();
        assert!(refused.to_string().contains("not in the container"), "{refused}");
        let outside = |spec: &mut Value| {
            traces(spec);
            spec["process"]["cwd"] = "/proc/1/root".into();
        };
        let refused = pod.create("outside", "true", outside).await.err().unwrap();
        assert!(refused.to_string().contains("not in the container"), "{refused}");
        container.process().signal(9, false).await.unwrap();
        container.process().wait().await.unwrap();
        container.delete(false).await.unwrap();
        pod.end().await;
    });
}

#[test]
fn a_filter_without_new_privileges_need_not_allow_what_the_runtime_does() {
    block_on(async {
        let pod = Pod::start().await;
        let change = |spec: &mut Value| {
            spec["process"]["noNewPrivileges"] = true.into();
            let refused = json!({ "names": ["capset", "prctl", "mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" });
            spec["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [refused] });
        };
        assert_eq!(pod.run("c", "mkdir /tmp/x 2>/dev/null || echo refused", change).await, "refused\n");
        pod.end().await;
    });
}

#[test]
fn a_working_directory_below_a_mount_is_made() {
    block_on(async {
        let pod = Pod::start().await;
        let volume = pod.directory("volume");
        let mounts = add_mounts(vec![bind(&volume, "/data", &["rbind", "rprivate", "rw"])]);
        let change = |spec: &mut Value| {
            mounts(spec);
            spec["process"]["cwd"] = "/data/none/../made/here".into();
            spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        };
        assert_eq!(pod.run("c", "pwd; stat -c %u:%g:%a . ..", change).await, "/data/made/here\n0:0:755\n0:0:755\n");
        assert!(volume.join("made/here").is_dir() && !volume.join("none").exists());
        pod.end().await;
    });
}

#[test]
fn a_container_is_paused_and_limited() {
    block_on(async {
        let pod = Pod::start().await;
        let volume = pod.directory("volume");
        let script = "n=0; while :; do n=$((n+1)); echo $n > /data/new; mv /data/new /data/count; done";
        let mounts = add_mounts(vec![bind(&volume, "/data", &["rbind", "rw"])]);
        let (container, _streams) = pod.create("c", script, mounts).await.unwrap();
        assert!(container.pause().await.is_err(), "it isn't started yet");
        container.start().await.unwrap();
        let count = || fs::read_to_string(volume.join("count")).ok()?.trim().parse::<u64>().ok();
        let more_than = async |before: u64| {
            for _ in 0..1200 {
                if count().is_some_and(|now| now > before) {
                    return true;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            false
        };
        assert!(more_than(0).await);
        container.pause().await.unwrap();
        assert_eq!(container.state().await.unwrap().status, ContainerStatus::Paused);
        let before = count();
        // However long it takes: nothing runs.
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(count(), before);
        let process = json!({ "args": ["true"], "cwd": "/", "user": { "uid": 0, "gid": 0 } }).to_string();
        let io = hull_sandbox::ProcessIo { stdin: false, terminal: None };
        let refused = container.exec("e", process, "", io).await.err().unwrap();
        assert!(refused.to_string().contains("paused"), "{refused}");
        assert!(container.pause().await.is_err());
        container.resume().await.unwrap();
        assert!(container.resume().await.is_err());
        assert!(more_than(before.unwrap_or(0)).await);

        let limits = json!({ "memory": { "limit": 33554432 }, "cpu": { "quota": 50000, "shares": 512, "cpus": "7" }, "pids": { "limit": 50 } });
        container.update(&serde_json::from_value(limits).unwrap()).await.unwrap();
        let stats = container.stats().await.unwrap();
        assert_eq!((stats.memory_limit_bytes, stats.pids_limit), (32 << 20, 50));
        assert!(stats.memory_stat.contains_key("anon") && stats.cpu_stat.contains_key("usage_usec"));
        let nonsense = json!({ "memory": { "limit": 16777216 }, "cpu": { "quota": 5 } });
        assert!(container.update(&serde_json::from_value(nonsense).unwrap()).await.is_err());
        assert_eq!(container.stats().await.unwrap().memory_limit_bytes, 32 << 20, "all or none");
        assert!(container.pids().await.unwrap().contains(&container.state().await.unwrap().pid));

        // A paused container can be killed.
        container.pause().await.unwrap();
        container.process().signal(9, true).await.unwrap();
        assert_eq!(container.process().wait().await.unwrap().signal, 9);
        assert_eq!(container.state().await.unwrap().status, ContainerStatus::Stopped);
        container.delete(false).await.unwrap();
        pod.end().await;
    });
}

#[test]
fn a_kill_for_want_of_memory_is_told_when_it_happens() {
    block_on(async {
        let pod = Pod::start().await;
        // The shell outlives the process that is killed.
        let script = "while ! [ -e /go ]; do usleep 50000; done; dd if=/dev/zero of=/dev/null bs=120M count=1; echo ended; exec sleep 600";
        let limit = |spec: &mut Value| {
            spec["linux"]["resources"] = json!({ "memory": { "limit": 50331648 } });
            spec["process"]["args"][2] = format!("exec 2>/dev/null; {script}").into();
        };
        let (container, _streams) = pod.create("c", script, limit).await.unwrap();
        container.start().await.unwrap();
        let told = async { container.wait_oom(0).await.unwrap() };
        let go = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            fs::write(pod.host("image/go"), "").unwrap();
        };
        let (kills, ()) = tokio::join!(told, go);
        assert_eq!(kills, 1);
        let stats = container.stats().await.unwrap();
        assert_eq!(stats.memory_events.get("oom_kill"), Some(&1));
        // Whoever waits for the next one learns that the container is gone.
        let gone = async { container.wait_oom(kills).await.err().unwrap().to_string() };
        let delete = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            container.delete(true).await.unwrap();
        };
        let (gone, ()) = tokio::join!(gone, delete);
        assert!(gone.contains("no container"), "{gone}");
        pod.end().await;
    });
}

fn network(text: &str) -> IpNetwork {
    let (address, length) = text.split_once('/').unwrap();
    IpNetwork { address: address.into(), prefix_length: length.parse().unwrap(), ..Default::default() }
}

#[test]
fn the_network_of_a_pod_is_the_guests() {
    block_on(async {
        let pod = Pod::start().await;
        let mac = "52:54:00:ab:cd:ef";
        let interface = json!({ "iface_id": "n", "host_dev_name": "hullbundle0", "guest_mac": mac });
        pod.sandbox.machine().plug_network(serde_json::from_value(interface).unwrap()).await.unwrap();
        let mut request = ConfigureNetworkRequest {
            interfaces: vec![NetworkInterface {
                hardware_address: mac.into(),
                name: "pod0".into(),
                mtu: 1400,
                addresses: vec![network("10.88.0.5/24"), network("fd00:88::5/64")],
                ..Default::default()
            }],
            routes: vec![
                Route { gateway: "169.254.1.1".into(), interface: "pod0".into(), ..Default::default() },
                Route {
                    destination: Some(network("169.254.1.1/32")).into(),
                    interface: "pod0".into(),
                    ..Default::default()
                },
                Route { gateway: "fd00:88::1".into(), interface: "pod0".into(), ..Default::default() },
            ],
            neighbours: vec![Neighbour {
                address: "169.254.1.1".into(),
                hardware_address: "ee:ee:ee:ee:ee:ee".into(),
                interface: "pod0".into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        pod.sandbox.configure_network(request.clone()).await.unwrap();
        let script = "ip -o addr; ip route; ip -6 route; ip neigh; ip -o link";
        let seen = pod.run("c", script, |_| ()).await;
        for expected in [
            "127.0.0.1/8",
            "10.88.0.5/24",
            "fd00:88::5/64",
            "default via 169.254.1.1 dev pod0",
            "default via fd00:88::1 dev pod0",
            "169.254.1.1 dev pod0 lladdr ee:ee:ee:ee:ee:ee",
            "mtu 1400",
        ] {
            assert!(seen.contains(expected), "{expected}: {seen}");
        }
        let ours = |line: &&str| line.contains("fd00:88::5/64");
        assert!(!seen.lines().find(ours).unwrap().contains("tentative"), "{seen}");
        request.interfaces[0].addresses = vec![network("10.88.0.6/24")];
        request.routes.clear();
        request.neighbours.clear();
        pod.sandbox.configure_network(request).await.unwrap();
        let seen = pod.run("c", script, |_| ()).await;
        assert!(seen.contains("10.88.0.6/24") && !seen.contains("10.88.0.5") && !seen.contains("default"), "{seen}");
        pod.end().await;
    });
}

#[test]
fn what_a_guest_can_not_have_is_refused_and_nothing_is_left() {
    block_on(async {
        let pod = Pod::start().await;
        let missing = add_mounts(vec![bind(&pod.host("none"), "/x", &["rbind"])]);
        let Err(error) = pod.create("c", "true", missing).await else { panic!("it has no source") };
        assert!(matches!(&error, SandboxError::SharedDir(_)) && error.to_string().contains("none"), "{error}");
        let device = |spec: &mut Value| {
            spec["linux"]["devices"] = json!([{ "path": "/dev/kvm", "type": "c", "major": 10, "minor": 232 }]);
        };
        let Err(error) = pod.create("c", "true", device).await else { panic!("it has no such device") };
        assert_eq!(
            error.to_string(),
            "linux.devices[0]: the guest doesn't have the device /dev/kvm (c 10:232) of the host"
        );
        // The guest refuses: what the host has mounted goes.
        let Err(error) = pod.create("c", "true", |spec| spec["process"]["args"] = json!(["nothing"])).await else {
            panic!("it has no such command")
        };
        assert!(error.to_string().contains("nothing"), "{error}");
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains("/c/rootfs"), "{mounts}");
        assert_eq!(pod.run("c", "echo fine", |_| ()).await, "fine\n");
        pod.end().await;
    });
}
