//! The places that the task API names for output.

use super::StdioError;

/// Most arguments of a program for logs.
const MAX_ARGUMENTS: usize = 64;

/// A place for output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Nowhere,
    Fifo(String),
    File(String),
    /// A program, as in `binary:///usr/bin/log?name=value`: names and values are its arguments.
    Binary {
        program: String,
        arguments: Vec<String>,
    },
}

/// Reads what stands in a request: a path, or a URI with an absolute path.
pub fn parse(text: &str) -> Result<Target, StdioError> {
    let wrong = || StdioError::Uri { uri: text.into() };
    if text.is_empty() {
        return Ok(Target::Nowhere);
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Ok(Target::Fifo(text.into()));
    };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = decode(path, false).filter(|path| path.starts_with('/')).ok_or_else(wrong)?;
    match scheme {
        "fifo" => Ok(Target::Fifo(path)),
        "file" => Ok(Target::File(path)),
        "binary" => Ok(Target::Binary { program: path, arguments: arguments(query).ok_or_else(wrong)? }),
        _ => Err(wrong()),
    }
}

/// Of each pair the name, and the value unless it is empty.
fn arguments(query: &str) -> Option<Vec<String>> {
    let mut arguments = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        arguments.push(decode(name, true)?);
        if !value.is_empty() {
            arguments.push(decode(value, true)?);
        }
        if arguments.len() > MAX_ARGUMENTS {
            return None;
        }
    }
    Some(arguments)
}

/// Percent-encoding (RFC 3986), and `+` for a space in queries.
fn decode(text: &str, query: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                u8::try_from(high * 16 + low).ok()?
            }
            b'+' if query => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        assert_eq!(parse("").unwrap(), Target::Nowhere);
        assert_eq!(parse("/run/f").unwrap(), Target::Fifo("/run/f".into()));
        assert_eq!(parse("fifo:///run/f").unwrap(), Target::Fifo("/run/f".into()));
        assert_eq!(parse("file:///var/log/a%20b").unwrap(), Target::File("/var/log/a b".into()));
        let binary = parse("binary:///bin/log?--tag=a+b&-v=").unwrap();
        let arguments = vec!["--tag".into(), "a b".into(), "-v".into()];
        assert_eq!(binary, Target::Binary { program: "/bin/log".into(), arguments });
    }

    #[test]
    fn what_is_no_place_is_refused() {
        for text in ["http://x/y", "file://relative", "binary://", "file:///%zz", "file:///%0", "file:///a%00b"] {
            assert!(parse(text).is_err(), "{text}");
        }
        let many = format!("binary:///x?{}", "a&".repeat(100));
        assert!(parse(&many).is_err());
    }
}
