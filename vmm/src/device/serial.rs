//! A serial port that only transmits: early messages and panics, before the guest has a driver for anything better.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial as Uart, Trigger};

use crate::bus::BusDevice;
use crate::console::ConsoleLog;

/// A 16550 whose output goes to the console log and whose interrupt goes nowhere.
pub struct Serial {
    uart: Mutex<Uart<NoInterrupt, NoEvents, Output>>,
}

impl Serial {
    /// Makes a port that writes to `log`.
    pub fn new(log: Arc<ConsoleLog>) -> Self {
        Self { uart: Mutex::new(Uart::new(NoInterrupt, Output(log))) }
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (Ok(offset), [value]) = (u8::try_from(offset), data) {
            *value = self.uart.lock().unwrap_or_else(PoisonError::into_inner).read(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(offset), &[value]) = (u8::try_from(offset), data) {
            // Its errors are those of the output, which has none.
            let _ = self.uart.lock().unwrap_or_else(PoisonError::into_inner).write(offset, value);
        }
    }
}

struct NoInterrupt;

impl Trigger for NoInterrupt {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

struct Output(Arc<ConsoleLog>);

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE_STATUS: u64 = 5;
    const TRANSMITTER_EMPTY: u8 = 1 << 5;

    #[test]
    fn output_reaches_the_log_and_the_transmitter_is_always_ready() {
        let log = Arc::new(ConsoleLog::in_memory());
        let serial = Serial::new(log.clone());
        for byte in b"Kernel panic" {
            serial.write(0, &[*byte]);
        }
        let mut status = [0];
        serial.read(LINE_STATUS, &mut status);
        assert_ne!(status[0] & TRANSMITTER_EMPTY, 0);
        assert_eq!(log.tail(), "Kernel panic");
    }

    #[test]
    fn odd_accesses_are_harmless() {
        let serial = Serial::new(Arc::new(ConsoleLog::in_memory()));
        for offset in [0, 7, 8, 255, 256, u64::MAX] {
            let mut data = [0; 4];
            serial.read(offset, &mut data);
            serial.write(offset, &data);
            serial.write(offset, &[]);
        }
    }
}
