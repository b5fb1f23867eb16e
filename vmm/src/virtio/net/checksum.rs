//! Checksums of DHCP answers.
//!
//! A DHCP server on the host leaves the UDP checksum to the "hardware", and the driver is told so. Clients that read raw packets
//! don't hear of it, find a wrong checksum and drop the answer. So this one kind of packet gets its checksum here.

/// Longest frame that is looked at.
pub const MAX_BYTES: usize = 1518;

const ETHERNET_BYTES: usize = 14;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const PROTOCOL_UDP: u8 = 17;
const DHCP_SERVER: [u8; 2] = 67u16.to_be_bytes();
/// Offset of the checksum in a UDP header.
const UDP_CHECKSUM: usize = 6;

/// The checksum to be stored at `field` of a DHCP answer, whose checksum is open from `start` on. `None` for all other frames.
pub fn of_dhcp_answer(frame: &[u8], start: usize, field: usize) -> Option<[u8; 2]> {
    let ip = frame.get(ETHERNET_BYTES..)?;
    let header_bytes = usize::from(ip.first()? & 0xf) * 4;
    let is_answer = frame.get(12..14)? == ETHERTYPE_IPV4
        && *ip.get(9)? == PROTOCOL_UDP
        && start == ETHERNET_BYTES + header_bytes
        && field == start + UDP_CHECKSUM
        && frame.get(start..start.checked_add(2)?)? == DHCP_SERVER;
    if !is_answer {
        return None;
    }
    // The field holds the sum of the pseudo header already.
    let sum = frame.get(start..)?.chunks(2).fold(0u32, |sum, pair| {
        let word = match *pair {
            [high, low] => u16::from_be_bytes([high, low]),
            [high] => u16::from_be_bytes([high, 0]),
            _ => 0,
        };
        sum + u32::from(word)
    });
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    let checksum = !u16::try_from(folded).unwrap_or(u16::MAX);
    // Zero means that there is none (RFC 768).
    Some(if checksum == 0 { [0xff, 0xff] } else { checksum.to_be_bytes() })
}
