//! virtio devices over one transport (virtio 1.2).

pub mod balloon;
pub mod blk;
pub mod buffers;
pub mod console;
pub mod counters;
pub mod device;
pub mod fs;
pub mod mem;
pub mod net;
pub mod pmem;
pub mod queue;
pub mod rate_limiter;
pub mod rng;
pub mod spec;
pub mod sys;
pub mod token_bucket;
pub mod transport;
pub mod vsock;
pub mod worker;

#[cfg(any(test, feature = "testing"))]
pub mod specimen;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

#[cfg(test)]
mod attack_bus_test;
#[cfg(test)]
mod attack_ring_test;
#[cfg(test)]
mod hostile_test;
#[cfg(test)]
mod queue_test;
#[cfg(test)]
mod simple_test;
#[cfg(test)]
mod transport_test;
