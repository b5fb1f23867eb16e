//! Address to device, for ports and for memory-mapped registers.

/// A device behind a range of addresses. Called from vCPU threads, several at a time: the device locks what it must.
pub trait BusDevice: Send + Sync {
    /// Reads `data.len()` bytes (1 to 8) at `offset` from the start of the range.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes `data` (1 to 8 bytes) at `offset` from the start of the range.
    fn write(&self, offset: u64, data: &[u8]);
}
