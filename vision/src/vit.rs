//! The vision transformer: patches to tokens, blocks, and a pooled vector where the family has one.

use crate::encoder::{Path, Sight, fused};
use crate::names::{renamed, table};
use crate::{Encoder, EncoderConfig, Pooling, Positions, Reads, Tap, VisionConfig, interpolate};
use candle_core::{D, DType, Device, Tensor};
use serde_json::Value;
use vela_nn::{Embedding, Error, Init, Linear, Mask, Mlp, Norm, Result, Weights, attention_packed};

/// A vision transformer.
#[derive(Clone, Debug)]
pub struct Vit {
    config: VisionConfig,
    patch: Linear,
    positions: Tensor,
    class_token: Option<Tensor>,
    registers: Option<Tensor>,
    first_norm: Option<Norm>,
    encoder: Encoder,
    final_norm: Option<Norm>,
    pool: Pool,
}

#[derive(Clone, Debug)]
enum Pool {
    None,
    Probe(Box<Probe>),
    Class,
    Normed(Norm),
    Tanh(Linear),
}

/// Which part of each picture is there: one flag per patch, row by row, `[b * grid * grid]`.
pub type Filled<'a> = &'a [bool];

impl Vit {
    /// Reads `embeddings.*`, `pre_layernorm.*`, `encoder.*`, `post_layernorm.*`, `pooler.dense.*` and `head.*`, as far as the
    /// config asks for them. [`crate::names`] brings the families' names to these.
    pub fn new(weights: &Weights, config: &VisionConfig) -> Result<Self> {
        config.check()?;
        let (width, patch, channels) = (config.width, config.patch_size, config.channels);
        let embeddings = weights.pp("embeddings");
        // A convolution whose stride is its size is a linear map of patches.
        let conv = embeddings.pp("patch_embedding");
        let values = channels * patch * patch;
        let kernel = match config.reads {
            Reads::Pictures => conv
                .get_init((width, channels, patch, patch), "weight", Init::XavierUniform)?
                .reshape((width, values))?,
            Reads::Patches => conv.get_init((width, values), "weight", Init::XavierUniform)?,
        };
        let bias = config.patch_bias.then(|| conv.get_init(width, "bias", Init::Zeros)).transpose()?;
        let encoder = config.encoder();
        let norm = |name: &str| Norm::new(&weights.pp(name), width, config.norm);
        let pool = match config.pooling {
            Pooling::None => Pool::None,
            Pooling::Probe => Pool::Probe(Box::new(Probe::new(&weights.pp("head"), encoder)?)),
            Pooling::ClassToken => Pool::Class,
            Pooling::ClassTokenNormed => Pool::Normed(norm("post_layernorm")?),
            Pooling::ClassTokenTanh => {
                Pool::Tanh(Linear::new(&weights.pp("pooler").pp("dense"), width, width, true)?)
            }
        };
        let places = config.patches() + usize::from(config.class_token);
        let registers =
            (config.registers > 0).then(|| rows(&embeddings, "register_tokens", config.registers, width));
        Ok(Self {
            patch: Linear::from_tensors(kernel, bias)?,
            positions: rows(&embeddings, "position_embedding.weight", places, width)?,
            class_token: config
                .class_token
                .then(|| rows(&embeddings, "class_embedding", 1, width))
                .transpose()?,
            registers: registers.transpose()?,
            first_norm: config.first_norm.then(|| norm("pre_layernorm")).transpose()?,
            encoder: Encoder::new(&weights.pp("encoder"), encoder)?,
            final_norm: config.final_norm.then(|| norm("post_layernorm")).transpose()?,
            pool,
            config: config.clone(),
        })
    }

    /// Reads a whole checkpoint of one tower by its `config.json` (`vit`, `siglip_vision_model`, `dinov2`, ...).
    ///
    /// # Errors
    /// What [`VisionConfig::from_hf`] refuses; tensors that are missing, left over or of another shape.
    pub fn whole(weights: &Weights, config: &Value) -> Result<Self> {
        let kind = config.get("model_type").and_then(Value::as_str).unwrap_or("absent");
        // Some versions of the reference library write a tower as the part of a pair that it was.
        let inside = weights.names().iter().any(|name| name.starts_with("vision_model."));
        let weights = if inside { weights.pp("vision_model") } else { weights.clone() };
        let weights = renamed(&weights, "", table(kind))?;
        let tower = Self::new(&weights, &VisionConfig::from_hf(config)?)?;
        weights.finish()?;
        Ok(tower)
    }

    /// What it is.
    pub fn config(&self) -> &VisionConfig {
        &self.config
    }

    /// `pixels [b, channels, height, width]`, normalised as the family does, to tokens `[b, prefix + patches, width]`: class
    /// token and registers first, then patches row by row from the top left. Differentiable in the weights.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        self.forward_tapped(pixels, &mut |_, _| {})
    }

    /// The same; taps `patch_embeddings`, `embeddings` (and, of a first norm, `embeddings_before_pre_layernorm`),
    /// `hidden.{i}`, `last_hidden_state`.
    pub fn forward_tapped(&self, pixels: &Tensor, tap: &mut Tap) -> Result<Tensor> {
        self.forward_filled(pixels, None, tap)
    }

    /// The same for canvases of which only a part is filled (Idefics3, SmolVLM): empty patches are seen by nobody.
    pub fn forward_filled(&self, pixels: &Tensor, filled: Option<Filled>, tap: &mut Tap) -> Result<Tensor> {
        let (x, mask) = self.enter(pixels, filled, tap)?;
        self.finish(self.encoder.forward(&x, &mask, tap)?, tap)
    }

    /// What the first `blocks` blocks make of the pictures, before any final norm: `[b, prefix + patches, width]`. The rest
    /// is not worked out (LLaVA reads the last block but one).
    pub fn after_blocks(&self, pixels: &Tensor, blocks: usize, filled: Option<Filled>) -> Result<Tensor> {
        let (x, mask) = self.enter(pixels, filled, &mut |_, _| {})?;
        let path = Path { sight: &|_| Sight::Mask(&mask), angles: None, blocks };
        self.encoder.forward_along(&x, &path, &mut |_, _| {})
    }

    /// Rows of patches `[b, n, values]`, padded to one `n`, of pictures of these grids (rows, columns), to tokens
    /// `[b, n, width]` (SigLIP 2, NaFlex). Padding is seen by nobody.
    pub fn forward_patches(
        &self,
        patches: &Tensor,
        grids: &[(usize, usize)],
        tap: &mut Tap,
    ) -> Result<Tensor> {
        let (b, n, _) = patches.dims3()?;
        if grids.len() != b || grids.iter().any(|(rows, columns)| rows * columns > n || rows * columns == 0) {
            let expected = format!("[{}, n, values], n at least each of {grids:?}", grids.len());
            return Err(Error::shape("patches", expected, patches.dims()));
        }
        let x = self.patch.forward(patches)?;
        tap("patch_embeddings", &x);
        let mut places = Vec::with_capacity(b);
        for &grid in grids {
            let table = self.positions_of(grid)?;
            // The reference gives padding the first position.
            let first = table.narrow(0, 0, 1)?.broadcast_as((n - table.dim(0)?, self.config.width))?;
            places.push(Tensor::cat(&[&table, &first.contiguous()?], 0)?);
        }
        let x = (x + Tensor::stack(&places, 0)?)?;
        tap("embeddings", &x);
        let mask = self.valid_mask(grids, n);
        self.finish(self.encoder.forward(&x, &mask, tap)?, tap)
    }

    fn valid_mask(&self, grids: &[(usize, usize)], n: usize) -> Mask {
        keys_only(
            grids.iter().flat_map(|(rows, columns)| (0..n).map(move |i| i < rows * columns)).collect(),
            n,
        )
    }

    /// Tokens before the first block, and whom they see.
    fn enter(&self, pixels: &Tensor, filled: Option<Filled>, tap: &mut Tap) -> Result<(Tensor, Mask)> {
        if self.config.reads != Reads::Pictures {
            return Err(Error::invalid("this vision tower reads patches of any aspect, not pictures"));
        }
        let (patches, grid) = self.patchify(pixels)?;
        let x = self.patch.forward(&patches)?;
        let (b, n, width) = x.dims3()?;
        tap("patch_embeddings", &x);
        let mut mask = Mask::None;
        let mut x = match self.config.positions {
            Positions::Fractions => {
                let whole = vec![true; b * n];
                let filled = filled.unwrap_or(&whole);
                if filled.len() != b * n {
                    return Err(Error::shape("filled patches", format!("[{b} * {n}]"), &[filled.len()]));
                }
                if filled.contains(&false) {
                    mask = keys_only(filled.to_vec(), n);
                }
                let places: Vec<u32> =
                    filled.chunks_exact(n).flat_map(|filled| fractions(filled, self.config.grid())).collect();
                let places = Tensor::from_vec(places, (b, n), &Device::Cpu)?;
                (x + Embedding::from_tensor(self.positions.clone())?.forward(&places)?)?
            }
            _ if filled.is_some() => {
                return Err(Error::invalid("this vision tower takes whole pictures, not part of a canvas"));
            }
            _ => x.broadcast_add(&self.positions_of(grid)?)?,
        };
        if let Some(class) = &self.class_token {
            let class = (class + self.positions.narrow(0, 0, 1)?)?;
            let every = |rows: &Tensor| -> Result<Tensor> {
                Ok(rows.unsqueeze(0)?.broadcast_as((b, rows.dim(0)?, width))?.contiguous()?)
            };
            let mut parts = vec![every(&class)?];
            parts.extend(self.registers.as_ref().map(every).transpose()?);
            parts.push(x);
            x = Tensor::cat(&parts, 1)?;
        }
        if let Some(norm) = &self.first_norm {
            tap("embeddings_before_pre_layernorm", &x);
            x = norm.forward(&x)?;
        }
        tap("embeddings", &x);
        Ok((x, mask))
    }

    /// The positions of the patches of a grid, `[rows * columns, width]`.
    fn positions_of(&self, grid: (usize, usize)) -> Result<Tensor> {
        let side = self.config.grid();
        let first = usize::from(self.config.class_token);
        let table = self.positions.narrow(0, first, side * side)?;
        match self.config.positions {
            Positions::Resized(how) => interpolate::resize_grid(&table, (side, side), grid, how),
            _ => Ok(table),
        }
    }

    fn finish(&self, mut x: Tensor, tap: &mut Tap) -> Result<Tensor> {
        if let Some(norm) = &self.final_norm {
            x = norm.forward(&x)?;
        }
        tap("last_hidden_state", &x);
        Ok(x)
    }

    /// Tokens from [`Vit::forward`] to one vector each, `[b, width]`.
    ///
    /// # Errors
    /// The model does not pool.
    pub fn pool(&self, tokens: &Tensor) -> Result<Tensor> {
        self.pool_masked(tokens, &Mask::None)
    }

    /// The same for tokens from [`Vit::forward_patches`].
    pub fn pool_patches(&self, tokens: &Tensor, grids: &[(usize, usize)]) -> Result<Tensor> {
        let n = tokens.dim(1)?;
        let valid = grids.iter().flat_map(|(rows, columns)| (0..n).map(move |i| i < rows * columns));
        self.pool_masked(tokens, &Mask::blocks(vec![0], vec![0; n], valid.collect()))
    }

    fn pool_masked(&self, tokens: &Tensor, mask: &Mask) -> Result<Tensor> {
        let class = || -> Result<Tensor> { Ok(tokens.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?) };
        match &self.pool {
            Pool::None => Err(Error::invalid("this vision tower has no pooling head")),
            Pool::Probe(probe) => probe.forward(tokens, mask),
            Pool::Class => class(),
            Pool::Normed(norm) => norm.forward(&class()?),
            Pool::Tanh(linear) => Ok(linear.forward(&class()?)?.tanh()?),
        }
    }

    /// `[b, c, h, w]` to patches `[b, n, c * p * p]`, the layout of a convolution's kernel, and the grid (rows, columns).
    fn patchify(&self, pixels: &Tensor) -> Result<(Tensor, (usize, usize))> {
        let VisionConfig { image_size, patch_size: p, channels, .. } = self.config;
        let (b, c, height, width) = pixels.dims4()?;
        let any_size = matches!(self.config.positions, Positions::Resized(_));
        let fits = (height, width) == (image_size, image_size) || (any_size && height >= p && width >= p);
        if c != channels || !fits {
            let expected = format!("[b, {channels}, {image_size}, {image_size}]");
            return Err(Error::shape("pixels", expected, pixels.dims()));
        }
        let (rows, columns) = (height / p, width / p);
        let pixels = pixels.narrow(2, 0, rows * p)?.narrow(3, 0, columns * p)?.contiguous()?;
        let patches = pixels.reshape(vec![b, c, rows, p, columns, p])?.permute(vec![0, 2, 4, 1, 3, 5])?;
        Ok((patches.reshape((b, rows * columns, c * p * p))?, (rows, columns)))
    }
}

impl VisionConfig {
    pub(crate) fn encoder(&self) -> EncoderConfig {
        EncoderConfig {
            width: self.width,
            inner_width: self.inner_width,
            layers: self.layers,
            heads: self.heads,
            norm: self.norm,
            activation: self.activation,
            gated: false,
            layer_scale: self.layer_scale,
        }
    }
}

/// `[n, width]`, stored so, or with ones before it, or, a single row, as `[width]`.
fn rows(weights: &Weights, name: &str, n: usize, width: usize) -> Result<Tensor> {
    let tensor = match weights.shape_of(name).as_deref() {
        Some([_]) if n == 1 => weights.get(width, name)?,
        Some([_, _, _]) => weights.get((1, n, width), name)?,
        _ => weights.get((n, width), name)?,
    };
    Ok(tensor.reshape((n, width))?)
}

/// Everybody sees the keys that are there: `valid [b * n]`.
fn keys_only(valid: Vec<bool>, n: usize) -> Mask {
    Mask::blocks(vec![0; n], vec![0; n], valid)
}

/// Where each patch of a canvas of `side * side` reads the table of positions: by its fraction of the filled part, rounded
/// as the reference rounds it in float32; empty patches read the first.
fn fractions(filled: &[bool], side: usize) -> Vec<u32> {
    let step = 1.0 / side as f64;
    let edges: Vec<f32> =
        (0..((1.0 - step) / step).ceil() as usize).map(|i| (step + i as f64 * step) as f32).collect();
    let buckets = |count: usize| -> Vec<usize> {
        let step = 1.0 / count as f32;
        let at = |i: usize| (i as f32 * step).min((1.0 - 1e-6) as f32);
        (0..side).map(|i| edges.partition_point(|edge| *edge <= at(i))).collect()
    };
    let rows = buckets((0..side).filter(|row| filled[row * side]).count());
    let columns = buckets(filled[..side].iter().filter(|x| **x).count());
    let place = |i: usize| (rows[i / side] * side + columns[i % side]) as u32;
    filled.iter().enumerate().map(|(i, filled)| if *filled { place(i) } else { 0 }).collect()
}

/// Which patches hold any pixel of the picture: `mask [b, height, width]` (1 where there is one) to `[b * grid * grid]`.
///
/// # Errors
/// A mask of another size.
pub fn filled_patches(mask: &Tensor, config: &VisionConfig) -> Result<Vec<bool>> {
    let (b, height, width) = mask.dims3()?;
    let (side, p) = (config.grid(), config.patch_size);
    if (height, width) != (config.image_size, config.image_size) {
        let expected = format!("[b, {0}, {0}]", config.image_size);
        return Err(Error::shape("mask of pixels", expected, mask.dims()));
    }
    let mask = mask.to_dtype(DType::F32)?.narrow(1, 0, side * p)?.narrow(2, 0, side * p)?.contiguous()?;
    let blocks = mask.reshape((b * side, p, side, p))?.max(D::Minus1)?.max(1)?;
    Ok(blocks.flatten_all()?.to_vec1::<f32>()?.into_iter().map(|x| x > 0.0).collect())
}

/// SigLIP's pooling: a learned query attends to all tokens, then a feed-forward network with a residual.
#[derive(Clone, Debug)]
struct Probe {
    config: EncoderConfig,
    probe: Tensor,
    qkv: [Linear; 3],
    out: Linear,
    norm: Norm,
    mlp: Mlp,
}

impl Probe {
    fn new(weights: &Weights, config: EncoderConfig) -> Result<Self> {
        let w = config.width;
        let attention = weights.pp("attention");
        Ok(Self {
            config,
            probe: weights.get((1, 1, w), "probe")?,
            qkv: fused(&attention, ["in_proj_weight", "in_proj_bias"], w)?,
            out: Linear::new(&attention.pp("out_proj"), w, w, true)?,
            norm: Norm::new(&weights.pp("layernorm"), w, config.norm)?,
            mlp: Mlp::new(&weights.pp("mlp"), config.mlp())?,
        })
    }

    fn forward(&self, tokens: &Tensor, mask: &Mask) -> Result<Tensor> {
        let (b, _, w) = tokens.dims3()?;
        let probe = self.probe.broadcast_as((b, 1, w))?.contiguous()?;
        let [q, k, v] = &self.qkv;
        let (q, k, v) = (q.forward(&probe)?, k.forward(tokens)?, v.forward(tokens)?);
        let found = attention_packed(&q, &k, &v, self.config.heads(), mask, self.config.scale())?;
        let y = self.out.forward(&found)?;
        Ok((&y + self.mlp.forward(&self.norm.forward(&y)?)?)?.squeeze(1)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference rounds fractions in float32, and with 27 patches to a side some fall into the bucket before.
    #[test]
    fn positions_are_fractions_of_the_filled_part() {
        let whole = fractions(&[true; 16], 4);
        assert_eq!(whole, (0..16).collect::<Vec<u32>>());
        // The left half of the upper half: two by two patches spread over the whole table.
        let quarter: Vec<bool> = (0..16).map(|i| i / 4 < 2 && i % 4 < 2).collect();
        let got = fractions(&quarter, 4);
        assert_eq!([got[0], got[1], got[4], got[5]], [0, 2, 8, 10]);
        assert!(got.iter().zip(&quarter).all(|(place, filled)| *filled || *place == 0));
        assert!(fractions(&[true; 27 * 27], 27).iter().all(|place| *place < 27 * 27));
    }
}
