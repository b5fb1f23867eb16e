//! Why a request failed, with the code that the host sees.

use std::fmt::Display;

use thiserror::Error;
use ttrpc::Code;

/// A failed request: a gRPC code and one line for people.
#[derive(Debug, Clone, Error, PartialEq)]
#[error("{message}")]
pub struct Failure {
    /// What kind of failure it is.
    pub code: Code,
    /// One line.
    pub message: String,
}

/// Longest message that is passed on, in bytes.
const MAX_MESSAGE_BYTES: usize = 2048;

impl Failure {
    /// A failure with a message of one line and bounded length.
    pub fn new(code: Code, message: impl Display) -> Self {
        let mut message: String = message.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if message.len() > MAX_MESSAGE_BYTES {
            let end = (0..=MAX_MESSAGE_BYTES).rev().find(|&end| message.is_char_boundary(end)).unwrap_or(0);
            message.truncate(end);
        }
        Self { code, message }
    }

    /// The container, process or command does not exist.
    pub fn not_found(message: impl Display) -> Self {
        Self::new(Code::NOT_FOUND, message)
    }

    /// The command can't be executed.
    pub fn denied(message: impl Display) -> Self {
        Self::new(Code::PERMISSION_DENIED, message)
    }

    /// The request itself is wrong, or names a user, group or disk that does not exist.
    pub fn invalid(message: impl Display) -> Self {
        Self::new(Code::INVALID_ARGUMENT, message)
    }

    /// The identifier is taken.
    pub fn exists(message: impl Display) -> Self {
        Self::new(Code::ALREADY_EXISTS, message)
    }

    /// The container or process is not in a state for this.
    pub fn precondition(message: impl Display) -> Self {
        Self::new(Code::FAILED_PRECONDITION, message)
    }

    /// A bound of the agent is reached.
    pub fn exhausted(message: impl Display) -> Self {
        Self::new(Code::RESOURCE_EXHAUSTED, message)
    }

    /// Anything that should have worked.
    pub fn internal(message: impl Display) -> Self {
        Self::new(Code::INTERNAL, message)
    }
}

impl From<Failure> for ttrpc::Error {
    fn from(failure: Failure) -> Self {
        Self::RpcStatus(ttrpc::get_status(failure.code, failure.message))
    }
}

/// Says what was being done when an operating system call failed.
pub trait Context<T> {
    /// Turns the error into an internal failure "`action`: error".
    fn context(self, action: impl Display) -> Result<T, Failure>;
}

impl<T, E: Display> Context<T> for Result<T, E> {
    fn context(self, action: impl Display) -> Result<T, Failure> {
        self.map_err(|error| Failure::internal(format!("{action}: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_line_and_bounded() {
        let failure = Failure::not_found("a\nb".to_string() + &"ä".repeat(4000));
        assert!(failure.message.starts_with("a b"));
        assert!(failure.message.len() <= MAX_MESSAGE_BYTES);
    }
}
