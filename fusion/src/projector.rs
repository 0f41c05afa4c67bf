//! From patch tokens to language width: pixel shuffle, then a linear map, a small network, or learned queries.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use vela_nn::{
    Activation, Error, Heads, Init, Linear, Mask, Mlp, MlpConfig, Norm, NormConfig, Result, Weights,
    attention_packed,
};

/// A projector as data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectorConfig {
    /// Width of a patch token.
    pub input: usize,
    /// Width of a language embedding.
    pub output: usize,
    /// `shuffle * shuffle` neighbouring patches become one token (Idefics3); 1 leaves them alone.
    pub shuffle: usize,
    /// What follows.
    pub projection: Projection,
}

/// How tokens change width.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// One linear map.
    Linear {
        /// Whether it has a bias.
        bias: bool,
    },
    /// Two linear maps with an activation between them.
    Mlp {
        /// Width inside.
        hidden: usize,
        /// Between the two.
        activation: Activation,
    },
    /// The same after a normalisation: of each patch token, or of the neighbours that become one token.
    NormedMlp {
        /// Width inside.
        hidden: usize,
        /// Between the two.
        activation: Activation,
        /// The normalisation.
        norm: NormConfig,
        /// Whether patch tokens are normalised, before they are put together (Qwen2-VL), or what they become (InternVL).
        norm_first: bool,
    },
    /// Learned queries attend to the tokens (the cross-attention of a Q-Former, Li et al. 2023,
    /// <https://arxiv.org/abs/2301.12597>), so that the number of tokens is the number of queries.
    Queries {
        /// How many.
        count: usize,
        /// Attention heads.
        heads: usize,
        /// Width inside the feed-forward network.
        hidden: usize,
        /// Blocks.
        layers: usize,
        /// Every normalisation.
        norm: NormConfig,
        /// Of the feed-forward network.
        activation: Activation,
    },
}

/// A projector.
#[derive(Clone, Debug)]
pub struct Projector {
    config: ProjectorConfig,
    body: Body,
}

#[derive(Clone, Debug)]
enum Body {
    Linear(Linear),
    Mlp(Mlp),
    NormedMlp { norm: Norm, norm_first: bool, mlp: Mlp },
    Queries { queries: Tensor, heads: usize, input: Linear, blocks: Vec<QueryBlock>, norm: Norm },
}

#[derive(Clone, Debug)]
struct QueryBlock {
    norm_queries: Norm,
    norm_tokens: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm_mlp: Norm,
    mlp: Mlp,
}

impl Projector {
    /// Reads `modality_projection.proj` (linear), `modality_projection.{fc1,fc2}` (network, with `norm` if there is one) or
    /// `queries`, `input`, `layers.{i}` and `norm` (queries).
    pub fn new(weights: &Weights, config: &ProjectorConfig) -> Result<Self> {
        if config.shuffle == 0 || config.input == 0 || config.output == 0 {
            return Err(Error::invalid(format!("projector config: sizes must be positive: {config:?}")));
        }
        let (input, output) = (config.input * config.shuffle * config.shuffle, config.output);
        let projection = weights.pp("modality_projection");
        let body = match config.projection {
            Projection::Linear { bias } => {
                Body::Linear(Linear::new(&projection.pp("proj"), input, output, bias)?)
            }
            Projection::Mlp { hidden, activation } => {
                let mlp = MlpConfig { input, hidden, output, activation, gated: false, bias: true };
                Body::Mlp(Mlp::new(&projection, mlp)?)
            }
            Projection::NormedMlp { hidden, activation, norm, norm_first } => {
                let mlp = MlpConfig { input, hidden, output, activation, gated: false, bias: true };
                let width = if norm_first { config.input } else { input };
                Body::NormedMlp {
                    norm: Norm::new(&weights.pp("norm"), width, norm)?,
                    norm_first,
                    mlp: Mlp::new(&projection, mlp)?,
                }
            }
            Projection::Queries { count, heads, hidden, layers, norm, activation } => {
                if heads == 0 || !output.is_multiple_of(heads) {
                    return Err(Error::invalid(format!(
                        "projector: width {output} is no multiple of {heads} heads"
                    )));
                }
                let mlp = MlpConfig { input: output, hidden, output, activation, gated: false, bias: true };
                let block = |i: usize| {
                    let weights = weights.pp("layers").pp(i);
                    let linear = |name: &str| Linear::new(&weights.pp(name), output, output, true);
                    Ok(QueryBlock {
                        norm_queries: Norm::new(&weights.pp("norm_queries"), output, norm)?,
                        norm_tokens: Norm::new(&weights.pp("norm_tokens"), output, norm)?,
                        q: linear("q_proj")?,
                        k: linear("k_proj")?,
                        v: linear("v_proj")?,
                        out: linear("out_proj")?,
                        norm_mlp: Norm::new(&weights.pp("norm_mlp"), output, norm)?,
                        mlp: Mlp::new(&weights.pp("mlp"), mlp)?,
                    })
                };
                Body::Queries {
                    queries: weights.get_init((1, count, output), "queries", Init::Normal(0.02))?,
                    heads,
                    input: Linear::new(&weights.pp("input"), input, output, true)?,
                    blocks: (0..layers).map(block).collect::<Result<_>>()?,
                    norm: Norm::new(&weights.pp("norm"), output, norm)?,
                }
            }
        };
        Ok(Self { config: config.clone(), body })
    }

    /// What it is.
    pub fn config(&self) -> &ProjectorConfig {
        &self.config
    }

    /// Tokens that come out of `patches` patch tokens.
    pub fn tokens(&self, patches: usize) -> usize {
        match &self.body {
            Body::Queries { queries, .. } => queries.dims().get(1).copied().unwrap_or(0),
            _ => patches / (self.config.shuffle * self.config.shuffle),
        }
    }

    /// `patches [b, n, input]` (a square grid, row by row) to `[b, tokens(n), output]`. Differentiable.
    pub fn forward(&self, patches: &Tensor) -> Result<Tensor> {
        self.project(&self.merged(patches)?)
    }

    /// Patch tokens as the projection reads them: `[b, n, input]` to `[b, n / shuffle^2, shuffle^2 * input]`.
    pub fn merged(&self, patches: &Tensor) -> Result<Tensor> {
        pixel_shuffle(&self.first_norm(patches)?, self.config.shuffle)
    }

    /// Patch tokens `[n, input]` in blocks of `shuffle * shuffle` neighbours, of pictures of any aspect, to
    /// `[n / shuffle^2, output]`. Differentiable.
    pub fn forward_blocks(&self, patches: &Tensor) -> Result<Tensor> {
        let (n, width) = patches.dims2()?;
        let block = self.config.shuffle * self.config.shuffle;
        if !n.is_multiple_of(block) {
            return Err(Error::shape(
                "blocks of patches",
                format!("[multiple of {block}, width]"),
                patches.dims(),
            ));
        }
        self.project(&self.first_norm(patches)?.reshape((n / block, block * width))?)
    }

    fn first_norm(&self, patches: &Tensor) -> Result<Tensor> {
        match &self.body {
            Body::NormedMlp { norm, norm_first: true, .. } => norm.forward(patches),
            _ => Ok(patches.clone()),
        }
    }

    fn project(&self, x: &Tensor) -> Result<Tensor> {
        match &self.body {
            Body::Linear(linear) => linear.forward(x),
            Body::Mlp(mlp) => mlp.forward(x),
            Body::NormedMlp { norm, norm_first: false, mlp } => mlp.forward(&norm.forward(x)?),
            Body::NormedMlp { mlp, .. } => mlp.forward(x),
            Body::Queries { queries, heads, input, blocks, norm } => {
                let (b, _, _) = x.dims3()?;
                let tokens = input.forward(x)?;
                let (_, count, width) = queries.dims3()?;
                let mut x = queries.broadcast_as((b, count, width))?.contiguous()?;
                let (heads, scale) =
                    (Heads { query: *heads, key: *heads }, ((width / heads) as f32).sqrt().recip());
                for block in blocks {
                    let tokens = block.norm_tokens.forward(&tokens)?;
                    let q = block.q.forward(&block.norm_queries.forward(&x)?)?;
                    let (k, v) = (block.k.forward(&tokens)?, block.v.forward(&tokens)?);
                    x = (x + block.out.forward(&attention_packed(
                        &q,
                        &k,
                        &v,
                        heads,
                        &Mask::None,
                        scale,
                    )?)?)?;
                    x = (&x + block.mlp.forward(&block.norm_mlp.forward(&x)?)?)?;
                }
                norm.forward(&x)
            }
        }
    }
}

/// Space to depth: `x [b, side * side, c]` to `[b, (side / s)^2, s * s * c]`; inside a token the features are in the
/// order row, column, channel.
pub fn pixel_shuffle(x: &Tensor, s: usize) -> Result<Tensor> {
    if s == 1 {
        return Ok(x.clone());
    }
    let (b, n, c) = x.dims3()?;
    let side = n.isqrt();
    if s == 0 || side * side != n || !side.is_multiple_of(s) {
        let expected = format!("[b, n, c], n the square of a multiple of {s}");
        return Err(Error::shape("input of pixel shuffle", expected, x.dims()));
    }
    let x = x.reshape(vec![b, side / s, s, side / s, s * c])?.transpose(2, 3)?;
    Ok(x.reshape((b, n / (s * s), s * s * c))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn pixel_shuffle_gathers_square_neighbourhoods_row_first() -> Result<()> {
        let x = Tensor::arange(0f32, 16.0, &Device::Cpu)?.reshape((1, 16, 1))?;
        let y = pixel_shuffle(&x, 2)?;
        assert_eq!(y.dims(), [1, 4, 4]);
        assert_eq!(y.flatten_all()?.to_vec1::<f32>()?[..8], [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0]);
        assert!(pixel_shuffle(&x, 3).is_err());
        Ok(())
    }

    #[test]
    fn learned_queries_give_their_own_number_of_tokens_and_gradients() -> Result<()> {
        let norm = NormConfig::LayerNorm { eps: 1e-6, bias: true };
        let projection = Projection::Queries {
            count: 3,
            heads: 2,
            hidden: 8,
            layers: 2,
            norm,
            activation: Activation::Gelu,
        };
        let config = ProjectorConfig { input: 5, output: 4, shuffle: 1, projection };
        let weights = Weights::fresh(1);
        let projector = Projector::new(&weights, &config)?;
        let y = projector.forward(&vela_nn::random::normal(1, "x", (2, 9, 5))?)?;
        assert_eq!((y.dims(), projector.tokens(9)), ([2, 3, 4].as_slice(), 3));
        let gradients = y.sqr()?.sum_all()?.backward()?;
        assert!(weights.trainable().iter().all(|(_, var)| gradients.get(var.as_tensor()).is_some()));
        Ok(())
    }
}
