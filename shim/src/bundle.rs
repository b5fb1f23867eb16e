//! The bundle: the directory that containerd made for a container.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use hull_sandbox::HostCgroup;
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

/// Specifications of real containers are some ten kilobytes.
const MAX_SPEC_BYTES: u64 = 4 << 20;
const MAX_RECORD_BYTES: u64 = 16 << 10;

const SPEC: &str = "config.json";
/// Where containerd 1.6 looks for the shim's address, also after its own restart.
const ADDRESS: &str = "address";
const RECORD: &str = "hull.json";

/// A file of a bundle can't be used.
#[derive(Debug, Error)]
#[error("{path}")]
pub struct BundleError {
    path: PathBuf,
    source: io::Error,
}

/// A container's bundle.
#[derive(Debug, Clone)]
pub struct Bundle {
    path: PathBuf,
}

/// What `delete` has to know when the shim can't be asked any more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimRecord {
    /// Process of the shim that this bundle was made for; 0 if the container joined another one's.
    pub shim_pid: u32,
    /// Directory of running sandboxes.
    #[serde(default)]
    pub runtime_root: PathBuf,
    /// The sandbox; empty before there is one.
    #[serde(default)]
    pub sandbox_id: String,
    /// Process of the VM's monitor; 0 before it runs.
    #[serde(default)]
    pub monitor_pid: u32,
    /// The cgroup that was made for the VM.
    #[serde(default)]
    pub cgroup: Option<HostCgroup>,
}

/// The part of a specification that says to which pod a container belongs.
#[derive(Debug, Default, Deserialize)]
struct Annotated {
    #[serde(default)]
    annotations: std::collections::HashMap<String, String>,
}

/// A container's place in a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// It is alone in its VM.
    Single,
    /// It stands for the pod: its VM is the pod's.
    Sandbox,
    /// It runs in the VM of the pod whose sandbox has this identifier.
    Member(String),
}

/// Annotations by which a pod is known: of containerd's CRI and of CRI-O.
const POD_ANNOTATIONS: [(&str, &str); 2] = [
    ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
    ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"),
];

impl Role {
    /// What the annotations of a container's specification say.
    pub fn of<'a>(annotation: impl Fn(&str) -> Option<&'a String>) -> Self {
        for (kind, sandbox) in POD_ANNOTATIONS {
            match (annotation(kind).map(String::as_str), annotation(sandbox)) {
                (Some("sandbox"), _) => return Self::Sandbox,
                (Some("container"), Some(sandbox)) => return Self::Member(sandbox.clone()),
                _ => (),
            }
        }
        Self::Single
    }
}

impl Bundle {
    /// The bundle at `path`; an empty path means the working directory.
    pub fn open(path: &Path) -> Result<Self, BundleError> {
        let failed = |source| BundleError { path: path.to_owned(), source };
        let path = match path.as_os_str().is_empty() {
            true => std::env::current_dir().map_err(failed)?,
            false => std::path::absolute(path).map_err(failed)?,
        };
        Ok(Self { path })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where containerd mounts the root file system, or asks for it.
    pub fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    /// The container's specification.
    pub fn spec(&self) -> Result<Spec, BundleError> {
        self.read_json(SPEC, MAX_SPEC_BYTES)
    }

    /// The container's place in a pod.
    pub fn role(&self) -> Result<Role, BundleError> {
        let spec: Annotated = self.read_json(SPEC, MAX_SPEC_BYTES)?;
        Ok(Role::of(|name| spec.annotations.get(name)))
    }

    /// The shim's address, as `start` wrote it.
    pub fn address(&self) -> Option<String> {
        let address = self.read(ADDRESS, MAX_RECORD_BYTES).ok()?;
        String::from_utf8(address).ok()
    }

    /// Writes the shim's address.
    pub fn write_address(&self, address: &str) -> Result<(), BundleError> {
        self.write(ADDRESS, address.as_bytes())
    }

    /// What `delete` has to know, if it was written.
    pub fn record(&self) -> Option<ShimRecord> {
        self.read_json(RECORD, MAX_RECORD_BYTES).ok()
    }

    /// Writes what `delete` has to know.
    pub fn write_record(&self, record: &ShimRecord) -> Result<(), BundleError> {
        let json = serde_json::to_vec(record).map_err(|error| self.failed(RECORD, error.into()))?;
        self.write(RECORD, &json)
    }

    fn failed(&self, name: &str, source: io::Error) -> BundleError {
        BundleError { path: self.path.join(name), source }
    }

    fn read_json<T: DeserializeOwned>(&self, name: &str, limit: u64) -> Result<T, BundleError> {
        let bytes = self.read(name, limit)?;
        serde_json::from_slice(&bytes).map_err(|error| self.failed(name, error.into()))
    }

    fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, BundleError> {
        let read = || {
            let mut bytes = Vec::new();
            File::open(self.path.join(name))?.take(limit + 1).read_to_end(&mut bytes)?;
            match u64::try_from(bytes.len()) {
                Ok(length) if length <= limit => Ok(bytes),
                _ => Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is too large")),
            }
        };
        read().map_err(|source| self.failed(name, source))
    }

    /// Replaces the file in one step: others may read it at any time.
    fn write(&self, name: &str, content: &[u8]) -> Result<(), BundleError> {
        let temporary = self.path.join(format!(".{name}"));
        let write = || {
            let mut options = File::options();
            options.write(true).create(true).truncate(true).mode(0o644).open(&temporary)?.write_all(content)?;
            fs::rename(&temporary, self.path.join(name))
        };
        write().map_err(|source| self.failed(name, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(config: &str) -> (tempfile::TempDir, Bundle) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(SPEC), config).unwrap();
        let bundle = Bundle::open(dir.path()).unwrap();
        (dir, bundle)
    }

    #[test]
    fn annotations_say_who_belongs_to_a_pod() {
        let role = |annotations: &str| bundle(&format!(r#"{{"annotations":{annotations}}}"#)).1.role().unwrap();
        assert_eq!(role("{}"), Role::Single);
        let kind = "io.kubernetes.cri.container-type";
        assert_eq!(role(&format!(r#"{{"{kind}":"sandbox","io.kubernetes.cri.sandbox-id":"p"}}"#)), Role::Sandbox);
        let member = format!(r#"{{"{kind}":"container","io.kubernetes.cri.sandbox-id":"p"}}"#);
        assert_eq!(role(&member), Role::Member("p".into()));
        let member = r#"{"io.kubernetes.cri-o.ContainerType":"container","io.kubernetes.cri-o.SandboxID":"q"}"#;
        assert_eq!(role(member), Role::Member("q".into()));
        assert_eq!(role(&format!(r#"{{"{kind}":"container"}}"#)), Role::Single);
    }

    #[test]
    fn a_specification_that_is_missing_huge_or_no_json_is_an_error_that_names_it() {
        let (dir, huge) = bundle(&" ".repeat(usize::try_from(MAX_SPEC_BYTES).unwrap() + 1));
        assert!(huge.spec().unwrap_err().to_string().ends_with(SPEC));
        fs::remove_file(dir.path().join(SPEC)).unwrap();
        assert!(huge.spec().is_err());
        assert!(bundle("{").1.spec().is_err());
    }

    #[test]
    fn what_delete_has_to_know_is_kept() {
        let (_dir, bundle) = bundle("{}");
        assert!(bundle.record().is_none() && bundle.address().is_none());
        let record = ShimRecord {
            shim_pid: 7,
            runtime_root: "/run/hull".into(),
            sandbox_id: "0123456789ab".into(),
            monitor_pid: 8,
            cgroup: Some(HostCgroup::default()),
        };
        bundle.write_record(&record).unwrap();
        bundle.write_address("unix:///s").unwrap();
        assert_eq!((bundle.record().unwrap(), bundle.address().unwrap().as_str()), (record, "unix:///s"));
    }
}
