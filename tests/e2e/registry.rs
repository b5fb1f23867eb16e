//! Images from a registry: Debian's docker-registry on loopback.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::harness::{Hull, image, wait_for};

/// A running registry, empty at first.
pub struct Registry {
    child: Child,
    port: u16,
    _dir: TempDir,
}

impl Registry {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = dir.path().join("config.yml");
        let data = dir.path().join("data");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
                 http: {{addr: '127.0.0.1:{port}'}}\n",
                data.display()
            ),
        )
        .unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed by make setup");
        wait_for("the registry", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { child, port, _dir: dir }
    }

    /// The name of an image in it.
    pub fn reference(&self, name: &str) -> String {
        format!("localhost:{}/{name}", self.port)
    }

    pub fn push(&self, source: &str, name: &str) {
        let output = Command::new("skopeo")
            .args(["copy", "--insecure-policy", "--dest-tls-verify=false", source])
            .arg(format!("docker://{}", self.reference(name)))
            .output()
            .expect("skopeo is installed by make setup");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_image_is_pulled_once_and_runs_without_its_registry_afterwards() {
    let store = tempfile::tempdir().unwrap();
    let hull = Hull::with_store(store.path());
    let registry = Registry::start();
    registry.push(&image("busybox"), "fleet/busybox:1.0");
    let name = registry.reference("fleet/busybox:1.0");

    assert_eq!(hull.hull(["run", &name, "echo", "first"]).ok(), "first\n");
    drop(registry);
    assert_eq!(hull.hull(["run", &name, "echo", "second"]).ok(), "second\n");
    let failed = hull.hull(["run", "--pull", "always", &name, "true"]);
    failed.fails(125, &["fleet/busybox"]);

    assert!(hull.hull(["images"]).ok().contains("fleet/busybox"));
    hull.hull(["rmi", &name]).ok();
    assert!(!hull.hull(["images"]).ok().contains("fleet/busybox"));
}

#[test]
fn what_the_registry_does_not_have_is_named() {
    let store = tempfile::tempdir().unwrap();
    let hull = Hull::with_store(store.path());
    let registry = Registry::start();
    let missing = registry.reference("fleet/nothing:9");
    hull.hull(["pull", &missing]).fails(125, &["fleet/nothing"]);
    hull.hull(["run", "No/Such Reference", "true"]).fails(125, &["reference"]);
    assert_eq!(hull.hull(["images", "-q"]).ok(), "");
}
