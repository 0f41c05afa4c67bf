//! A file mapped read-only into memory.

use std::path::Path;

/// A read-only mapping of a whole file. An empty file has no mapping and no bytes.
pub struct MappedFile(Option<memmap2::Mmap>);

impl MappedFile {
    /// Maps `path`.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let file = std::fs::File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(Self(None));
        }
        // SAFETY: the mapping is private and read-only. A checkpoint is written by renaming a whole file into place, so the
        // mapped inode keeps its bytes; only a foreign process that truncates it could still fault the reader.
        let map = unsafe { memmap2::MmapOptions::new().map_copy_read_only(&file)? };
        Ok(Self(Some(map)))
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_deref().unwrap_or(&[])
    }
}
