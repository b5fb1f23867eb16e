//! Columns for people.

/// Left-aligned columns, two blanks apart; the last one is not padded. Cells may hold foreign text (an image says its own
/// platform): control characters become visible.
pub fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let shown = |cell: &String| cell.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect::<String>();
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(shown).collect()).collect();
    let header: Vec<String> = header.iter().map(|title| (*title).to_owned()).collect();
    let width = |column: usize| {
        let cells = rows.iter().chain([&header]).filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    for row in [&header].into_iter().chain(&rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A size in the largest unit that leaves a number above 1, with one digit behind the point.
pub fn size(bytes: u64) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >> shift > 0 {
            let tenths = (u128::from(bytes) * 10) >> shift;
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes} B")
}

/// Time since `then_s`, in words.
pub fn ago(now_s: u64, then_s: u64) -> String {
    let seconds = now_s.saturating_sub(then_s);
    let (number, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {unit}{plural} ago")
}

/// Seconds since the epoch.
pub fn now_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".into(), "1".into()], vec!["long".into(), "2".into()]];
        assert_eq!(render(&["NAME", "N"], &rows), "NAME  N\na     1\nlong  2\n");
    }

    #[test]
    fn foreign_text_can_not_move_the_cursor() {
        let text = render(&["PLATFORM"], &[vec!["linux/\u{1b}[2J\n".into()]]);
        assert_eq!(text, "PLATFORM\nlinux/\u{fffd}[2J\u{fffd}\n");
    }

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!((size(12), size(1536), size(5 << 30)), ("12 B".into(), "1.5 KiB".into(), "5.0 GiB".into()));
        assert_eq!((ago(100, 99), ago(7300, 100)), ("1 second ago".into(), "2 hours ago".into()));
    }
}
