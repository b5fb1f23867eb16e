//! What a request to the task API fails with: a gRPC code and one line with the cause.

use std::error::Error;
use std::fmt::Display;

use hull_sandbox::text;
use hull_sandbox::{AgentErrorKind, SandboxError};
use thiserror::Error;
use ttrpc::Code;

/// Longest line, in bytes.
const MAX_LINE_BYTES: usize = 2000;

/// A request failed.
#[derive(Debug, Clone, Error, PartialEq)]
#[error("{message}")]
pub struct TaskError {
    /// What kind of failure.
    pub code: Code,
    /// One line for people.
    pub message: String,
}

impl TaskError {
    /// An error with a line of bounded length.
    pub fn new(code: Code, message: impl Display) -> Self {
        Self { code, message: text::one_line(&message.to_string(), MAX_LINE_BYTES) }
    }

    /// There is no such task or process.
    pub fn not_found(message: impl Display) -> Self {
        Self::new(Code::NOT_FOUND, message)
    }

    /// The identifier is taken.
    pub fn exists(message: impl Display) -> Self {
        Self::new(Code::ALREADY_EXISTS, message)
    }

    /// The task or process is in another state.
    pub fn precondition(message: impl Display) -> Self {
        Self::new(Code::FAILED_PRECONDITION, message)
    }

    /// The request can't be fulfilled as it is.
    pub fn invalid(message: impl Display) -> Self {
        Self::new(Code::INVALID_ARGUMENT, message)
    }

    /// There is not enough of something.
    pub fn exhausted(message: impl Display) -> Self {
        Self::new(Code::RESOURCE_EXHAUSTED, message)
    }

    /// Hull can't do this.
    pub fn unimplemented(message: impl Display) -> Self {
        Self::new(Code::UNIMPLEMENTED, message)
    }

    /// Something on the host failed.
    pub fn internal(error: &(dyn Error + 'static)) -> Self {
        Self::new(Code::INTERNAL, one_line(error))
    }

    /// As [`From<SandboxError>`], for the making of a process: the task that the request names was there, so that a
    /// program or a user that isn't makes the request wrong, not the task unknown.
    pub fn making(error: SandboxError) -> Self {
        let error = Self::from(error);
        match error.code {
            Code::NOT_FOUND | Code::PERMISSION_DENIED => Self { code: Code::INVALID_ARGUMENT, ..error },
            _ => error,
        }
    }
}

impl From<SandboxError> for TaskError {
    fn from(error: SandboxError) -> Self {
        let code = match &error {
            SandboxError::Agent(agent) => match agent.kind {
                AgentErrorKind::NotFound => Code::NOT_FOUND,
                AgentErrorKind::PermissionDenied => Code::PERMISSION_DENIED,
                AgentErrorKind::InvalidArgument => Code::INVALID_ARGUMENT,
                AgentErrorKind::AlreadyExists => Code::ALREADY_EXISTS,
                AgentErrorKind::FailedPrecondition => Code::FAILED_PRECONDITION,
                AgentErrorKind::Unimplemented => Code::UNIMPLEMENTED,
                AgentErrorKind::TimedOut => Code::DEADLINE_EXCEEDED,
                AgentErrorKind::Disconnected => Code::UNAVAILABLE,
                AgentErrorKind::Other => Code::UNKNOWN,
            },
            SandboxError::VmEnded(_) => Code::UNAVAILABLE,
            SandboxError::NotReady(_) => Code::DEADLINE_EXCEEDED,
            SandboxError::NameTaken { .. } => Code::ALREADY_EXISTS,
            SandboxError::MemoryNotTaken { .. } => Code::RESOURCE_EXHAUSTED,
            _ => Code::INTERNAL,
        };
        let line = match error.hint() {
            Some(hint) => format!("{}; {hint}", one_line(&error)),
            None => one_line(&error),
        };
        Self::new(code, line)
    }
}

impl From<TaskError> for ttrpc::Error {
    fn from(error: TaskError) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code, error.message))
    }
}

/// An error and its causes in one line; what a cause repeats is said once.
pub fn one_line(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut last = line.clone();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !last.contains(&text) {
            line = format!("{line}: {text}");
            last = text;
        }
        cause = error.source();
    }
    text::one_line(&line, MAX_LINE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_one_line_with_its_cause_and_hint() {
        let source = std::io::Error::other("no\nspace");
        let error = SandboxError::RuntimeDir { path: "/run/hull".into(), source };
        let error = TaskError::from(error);
        assert_eq!(error.code, Code::INTERNAL);
        let text =
            "The runtime directory /run/hull can't be used: no space; set HULL_RUNTIME_DIR to a directory of yours";
        assert_eq!(error.message, text);
    }

    #[test]
    fn a_program_that_is_missing_does_not_make_the_task_unknown() {
        let missing = |kind| {
            let message = "exec: \"x\": executable file not found in $PATH".into();
            SandboxError::Agent(hull_sandbox::AgentError { kind, message })
        };
        assert_eq!(TaskError::making(missing(AgentErrorKind::NotFound)).code, Code::INVALID_ARGUMENT);
        assert_eq!(TaskError::from(missing(AgentErrorKind::NotFound)).code, Code::NOT_FOUND);
        assert_eq!(TaskError::making(missing(AgentErrorKind::TimedOut)).code, Code::DEADLINE_EXCEEDED);
    }
}
