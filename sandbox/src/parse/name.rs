//! Names of containers and hosts.

use std::fmt;
use std::str::FromStr;

use super::ParseError;

/// A container's name by Docker's rule: a letter or digit, then letters, digits, `_`, `.` and `-`; 2 to 128 characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerName(String);

impl ContainerName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ContainerName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        let valid = (2..=128).contains(&text.len())
            && text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
            && text.bytes().all(inner);
        if !valid {
            return Err(ParseError::new(format!(
                "{text:?} is not a name: letters, digits, _ . and -, 2 to 128 of them, a letter or digit first"
            )));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ContainerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_dockers_rule() {
        assert!("web-1.a_b".parse::<ContainerName>().is_ok());
        for text in ["", "a", "-ab", "a/b", "../x", "ä1", "a b"] {
            assert!(text.parse::<ContainerName>().is_err(), "{text}");
        }
    }
}
