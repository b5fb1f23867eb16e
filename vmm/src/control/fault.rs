//! Why a request is refused, and with which status.

use std::error::Error;

use serde::de::DeserializeOwned;

use crate::config::ConfigError;
use crate::devices::DeviceError;
use crate::instance::StartError;
use crate::log::one_line;
use crate::vm::StateError;

/// An error of a handler. The request changed nothing.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// HTTP status.
    pub status: u16,
    /// One line, with the field if it is about one.
    pub message: String,
}

impl Fault {
    /// The request is wrong.
    pub fn bad(message: impl Into<String>) -> Self {
        Self { status: 400, message: message.into() }
    }

    /// What it is about does not exist.
    pub fn missing(message: impl Into<String>) -> Self {
        Self { status: 404, message: message.into() }
    }

    /// Right, but not in this state of the VM.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self { status: 409, message: message.into() }
    }

    /// For what can be configured before the start only. Firecracker's words: clients look for them.
    pub fn after_start() -> Self {
        Self::bad("The requested operation is not supported after starting the microVM.")
    }

    /// For what needs a VM. Firecracker's words.
    pub fn before_start() -> Self {
        Self::bad("The requested operation is not supported before starting the microVM.")
    }

    fn with(status: u16, error: &(dyn Error + 'static)) -> Self {
        Self { status, message: one_line(error) }
    }
}

impl From<ConfigError> for Fault {
    fn from(error: ConfigError) -> Self {
        Self::with(400, &error)
    }
}

impl From<StartError> for Fault {
    fn from(error: StartError) -> Self {
        Self::with(400, &error)
    }
}

impl From<StateError> for Fault {
    fn from(error: StateError) -> Self {
        Self::with(if matches!(error, StateError::Refused { .. }) { 409 } else { 500 }, &error)
    }
}

impl From<DeviceError> for Fault {
    fn from(error: DeviceError) -> Self {
        let status = match error {
            DeviceError::Unknown(..) => 404,
            DeviceError::Exists(..) | DeviceError::Plug(_) => 409,
            // A file, socket or name that can't be used.
            _ => 400,
        };
        Self::with(status, &error)
    }
}

/// Parses a body; the message of an error names the field.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    if body.is_empty() {
        return Err(Fault::bad("The request has no body; send JSON with a Content-Length"));
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        // The path of the body as a whole is a dot; the cause names the field then, if there is one.
        let field = if path == "." { String::new() } else { format!("Field {path}: ") };
        Fault::bad(format!("{field}{}", error.inner()))
    })?;
    json.end().map_err(|error| Fault::bad(error.to_string()))?;
    Ok(value)
}
