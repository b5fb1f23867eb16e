//! ACPI reset, sleep control and sleep status registers (ACPI 6.5, sections 4.8.3.6 and 4.8.3.7).

use std::sync::Arc;

use crate::arch::layout;
use crate::bus::BusDevice;
use crate::console::ConsoleLog;
use crate::ending;
use crate::report::ExitCause;
use crate::vm::EndSignal;

/// Sleep control register: sleep type in bits 2 to 4, "enable" in bit 5.
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;
const SLEEP_ENABLE: u8 = 1 << 5;
/// Command of the 8042 that pulls the reset line.
const PULSE_RESET_LINE: u8 = 0xfe;

/// The ports by which a guest ends its VM.
pub struct Power {
    end: Arc<EndSignal>,
    console: Arc<ConsoleLog>,
}

impl Power {
    /// Registers that report to `end`; the console knows whether a reset follows a panic.
    pub fn new(end: Arc<EndSignal>, console: Arc<ConsoleLog>) -> Self {
        Self { end, console }
    }

    fn reset(&self) {
        let (cause, message) = ending::of_reset(&self.console);
        self.end.report(cause, &message);
    }
}

impl BusDevice for Power {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let &[value] = data else { return };
        if offset == u64::from(layout::POWER_RESET) && value == layout::RESET_VALUE {
            self.reset();
        }
        let sleep_type = value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
        if offset == u64::from(layout::POWER_SLEEP_CONTROL)
            && value & SLEEP_ENABLE != 0
            && sleep_type == layout::SLEEP_TYPE_S5
        {
            self.end.report(ExitCause::PowerOff, "The guest powered off");
        }
    }
}

/// The reset line of a keyboard controller that isn't there otherwise.
///
/// Linux pulls it when it panics before it knows ACPI's reset register, and would wait for minutes for a controller that reads as all
/// ones.
pub struct KeyboardReset(pub Arc<Power>);

impl BusDevice for KeyboardReset {
    /// Status: both buffers are empty.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data == [PULSE_RESET_LINE] {
            self.0.reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause_after(writes: &[(u64, &[u8])]) -> Option<ExitCause> {
        let end = Arc::new(EndSignal::for_tests());
        let power = Power::new(end.clone(), Arc::new(ConsoleLog::in_memory()));
        for (offset, data) in writes {
            power.write(*offset, data);
        }
        end.ending().map(|ending| ending.cause)
    }

    #[test]
    fn the_reset_register_takes_its_value_only() {
        assert_eq!(cause_after(&[(0, &[1])]), Some(ExitCause::Reset));
        assert_eq!(cause_after(&[(0, &[0]), (0, &[2]), (0, &[1, 0])]), None);
    }

    #[test]
    fn soft_off_needs_the_type_and_the_enable_bit() {
        assert_eq!(cause_after(&[(1, &[5 << 2 | 1 << 5])]), Some(ExitCause::PowerOff));
        assert_eq!(cause_after(&[(1, &[5 << 2]), (1, &[3 << 2 | 1 << 5]), (2, &[0xff])]), None);
    }

    #[test]
    fn the_first_end_counts() {
        assert_eq!(cause_after(&[(1, &[5 << 2 | 1 << 5]), (0, &[1])]), Some(ExitCause::PowerOff));
    }

    #[test]
    fn the_keyboard_controller_only_resets() {
        let end = Arc::new(EndSignal::for_tests());
        let port = KeyboardReset(Arc::new(Power::new(end.clone(), Arc::new(ConsoleLog::in_memory()))));
        port.write(0, &[0xd1]);
        assert_eq!(end.ending(), None);
        port.write(0, &[0xfe]);
        assert_eq!(end.ending().map(|ending| ending.cause), Some(ExitCause::Reset));
    }
}
