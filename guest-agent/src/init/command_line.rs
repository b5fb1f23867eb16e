//! The kernel command line.

use hull_protocol::{BOOT_TOKEN_PARAMETER, Token};

/// The token that the ready message carries, or `None` when the host gave none.
pub fn boot_token(command_line: &str) -> Option<Token> {
    command_line
        .split_ascii_whitespace()
        .filter_map(|word| word.split_once('='))
        .find(|(key, _)| *key == BOOT_TOKEN_PARAMETER)
        .and_then(|(_, value)| value.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_token_is_found_between_other_words() {
        let token = Token::from_random(*b"0123456789abcdef");
        let line = format!("console=hvc0 hull.boot_token={token} quiet\n");
        assert_eq!(boot_token(&line), Some(token));
    }

    #[test]
    fn a_missing_or_broken_token_is_none() {
        for line in ["", "quiet", "hull.boot_token", "hull.boot_token=", "hull.boot_token=12", "xhull.boot_token=00"] {
            assert_eq!(boot_token(line), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_command_line_panics(line in ".*") {
            boot_token(&line);
        }
    }
}
