//! virtio devices over one transport (virtio 1.2).

pub mod device;
