//! ACT (Zhao et al. 2023, <https://arxiv.org/abs/2304.13705>): pictures and joints as tokens of a transformer encoder,
//! a chunk of actions as the queries of its decoder. At inference the latent of its variational encoder is zero.

use crate::cost::ActSizes;
use crate::lerobot::{Folder, is_bookkeeping};
use crate::moment::{Moment, Network};
use crate::storage::Storage;
use candle_core::{Device, Tensor};
use serde::Deserialize;
use std::path::Path;
use vela_nn::{
    Activation, Conv, Embedding, Error, Heads, Init, Linear, Mask, Norm, NormConfig, Result, Weights,
    attention_packed,
};
use vela_vision::{ResNet, ResNetNames, ResNetNorm, Tap};

/// The fields of an ACT `config.json` that change what is computed.
#[derive(Clone, Debug, Deserialize)]
struct File {
    n_obs_steps: usize,
    chunk_size: usize,
    n_action_steps: usize,
    vision_backbone: String,
    #[serde(default)]
    replace_final_stride_with_dilation: bool,
    pre_norm: bool,
    dim_model: usize,
    n_heads: usize,
    dim_feedforward: usize,
    feedforward_activation: String,
    n_encoder_layers: usize,
    n_decoder_layers: usize,
    latent_dim: usize,
    temporal_ensemble_coeff: Option<f64>,
}

/// An ACT network.
#[derive(Clone, Debug)]
pub struct Act {
    backbone: Option<ResNet>,
    picture_in: Option<Conv>,
    state_in: Option<Linear>,
    latent_in: Linear,
    latent_dims: usize,
    places: Tensor,
    encoder: Vec<Layer>,
    encoder_norm: Option<Norm>,
    decoder: Vec<Layer>,
    decoder_norm: Norm,
    queries: Tensor,
    action_out: Linear,
    /// Actions to carry out before the next chunk.
    pub execute: usize,
    /// Weight decay of temporal ensembling per older prediction, if the folder asks for it.
    pub ensemble: Option<f64>,
}

/// Torch's layer norm.
const NORM: NormConfig = NormConfig::LayerNorm { eps: 1e-5, bias: true };

/// Attention with one matrix for queries, keys and values, as torch keeps it.
#[derive(Clone, Debug)]
struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    heads: usize,
}

impl Attention {
    fn new(weights: &Weights, width: usize, heads: usize) -> Result<Self> {
        let weight = weights.get_init((3 * width, width), "in_proj_weight", Init::XavierUniform)?;
        let bias = weights.get_init(3 * width, "in_proj_bias", Init::Zeros)?;
        let part = |i: usize| {
            let weight = weight.narrow(0, i * width, width)?.contiguous()?;
            Linear::from_tensors(weight, Some(bias.narrow(0, i * width, width)?.contiguous()?))
        };
        let out = Linear::new(&weights.pp("out_proj"), width, width, true)?;
        Ok(Self { q: part(0)?, k: part(1)?, v: part(2)?, out, heads })
    }

    fn forward(&self, queries: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
        let (q, k, v) = (self.q.forward(queries)?, self.k.forward(keys)?, self.v.forward(values)?);
        let scale = 1.0 / ((q.dim(2)? / self.heads) as f32).sqrt();
        let heads = Heads { query: self.heads, key: self.heads };
        self.out.forward(&attention_packed(&q, &k, &v, heads, &Mask::None, scale)?)
    }
}

/// A layer of the encoder, or, with `cross`, of the decoder. Positions are added to queries and keys in every layer.
#[derive(Clone, Debug)]
struct Layer {
    attention: Attention,
    cross: Option<Attention>,
    inner: Linear,
    outer: Linear,
    norms: Vec<Norm>,
    activation: Activation,
    pre_norm: bool,
}

impl Layer {
    fn new(weights: &Weights, file: &File, activation: Activation, crosses: bool) -> Result<Self> {
        let (width, inner) = (file.dim_model, file.dim_feedforward);
        let norm = |i: usize| Norm::new(&weights.pp(format!("norm{i}")), width, NORM);
        let cross = || Attention::new(&weights.pp("multihead_attn"), width, file.n_heads);
        Ok(Self {
            attention: Attention::new(&weights.pp("self_attn"), width, file.n_heads)?,
            cross: crosses.then(cross).transpose()?,
            inner: Linear::new(&weights.pp("linear1"), width, inner, true)?,
            outer: Linear::new(&weights.pp("linear2"), inner, width, true)?,
            norms: (1..=if crosses { 3 } else { 2 }).map(norm).collect::<Result<_>>()?,
            activation,
            pre_norm: file.pre_norm,
        })
    }

    /// One part with its norm and its residual, before (`pre_norm`) or after.
    fn residual(
        &self,
        x: &Tensor,
        norm: &Norm,
        part: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        if self.pre_norm {
            return Ok((x + part(&norm.forward(x)?)?)?);
        }
        norm.forward(&(x + part(x)?)?)
    }

    /// `x [b, t, width]` with `places [1, t, width]`; `memory` is what the decoder attends to, as (keys, values).
    fn forward(&self, x: &Tensor, places: &Tensor, memory: Option<(&Tensor, &Tensor)>) -> Result<Tensor> {
        let mut norms = self.norms.iter();
        let mut next = || norms.next().ok_or_else(|| Error::invalid("act: a layer without a norm"));
        let mut x = self.residual(x, next()?, |x| {
            let placed = x.broadcast_add(places)?;
            self.attention.forward(&placed, &placed, x)
        })?;
        if let (Some(cross), Some((keys, values))) = (&self.cross, memory) {
            x = self.residual(&x, next()?, |x| cross.forward(&x.broadcast_add(places)?, keys, values))?;
        }
        self.residual(&x, next()?, |x| self.outer.forward(&self.activation.forward(&self.inner.forward(x)?)?))
    }
}

impl Act {
    /// Reads a LeRobot folder's network.
    ///
    /// # Errors
    /// A setting that is not supported; a tensor that is missing, unused or mis-shaped (all of them named).
    pub fn load(folder: &Folder, weights: &Weights) -> Result<Self> {
        let file: File = folder.fields()?;
        folder.refuse(
            "act",
            &[
                (file.n_obs_steps != 1, "more than one observation"),
                (file.replace_final_stride_with_dilation, "replace_final_stride_with_dilation"),
                (!["resnet18", "resnet34"].contains(&file.vision_backbone.as_str()), "this vision_backbone"),
                (file.n_heads == 0 || !file.dim_model.is_multiple_of(file.n_heads.max(1)), "these heads"),
                (!file.dim_model.is_multiple_of(4), "this dim_model"),
                (file.n_action_steps > file.chunk_size || file.n_action_steps == 0, "these n_action_steps"),
                (folder.inputs.of_kind("ENV").next().is_some(), "an environment state"),
            ],
        )?;
        let activation = Activation::from_name(&file.feedforward_activation)?;
        let (model, width) = (weights.pp("model"), file.dim_model);
        let sees = !folder.cameras()?.is_empty();
        let backbone =
            sees.then(|| ResNet::new(&model.pp("backbone"), ResNetNames::Named, ResNetNorm::FixedBatch));
        let backbone = backbone.transpose()?;
        let picture_in = backbone.as_ref().map(|net| {
            Conv::new(&model.pp("encoder_img_feat_input_proj"), (net.width(), width), 1, 1, 0, true)
        });
        let feels = folder.inputs.of_kind("STATE").next().is_some();
        let state_in = feels.then(|| {
            let weights = model.pp("encoder_robot_state_input_proj");
            Linear::new(&weights, folder.inputs.width("STATE")?, width, true)
        });
        let layers = |name: &str, count: usize, crosses: bool| -> Result<Vec<Layer>> {
            let weights = model.pp(name).pp("layers");
            (0..count).map(|i| Layer::new(&weights.pp(i), &file, activation, crosses)).collect()
        };
        let table = |name: &str, rows: usize| -> Result<Tensor> {
            Ok(Embedding::new(&model.pp(name), rows, width)?.table()?.unsqueeze(0)?)
        };
        let latent_in = Linear::new(&model.pp("encoder_latent_input_proj"), file.latent_dim, width, true)?;
        let made = Self {
            picture_in: picture_in.transpose()?,
            state_in: state_in.transpose()?,
            latent_in,
            latent_dims: file.latent_dim,
            places: table("encoder_1d_feature_pos_embed", 1 + usize::from(feels))?,
            encoder: layers("encoder", file.n_encoder_layers, false)?,
            encoder_norm: file
                .pre_norm
                .then(|| Norm::new(&model.pp("encoder").pp("norm"), width, NORM))
                .transpose()?,
            decoder: layers("decoder", file.n_decoder_layers, true)?,
            decoder_norm: Norm::new(&model.pp("decoder").pp("norm"), width, NORM)?,
            queries: table("decoder_pos_embed", file.chunk_size)?,
            action_out: Linear::new(&model.pp("action_head"), width, folder.outputs.width("ACTION")?, true)?,
            execute: file.n_action_steps,
            ensemble: file.temporal_ensemble_coeff,
            backbone,
        };
        // The encoder of the latent is for training only.
        weights.finish_allowing(|name| name.starts_with("model.vae_encoder") || is_bookkeeping(name))?;
        Ok(made)
    }

    /// A folder from disk.
    pub fn open(dir: &Path, storage: Storage) -> Result<(Folder, Weights, Self)> {
        let folder = Folder::read(dir, &[])?;
        let weights = storage.load(dir)?;
        let network = Self::load(&folder, &weights)?;
        Ok((folder, weights, network))
    }

    /// Normalised actions `[b, horizon, dims]` of normalised pictures (one `[b, 3, h, w]` per camera) and joints
    /// `[b, dims]`; taps `feature_map.{camera}`, `image_tokens`, `encoder_in`, `encoder_out`, `decoder_out`.
    pub fn forward(&self, pictures: &[Tensor], state: Option<&Tensor>, tap: &mut Tap) -> Result<Tensor> {
        let maps = self.see(pictures)?;
        for (i, map) in maps.iter().enumerate() {
            tap(&format!("feature_map.{i}"), map);
        }
        let read = self.read(&maps, state, tap)?;
        self.answer(&read, tap)
    }

    /// Feature maps `[b, channels, h / 32, w / 32]` of the pictures; those of one size are one batch.
    pub fn see(&self, pictures: &[Tensor]) -> Result<Vec<Tensor>> {
        let (Some(backbone), [first, rest @ ..]) = (&self.backbone, pictures) else { return Ok(Vec::new()) };
        if rest.iter().any(|picture| picture.dims() != first.dims()) {
            return pictures.iter().map(|picture| backbone.forward(picture)).collect();
        }
        Ok(backbone.forward(&Tensor::cat(pictures, 0)?)?.chunk(pictures.len(), 0)?)
    }

    /// What the encoder makes of feature maps and joints; taps `image_tokens`, `encoder_in`, `encoder_out`.
    ///
    /// # Errors
    /// Neither maps nor joints.
    pub fn read(&self, maps: &[Tensor], state: Option<&Tensor>, tap: &mut Tap) -> Result<Encoded> {
        let b = match (state, maps.first()) {
            (Some(state), _) => state.dim(0)?,
            (None, Some(map)) => map.dim(0)?,
            (None, None) => return Err(Error::invalid("act: neither joints nor pictures")),
        };
        let latent = Tensor::zeros((b, self.latent_dims), candle_core::DType::F32, &Device::Cpu)?;
        let mut tokens = vec![self.latent_in.forward(&latent)?.unsqueeze(1)?];
        if let (Some(state_in), Some(state)) = (&self.state_in, state) {
            tokens.push(state_in.forward(state)?.unsqueeze(1)?);
        }
        let mut places = vec![self.places.clone()];
        if let Some(picture_in) = &self.picture_in {
            for map in maps {
                let seen = picture_in.forward(&map.contiguous()?)?;
                tap("image_tokens", &seen);
                let (_, width, height, columns) = seen.dims4()?;
                tokens.push(seen.flatten_from(2)?.transpose(1, 2)?.contiguous()?);
                places.push(sine_places(width, height, columns)?);
            }
        }
        let (mut x, places) = (Tensor::cat(&tokens, 1)?, Tensor::cat(&places, 1)?);
        tap("encoder_in", &x);
        for layer in &self.encoder {
            x = layer.forward(&x, &places, None)?;
        }
        if let Some(norm) = &self.encoder_norm {
            x = norm.forward(&x)?;
        }
        tap("encoder_out", &x);
        Ok(Encoded { keys: x.broadcast_add(&places)?, values: x })
    }

    /// Normalised actions `[b, horizon, dims]`; taps `decoder_out`.
    pub fn answer(&self, read: &Encoded, tap: &mut Tap) -> Result<Tensor> {
        let (b, (_, horizon, width)) = (read.values.dim(0)?, self.queries.dims3()?);
        let mut y = Tensor::zeros((b, horizon, width), candle_core::DType::F32, &Device::Cpu)?;
        for layer in &self.decoder {
            y = layer.forward(&y, &self.queries, Some((&read.keys, &read.values)))?;
        }
        let y = self.decoder_norm.forward(&y)?;
        tap("decoder_out", &y);
        self.action_out.forward(&y)
    }

    /// Its sizes, for `tokens` tokens of the encoder.
    pub fn sizes(&self, tokens: usize) -> ActSizes {
        let inner = self.encoder.first().map_or(0, |layer| layer.inner.dims().0);
        let width = self.action_out.dims().1;
        let layers = [self.encoder.len(), self.decoder.len()];
        ActSizes { width, inner, layers, tokens: [tokens, self.queries.dims()[1]] }
    }

    /// Numbers in the state, if it reads one.
    pub fn state_dims(&self) -> Option<usize> {
        self.state_in.as_ref().map(|linear| linear.dims().1)
    }
}

/// What the decoder looks at, `[b, tokens, width]` each.
#[derive(Clone, Debug)]
pub struct Encoded {
    keys: Tensor,
    values: Tensor,
}

impl Network for Act {
    fn horizon(&self) -> usize {
        self.queries.dims()[1]
    }

    fn execute(&self) -> usize {
        self.execute
    }

    fn ensemble(&self) -> Option<f64> {
        self.ensemble
    }

    fn act(&self, moments: &[Moment], _seed: u64) -> Result<Tensor> {
        let moment = moments.last().ok_or_else(|| Error::invalid("act: expected one moment, got none"))?;
        let pictures: Vec<Tensor> =
            moment.pictures.iter().map(|picture| Ok(picture.unsqueeze(0)?)).collect::<Result<_>>()?;
        let state = Tensor::from_vec(moment.state.clone(), (1, moment.state.len()), &Device::Cpu)?;
        let state = self.state_in.is_some().then_some(&state);
        Ok(self.forward(&pictures, state, &mut |_, _| {})?.squeeze(0)?)
    }
}

/// Sine embedding of a grid, `[1, height * width, dims]`: first of the row, then of the column, sines and cosines in
/// turn; positions count from 1 and are scaled to `2 pi` (DETR, <https://arxiv.org/abs/2005.12872>).
fn sine_places(dims: usize, height: usize, width: usize) -> Result<Tensor> {
    let half = dims / 2;
    let mut values = Vec::with_capacity(height * width * dims);
    let one = |values: &mut Vec<f32>, at: usize, count: usize| {
        let angle = (at + 1) as f32 / (count as f32 + 1e-6) * std::f32::consts::TAU;
        for k in 0..half {
            let frequency = 10_000f32.powf((2 * (k / 2)) as f32 / half as f32);
            let turned = angle / frequency;
            values.push(if k % 2 == 0 { turned.sin() } else { turned.cos() });
        }
    };
    for row in 0..height {
        for column in 0..width {
            one(&mut values, row, height);
            one(&mut values, column, width);
        }
    }
    Ok(Tensor::from_vec(values, (1, height * width, 2 * half), &Device::Cpu)?)
}
