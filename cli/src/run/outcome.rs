//! How a run ended: an exit code and what there is to say.

use hull_sandbox::{AgentErrorKind, Exit, SandboxError};
use serde::{Deserialize, Serialize};

use super::launch::Launch;
use crate::failure::{FAILED, Failure, KILLED, NOT_EXECUTABLE, NOT_FOUND};
use crate::output::say;

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Exit code of `hull run`.
    pub code: u8,
    /// Line for standard error.
    pub line: Option<String>,
    /// Table of boot phases, if it was asked for.
    pub timings: Option<String>,
}

impl Outcome {
    /// The process ended by itself, or by a signal.
    pub fn exited(exit: Exit, launch: &Launch) -> Self {
        let line = exit.oom_killed.then(|| {
            let limit = match &launch.memory_limit {
                Some(limit) => format!("limit {limit}; --memory sets it"),
                None => format!("the VM has {} MiB; --memory or --vm-memory gives more", launch.record.memory_mib),
            };
            let victim = match exit.status {
                KILLED => "the container",
                _ => "a process of the container",
            };
            format!("hull: {victim} was killed for want of memory ({limit})")
        });
        Self::new(exit.status, line)
    }

    /// Boot, create or start failed.
    pub fn not_started(error: SandboxError, launch: &Launch) -> Self {
        let code = match &error {
            SandboxError::Agent(error) => match error.kind {
                AgentErrorKind::NotFound => NOT_FOUND,
                AgentErrorKind::PermissionDenied => NOT_EXECUTABLE,
                _ => FAILED,
            },
            SandboxError::VmEnded(end) if end.was_killed() => KILLED,
            _ => FAILED,
        };
        let mut error = anyhow::Error::new(error);
        if is_about_kernel(&error.to_string()) && !error.to_string().contains(&launch.kernel()) {
            error = error.context(launch.kernel());
        }
        Self::failed(&Failure::new(code, error))
    }

    /// The VM ended under the running container.
    pub fn lost(error: SandboxError) -> Self {
        Self::failed(&Failure::new(KILLED, error))
    }

    /// The user gave up before it started.
    pub fn interrupted(signal: i32) -> Self {
        Self::new(signal_code(signal), None)
    }

    /// The user or the end of the terminal killed it.
    pub fn killed(why: &str) -> Self {
        Self::new(KILLED, Some(format!("hull: the container was killed: {why}")))
    }

    pub fn failed(failure: &Failure) -> Self {
        Self::new(failure.code, Some(failure.line()))
    }

    pub fn success(line: String) -> Self {
        Self::new(0, Some(line))
    }

    /// Prints what there is to say and returns the exit code.
    pub fn report(&self) -> u8 {
        if let Some(line) = &self.line {
            say(line);
        }
        if let Some(timings) = &self.timings {
            say(timings.trim_end());
        }
        self.code
    }

    fn new(code: u8, line: Option<String>) -> Self {
        Self { code, line, timings: None }
    }
}

/// The monitor got the kernel as a file among others.
fn is_about_kernel(message: &str) -> bool {
    message.starts_with("The kernel ")
}

/// 128 + n.
pub fn signal_code(signal: i32) -> u8 {
    u8::try_from(128_i32.saturating_add(signal)).unwrap_or(KILLED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_codes() {
        assert_eq!((signal_code(2), signal_code(15), signal_code(1000)), (130, 143, 137));
    }
}
