//! Constants and the packet header of the network device (virtio 1.2, section 5.1).

/// Feature bits (section 5.1.3).
pub mod feature {
    /// Driver may leave checksums to the device.
    pub const CSUM: u64 = 1 << 0;
    /// Device may leave checksums to the driver.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// Driver may change what the device leaves to it while it runs.
    pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    /// `mtu` is valid.
    pub const MTU: u64 = 1 << 3;
    /// `mac` is valid.
    pub const MAC: u64 = 1 << 5;
    /// Driver takes large TCP segments over IPv4.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// Driver takes large TCP segments over IPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// Driver takes large TCP segments with congestion marks.
    pub const GUEST_ECN: u64 = 1 << 9;
    /// Device takes large TCP segments over IPv4.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// Device takes large TCP segments over IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// Device takes large TCP segments with congestion marks.
    pub const HOST_ECN: u64 = 1 << 13;
    /// A packet may lie in several receive buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// `status` is valid.
    pub const STATUS: u64 = 1 << 16;
    /// There is a control queue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// Several queue pairs.
    pub const MQ: u64 = 1 << 22;
    /// Driver takes large UDP segments over IPv4.
    pub const GUEST_USO4: u64 = 1 << 54;
    /// Driver takes large UDP segments over IPv6.
    pub const GUEST_USO6: u64 = 1 << 55;
    /// Device takes large UDP segments.
    pub const HOST_USO: u64 = 1 << 56;
    /// What a driver may change by `VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET` (section 5.1.6.5.6).
    pub const GUEST_OFFLOADS: u64 = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_USO4 | GUEST_USO6;
    /// What may change how a packet from the driver looks.
    pub const HOST_OFFLOADS: u64 = CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_USO;
}

/// Bits of the configuration field `status` (section 5.1.4).
pub const STATUS_LINK_UP: u16 = 1;
/// Offset of `status` in the configuration.
pub const STATUS_OFFSET: u64 = 6;

/// Control commands (section 5.1.6.5).
pub mod command {
    /// Success.
    pub const OK: u8 = 0;
    /// Failure.
    pub const ERR: u8 = 1;
    /// Class: filters for packets.
    pub const RX: u8 = 0;
    /// Largest command of the class: no broadcast.
    pub const RX_LAST: u8 = 5;
    /// Class: addresses.
    pub const MAC: u8 = 1;
    /// Sets the table of addresses.
    pub const MAC_TABLE_SET: u8 = 0;
    /// Class: number of queue pairs.
    pub const MQ: u8 = 4;
    /// Sets the number of queue pairs.
    pub const MQ_VQ_PAIRS_SET: u8 = 0;
    /// Class: what the device may leave to the driver.
    pub const GUEST_OFFLOADS: u8 = 5;
    /// Sets what the device may leave to the driver.
    pub const GUEST_OFFLOADS_SET: u8 = 0;
}

/// Largest number of queue pairs.
pub const MAX_PAIRS: u16 = 8;
/// Size of the header of each packet (section 5.1.6).
pub const HEADER_BYTES: usize = 12;
/// Largest frame: 64 KiB of IP, an Ethernet header and VLAN tags.
pub const MAX_FRAME_BYTES: usize = 65_562;
/// An Ethernet header.
pub const MIN_FRAME_BYTES: usize = 14;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Header of a packet (section 5.1.6).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
    num_buffers: u16,
}

/// Which of a packet's peculiarities one side allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads {
    checksum: bool,
    tcp4: bool,
    tcp6: bool,
    ecn: bool,
    udp: bool,
}

impl Offloads {
    /// What a device may get from a driver that accepted `features`.
    pub fn of_driver(features: u64) -> Self {
        let has = |bit| features & bit != 0;
        Self {
            checksum: has(feature::CSUM),
            tcp4: has(feature::HOST_TSO4),
            tcp6: has(feature::HOST_TSO6),
            ecn: has(feature::HOST_ECN),
            udp: has(feature::HOST_USO),
        }
    }

    /// What a driver that accepted `features`, or that set these offloads, may get from the device.
    pub fn of_device(features: u64) -> Self {
        let has = |bit| features & bit != 0;
        Self {
            checksum: has(feature::GUEST_CSUM),
            tcp4: has(feature::GUEST_TSO4),
            tcp6: has(feature::GUEST_TSO6),
            ecn: has(feature::GUEST_ECN),
            udp: has(feature::GUEST_USO4) && has(feature::GUEST_USO6),
        }
    }
}

impl Header {
    /// Parses a header.
    pub fn from_bytes(bytes: [u8; HEADER_BYTES]) -> Self {
        let [flags, gso_type, a, b, c, d, e, f, g, h, i, j] = bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([a, b]),
            gso_size: u16::from_le_bytes([c, d]),
            csum_start: u16::from_le_bytes([e, f]),
            csum_offset: u16::from_le_bytes([g, h]),
            num_buffers: u16::from_le_bytes([i, j]),
        }
    }

    /// The header as it lies in memory.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let words = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset, self.num_buffers];
        let fields = bytes.iter_mut().skip(2);
        for (to, from) in fields.zip(words.into_iter().flat_map(u16::to_le_bytes)) {
            *to = from;
        }
        bytes
    }

    /// Whether a frame of this length may have this header under what was negotiated. What the kernel does with a wrong one is
    /// its own affair; nothing that was not agreed on gets as far.
    pub fn is_allowed(&self, frame_bytes: usize, allowed: Offloads) -> bool {
        let checksum = self.flags & NEEDS_CSUM != 0;
        let behind_checksum = usize::from(self.csum_start) + usize::from(self.csum_offset) + 2;
        if checksum && (!allowed.checksum || behind_checksum > frame_bytes) {
            return false;
        }
        let gso = self.gso_type & !GSO_ECN;
        let kind_allowed = match gso {
            GSO_NONE => return self.gso_type == GSO_NONE,
            GSO_TCPV4 => allowed.tcp4,
            GSO_TCPV6 => allowed.tcp6,
            GSO_UDP_L4 => allowed.udp,
            _ => false,
        };
        let marks_allowed = self.gso_type & GSO_ECN == 0 || allowed.ecn;
        kind_allowed && marks_allowed && checksum && self.gso_size > 0 && usize::from(self.hdr_len) <= frame_bytes
    }

    /// The header as the kernel gets it: without what a driver must leave zero.
    pub fn for_kernel(mut self) -> Self {
        self.flags &= NEEDS_CSUM;
        self.num_buffers = 0;
        self
    }

    /// Takes away what a host's kernel says of a checksum and the driver doesn't understand (section 5.1.6.4.1).
    pub fn keep_allowed_flags(&mut self, allowed: Offloads) {
        self.flags &= if allowed.checksum { NEEDS_CSUM | DATA_VALID } else { 0 };
    }

    /// The header as the driver gets it.
    pub fn for_driver(mut self, num_buffers: u16) -> Self {
        self.num_buffers = num_buffers;
        self
    }

    /// Where the checksum starts and where it goes, if it is left to the driver.
    pub fn open_checksum(&self) -> Option<(usize, usize)> {
        let start = usize::from(self.csum_start);
        (self.flags & NEEDS_CSUM != 0).then(|| (start, start + usize::from(self.csum_offset)))
    }

    /// The checksum has been filled in.
    pub fn close_checksum(&mut self) {
        self.flags &= !NEEDS_CSUM;
        self.csum_start = 0;
        self.csum_offset = 0;
    }
}
