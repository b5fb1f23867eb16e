//! Address to device, for ports and for memory-mapped registers.

use std::ops::Range;
use std::sync::Arc;

use thiserror::Error;

/// A device behind a range of addresses. Called from vCPU threads, several at a time: the device locks what it must.
pub trait BusDevice: Send + Sync {
    /// Reads `data.len()` bytes (1 to 8) at `offset` from the start of the range.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes `data` (1 to 8 bytes) at `offset` from the start of the range.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Two devices want the same addresses, or a device wants none.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("Bus range {start:#x}..{end:#x} is empty or overlaps another")]
pub struct RangeError {
    /// First address.
    pub start: u64,
    /// First address behind the range.
    pub end: u64,
}

/// An address space: sorted ranges, fixed before the guest starts, so that a look-up takes no lock.
#[derive(Default)]
pub struct Bus {
    entries: Vec<(Range<u64>, Arc<dyn BusDevice>)>,
}

impl Bus {
    /// Puts a device at a range.
    pub fn insert(&mut self, range: Range<u64>, device: Arc<dyn BusDevice>) -> Result<(), RangeError> {
        let at = self.entries.partition_point(|(other, _)| other.end <= range.start);
        let overlaps = self.entries.get(at).is_some_and(|(next, _)| next.start < range.end);
        if range.is_empty() || overlaps {
            return Err(RangeError { start: range.start, end: range.end });
        }
        self.entries.insert(at, (range, device));
        Ok(())
    }

    /// Reads from the device at `address`; without one all bits are set, as on a bus that nobody drives.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes to the device at `address`; without one nothing happens.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address, data.len()) {
            device.write(offset, data);
        }
    }

    /// The device whose range holds all `len` bytes at `address`.
    fn find(&self, address: u64, len: usize) -> Option<(&dyn BusDevice, u64)> {
        let at = self.entries.partition_point(|(range, _)| range.end <= address);
        let (range, device) = self.entries.get(at)?;
        let end = address.checked_add(len as u64)?;
        (range.start <= address && end <= range.end).then(|| (device.as_ref(), address - range.start))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap_or(0xee));
        }
        fn write(&self, offset: u64, data: &[u8]) {
            if let Ok(mut log) = self.0.lock() {
                log.push((offset, data.to_vec()));
            }
        }
    }

    fn bus() -> (Bus, Arc<Recorder>) {
        let device = Arc::new(Recorder::default());
        let mut bus = Bus::default();
        assert_eq!(bus.insert(0x100..0x110, device.clone()), Ok(()));
        assert_eq!(bus.insert(0x80..0x100, Arc::new(Recorder::default())), Ok(()));
        (bus, device)
    }

    #[test]
    fn overlaps_and_empty_ranges_are_refused() {
        let (mut bus, device) = bus();
        for range in [0x10f..0x111, 0x0..0x81, 0x100..0x110, 0x90..0x91, 0x200..0x200] {
            assert!(bus.insert(range.clone(), device.clone()).is_err(), "{range:x?}");
        }
        assert_eq!(bus.insert(0x110..0x120, device), Ok(()), "touching is not overlapping");
    }

    #[test]
    fn accesses_reach_the_device_with_its_offset() {
        let (bus, device) = bus();
        let mut data = [0; 4];
        bus.read(0x10c, &mut data);
        assert_eq!(data, [0xc; 4]);
        bus.write(0x104, &[1, 2]);
        assert_eq!(device.0.lock().map(|log| log.clone()).ok(), Some(vec![(4, vec![1, 2])]));
    }

    #[test]
    fn nobody_answers_outside_or_across_a_border() {
        let (bus, device) = bus();
        for address in [0x7f, 0x10e, 0x110, u64::MAX - 1] {
            let mut data = [0; 4];
            bus.read(address, &mut data);
            assert_eq!(data, [0xff; 4], "{address:#x}");
            bus.write(address, &data);
        }
        assert_eq!(device.0.lock().map(|log| log.len()).ok(), Some(0));
    }
}
