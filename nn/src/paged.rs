//! A store of keys and values in blocks of sixteen positions, taken from one arena: sequences own lists of block numbers.
//!
//! Who owns which block is the caller's affair; this is memory, and attention over it. Values are kept as float32,
//! float16, or int8 with one scale per position and head (a scale per block would change while the block fills, and the
//! result would depend on how a prompt was cut).

use crate::kernels::data::{Values, tensor};
use crate::kernels::paged::{Order, Paged, Plane};
use crate::kernels::pages::Pages;
use crate::{Error, Heads, Result};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

/// Positions in a block.
pub const BLOCK: usize = 16;

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PagedKind {
    /// As they are.
    #[default]
    F32,
    /// Half the memory.
    F16,
    /// A quarter of the memory, and one scale per position and head.
    Int8,
}

/// What a store is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagedShape {
    /// Layers.
    pub layers: usize,
    /// Heads of queries, and of keys and values.
    pub heads: Heads,
    /// Elements of a head.
    pub head_dim: usize,
    /// How they are kept.
    pub kind: PagedKind,
}

impl PagedShape {
    /// Bytes of one block, over all layers.
    pub fn block_bytes(&self) -> usize {
        let values = self.layers * self.heads.key * BLOCK * 2;
        match self.kind {
            PagedKind::F32 => values * self.head_dim * 4,
            PagedKind::F16 => values * self.head_dim * 2,
            PagedKind::Int8 => values * (self.head_dim + 4),
        }
    }

    fn check(&self) -> Result<()> {
        let Self { layers, heads, head_dim, .. } = self;
        if *layers == 0 || *head_dim == 0 || heads.key == 0 || !heads.query.is_multiple_of(heads.key) {
            return Err(Error::invalid(format!(
                "paged store: expected layers, a head size, and query heads in multiples of key heads, got {self:?}"
            )));
        }
        Ok(())
    }
}

/// Positions `start .. start + rows` of one sequence, new ones, and the blocks of all its positions up to there.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// Block numbers in order.
    pub blocks: &'a [u32],
    /// The first new position.
    pub start: usize,
    /// New positions.
    pub rows: usize,
    /// The first so many positions see each other wholly; 0 for plain causal attention.
    pub whole: usize,
}

/// How queries look at keys.
#[derive(Clone, Copy, Debug)]
pub struct PagedRule {
    /// Factor on `q · k`.
    pub scale: f32,
    /// Scores are bounded by `cap · tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// Only the last so many positions are seen, the query's own included.
    pub window: Option<usize>,
}

/// The store.
pub struct PagedStore {
    shape: PagedShape,
    blocks: usize,
    /// Keys and values per layer.
    planes: Vec<(Plane, Plane)>,
}

impl std::fmt::Debug for PagedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PagedStore").field("shape", &self.shape).field("blocks", &self.blocks).finish()
    }
}

impl PagedStore {
    /// `blocks` empty blocks. The system gives the memory as it is used.
    ///
    /// # Errors
    /// Sizes that cannot work, or more memory than can be had.
    pub fn new(shape: PagedShape, blocks: usize) -> Result<Self> {
        shape.check()?;
        let tiles = blocks * shape.heads.key;
        let plane = || -> Result<Plane> {
            let count = tiles.saturating_mul(BLOCK).saturating_mul(shape.head_dim);
            Ok(match shape.kind {
                PagedKind::F32 => Plane::F32(zeros(count)?),
                PagedKind::F16 => Plane::F16(zeros(count)?),
                PagedKind::Int8 => Plane::Int8(zeros(count)?, zeros(tiles * BLOCK)?),
            })
        };
        let planes = (0..shape.layers).map(|_| Ok((plane()?, plane()?))).collect::<Result<_>>()?;
        Ok(Self { shape, blocks, planes })
    }

    /// What it is for.
    pub fn shape(&self) -> PagedShape {
        self.shape
    }

    /// Its blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Copies the first `rows` positions of a block to another one, in all layers.
    pub fn copy(&mut self, from: u32, to: u32, rows: usize) -> Result<()> {
        let (from, to) = (from as usize, to as usize);
        if from >= self.blocks || to >= self.blocks || rows > BLOCK {
            let all = self.blocks;
            return Err(Error::invalid(format!("paged store: block {from} to {to} of {all}, {rows} rows")));
        }
        let (heads, d) = (self.shape.heads.key, self.shape.head_dim);
        for (keys, values) in &mut self.planes {
            for head in 0..heads {
                keys.copy(from * heads + head, to * heads + head, rows, d, Order::ByElement);
                values.copy(from * heads + head, to * heads + head, rows, d, Order::ByPosition);
            }
        }
        Ok(())
    }

    /// Keeps new keys and values `[1, tokens, kv_heads * d]` of a layer: the rows of the spans, side by side.
    pub fn write(&mut self, layer: usize, keys: &Tensor, values: &Tensor, spans: &[Span<'_>]) -> Result<()> {
        let PagedShape { heads, head_dim, .. } = self.shape;
        self.check(spans, keys, heads.key, "keys")?;
        self.check(spans, values, heads.key, "values")?;
        let (keys, values) = (Values::of(keys)?, Values::of(values)?);
        let planes = self.planes.get_mut(layer).ok_or_else(|| no_layer(layer))?;
        for (plane, rows, order) in
            [(&mut planes.0, &keys, Order::ByElement), (&mut planes.1, &values, Order::ByPosition)]
        {
            let mut rows = rows.chunks_exact(head_dim);
            for span in spans {
                for at in span.start..span.start + span.rows {
                    let tile = span.blocks[at / BLOCK] as usize * heads.key;
                    for (head, row) in rows.by_ref().take(heads.key).enumerate() {
                        plane.set(tile + head, at % BLOCK, row, order);
                    }
                }
            }
        }
        Ok(())
    }

    /// Lets queries `[1, tokens, heads * d]`, the rows of the spans side by side, attend to all positions of their own
    /// sequence, which must have been written: `[1, tokens, heads * d]`.
    pub fn attend(&self, layer: usize, q: &Tensor, spans: &[Span<'_>], rule: PagedRule) -> Result<Tensor> {
        let PagedShape { heads, head_dim: d, .. } = self.shape;
        self.check(spans, q, heads.query, "queries")?;
        let (keys, values) = self.planes.get(layer).ok_or_else(|| no_layer(layer))?;
        let PagedRule { scale, soft_cap, window } = rule;
        let window = window.unwrap_or(usize::MAX).max(1);
        let mut out = vec![0.0; q.elem_count()];
        let paged = Paged { keys, values, heads, d, dv: d, scale, soft_cap, window };
        paged.attend(&Values::of(q)?, spans, &mut out);
        tensor(out, q.shape())
    }

    fn check(&self, spans: &[Span<'_>], x: &Tensor, heads: usize, what: &str) -> Result<()> {
        let tokens: usize = spans.iter().map(|span| span.rows).sum();
        let width = heads * self.shape.head_dim;
        if x.dims() != [1, tokens, width] {
            return Err(Error::shape(format!("paged {what}"), format!("[1, {tokens}, {width}]"), x.dims()));
        }
        for Span { blocks, start, rows, .. } in spans {
            let there = blocks.len() * BLOCK;
            let end = start.saturating_add(*rows);
            if end > there || blocks.iter().any(|block| *block as usize >= self.blocks) {
                let all = self.blocks;
                return Err(Error::invalid(format!(
                    "paged {what}: positions to {end} in {blocks:?}, blocks of {BLOCK} numbered below {all}"
                )));
            }
        }
        Ok(())
    }
}

fn no_layer(layer: usize) -> Error {
    Error::invalid(format!("paged store: there is no layer {layer}"))
}

fn zeros<T: bytemuck::Pod>(count: usize) -> Result<Pages<T>> {
    Pages::zeroed(count).map_err(|e| Error::invalid(format!("paged store: {count} values: {e}")))
}
