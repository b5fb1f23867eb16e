//! Identifiers that the host issues and that become file names here.

use crate::failure::Failure;

const MAX_BYTES: usize = 128;

/// Checks a container or exec identifier: `[A-Za-z0-9._-]{1,128}`, not starting with a dot.
pub fn check<'a>(kind: &str, text: &'a str) -> Result<&'a str, Failure> {
    let fits = !text.is_empty() && text.len() <= MAX_BYTES && !text.starts_with('.');
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if fits && text.chars().all(safe) {
        return Ok(text);
    }
    Err(Failure::invalid(format!(
        "{kind} must match [A-Za-z0-9_-][A-Za-z0-9._-]* and have at most {MAX_BYTES} characters"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn usual_identifiers_pass() {
        for id in ["a", "web-1", "0123abcdef", "a.b_c", &"x".repeat(128)] {
            assert_eq!(check("id", id), Ok(id));
        }
    }

    #[test]
    fn what_could_leave_a_directory_is_refused() {
        for id in ["", ".", "..", "a/b", "../x", "a b", "a\0", "ä", ".hidden", &"x".repeat(129)] {
            assert!(check("id", id).is_err(), "{id:?}");
        }
    }

    proptest! {
        #[test]
        fn accepted_identifiers_are_one_plain_path_component(id in ".{0,200}") {
            if check("id", &id).is_ok() {
                let mut parts = std::path::Path::new(&id).components();
                prop_assert!(matches!(parts.next(), Some(std::path::Component::Normal(_))));
                prop_assert!(parts.next().is_none());
            }
        }
    }
}
