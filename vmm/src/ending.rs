//! What the end of a guest means. A reset says nothing of its reason; the console does.

use crate::console::ConsoleLog;
use crate::report::ExitCause;

/// The guest pulled a reset line: on purpose, or because `panic=-1` is on its command line.
pub fn of_reset(console: &ConsoleLog) -> (ExitCause, String) {
    panic(console).unwrap_or_else(|| (ExitCause::Reset, "The guest asked for a reset".to_owned()))
}

/// The guest's processor shut down: a crash, or the way in which a kernel with `reboot=t` resets.
pub fn of_shutdown(console: &ConsoleLog) -> (ExitCause, String) {
    if let Some(end) = panic(console) {
        return end;
    }
    if console.last_line_with("reboot: Restarting system").is_some() {
        return (ExitCause::Reset, "The guest asked for a reset".to_owned());
    }
    (ExitCause::TripleFault, "The guest's processor shut down (triple fault) without a message".to_owned())
}

fn panic(console: &ConsoleLog) -> Option<(ExitCause, String)> {
    const WORDS: &str = "Kernel panic - not syncing: ";
    let line = console.last_line_with(WORDS)?;
    let reason = line.split_once(WORDS)?.1;
    Some((ExitCause::Panic, format!("The guest kernel panicked: {reason}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(text: &str) -> ConsoleLog {
        let log = ConsoleLog::in_memory();
        log.write(text.as_bytes());
        log
    }

    #[test]
    fn a_reset_after_a_panic_is_a_panic() {
        let panicked = log("[    1.2] Kernel panic - not syncing: No working init found.\r\n[ 1.3] CPU: 0\n");
        let expected = (ExitCause::Panic, "The guest kernel panicked: No working init found.".to_owned());
        assert_eq!(of_reset(&panicked), expected);
        assert_eq!(of_shutdown(&panicked), expected);
        assert_eq!(of_reset(&log("")).0, ExitCause::Reset);
    }

    #[test]
    fn a_triple_fault_is_what_the_console_said_before() {
        assert_eq!(of_shutdown(&log("")).0, ExitCause::TripleFault);
        assert_eq!(of_shutdown(&log("[    1.2] reboot: Restarting system\n")).0, ExitCause::Reset);
    }
}
