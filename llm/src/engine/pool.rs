//! The blocks of a paged cache: which are free, and how many hold each of the others (Kwon et al., arXiv:2309.06180).

/// Blocks counted by their holders. Sequences hold the blocks of their positions; the prefix tree holds those that it
/// remembers. A block without a holder is free.
#[derive(Clone, Debug)]
pub struct BlockPool {
    holders: Vec<u32>,
    remembered: Vec<bool>,
    free: Vec<u32>,
    evictable: usize,
}

impl BlockPool {
    /// `blocks` free blocks.
    pub fn new(blocks: usize) -> Self {
        let blocks = blocks.min(u32::MAX as usize);
        Self {
            holders: vec![0; blocks],
            remembered: vec![false; blocks],
            free: (0..blocks as u32).rev().collect(),
            evictable: 0,
        }
    }

    /// All blocks, free or not.
    pub fn total(&self) -> usize {
        self.holders.len()
    }

    /// Blocks that nobody holds.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Blocks that only the prefix tree holds: it would give them up.
    pub fn evictable(&self) -> usize {
        self.evictable
    }

    /// How many hold a block.
    pub fn holders(&self, block: u32) -> u32 {
        self.holders[block as usize]
    }

    /// A free block, with one holder now.
    pub fn take(&mut self) -> Option<u32> {
        let block = self.free.pop()?;
        self.holders[block as usize] = 1;
        Some(block)
    }

    /// One more holder of a block that is not free.
    pub fn hold(&mut self, block: u32) {
        let at = block as usize;
        debug_assert!(self.holders[at] > 0, "a free block was held");
        if self.remembered[at] && self.holders[at] == 1 {
            self.evictable -= 1;
        }
        self.holders[at] += 1;
    }

    /// One holder less; the block is free when none is left.
    pub fn release(&mut self, block: u32) {
        let at = block as usize;
        debug_assert!(self.holders[at] > 0, "a free block was released");
        self.holders[at] = self.holders[at].saturating_sub(1);
        match self.holders[at] {
            0 => self.free.push(block),
            1 if self.remembered[at] => self.evictable += 1,
            _ => {}
        }
    }

    /// The prefix tree becomes a holder.
    pub(super) fn remember(&mut self, block: u32) {
        self.hold(block);
        self.remembered[block as usize] = true;
    }

    /// The prefix tree lets go.
    pub(super) fn forget(&mut self, block: u32) {
        let at = block as usize;
        if self.remembered[at] && self.holders[at] == 1 {
            self.evictable -= 1;
        }
        self.remembered[at] = false;
        self.release(block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_free_when_its_last_holder_lets_go() {
        let mut pool = BlockPool::new(2);
        let (a, b) = (pool.take(), pool.take());
        assert_eq!((a, b, pool.take()), (Some(0), Some(1), None));
        pool.hold(0);
        pool.release(0);
        assert_eq!((pool.free(), pool.holders(0)), (0, 1));
        pool.remember(0);
        assert_eq!(pool.evictable(), 0);
        pool.release(0);
        assert_eq!(pool.evictable(), 1);
        pool.hold(0);
        assert_eq!(pool.evictable(), 0);
        pool.release(0);
        pool.forget(0);
        pool.release(1);
        assert_eq!((pool.free(), pool.evictable(), pool.total()), (2, 0, 2));
    }
}
