//! Bounds on what an image may make the host do.

/// Bounds on one image. The defaults are far above any real image and far below what hurts a host.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Layers in a manifest.
    pub max_layers: usize,
    /// Files, directories and links ever created while layers are applied. Each costs about 200 bytes of memory.
    pub max_entries: u32,
    /// Bytes of a path in a layer.
    pub max_path_bytes: usize,
    /// Bytes of names, symlink targets and extended attributes, which are all held in memory.
    pub max_metadata_bytes: u64,
    /// Bytes of one layer as an uncompressed tar stream: the bound for decompression bombs.
    pub max_layer_bytes: u64,
    /// Bytes of file data in the flattened image, holes and overwritten files included.
    pub max_data_bytes: u64,
    /// Bytes of layers that wait on disk for their turn, because others are still being unpacked. Less if the disk is
    /// nearly full; what finds no room is fetched when its turn comes.
    pub max_ahead_bytes: u64,
    /// Bytes that must stay free in the store's file system.
    pub min_free_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_layers: 512,
            max_entries: 4_000_000,
            max_path_bytes: 4096,
            max_metadata_bytes: 1 << 30,
            max_layer_bytes: 128 << 30,
            max_data_bytes: 256 << 30,
            max_ahead_bytes: 4 << 30,
            min_free_bytes: 64 << 20,
        }
    }
}

/// Largest manifest, index or configuration that is read.
pub(crate) const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
