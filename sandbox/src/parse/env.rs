//! Environment variables of `-e` and `--env-file`.

use std::str::FromStr;

use super::ParseError;

/// A variable for the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvVar {
    /// Name.
    pub name: String,
    /// Value; without one the caller's own value counts, and a variable that is unset there stays unset.
    pub value: Option<String>,
}

impl FromStr for EnvVar {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        if name.is_empty() || text.contains('\0') {
            return Err(ParseError::new(format!("{text:?} is not a variable such as NAME=VALUE")));
        }
        Ok(Self { name: name.to_owned(), value })
    }
}

/// Parses the lines of an environment file as Docker does: `#` begins a comment line, blank lines count nothing, values
/// are taken as they are (no quotes).
pub fn parse_env_file(content: &str) -> Result<Vec<EnvVar>, ParseError> {
    let content = content.strip_prefix('\u{feff}').unwrap_or(content);
    let mut variables = Vec::new();
    for (index, line) in content.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let number = index + 1;
        let variable: EnvVar = line.parse().map_err(|error| ParseError::new(format!("line {number}: {error}")))?;
        if variable.name.contains(char::is_whitespace) {
            return Err(ParseError::new(format!("line {number}: the name {:?} contains a blank", variable.name)));
        }
        variables.push(variable);
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_equals_sign_ends_the_name() {
        let variable: EnvVar = "A=b=c".parse().unwrap();
        assert_eq!((variable.name.as_str(), variable.value.as_deref()), ("A", Some("b=c")));
        assert_eq!("A".parse::<EnvVar>().unwrap().value, None);
        assert_eq!("A=".parse::<EnvVar>().unwrap().value.as_deref(), Some(""));
        assert!("=x".parse::<EnvVar>().is_err());
    }

    #[test]
    fn comments_and_blank_lines_of_a_file_count_nothing() {
        let variables = parse_env_file("# note\n\n  TWO=two words\nPASS\nQ='q'\n").unwrap();
        let names: Vec<_> = variables.iter().map(|variable| variable.name.as_str()).collect();
        assert_eq!(names, ["TWO", "PASS", "Q"]);
        assert_eq!(variables[0].value.as_deref(), Some("two words"));
        assert_eq!(variables[2].value.as_deref(), Some("'q'"));
        assert!(parse_env_file("ok=1\nno good=2").unwrap_err().to_string().starts_with("line 2"));
    }

    proptest! {
        #[test]
        fn any_file_parses_or_is_refused(text in any::<String>()) {
            let _ = parse_env_file(&text);
        }
    }
}
