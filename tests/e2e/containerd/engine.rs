//! The container engines of Debian's suites.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use crate::harness::prefix;

/// The containerd of one of Debian's suites, and what differs between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// This machine's own: 1.6.
    Bookworm,
    /// 1.7. Docker 26 is there too.
    Trixie,
    /// 2.1 or newer.
    Sid,
}

impl Engine {
    /// Where the suite's packages are unpacked; this machine's own are installed.
    fn directory(self) -> Option<&'static Path> {
        static TRIXIE: OnceLock<PathBuf> = OnceLock::new();
        static SID: OnceLock<PathBuf> = OnceLock::new();
        match self {
            Self::Bookworm => None,
            Self::Trixie => Some(TRIXIE.get_or_init(|| unpacked("trixie"))),
            Self::Sid => Some(SID.get_or_init(|| unpacked("sid"))),
        }
    }

    /// One of its programs.
    pub fn program(self, name: &str) -> PathBuf {
        let Some(directory) = self.directory() else { return name.into() };
        let places = ["usr/bin", "usr/sbin"].map(|place| directory.join(place).join(name));
        places.into_iter().find(|path| path.exists()).unwrap_or_else(|| panic!("{name} is not in {directory:?}"))
    }

    /// Starts a daemon that keeps Hull's VMs in `runtime_dir`.
    pub fn spawn(self, mut command: Command, runtime_dir: &Path, log: File) -> Child {
        command
            .env("PATH", format!("{}/bin:{}:/usr/sbin:/sbin", prefix().display(), self.search_path()))
            .env("HULL_RUNTIME_DIR", runtime_dir)
            // Two at once in an emulated machine take long.
            .env("HULL_BOOT_TIMEOUT", "170")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap()
    }

    /// The `PATH` with which its daemons find its other programs. runc is this machine's own.
    fn search_path(self) -> String {
        let path = std::env::var("PATH").unwrap_or_default();
        match self.directory() {
            Some(directory) => format!("{0}/usr/bin:{0}/usr/sbin:{path}", directory.display()),
            None => path,
        }
    }

    /// The newest format of containerd's configuration that it knows.
    pub fn configuration_format(self) -> u8 {
        match self {
            Self::Bookworm | Self::Trixie => 2,
            Self::Sid => 3,
        }
    }

    /// What CRI consists of.
    pub fn cri_plugins(self) -> &'static [&'static str] {
        match self {
            Self::Bookworm | Self::Trixie => &["io.containerd.grpc.v1.cri"],
            Self::Sid => &["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"],
        }
    }

    /// How `ctr` names an image as it is told: the newer ones otherwise leave it to the daemon, which names it as the file does.
    pub fn import_flags(self) -> &'static [&'static str] {
        match self {
            Self::Bookworm => &[],
            Self::Trixie | Self::Sid => &["--local"],
        }
    }
}

fn unpacked(suite: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("engines.sh");
    let output = Command::new(script).arg(suite).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "the engines of Debian {suite} are fetched by `make engines`");
    String::from_utf8(output.stdout).unwrap().trim_end().into()
}
