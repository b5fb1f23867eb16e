//! Mounts: what the host binds is shared, everything else the guest mounts itself.

use std::path::{Component, Path, PathBuf};

use hull_protocol::{SHARED_DIR, SHM_DIR};
use oci_spec::runtime::{Mount, MountBuilder};

use super::{BundleError, check_count};
use crate::shared_dir::BindMount;

/// File systems that the guest's kernel mounts by itself.
const OF_THE_KERNEL: [&str; 9] =
    ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "hugetlbfs", "bpf"];
/// Trees of the host that make no sense elsewhere: the guest's own take their place.
const OF_THE_MACHINE: [&str; 3] = ["/proc", "/sys", "/dev"];
const CGROUP: &str = "/sys/fs/cgroup";
const SHM: &str = "/dev/shm";

/// The guest's mounts of container `id`, and what the host has to bind for them.
pub(super) fn translate(id: &str, mounts: &[Mount]) -> Result<(Vec<Mount>, Vec<BindMount>), BundleError> {
    check_count("mounts", mounts.len())?;
    let mut binds = Vec::new();
    let mut guest = Vec::new();
    for (index, mount) in mounts.iter().enumerate() {
        let field = |name: &str| format!("mounts[{index}].{name}");
        if !mount.destination().is_absolute() {
            return Err(BundleError::new(field("destination"), "is not an absolute path"));
        }
        if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
            return Err(BundleError::new(field("uidMappings"), "mounts with other identifiers are not supported"));
        }
        let kind = mount.typ().as_deref().unwrap_or_default();
        if is_bind(mount, kind) {
            guest.push(bound(id, mount, &field, &mut binds)?);
        } else if OF_THE_KERNEL.contains(&kind) {
            guest.push(mount.clone());
        } else {
            return Err(BundleError::new(field("type"), format!("a guest can't mount {kind:?} of its host")));
        }
    }
    Ok((guest, binds))
}

fn is_bind(mount: &Mount, kind: &str) -> bool {
    let options = mount.options().as_deref().unwrap_or_default();
    kind == "bind" || options.iter().any(|option| option == "bind" || option == "rbind")
}

/// A bind mount in the guest.
fn bound(
    id: &str,
    mount: &Mount,
    field: &dyn Fn(&str) -> String,
    binds: &mut Vec<BindMount>,
) -> Result<Mount, BundleError> {
    let source = mount.source().clone().ok_or_else(|| BundleError::new(field("source"), "is missing"))?;
    if !source.is_absolute() || source.components().any(|part| part == Component::ParentDir) {
        let reason = format!("{} is not an absolute path without \"..\"", source.display());
        return Err(BundleError::new(field("source"), reason));
    }
    if source.starts_with(CGROUP) {
        return build(mount, "cgroup", "cgroup".into(), cgroup_options(mount), field);
    }
    if is_shm(mount.destination(), &source) {
        return build(mount, "bind", SHM_DIR.into(), mount.options().clone().unwrap_or_default(), field);
    }
    let options = mount.options().clone().unwrap_or_default();
    if OF_THE_MACHINE.iter().any(|tree| source.starts_with(tree)) {
        return build(mount, "bind", source, options, field);
    }
    let has = |name: &str| options.iter().any(|option| option == name);
    // Of two that contradict each other the last one counts.
    let last = options.iter().rev().find(|option| matches!(option.as_str(), "ro" | "rw" | "rro"));
    let read_only = last.is_some_and(|option| option != "rw");
    let shared = PathBuf::from(SHARED_DIR).join(id).join("mounts").join(binds.len().to_string());
    binds.push(BindMount { source, recursive: has("rbind"), read_only });
    build(mount, "bind", shared, guest_options(&options), field)
}

/// The `/dev/shm` that an engine makes for a pod (or a container): containers of one guest share memory in the guest. Anything
/// else at that place is a volume, whatever its name.
fn is_shm(destination: &Path, source: &Path) -> bool {
    destination == Path::new(SHM) && (source == Path::new(SHM) || is_of_engine(source))
}

/// Where containerd, Docker, and CRI-O and Podman put the shared memory of what has the identifier ID: `.../sandboxes/ID/shm`,
/// `.../containers/ID/mounts/shm`, `.../ID/userdata/shm`.
fn is_of_engine(source: &Path) -> bool {
    let names: Vec<_> = source.iter().rev().take(4).map(|name| name.to_str().unwrap_or_default()).collect();
    let shape = matches!(
        names.as_slice(),
        ["shm", _, "sandboxes", ..] | ["shm", "mounts", _, "containers"] | ["shm", "userdata", _, ..]
    );
    // A pod's volumes have a directory for each kind, whose name a volume's own can't have.
    shape && !source.iter().any(|name| name.as_encoded_bytes().starts_with(b"kubernetes.io~"))
}

/// The host's `/dev/shm` that a mount binds, if it is one.
pub(super) fn shm_source(mount: &Mount) -> Option<&Path> {
    let source = mount.source().as_deref()?;
    let kind = mount.typ().as_deref().unwrap_or_default();
    (is_bind(mount, kind) && is_shm(mount.destination(), source)).then_some(source)
}

/// Everything that is shared is one mount in the guest, so that `ro` means as much as the recursive `rro`.
fn guest_options(options: &[String]) -> Vec<String> {
    options.iter().map(|option| if option == "rro" { "ro".to_owned() } else { option.clone() }).collect()
}

fn cgroup_options(mount: &Mount) -> Vec<String> {
    const OF_BINDS: [&str; 10] =
        ["bind", "rbind", "private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable"];
    let options = mount.options().iter().flatten();
    options.filter(|option| !OF_BINDS.contains(&option.as_str())).cloned().collect()
}

fn build(
    mount: &Mount,
    kind: &str,
    source: PathBuf,
    options: Vec<String>,
    field: &dyn Fn(&str) -> String,
) -> Result<Mount, BundleError> {
    MountBuilder::default()
        .destination(mount.destination().clone())
        .typ(kind)
        .source(source)
        .options(options)
        .build()
        .map_err(|error| BundleError::new(field("options"), error.to_string()))
}
