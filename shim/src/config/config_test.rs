use std::collections::HashMap;
use std::fs;

use protobuf::well_known_types::any::Any;

use super::*;
use crate::error::one_line;

const EXAMPLE: &str = include_str!("../../config.toml.example");

fn from(text: &str) -> Result<Config, ConfigError> {
    Config::default().with_text(text, "F")
}

fn refused(text: &str) -> String {
    from(text).unwrap_err().to_string()
}

fn annotated(config: &str, annotations: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let annotations: HashMap<_, _> =
        annotations.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    let mut spec = Spec::default();
    spec.set_annotations(Some(annotations));
    from(config).unwrap().for_spec(&spec)
}

#[test]
fn the_example_has_every_key_with_its_default() {
    let settings: Vec<_> = EXAMPLE.lines().filter(|line| !line.starts_with("# ") && *line != "#").collect();
    let uncommented: String =
        settings.iter().map(|line| format!("{}\n", line.strip_prefix('#').unwrap_or(line))).collect();
    assert_eq!(from(&uncommented).unwrap(), Config::default());
    let named: toml::Table = uncommented.parse().unwrap();
    let all = toml::Table::try_from(Config::default()).unwrap();
    assert_eq!(named.keys().collect::<Vec<_>>(), all.keys().collect::<Vec<_>>());
    // As it is installed it changes nothing.
    assert_eq!(from(EXAMPLE).unwrap(), Config::default());
}

#[test]
fn what_is_wrong_is_told_with_place_key_and_reason() {
    assert_eq!(refused("vcpu = 1"), "F: vcpu: There is no such key");
    assert_eq!(refused("default_vcpus = 0"), "F: default_vcpus: 0 is not from 1 to 64");
    assert_eq!(refused("max_vcpus = 65"), "F: max_vcpus: 65 is not from 0 to 64");
    assert_eq!(refused("default_memory_mib = 39"), "F: default_memory_mib: 39 is not from 40 to 1048576");
    assert_eq!(refused("max_memory_mib = 1048577"), "F: max_memory_mib: 1048577 is not from 0 to 1048576");
    assert_eq!(refused("overhead_mib = 0"), "F: overhead_mib: 0 is not from 40 to 65536");
    assert_eq!(refused("shm_size_mib = 1048577"), "F: shm_size_mib: 1048577 is not from 0 to 1048576");
    assert_eq!(refused("boot_timeout_s = 0"), "F: boot_timeout_s: 0 is not from 1 to 3600");
    assert_eq!(refused("kernel = 'vmlinux'"), "F: kernel: vmlinux is not an absolute path");
    assert_eq!(refused("monitor = '/nowhere/hull-vmm'"), "F: monitor: /nowhere/hull-vmm is no file");
    assert_eq!(refused("runtime_dir = 'run'"), "F: runtime_dir: run is not an absolute path");
    for (text, key) in [
        ("default_vcpus = 300", "default_vcpus"),
        ("default_vcpus = -1", "default_vcpus"),
        ("watchdog = 'yes'", "watchdog"),
        ("log_level = 'loud'", "log_level"),
        ("sandbox_cgroup = 'some'", "sandbox_cgroup"),
        ("enable_annotations = ['kernel']", "enable_annotations[0]"),
    ] {
        let reason = refused(text);
        assert!(reason.starts_with(&format!("F: {key}: ")) && !reason.contains('\n'), "{reason}");
    }
    let syntax = refused("watchdog = true\nkernel = /boot\n");
    assert!(syntax.starts_with("F, line 2: ") && !syntax.contains('\n'), "{syntax}");
}

#[test]
fn a_file_that_is_named_has_to_be_there_and_a_layer_over_it_counts_more() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    let options = RuntimeOptions { config_path: Some(path.clone()), ..Default::default() };
    let missing = one_line(&Config::load(&options).unwrap_err());
    assert!(missing.starts_with(path.to_str().unwrap()), "{missing}");

    fs::write(&path, "default_vcpus = 2\noverhead_mib = 80\n").unwrap();
    assert_eq!(Config::load(&options).unwrap(), Config { default_vcpus: 2, overhead_mib: 80, ..Config::default() });
    let both = |body: &str| Config::load(&RuntimeOptions { config_body: body.into(), ..options.clone() });
    assert_eq!(both("default_vcpus = 3").unwrap(), Config { default_vcpus: 3, overhead_mib: 80, ..Config::default() });
    let wrong = both("default_vcpus = 99").unwrap_err().to_string();
    assert!(wrong.contains("containerd") && wrong.contains("default_vcpus"), "{wrong}");

    fs::write(&path, "# ".repeat(40_000)).unwrap();
    assert!(matches!(Config::load(&options), Err(ConfigError::Read { .. })));
}

#[test]
fn runtime_options_of_containerd_are_understood_and_those_of_runc_say_nothing() {
    let value = b"\x0a\x03abc\x12\x06/a.txt\x1a\x0cwatchdog = 1".to_vec();
    let any =
        |type_url: &str, value: &[u8]| Any { type_url: type_url.into(), value: value.into(), ..Default::default() };
    let wanted = RuntimeOptions { config_path: Some("/a.txt".into()), config_body: "watchdog = 1".into() };
    for type_url in ["runtimeoptions.v1.Options", "containerd.runtimeoptions.v1.Options"] {
        assert_eq!(RuntimeOptions::from_any(Some(&any(type_url, &value))).unwrap(), wanted);
    }
    let nothing = RuntimeOptions::default();
    assert_eq!(RuntimeOptions::from_any(Some(&any("containerd.runc.v1.Options", &value))).unwrap(), nothing);
    assert_eq!(RuntimeOptions::from_any(None).unwrap(), nothing);
    assert_eq!(RuntimeOptions::from_any(Some(&any("runtimeoptions.v1.Options", b"\x12\x00"))).unwrap(), nothing);
    let broken = any("runtimeoptions.v1.Options", b"\x12\x7fshort");
    assert!(matches!(RuntimeOptions::from_any(Some(&broken)), Err(ConfigError::Options(_))));
}

#[test]
fn an_annotation_sets_what_the_host_allows_and_nothing_else() {
    let allowed = "enable_annotations = ['default_vcpus', 'watchdog']";
    let config = annotated(allowed, &[("io.hull.default_vcpus", "4"), ("io.hull.watchdog", "true"), ("other", "x")]);
    let config = config.unwrap();
    assert_eq!((config.default_vcpus, config.watchdog), (4, true));

    let refused = |config: &str, name: &str, value: &str| {
        let text = annotated(config, &[(name, value)]).unwrap_err().to_string();
        assert!(text.starts_with(&format!("Annotation {name}: ")) && !text.contains('\n'), "{text}");
        text
    };
    assert!(refused(allowed, "io.hull.default_memory_mib", "64").contains("enable_annotations"));
    assert!(refused("", "io.hull.watchdog", "true").contains("enable_annotations"));
    refused(allowed, "io.hull.kernel", "/etc/passwd");
    refused(allowed, "io.hull.no-such-key", "1");
    refused(allowed, "io.hull.default_vcpus", "many");
    refused(allowed, "io.hull.default_vcpus", "true");
    refused(allowed, "io.hull.default_vcpus", "65");
    // Nobody allows himself more.
    refused(allowed, "io.hull.enable_annotations", "1");
}

#[test]
fn every_key_that_annotations_can_set_exists() {
    let keys =
        "default_vcpus max_vcpus default_memory_mib max_memory_mib overhead_mib shm_size_mib watchdog boot_timeout_s";
    for key in keys.split(' ') {
        let (value, wanted) = if key == "watchdog" { ("true", true.into()) } else { ("60", toml::Value::from(60)) };
        let config = format!("enable_annotations = ['{key}']");
        let set = annotated(&config, &[(&format!("io.hull.{key}"), value)]).unwrap();
        assert_eq!(toml::Table::try_from(&set).unwrap()[key], wanted);
    }
}
