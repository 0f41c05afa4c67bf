//! What the cache remembers: a radix tree over the contents of positions whose edges are blocks (after RadixAttention,
//! Zheng et al., arXiv:2312.07104). The least recently used leaf that no sequence holds is given up first.

use super::pool::BlockPool;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Included, Unbounded};

/// Positions in a block.
pub const BLOCK: usize = vela_nn::paged::BLOCK;

/// What stands at a position: enough to tell whether its key and value would be the same after the same prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A token id.
    Token(u32),
    /// A row of embeddings known by a hash of what they were made from (a picture's bytes and its preprocessing).
    Row {
        /// Hash of the whole span's content.
        hash: u128,
        /// Row within the span.
        row: u32,
    },
}

/// A node of the tree; [`ROOT`] is the empty prefix.
pub type Node = u32;

/// The empty prefix.
pub const ROOT: Node = 0;

#[derive(Clone, Debug, Default)]
struct Entry {
    parent: Node,
    keys: Box<[Key]>,
    block: u32,
    children: BTreeMap<Box<[Key]>, Node>,
    used: u64,
}

/// A prefix that was found. Its blocks are held for whoever asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Blocks in order; the last may be shared in part only.
    pub blocks: Vec<u32>,
    /// Positions found.
    pub positions: usize,
    /// The node of the last block that was found whole.
    pub node: Node,
}

/// The tree. Every node but the root holds one block: whole ones may have children, partial ones are leaves.
#[derive(Clone, Debug)]
pub struct PrefixTree {
    entries: Vec<Entry>,
    spare: Vec<Node>,
    /// Leaves by their last use.
    leaves: BTreeSet<(u64, Node)>,
    tick: u64,
    evicted: u64,
}

impl Default for PrefixTree {
    fn default() -> Self {
        let (spare, leaves) = (Vec::new(), BTreeSet::new());
        Self { entries: vec![Entry::default()], spare, leaves, tick: 0, evicted: 0 }
    }
}

impl PrefixTree {
    /// An empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// Blocks remembered.
    pub fn len(&self) -> usize {
        self.entries.len() - 1 - self.spare.len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Blocks given up so far.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// The longest remembered prefix of `keys`; its blocks get one more holder.
    pub fn find(&mut self, keys: &[Key], pool: &mut BlockPool) -> Found {
        let mut found = Found::default();
        while let Some((node, block)) = self.follow(found.node, &keys[found.positions..], pool) {
            found.blocks.push(block);
            found.positions += BLOCK;
            found.node = node;
        }
        let rest = &keys[found.positions..];
        if let Some((node, shared)) = self.nearest(found.node, rest) {
            self.touch(node);
            let block = self.entries[node as usize].block;
            pool.hold(block);
            found.blocks.push(block);
            found.positions += shared;
        }
        found
    }

    /// The child of `node` that holds the first whole block of `keys`; its block gets one more holder.
    pub fn follow(&mut self, node: Node, keys: &[Key], pool: &mut BlockPool) -> Option<(Node, u32)> {
        let child = *self.entries[node as usize].children.get(keys.get(..BLOCK)?)?;
        self.touch(child);
        let block = self.entries[child as usize].block;
        pool.hold(block);
        Some((child, block))
    }

    /// The child that shares most of its keys with `keys`, and how many (at least one). Neighbours in order share most.
    fn nearest(&self, node: Node, keys: &[Key]) -> Option<(Node, usize)> {
        let keys = &keys[..keys.len().min(BLOCK)];
        let children = &self.entries[node as usize].children;
        let before = children.range::<[Key], _>((Unbounded, Included(keys))).next_back();
        let after = children.range::<[Key], _>((Included(keys), Unbounded)).next();
        let shared = |other: &[Key]| keys.iter().zip(other).take_while(|(a, b)| a == b).count();
        let near = before.into_iter().chain(after).map(|(other, node)| (*node, shared(other)));
        near.max_by_key(|(_, shared)| *shared).filter(|(_, shared)| *shared > 0)
    }

    /// Remembers that `block` holds `keys` (one to [`BLOCK`] of them) after the prefix of `parent`, which must hold a
    /// whole block or be the root. Gives the node and the block that the tree keeps: another one if these keys were
    /// known already, or if a partial block is part of a known one.
    pub fn insert(
        &mut self,
        parent: Node,
        keys: &[Key],
        block: u32,
        pool: &mut BlockPool,
    ) -> Option<(Node, u32)> {
        let at = self.entries.get(parent as usize)?;
        if keys.is_empty() || keys.len() > BLOCK || (parent != ROOT && at.keys.len() != BLOCK) {
            return None;
        }
        if let Some((_, &child)) = at
            .children
            .range::<[Key], _>((Included(keys), Unbounded))
            .next()
            .filter(|(other, _)| other.starts_with(keys))
        {
            self.touch(child);
            return Some((child, self.entries[child as usize].block));
        }
        // What was remembered in part is now remembered as part of this.
        let part = at.children.range::<[Key], _>((Unbounded, Excluded(keys))).next_back();
        if let Some((_, &part)) = part.filter(|(other, _)| keys.starts_with(other))
            && pool.holders(self.entries[part as usize].block) == 1
        {
            self.remove(part, pool);
        }
        let used = self.next_tick();
        let entry = Entry { parent, keys: keys.into(), block, children: BTreeMap::new(), used };
        let node = match self.spare.pop() {
            Some(node) => {
                self.entries[node as usize] = entry;
                node
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as Node
            }
        };
        let parent_used = self.entries[parent as usize].used;
        self.leaves.remove(&(parent_used, parent));
        self.leaves.insert((used, node));
        self.entries[parent as usize].children.insert(keys.into(), node);
        pool.remember(block);
        Some((node, block))
    }

    /// Gives up the least recently used leaf that only the tree holds. False if there is none.
    pub fn evict(&mut self, pool: &mut BlockPool) -> bool {
        let alone = |(_, node): &&(u64, Node)| pool.holders(self.entries[*node as usize].block) == 1;
        let Some(&(_, node)) = self.leaves.iter().find(alone) else { return false };
        self.remove(node, pool);
        self.evicted += 1;
        true
    }

    /// Gives up everything that only the tree holds.
    pub fn clear(&mut self, pool: &mut BlockPool) {
        while self.evict(pool) {}
    }

    fn remove(&mut self, node: Node, pool: &mut BlockPool) {
        let entry = std::mem::take(&mut self.entries[node as usize]);
        self.leaves.remove(&(entry.used, node));
        self.spare.push(node);
        pool.forget(entry.block);
        let parent = &mut self.entries[entry.parent as usize];
        parent.children.remove(&entry.keys);
        if parent.children.is_empty() && entry.parent != ROOT {
            self.leaves.insert((parent.used, entry.parent));
        }
    }

    fn touch(&mut self, node: Node) {
        let used = self.next_tick();
        let entry = &mut self.entries[node as usize];
        if self.leaves.remove(&(entry.used, node)) {
            self.leaves.insert((used, node));
        }
        entry.used = used;
    }

    fn next_tick(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    /// Whether the tree is in order; for tests.
    #[cfg(test)]
    pub fn check(&self, pool: &BlockPool) {
        let mut seen = 1;
        for (node, entry) in self.entries.iter().enumerate().skip(1) {
            if self.spare.contains(&(node as Node)) {
                continue;
            }
            seen += 1;
            assert!(pool.holders(entry.block) > 0, "a remembered block is free");
            let parent = &self.entries[entry.parent as usize];
            assert_eq!(parent.children.get(&entry.keys), Some(&(node as Node)));
            assert!(entry.parent == ROOT || parent.keys.len() == BLOCK);
            assert_eq!(entry.children.is_empty(), self.leaves.contains(&(entry.used, node as Node)));
        }
        assert_eq!(seen, self.entries.len() - self.spare.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;
    use std::collections::HashMap;
    use vela_nn::random::stream;

    fn tokens(ids: impl IntoIterator<Item = u32>) -> Vec<Key> {
        ids.into_iter().map(Key::Token).collect()
    }

    /// Takes blocks for `keys` and remembers them all, as a sequence does when it ends.
    fn remember(tree: &mut PrefixTree, pool: &mut BlockPool, keys: &[Key]) {
        let mut node = ROOT;
        for chunk in keys.chunks(BLOCK) {
            let Some(block) = pool.take().or_else(|| {
                tree.evict(pool);
                pool.take()
            }) else {
                return;
            };
            let kept = tree.insert(node, chunk, block, pool);
            pool.release(block);
            match kept {
                Some((kept, _)) if chunk.len() == BLOCK => node = kept,
                _ => return,
            }
        }
    }

    #[test]
    fn finds_whole_and_partial_prefixes() {
        let (mut tree, mut pool) = (PrefixTree::new(), BlockPool::new(8));
        let b = BLOCK as u32;
        remember(&mut tree, &mut pool, &tokens(0..2 * b + 5));
        assert_eq!((tree.len(), pool.free()), (3, 5));
        let found = tree.find(&tokens(0..3 * b), &mut pool);
        assert_eq!((found.positions, found.blocks.len()), (2 * BLOCK + 5, 3));
        let other = tree.find(&tokens((0..b + 3).chain([999])), &mut pool);
        assert_eq!((other.positions, other.blocks.len()), (BLOCK + 3, 2));
        assert_eq!(tree.find(&tokens([7]), &mut pool).positions, 0);
        assert!(!tree.evict(&mut pool), "every leaf is held");
        for block in found.blocks.into_iter().chain(other.blocks) {
            pool.release(block);
        }
        // The longer block takes the partial one's place.
        remember(&mut tree, &mut pool, &tokens(0..3 * b));
        assert_eq!(tree.len(), 3);
        tree.clear(&mut pool);
        assert_eq!((tree.len(), pool.free(), pool.evictable()), (0, 8, 0));
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let (mut tree, mut pool) = (PrefixTree::new(), BlockPool::new(3));
        let prompt = |first: u32| tokens((0..BLOCK as u32).map(|i| first * 100 + i));
        for first in 0..3 {
            remember(&mut tree, &mut pool, &prompt(first));
        }
        for block in tree.find(&prompt(0), &mut pool).blocks {
            pool.release(block);
        }
        remember(&mut tree, &mut pool, &prompt(3));
        let mut held = |first| {
            let found = tree.find(&prompt(first), &mut pool);
            found.blocks.iter().for_each(|block| pool.release(*block));
            found.positions
        };
        assert_eq!([held(0), held(1), held(2), held(3)], [BLOCK, 0, BLOCK, BLOCK]);
    }

    #[test]
    fn agrees_with_a_list_of_prefixes_whatever_comes() {
        let mut rng = stream(5, "prefix tree");
        let (mut tree, mut pool) = (PrefixTree::new(), BlockPool::new(40));
        // What each block holds: all keys up to and with its own.
        let mut content: HashMap<u32, Vec<Key>> = HashMap::new();
        for round in 0..3000 {
            let length = rng.random_range(1..5 * BLOCK);
            // Few different tokens, rarely changing: many shared prefixes.
            let turns = rng.random_range(0..3);
            let at: Vec<usize> = (0..turns).map(|_| rng.random_range(0..length)).collect();
            let keys: Vec<Key> = (0..length)
                .map(|i| match at.contains(&i) {
                    true => Key::Row { hash: 1, row: i as u32 },
                    false => Key::Token(i as u32),
                })
                .collect();
            let found = tree.find(&keys, &mut pool);
            assert!(found.positions <= length && found.blocks.len() == found.positions.div_ceil(BLOCK));
            for (k, block) in found.blocks.iter().enumerate() {
                let end = found.positions.min((k + 1) * BLOCK);
                assert_eq!(content.get(block).and_then(|c| c.get(..end)), keys.get(..end), "round {round}");
            }
            let whole = found.positions / BLOCK;
            let mut node = found.node;
            for (k, chunk) in keys.chunks(BLOCK).enumerate().skip(whole) {
                let block = match pool.take() {
                    Some(block) => block,
                    None if tree.evict(&mut pool) => pool.take().unwrap_or(0),
                    None => break,
                };
                content.insert(block, keys[..k * BLOCK + chunk.len()].to_vec());
                let kept = tree.insert(node, chunk, block, &mut pool);
                pool.release(block);
                match kept {
                    Some((kept, _)) if chunk.len() == BLOCK => node = kept,
                    _ => break,
                }
                // Held by nobody, the parent may go before its child comes: only leaves go, so stop here now and then.
                if rng.random_bool(0.2) {
                    break;
                }
                if pool.free() == 0 {
                    break;
                }
            }
            found.blocks.iter().for_each(|block| pool.release(*block));
            tree.check(&pool);
            assert_eq!(pool.free() + tree.len(), pool.total(), "a block is lost");
            assert_eq!(pool.evictable(), tree.len());
        }
        assert!(tree.evicted() > 100);
        tree.clear(&mut pool);
        assert_eq!(pool.free(), pool.total());
    }
}
