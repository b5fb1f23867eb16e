//! virtio devices over one transport (virtio 1.2).

pub mod blk;
pub mod console;
pub mod device;
pub mod rng;
pub mod vsock;
