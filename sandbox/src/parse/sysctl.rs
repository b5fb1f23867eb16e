//! Kernel parameters such as `net.ipv4.ip_forward=1`.

use std::str::FromStr;

use super::ParseError;

/// A kernel parameter of the container's own namespaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// Dotted name.
    pub name: String,
    /// Value.
    pub value: String,
}

const IPC_NAMES: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

impl FromStr for Sysctl {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| ParseError::new(format!("{text:?} is not a parameter such as NAME=VALUE")))?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
        if name.is_empty() || !name.chars().all(plain) || name.split(['.', '/']).any(|part| part.is_empty()) {
            return Err(ParseError::new(format!("{name:?} is not the name of a kernel parameter")));
        }
        let name = name.replace('/', ".");
        let namespaced =
            IPC_NAMES.contains(&name.as_str()) || name.starts_with("net.") || name.starts_with("fs.mqueue.");
        if !namespaced {
            return Err(ParseError::new(format!(
                "{name} does not belong to a namespace of the container (net.*, fs.mqueue.* and System V IPC do)"
            )));
        }
        Ok(Self { name, value: value.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn namespaced_parameters_are_accepted_and_others_not() {
        assert!("net.ipv4.ip_forward=1".parse::<Sysctl>().is_ok());
        assert!("kernel.shmmax=1".parse::<Sysctl>().is_ok());
        for text in ["novalue", "=1", "kernel.panic=1", "net..x=1", "net.../../etc=1", "net/../x=1"] {
            assert!(text.parse::<Sysctl>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn an_accepted_name_never_leaves_its_directory(text in "[a-z./=]{0,30}") {
            if let Ok(sysctl) = text.parse::<Sysctl>() {
                prop_assert!(!sysctl.name.contains('/') && !sysctl.name.contains(".."));
            }
        }
    }
}
