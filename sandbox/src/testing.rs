//! What tests need in place of a VM: a shell script as its monitor, and a ttrpc server in this process as its agent.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "tests stop at the first surprise"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hull_protocol::agent_ttrpc::{Agent, create_agent};
use hull_protocol::{AGENT_PORT, READY_PORT, Token};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use crate::SandboxError;
use crate::container::{ContainerConfig, ProcessIo};
use crate::network::NetworkNamespace;
use crate::runtime_dir::{RuntimeRoot, SandboxRecord, SandboxStatus};
use crate::sandbox::{Sandbox, SandboxConfig};
use crate::timeline::Timeline;

/// Identifier of the sandbox.
pub const ID: &str = "0123456789ab";
/// What a monitor's script does first of all, so that [`boot_token`] finds the token.
pub const SAVE_CONFIG: &str = "printf %s \"$config\" > config.new; mv config.new config.json";

/// A runtime root and a monitor that is a shell script; the script runs in the sandbox's directory.
#[derive(Debug)]
pub struct Stage {
    dir: TempDir,
}

impl Stage {
    /// With this script, which has what the monitor would read as `$config`.
    pub fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("vmm");
        // run --config-fd N --events-fd N --runtime-dir DIR --id ID
        fs::write(&program, format!("#!/bin/bash\nconfig=$(cat <&$3)\ncd \"$7\" || exit 9\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        Self { dir }
    }

    /// With a monitor that waits until it is killed.
    pub fn sleeping() -> Self {
        Self::new(&format!("{SAVE_CONFIG}; exec sleep 600"))
    }

    /// The directory of it all.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Directory of running sandboxes.
    pub fn runtime(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// Directory of the sandbox.
    pub fn sandbox_dir(&self) -> PathBuf {
        self.runtime().join(ID)
    }

    fn config(&self, ready_timeout: Duration) -> SandboxConfig {
        SandboxConfig {
            record: SandboxRecord {
                id: ID.into(),
                name: "test".into(),
                image: "none".into(),
                command: Vec::new(),
                created_s: 0,
                status: SandboxStatus::Starting,
                owner_pid: std::process::id(),
                monitor_pid: 0,
                vcpus: 1,
                memory_mib: 128,
                max_memory_mib: 128,
                stop_signal: 15,
                stop_timeout_s: 10,
            },
            max_vcpus: 1,
            root: RuntimeRoot::open(&self.runtime()).unwrap(),
            monitor: self.dir.path().join("vmm"),
            kernel: "/kernel".into(),
            initramfs: "/initramfs".into(),
            drives: Vec::new(),
            shared_directory: false,
            watchdog: false,
            network: NetworkNamespace::Host,
            cgroup: None,
            ready_timeout,
        }
    }

    /// Makes that sandbox.
    pub async fn create(&self, ready_timeout: Duration) -> Result<Sandbox, SandboxError> {
        Sandbox::create(self.config(ready_timeout), Arc::new(Timeline::default())).await
    }

    /// Nothing is left of the sandbox.
    pub fn assert_nothing_left(&self) {
        assert_eq!(fs::read_dir(self.runtime()).unwrap().count(), 0, "left of the VM");
    }
}

/// Plays the guest behind the monitor's vsock socket in `dir`, until aborted: `agent` is its agent, and says that it is ready with
/// what `prove` makes of the boot token.
pub async fn guest(dir: PathBuf, agent: impl Agent + Send + 'static, prove: impl FnOnce(Token) -> [u8; Token::LENGTH]) {
    let token = boot_token(&dir).await;
    let listener = UnixListener::bind(dir.join("v")).unwrap();
    let sockets = futures::stream::unfold(listener, |listener| async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let expected = format!("CONNECT {AGENT_PORT}\n");
        let mut line = vec![0; expected.len()];
        stream.read_exact(&mut line).await.unwrap();
        assert_eq!(line, expected.as_bytes());
        stream.write_all(b"OK 77\n").await.unwrap();
        Some((Ok(stream), listener))
    });
    let mut server = Server::new().add_listener(Listener::new(sockets)).register_service(create_agent(Arc::new(agent)));
    server.start().await.unwrap();
    let mut ready = UnixStream::connect(dir.join(format!("v_{READY_PORT}"))).await.unwrap();
    ready.write_all(&prove(token)).await.unwrap();
    std::future::pending().await
}

/// The boot token in the configuration that a monitor's script has saved.
pub async fn boot_token(dir: &Path) -> Token {
    let config = loop {
        match fs::read_to_string(dir.join("config.json")) {
            Ok(config) => break config,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    let (_, rest) = config.split_once("hull.boot_token=").unwrap();
    rest[..32].parse().unwrap()
}

/// A container of which a guest needs to know nothing else.
pub fn container(id: &str) -> ContainerConfig {
    ContainerConfig {
        id: id.into(),
        spec_json: "{}".into(),
        image_serial: "image".into(),
        read_only: false,
        user: String::new(),
        use_init: false,
        files: Vec::new(),
        io: ProcessIo { stdin: false, terminal: None },
    }
}
