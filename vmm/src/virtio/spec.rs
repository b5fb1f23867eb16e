//! Constants of the virtio 1.2 specification, with the sections that define them.

/// Device status field (section 2.1).
pub mod status {
    /// The driver has noticed the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The driver knows how to drive the device.
    pub const DRIVER: u8 = 2;
    /// The driver is ready to drive the device.
    pub const DRIVER_OK: u8 = 4;
    /// Feature negotiation is complete.
    pub const FEATURES_OK: u8 = 8;
    /// The device can't go on without a reset.
    pub const DEVICE_NEEDS_RESET: u8 = 64;
    /// The driver has given up.
    pub const FAILED: u8 = 128;
    /// Bits that a driver sets.
    pub const DRIVER_BITS: u8 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;
}

/// Feature bits of the ring and the transport (section 6).
pub mod feature {
    /// `VIRTIO_F_INDIRECT_DESC`.
    pub const RING_INDIRECT_DESC: u64 = 1 << 28;
    /// `VIRTIO_F_EVENT_IDX`.
    pub const RING_EVENT_IDX: u64 = 1 << 29;
    /// `VIRTIO_F_VERSION_1`.
    pub const VERSION_1: u64 = 1 << 32;
    /// What the transport adds to each device's features.
    pub const TRANSPORT: u64 = RING_INDIRECT_DESC | RING_EVENT_IDX | VERSION_1;
}

/// Split virtqueue (section 2.7).
pub mod ring {
    /// Alignment of the descriptor table (section 2.7).
    pub const DESCRIPTOR_ALIGN: u64 = 16;
    /// Alignment of the available ring.
    pub const AVAILABLE_ALIGN: u64 = 2;
    /// Alignment of the used ring.
    pub const USED_ALIGN: u64 = 4;
    /// Largest queue size.
    pub const MAX_SIZE: u16 = 32768;
    /// The driver wants no used buffer notifications: flag in the available ring (section 2.7.6).
    pub const AVAILABLE_F_NO_INTERRUPT: u16 = 1;

    /// Offset of the used index in the used ring (section 2.7.8).
    pub const USED_INDEX: u64 = 2;

    /// Offset of an element in the used ring (section 2.7.8).
    pub fn used_element(index: u16) -> u64 {
        4 + 8 * u64::from(index)
    }
    /// Offset of `used_event` in the available ring (section 2.7.6).
    pub fn used_event(size: u16) -> u64 {
        4 + 2 * u64::from(size)
    }
    /// Bytes of the descriptor table.
    pub fn descriptor_bytes(size: u16) -> usize {
        16 * usize::from(size)
    }
    /// Bytes of the available ring with `used_event`.
    pub fn available_bytes(size: u16) -> usize {
        6 + 2 * usize::from(size)
    }
    /// Bytes of the used ring with `avail_event`.
    pub fn used_bytes(size: u16) -> usize {
        6 + 8 * usize::from(size)
    }
}

/// Device types (section 5).
pub mod device_type {
    /// Network device.
    pub const NET: u16 = 1;
    /// Block device.
    pub const BLOCK: u16 = 2;
    /// Console.
    pub const CONSOLE: u16 = 3;
    /// Entropy source.
    pub const ENTROPY: u16 = 4;
    /// Memory balloon (traditional).
    pub const BALLOON: u16 = 5;
    /// Socket device.
    pub const SOCKET: u16 = 19;
    /// Memory device.
    pub const MEMORY: u16 = 24;
    /// File system device.
    pub const FILE_SYSTEM: u16 = 26;
    /// Persistent memory device.
    pub const PMEM: u16 = 27;
}

/// virtio over PCI (section 4.1).
pub mod pci {
    /// Vendor of all virtio devices (section 4.1.2).
    pub const VENDOR_ID: u16 = 0x1af4;
    /// Device identifier of type 0 (section 4.1.2).
    pub const DEVICE_ID_BASE: u16 = 0x1040;
    /// No interrupt vector (section 4.1.5.1.2).
    pub const NO_VECTOR: u16 = 0xffff;

    /// Capability types (section 4.1.4).
    pub mod cap {
        /// Common configuration.
        pub const COMMON: u8 = 1;
        /// Notifications.
        pub const NOTIFY: u8 = 2;
        /// Interrupt status.
        pub const ISR: u8 = 3;
        /// Device-specific configuration.
        pub const DEVICE: u8 = 4;
        /// Access to BARs through configuration space.
        pub const PCI_CFG: u8 = 5;
    }

    /// Offsets in the common configuration structure (section 4.1.4.3).
    pub mod common {
        /// Selects 32 of the device's feature bits.
        pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
        /// The selected feature bits.
        pub const DEVICE_FEATURE: u64 = 0x04;
        /// Selects 32 of the driver's feature bits.
        pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
        /// The selected feature bits.
        pub const DRIVER_FEATURE: u64 = 0x0c;
        /// Vector of configuration changes.
        pub const CONFIG_MSIX_VECTOR: u64 = 0x10;
        /// Number of queues.
        pub const NUM_QUEUES: u64 = 0x12;
        /// Device status.
        pub const DEVICE_STATUS: u64 = 0x14;
        /// Changes whenever device-specific configuration does.
        pub const CONFIG_GENERATION: u64 = 0x15;
        /// Selects the queue that the following registers are about.
        pub const QUEUE_SELECT: u64 = 0x16;
        /// Queue size.
        pub const QUEUE_SIZE: u64 = 0x18;
        /// Vector of used buffer notifications.
        pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
        /// Enables the queue.
        pub const QUEUE_ENABLE: u64 = 0x1c;
        /// Where to notify.
        pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
        /// Descriptor table, low half.
        pub const QUEUE_DESC_LO: u64 = 0x20;
        /// Descriptor table, high half.
        pub const QUEUE_DESC_HI: u64 = 0x24;
        /// Available ring, low half.
        pub const QUEUE_DRIVER_LO: u64 = 0x28;
        /// Available ring, high half.
        pub const QUEUE_DRIVER_HI: u64 = 0x2c;
        /// Used ring, low half.
        pub const QUEUE_DEVICE_LO: u64 = 0x30;
        /// Used ring, high half.
        pub const QUEUE_DEVICE_HI: u64 = 0x34;
        /// Size of the structure, with the fields of features that Hull doesn't offer.
        pub const BYTES: usize = 0x40;
    }

    /// Interrupt status bits (section 4.1.4.5).
    pub mod isr {
        /// Used buffer notification.
        pub const QUEUE: u8 = 1;
        /// Configuration change.
        pub const CONFIG: u8 = 2;
    }
}
