//! All mappings of guest memory.

use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// Guest memory whose regions may change while devices run: each use takes a snapshot with `memory()`.
pub type GuestRam = GuestMemoryAtomic<GuestMemoryMmap>;
