//! The file behind a persistent memory device.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::sync::Arc;

use super::{PmemConfig, PmemError};
use crate::memory::{FileMemory, HostRange, ShownFile};
use crate::memory_slots::{Access, MemorySlots};
use crate::virtio::sys;

/// An open, locked and mapped file that the guest sees.
pub struct Backing {
    file: File,
    read_only: bool,
    shown: ShownFile,
}

impl Backing {
    /// Opens, locks and maps the file, and shows it to the guest.
    pub fn open(config: &PmemConfig, slots: Arc<dyn MemorySlots>) -> Result<Self, PmemError> {
        let PmemConfig { id, path, read_only, start } = config.clone();
        // Without waiting, so that a path to a pipe is an error and not a hang.
        let open = OpenOptions::new().read(true).write(!read_only).custom_flags(libc::O_NONBLOCK).open(&path);
        let opened = open.and_then(|mut file| Ok((size_of(&mut file)?, file)));
        let (bytes, file) = match opened {
            Ok((Some(bytes @ 1..), file)) => (bytes, file),
            Ok(_) => return Err(PmemError::Kind { id, path }),
            Err(source) => return Err(PmemError::Open { id, path, source }),
        };
        match sys::lock_file(&file, !read_only) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(PmemError::InUse { id, path }),
            Err(source) => return Err(PmemError::Open { id, path, source }),
        }
        let memory = FileMemory::new(&file, bytes, !read_only)?;
        let access = if read_only { Access::ReadOnly } else { Access::ReadWrite };
        let shown = memory.show(start, access, slots).map_err(|source| PmemError::Slot { id, source })?;
        Ok(Self { file, read_only, shown })
    }

    /// Where the file is in the guest and in the monitor.
    pub fn range(&self) -> HostRange {
        self.shown.range
    }

    /// Makes what the guest wrote durable. That includes pages that only the mapping knows to be dirty: fsync collects them.
    pub fn flush(&self) -> io::Result<()> {
        // A file opened for reading can't have changed, and some file systems refuse to try.
        if self.read_only { Ok(()) } else { self.file.sync_data() }
    }
}

/// Size of a file or block device; `None` for anything else.
fn size_of(file: &mut File) -> io::Result<Option<u64>> {
    let kind = file.metadata()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Ok(None);
    }
    file.seek(SeekFrom::End(0)).map(Some)
}
