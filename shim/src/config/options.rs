//! Runtime options: what containerd's own configuration says to the runtime.
//!
//! containerd sends them with each Create, and on the standard input of `-info`, as an `Any` with a
//! `runtimeoptions.v1.Options` (containerd: `api/types/runtimeoptions/v1/api.proto`).

use std::io::{self, IsTerminal as _, Read as _};
use std::path::PathBuf;

use protobuf::well_known_types::any::Any;
use protobuf::{CodedInputStream, Message as _};

use super::ConfigError;

/// End of the message's name; older and newer versions of containerd differ in what stands before it.
const OPTIONS: &str = "runtimeoptions.v1.Options";
const MAX_BYTES: u64 = 1 << 20;

/// Tags of the message's fields: `config_path` is 2, `config_body` is 3, both with a length in front.
const CONFIG_PATH: u32 = (2 << 3) | 2;
const CONFIG_BODY: u32 = (3 << 3) | 2;

/// Runtime options.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeOptions {
    /// The configuration file (`ConfigPath`).
    pub config_path: Option<PathBuf>,
    /// TOML with keys that count more than the file's: without a `ConfigPath`, containerd sends its table of options so.
    pub config_body: String,
}

impl RuntimeOptions {
    /// Reads them. Options of other runtimes, such as runc's, say nothing to Hull.
    pub fn from_any(any: Option<&Any>) -> Result<Self, ConfigError> {
        match any {
            Some(any) if any.type_url.ends_with(OPTIONS) => Self::parse(&any.value).map_err(ConfigError::Options),
            _ => Ok(Self::default()),
        }
    }

    /// As [`RuntimeOptions::from_any`], from standard input; there are none if somebody tries the program by hand.
    pub fn from_stdin() -> Result<Self, ConfigError> {
        let input = io::stdin();
        let mut bytes = Vec::new();
        if input.is_terminal() || input.lock().take(MAX_BYTES).read_to_end(&mut bytes).is_err() {
            return Ok(Self::default());
        }
        Self::from_any(Some(&Any::parse_from_bytes(&bytes).map_err(ConfigError::Options)?))
    }

    fn parse(bytes: &[u8]) -> protobuf::Result<Self> {
        let mut options = Self::default();
        let mut input = CodedInputStream::from_bytes(bytes);
        while let Some(tag) = input.read_raw_tag_or_eof()? {
            match tag {
                CONFIG_PATH => {
                    options.config_path =
                        Some(input.read_string()?.into()).filter(|path: &PathBuf| !path.as_os_str().is_empty())
                }
                CONFIG_BODY => options.config_body = String::from_utf8_lossy(&input.read_bytes()?).into_owned(),
                _ => protobuf::rt::skip_field_for_tag(tag, &mut input)?,
            }
        }
        Ok(options)
    }
}
