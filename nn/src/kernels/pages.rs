//! Memory in large pages, for what is read from end to end again and again: weights, keys and values.
//!
//! With pages of 4 KiB the processor looks up where each lies, and stops reading ahead at each one's end; inside a virtual
//! machine a look-up walks through two tables. Writing with a small model was bound by that. A large page holds 2 MiB,
//! so small buffers share a region.

use bytemuck::Pod;
use memmap2::{MmapOptions, MmapRaw};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Bytes of a large page, on x86-64 and on most AArch64.
const LARGE: usize = 2 << 20;
/// Bytes of a region that small buffers share.
const SHARED: usize = 32 << 20;
/// Buffers from this size on have a region of their own.
const OWN: usize = 4 << 20;
/// Where a buffer may begin: a line of the cache, the widest vector.
const LINE: usize = 64;

/// Values that lie in large pages where the system has them, all zero at first, at an address that is a multiple of 64.
pub struct Pages<T> {
    region: Arc<Region>,
    /// First byte in the region.
    at: usize,
    len: usize,
    of: PhantomData<T>,
}

/// Memory that its buffers share, each with a part of its own.
struct Region {
    map: MmapRaw,
    /// The first byte that begins a large page.
    first: usize,
}

impl Region {
    /// At least `bytes` of zeros.
    fn new(bytes: usize) -> std::io::Result<Self> {
        let map = MmapRaw::from(MmapOptions::new().len(bytes.saturating_add(LARGE)).map_anon()?);
        // A system without large pages says so; the memory is as good.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let first = (map.as_ptr() as usize).next_multiple_of(LARGE) - map.as_ptr() as usize;
        Ok(Self { map, first })
    }
}

/// The region that the next small buffer goes to, and its first free byte.
static NEXT: Mutex<(Weak<Region>, usize)> = Mutex::new((Weak::new(), 0));

impl<T: Pod> Pages<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// The system gives no memory.
    pub fn zeroed(len: usize) -> std::io::Result<Self> {
        const { assert!(align_of::<T>() <= LINE) };
        let bytes = len.saturating_mul(size_of::<T>()).checked_next_multiple_of(LINE).unwrap_or(usize::MAX);
        let made = |region, at| Self { region, at, len, of: PhantomData };
        if bytes >= OWN {
            return Ok(made(Arc::new(Region::new(bytes)?), 0));
        }
        let mut next = NEXT.lock().unwrap_or_else(PoisonError::into_inner);
        let region = match next.0.upgrade() {
            Some(region) if next.1 + bytes <= SHARED => region,
            _ => {
                let region = Arc::new(Region::new(SHARED)?);
                *next = (Arc::downgrade(&region), 0);
                region
            }
        };
        let at = next.1;
        next.1 += bytes;
        Ok(made(region, at))
    }

    fn start(&self) -> *mut T {
        // In bounds: a region has `LARGE` bytes more than its buffers.
        self.region.map.as_mut_ptr().wrapping_add(self.region.first + self.at).cast()
    }
}

impl<T: Pod> Deref for Pages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `zeroed` gave this part of the region to this buffer alone; it is aligned, long enough, as old as the
        // region, which `self` keeps, and any bytes are a `T`.
        unsafe { std::slice::from_raw_parts(self.start(), self.len) }
    }
}

impl<T: Pod> DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zero_aligned_and_apart() -> std::io::Result<()> {
        let mut all: Vec<Pages<u32>> = [0, 1, 17, 1 << 18, (5 << 20) / 4]
            .into_iter()
            .cycle()
            .take(60)
            .map(Pages::zeroed)
            .collect::<Result<_, _>>()?;
        for (i, pages) in all.iter_mut().enumerate() {
            assert!(pages.iter().all(|v| *v == 0) && (pages.as_ptr() as usize).is_multiple_of(LINE));
            pages.fill(i as u32 + 1);
        }
        for (i, pages) in all.iter().enumerate() {
            assert!(pages.iter().all(|v| *v == i as u32 + 1));
        }
        assert!(Pages::<u32>::zeroed(usize::MAX).is_err());
        Ok(())
    }
}
