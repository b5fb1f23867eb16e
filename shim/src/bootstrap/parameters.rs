//! What containerd says on standard input.
//!
//! Up to 2.2 it is the runtime's options, or nothing; 2.3 sends `BootstrapParams`, and expects its answer in the same
//! manner. Options can look like parameters by accident, so that these count only if they name the container.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use containerd_shim_protos::bootstrap_api::BootstrapParams;
use nix::unistd::isatty;
use protobuf::Message as _;

use crate::args::Args;

/// More than any containerd sends.
const MAX_BYTES: u64 = 4 << 20;

/// What was said.
#[derive(Debug, Default)]
pub struct Parameters {
    /// It was said in the manner of 2.3.
    bootstrap: bool,
    socket_dir: Option<PathBuf>,
}

impl Parameters {
    /// Reads standard input.
    pub fn read(args: &Args) -> io::Result<Self> {
        let input = io::stdin();
        // Somebody tries the program by hand.
        if isatty(&input).unwrap_or(false) {
            return Ok(Self::default());
        }
        let mut bytes = Vec::new();
        input.lock().take(MAX_BYTES).read_to_end(&mut bytes)?;
        Ok(Self::parse(&bytes, &args.namespace, &args.id))
    }

    fn parse(bytes: &[u8], namespace: &str, id: &str) -> Self {
        match BootstrapParams::parse_from_bytes(bytes) {
            Ok(parameters) if parameters.instance_id == id && parameters.namespace == namespace => Self {
                bootstrap: true,
                socket_dir: parameters.socket_dir.filter(|dir| dir.starts_with('/')).map(PathBuf::from),
            },
            _ => Self::default(),
        }
    }

    /// The answer is to be a `BootstrapResult`.
    pub fn is_bootstrap(&self) -> bool {
        self.bootstrap
    }

    /// Where the socket is to be made, if containerd wants it elsewhere.
    pub fn socket_dir(&self) -> Option<&Path> {
        self.socket_dir.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parameters_that_name_the_container_count() {
        let message = BootstrapParams {
            instance_id: "one".into(),
            namespace: "default".into(),
            socket_dir: Some("/run/s".into()),
            ..Default::default()
        };
        let bytes = message.write_to_bytes().unwrap();
        let parameters = Parameters::parse(&bytes, "default", "one");
        assert!(parameters.is_bootstrap());
        assert_eq!(parameters.socket_dir(), Some(Path::new("/run/s")));
        assert!(!Parameters::parse(&bytes, "default", "two").is_bootstrap());
        assert!(!Parameters::parse(b"", "default", "one").is_bootstrap());
        assert!(!Parameters::parse(b"\x0a\xff\xff", "default", "one").is_bootstrap());
    }
}
