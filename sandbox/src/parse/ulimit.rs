//! Resource limits such as `nofile=1024:2048`.

use std::str::FromStr;

use super::ParseError;

/// A resource limit of the container's process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    /// Name as in the runtime specification: `RLIMIT_NOFILE`.
    pub kind: String,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit, at least the soft one.
    pub hard: u64,
}

const NAMES: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

impl FromStr for Ulimit {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (name, limits) = text
            .split_once('=')
            .ok_or_else(|| ParseError::new(format!("{text:?} is not a limit such as nofile=1024:2048")))?;
        if !NAMES.contains(&name) {
            return Err(ParseError::new(format!("{name:?} is not one of {}", NAMES.join(", "))));
        }
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        let (soft, hard) = (value(soft)?, value(hard)?);
        if soft > hard {
            return Err(ParseError::new(format!("{text:?}: the soft limit is above the hard limit")));
        }
        Ok(Self { kind: format!("RLIMIT_{}", name.to_ascii_uppercase()), soft, hard })
    }
}

/// A number, or -1 or `unlimited` for none.
fn value(text: &str) -> Result<u64, ParseError> {
    match text {
        "-1" | "unlimited" => Ok(u64::MAX),
        text => text.parse().map_err(|_| ParseError::new(format!("{text:?} is not a number, -1 or unlimited"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn soft_and_hard_limits() {
        let limit: Ulimit = "nofile=1024:2048".parse().unwrap();
        assert_eq!((limit.kind.as_str(), limit.soft, limit.hard), ("RLIMIT_NOFILE", 1024, 2048));
        let limit: Ulimit = "core=-1".parse().unwrap();
        assert_eq!((limit.soft, limit.hard), (u64::MAX, u64::MAX));
    }

    #[test]
    fn what_is_no_limit_is_refused() {
        for text in ["nofile", "nofile=", "nofile=2:1", "files=1", "=1", "nofile=a", "nofile=1:2:3", "nofile=-2"] {
            assert!(text.parse::<Ulimit>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in ".{0,40}") {
            let _ = text.parse::<Ulimit>();
        }

        #[test]
        fn the_soft_limit_is_never_above_the_hard_one(soft: u64, hard: u64) {
            match format!("nproc={soft}:{hard}").parse::<Ulimit>() {
                Ok(limit) => prop_assert!(limit.soft <= limit.hard),
                Err(_) => prop_assert!(soft > hard),
            }
        }
    }
}
