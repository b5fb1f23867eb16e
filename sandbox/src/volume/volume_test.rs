use std::os::unix::fs::symlink;

use super::*;

fn bind(source: &str) -> BindMount {
    BindMount { source: source.into(), recursive: true, read_only: true }
}

#[test]
fn volumes_are_told_by_their_kind_and_by_being_mounted_whole() {
    let pod = "/var/lib/kubelet/pods/0a/volumes";
    for kind in KINDS {
        assert!(is_candidate(&bind(&format!("{pod}/{kind}/v"))), "{kind}");
    }
    for other in
        ["kubernetes.io~empty-dir/v", "kubernetes.io~configmap", "kubernetes.io~configmap/v/key", "kubernetes.io~csi/v"]
    {
        assert!(!is_candidate(&bind(&format!("{pod}/{other}"))), "{other}");
    }
    assert!(!is_candidate(&bind("/")));
    let written = BindMount { read_only: false, ..bind(&format!("{pod}/kubernetes.io~secret/v")) };
    assert!(!is_candidate(&written));
}

#[test]
fn only_what_is_written_as_kubernetes_does_it_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    let volume = dir.path();
    let data = || current_data(volume).unwrap();
    assert_eq!(data(), None, "nothing there");
    fs::create_dir(volume.join("..1")).unwrap();
    symlink("..1", volume.join(DATA)).unwrap();
    symlink("..data/key", volume.join("key")).unwrap();
    assert_eq!(data().as_deref(), Some("..1"));
    fs::write(volume.join("plain"), "x").unwrap();
    assert_eq!(data(), None, "a file of its own would not be copied");
    fs::remove_file(volume.join("plain")).unwrap();
    for elsewhere in ["..", "../..1", "/etc", "plain", "..1/x"] {
        fs::remove_file(volume.join(DATA)).unwrap();
        symlink(elsewhere, volume.join(DATA)).unwrap();
        assert_eq!(data(), None, "{elsewhere}");
    }
    assert!(current_data(&volume.join("missing")).is_err());
}
