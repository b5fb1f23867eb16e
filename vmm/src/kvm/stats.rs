//! KVM's binary statistics of a vCPU (`KVM_GET_STATS_FD`, api.rst section 4.133): exits, and what they were for.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl;

/// `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;
/// Bounds on what the kernel's header may say.
const MAX_DESCRIPTORS: u32 = 512;
const MAX_NAME_BYTES: u32 = 256;
const HEADER_BYTES: usize = 24;
const DESCRIPTOR_BYTES: usize = 16;

/// Names and values.
pub type Statistics = Vec<(String, u64)>;

/// Counters of one vCPU, readable while it runs.
pub struct VcpuStatistics {
    file: File,
    /// Name and offset in the file of each single counter.
    counters: Vec<(String, u64)>,
}

impl VcpuStatistics {
    pub(super) fn open(vcpu: &VcpuFd) -> Option<Self> {
        // SAFETY: the ioctl takes no argument; a result that isn't negative is a new descriptor that nothing else owns.
        let file = unsafe {
            let fd = ioctl(vcpu, KVM_GET_STATS_FD);
            if fd < 0 {
                return None;
            }
            File::from_raw_fd(fd)
        };
        debug_assert!(file.as_raw_fd() >= 0);
        let counters = read_descriptors(&file)?;
        Some(Self { file, counters })
    }

    /// Reads all counters.
    pub fn read(&self) -> Statistics {
        self.counters
            .iter()
            .filter_map(|(name, offset)| {
                let mut value = [0; 8];
                self.file.read_exact_at(&mut value, *offset).ok()?;
                Some((name.clone(), u64::from_ne_bytes(value)))
            })
            .collect()
    }
}

/// Reads the header (`struct kvm_stats_header`) and the descriptors of counters that have a single value.
fn read_descriptors(file: &File) -> Option<Vec<(String, u64)>> {
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0).ok()?;
    let name_size = word(&header, 4)?;
    let count = word(&header, 8)?;
    let descriptors = u64::from(word(&header, 16)?);
    let data = u64::from(word(&header, 20)?);
    if count > MAX_DESCRIPTORS || name_size > MAX_NAME_BYTES {
        return None;
    }
    let stride = DESCRIPTOR_BYTES + usize::try_from(name_size).ok()?;
    let mut counters = Vec::new();
    let mut descriptor = vec![0; stride];
    for index in 0..u64::from(count) {
        file.read_exact_at(&mut descriptor, descriptors + index * stride as u64).ok()?;
        let values = word(&descriptor, 4)? >> 16;
        let offset = word(&descriptor, 8)?;
        let name: Vec<u8> = descriptor.get(DESCRIPTOR_BYTES..)?.iter().copied().take_while(|b| *b != 0).collect();
        if values == 1 {
            counters.push((String::from_utf8_lossy(&name).into_owned(), data + u64::from(offset)));
        }
    }
    Some(counters)
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..offset + 4)?.try_into().ok().map(u32::from_ne_bytes)
}
