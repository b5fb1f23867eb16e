//! Hull's configuration: the file that containerd's runtime options name, and annotations.

use std::fs;

use super::harness::{Containerd, HULL};

#[test]
fn a_configuration_file_and_annotations_size_the_vm_and_what_is_wrong_is_told() {
    let containerd = Containerd::start();
    let file = containerd.path("hull.toml");
    let path = file.to_str().unwrap();
    let run = |config: &str, flags: &[&str]| {
        fs::write(&file, config).unwrap();
        let flags: Vec<_> = ["--runtime-config-path", path].iter().chain(flags).copied().collect();
        containerd.run(HULL, &flags, &["sh", "-c", "awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo"])
    };
    let memory = |config: &str, flags: &[&str]| run(config, flags).ok().trim().parse::<u32>().unwrap();
    // The guest's kernel takes its part of what the VM has.
    let default_mib = memory("", &[]);
    assert!((400..512).contains(&default_mib), "{default_mib}");
    let small_mib = memory("default_memory_mib = 200\n", &[]);
    assert!((120..200).contains(&small_mib), "{small_mib}");
    let allowed = "default_memory_mib = 200\nenable_annotations = [\"default_memory_mib\"]\n";
    let larger_mib = memory(allowed, &["--annotation", "io.hull.default_memory_mib=300"]);
    assert!((220..300).contains(&larger_mib), "{larger_mib}");

    let refused = |config: &str, flags: &[&str], words: &[&str]| {
        let run = run(config, flags);
        assert_ne!(run.code, Some(0), "{run:?}");
        assert!(words.iter().all(|word| run.stderr.contains(word)), "{words:?}: {run:?}");
        assert_eq!(run.stderr.trim().lines().count(), 1, "{run:?}");
    };
    refused("memory = 200\n", &[], &[path, "memory", "no such key"]);
    refused("default_memory_mib = 1\n", &[], &[path, "default_memory_mib", "1 is not from 40"]);
    refused("", &["--annotation", "io.hull.watchdog=true"], &["io.hull.watchdog", "enable_annotations"]);
    fs::remove_file(&file).unwrap();
    let missing = containerd.run(HULL, &["--runtime-config-path", path], &["true"]);
    assert!(missing.stderr.contains(path) && missing.stderr.contains("No such file"), "{missing:?}");
}
