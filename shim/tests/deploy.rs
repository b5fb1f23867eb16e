//! What `deploy/` and the documentation tell people to use: each file and each example can be read, and they fit together.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests stop at the first surprise")]

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use serde_yaml_ng::{Deserializer, Value};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn documents(yaml: &str) -> Vec<Value> {
    Deserializer::from_str(yaml).map(|document| Value::deserialize(document).unwrap()).collect()
}

/// The only document of that kind.
fn object(path: &str, kind: &str) -> Value {
    let of_kind = documents(&read(path)).into_iter().filter(|document| document["kind"] == kind);
    let [object] = of_kind.collect::<Vec<_>>().try_into().unwrap();
    object
}

#[test]
fn every_manifest_is_objects_of_kubernetes() {
    let mut count = 0;
    for entry in fs::read_dir(repository().join("deploy/kubernetes")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            for object in documents(&fs::read_to_string(&path).unwrap()) {
                for field in [&object["apiVersion"], &object["kind"], &object["metadata"]["name"]] {
                    assert!(field.as_str().is_some_and(|text| !text.is_empty()), "{}: {object:?}", path.display());
                }
                count += 1;
            }
        }
    }
    assert!(count >= 7, "{count}");
}

#[test]
fn the_runtime_class_names_the_runtime_of_containerd_and_the_label_of_the_installer() {
    let class = object("deploy/kubernetes/runtimeclass.yaml", "RuntimeClass");
    let handler = class["handler"].as_str().unwrap();
    for (file, version, plugin) in [
        ("deploy/containerd/config-v2.toml", 2, "io.containerd.grpc.v1.cri"),
        ("deploy/containerd/config-v3.toml", 3, "io.containerd.cri.v1.runtime"),
    ] {
        let config: toml::Table = read(file).parse().unwrap();
        assert_eq!(config["version"].as_integer(), Some(version), "{file}");
        let runtime = &config["plugins"][plugin]["containerd"]["runtimes"][handler];
        assert_eq!(runtime["runtime_type"].as_str(), Some("io.containerd.kata.v2"), "{file}");
        assert_eq!(runtime["pod_annotations"][0].as_str(), Some("io.hull.*"), "{file}");
    }
    let pod = object("deploy/kubernetes/example.yaml", "Pod");
    assert_eq!(pod["spec"]["runtimeClassName"], class["metadata"]["name"]);
    let selector = class["scheduling"]["nodeSelector"].as_mapping().unwrap();
    let (label, value) = selector.iter().next().unwrap();
    assert_eq!(value, "true");
    assert!(read("deploy/kubernetes/install.sh").contains(&format!("label={}\n", label.as_str().unwrap())));
}

#[test]
fn the_daemonset_may_do_what_it_does_and_mounts_what_it_needs() {
    let file = "deploy/kubernetes/daemonset.yaml";
    let daemons = object(file, "DaemonSet");
    let pod = &daemons["spec"]["template"];
    assert_eq!(daemons["spec"]["selector"]["matchLabels"], pod["metadata"]["labels"]);
    let account = &object(file, "ServiceAccount")["metadata"];
    assert_eq!(pod["spec"]["serviceAccountName"], account["name"]);
    assert_eq!(daemons["metadata"]["namespace"], account["namespace"]);
    let binding = object(file, "ClusterRoleBinding");
    assert_eq!(binding["subjects"][0]["name"], account["name"]);
    assert_eq!(binding["roleRef"]["name"], object(file, "ClusterRole")["metadata"]["name"]);
    let names = |list: &Value| list.as_sequence().unwrap().iter().map(|item| item["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names(&pod["spec"]["containers"][0]["volumeMounts"]), names(&pod["spec"]["volumes"]));
    assert!(read("deploy/Containerfile").contains("/hull/usr/local/share/hull/deploy/kubernetes/install.sh"));
}

#[test]
fn every_example_in_the_documentation_can_be_read() {
    let mut count = 0;
    for page in ["docs/containerd.md", "docs/kubernetes.md"] {
        let text = read(page);
        let mut parts = text.split("```");
        while let (Some(_), Some(block)) = (parts.next(), parts.next()) {
            let (language, code) = block.split_once('\n').unwrap();
            match language {
                "yaml" => assert!(!documents(code).is_empty(), "{page}: {code}"),
                "toml" => drop(code.parse::<toml::Table>().unwrap_or_else(|error| panic!("{page}: {error}"))),
                _ => continue,
            }
            count += 1;
        }
    }
    assert!(count >= 1, "{count}");
}

#[test]
fn every_link_in_the_documentation_leads_to_a_file() {
    for page in ["docs/containerd.md", "docs/kubernetes.md"] {
        for link in read(page).split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap();
            let is_here = target.is_empty() || repository().join("docs").join(target).exists();
            assert!(is_here || target.starts_with("http"), "{page}: {target}");
        }
    }
}
