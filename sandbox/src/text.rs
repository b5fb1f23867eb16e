//! Foreign text made fit for a terminal.

/// At most `limit_bytes` of `text`, on one line, without control characters: what a guest says can't move the cursor.
pub fn one_line(text: &str, limit_bytes: usize) -> String {
    let mut line = String::new();
    for part in text.split(|c: char| c.is_control() || c.is_whitespace()) {
        if part.is_empty() {
            continue;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(part);
        if line.len() > limit_bytes {
            let end = (0..=limit_bytes).rev().find(|end| line.is_char_boundary(*end));
            line.truncate(end.unwrap_or(0));
            line.push_str("...");
            break;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn escape_sequences_and_line_breaks_are_gone() {
        assert_eq!(one_line("a\x1b[2J\r\nb\t c ", 100), "a [2J b c");
        assert_eq!(one_line("größer", 3), "gr...");
    }

    proptest! {
        #[test]
        fn any_text_becomes_one_bounded_line(text in any::<String>(), limit in 0..64usize) {
            let line = one_line(&text, limit);
            prop_assert!(line.len() <= limit + 3);
            prop_assert!(!line.contains(char::is_control));
        }
    }
}
