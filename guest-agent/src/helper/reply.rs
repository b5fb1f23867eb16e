//! What the child tells the agent: one line each, "pid 42", "failed 5 message" or "detail text".

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::unistd::Pid;
use protobuf::Enum;
use ttrpc::Code;

use crate::failure::Failure;

/// Longest line.
pub const MAX_REPLY_BYTES: usize = 4096;

/// One report.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// The process is there, with this identifier in the root pid namespace.
    Started(Pid),
    /// More about a failure that follows.
    Detail(String),
    /// It won't be, or it ended before it executed its command. The first failure counts.
    Failed(Failure),
}

impl Reply {
    /// Reads a line. It comes from a process that has been inside the container, so it may be anything.
    pub fn parse(line: &[u8]) -> Result<Self, Failure> {
        let text = String::from_utf8_lossy(line);
        let mut words = text.trim_end().splitn(2, ' ');
        let reply = match (words.next(), words.next()) {
            (Some("pid"), Some(pid)) => {
                pid.parse().ok().filter(|&pid: &i32| pid > 1).map(|pid| Self::Started(Pid::from_raw(pid)))
            }
            (Some("failed"), Some(rest)) => {
                let (code, message) = rest.split_once(' ').unwrap_or((rest, ""));
                let code = code.parse().ok().and_then(Code::from_i32);
                Some(Self::Failed(Failure::new(code.unwrap_or(Code::INTERNAL), message)))
            }
            (Some("detail"), Some(text)) => Some(Self::Detail(Failure::internal(text).message)),
            _ => None,
        };
        reply.ok_or_else(|| Failure::internal("the child of the agent sent a report that can't be read"))
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started(pid) => writeln!(f, "pid {pid}"),
            Self::Detail(text) => writeln!(f, "detail {}", Failure::internal(text)),
            Self::Failed(failure) => writeln!(f, "failed {} {failure}", failure.code.value()),
        }
    }
}

/// The way to the agent. It closes when the last process that holds it ends or executes a command.
#[derive(Clone)]
pub struct Reporter(Arc<OwnedFd>);

impl Reporter {
    /// Reports through a pipe of the agent.
    pub fn new(fd: OwnedFd) -> Self {
        Self(Arc::new(fd))
    }

    /// Sends one line. An agent that doesn't listen any more doesn't need it.
    pub fn report(&self, reply: &Reply) {
        let _ = nix::unistd::write(&*self.0, reply.to_string().as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn replies_survive_a_round_trip() {
        let failure = Failure::not_found("exec: \"foo\": executable file not found in $PATH");
        for reply in [Reply::Started(Pid::from_raw(42)), Reply::Detail("x y".into()), Reply::Failed(failure)] {
            assert_eq!(Reply::parse(reply.to_string().as_bytes()), Ok(reply));
        }
    }

    #[test]
    fn a_pid_that_would_mean_everything_is_refused() {
        for line in ["pid 0\n", "pid 1\n", "pid -1\n", "pid\n", "pid x\n", "\n"] {
            assert!(Reply::parse(line.as_bytes()).is_err(), "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn no_line_panics(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Reply::parse(&line);
        }
    }
}
