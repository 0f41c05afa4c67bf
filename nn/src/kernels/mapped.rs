//! A file mapped read-only into memory.

use std::ops::Range;
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

    /// Lets the system drop the pages that lie wholly inside `range`: what was copied out of them need not stay resident.
    pub fn forget(&self, range: Range<usize>) {
        #[cfg(target_os = "linux")]
        if let Some(map) = &self.0 {
            const PAGE: usize = 1 << 16;
            let (start, end) = (range.start.next_multiple_of(PAGE), range.end.min(map.len()) / PAGE * PAGE);
            if start < end {
                // SAFETY: nothing ever writes to this private mapping, so a dropped page reads the same bytes of the file
                // when it is touched again.
                let _ = unsafe {
                    map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start)
                };
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = range;
    }
}
