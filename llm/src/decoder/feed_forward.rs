//! What works on each position: a network, or a few of many.

use super::beside::Side;
use crate::config::{DecoderConfig, Experts, FeedForward, Names};
use candle_core::{Device, Tensor};
use vela_nn::{Error, FusedMlp, Linear, Mlp, MlpConfig, Norm, Result, Weights};

/// The feed-forward part of a layer.
#[derive(Clone, Debug)]
pub(super) enum Network {
    One(Mlp),
    /// Gate and up stored as one.
    Fused(FusedMlp),
    Many(Box<Mixture>),
}

impl Network {
    /// Reads what layer `index` has.
    pub fn new(weights: &Weights, config: &DecoderConfig, index: usize) -> Result<Self> {
        let names = config.names.table();
        if let FeedForward::Experts(experts) = &config.feed_forward
            && !experts.dense_layers.contains(&index)
        {
            return Ok(Self::Many(Box::new(Mixture::new(weights, config, &names, experts)?)));
        }
        let (width, inner, bias) = (config.width, config.inner_width, config.mlp_bias);
        let gated = config.feed_forward != FeedForward::Plain;
        if gated && !names.gate_up.is_empty() {
            let names = [names.gate_up, names.down];
            return Ok(Self::Fused(FusedMlp::new(weights, shape(config, inner), names)?));
        }
        let linear = |name: &str, input: usize, output: usize| {
            super::linear(&weights.pp(name), names.transposed, input, output, bias)
        };
        let gate = if gated { Some(linear(names.gate, width, inner)?) } else { None };
        let up = linear(if gated { names.up } else { names.plain_up() }, width, inner)?;
        Ok(Self::One(Mlp::from_layers(gate, up, linear(names.down, inner, width)?, config.activation)))
    }

    /// `x [.., width]`, through the norm if there is one, to the same shape.
    pub fn forward(&self, norm: Option<&Norm>, x: &Tensor, names: &Names, side: Side) -> Result<Tensor> {
        let normed = match (self, norm) {
            (Self::One(mlp), Some(norm)) if side.is_empty() => return mlp.forward_normed(norm, x),
            (_, Some(norm)) => Some(norm.forward(x)?),
            _ => None,
        };
        let x = normed.as_ref().unwrap_or(x);
        match self {
            Self::One(mlp) => {
                let up = if mlp.parts().0.is_some() { names.up } else { names.plain_up() };
                through(mlp, ["", names.gate, up, names.down], x, side)
            }
            Self::Fused(mlp) if side.is_empty() => mlp.forward(x),
            Self::Fused(mlp) => {
                let (gate_up, down) = mlp.parts();
                let inside = mlp.activate(&side.through(names.gate_up, gate_up, x)?)?;
                side.through(names.down, down, &inside)
            }
            Self::Many(mixture) => mixture.forward(x, names, side),
        }
    }
}

/// A network whose matrices are called `scope` and `gate`, `up` and `down`: as one operation if nothing is beside it.
fn through(mlp: &Mlp, [scope, gate, up, down]: [&str; 4], x: &Tensor, side: Side) -> Result<Tensor> {
    if side.is_empty() {
        return mlp.forward(x);
    }
    let named = |name: &str| if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") };
    let (gate_matrix, up_matrix, down_matrix, activation) = mlp.parts();
    let first = side.through(&named(up), up_matrix, x)?;
    let inside = match gate_matrix {
        Some(matrix) => activation.gated(&side.through(&named(gate), matrix, x)?, &first)?,
        None => activation.forward(&first)?,
    };
    side.through(&named(down), down_matrix, &inside)
}

fn shape(config: &DecoderConfig, hidden: usize) -> MlpConfig {
    MlpConfig {
        input: config.width,
        hidden,
        output: config.width,
        activation: config.activation,
        gated: true,
        bias: config.mlp_bias,
    }
}

/// A mixture of experts: a router weighs them for each token, and the best few work on it.
#[derive(Clone, Debug)]
pub(super) struct Mixture {
    router: Linear,
    experts: Vec<Mlp>,
    chosen: usize,
    renormalise: bool,
    /// An expert for every token, and the projection to its gate.
    shared: Option<(Mlp, Linear)>,
}

impl Mixture {
    fn new(weights: &Weights, config: &DecoderConfig, names: &Names, experts: &Experts) -> Result<Self> {
        let expert = |i: usize| {
            let weights = weights.pp(names.experts).pp(i);
            Mlp::with_names(&weights, shape(config, experts.inner_width), names.expert)
        };
        let shared = |inner: usize| -> Result<(Mlp, Linear)> {
            let mlp = Mlp::with_names(&weights.pp(names.shared_expert), shape(config, inner), names.expert)?;
            Ok((mlp, Linear::new(&weights.pp(names.shared_gate), config.width, 1, false)?))
        };
        Ok(Self {
            router: Linear::new(&weights.pp(names.router), config.width, experts.count, false)?,
            experts: (0..experts.count).map(expert).collect::<Result<_>>()?,
            chosen: experts.chosen,
            renormalise: experts.renormalise,
            shared: experts.shared.map(shared).transpose()?,
        })
    }

    /// `x [.., width]` to the same shape. Each expert reads only its own tokens. Differentiable, also in the router.
    fn forward(&self, x: &Tensor, names: &Names, side: Side) -> Result<Tensor> {
        let width = x.dims().last().copied().unwrap_or(0);
        let tokens = x.reshape(((), width))?;
        let (n, count) = (tokens.dim(0)?, self.experts.len());
        let logits = side.through(names.router, &self.router, &tokens)?;
        let [gate, up, down] = names.expert;
        let weights = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(1)?)?; // [n, count]
        let chosen: Vec<Vec<u32>> =
            weights.to_vec2::<f32>()?.iter().map(|row| self.best(row)).collect::<Result<_>>()?;
        let weights = match self.renormalise {
            true => {
                let ids = Tensor::from_vec(chosen.concat(), (n, self.chosen), &Device::Cpu)?;
                weights.broadcast_div(&weights.gather(&ids, 1)?.sum_keepdim(1)?)?
            }
            false => weights,
        };
        let weights = weights.flatten_all()?;
        let mut out = tokens.zeros_like()?;
        for (e, expert) in self.experts.iter().enumerate() {
            let mine = |(_, of): &(usize, &Vec<u32>)| of.contains(&(e as u32));
            let rows: Vec<u32> = chosen.iter().enumerate().filter(mine).map(|(row, _)| row as u32).collect();
            if rows.is_empty() {
                continue;
            }
            let places: Vec<u32> = rows.iter().map(|row| row * count as u32 + e as u32).collect();
            let weight = weights.index_select(&Tensor::new(places, &Device::Cpu)?, 0)?.unsqueeze(1)?;
            let ids = Tensor::new(rows.as_slice(), &Device::Cpu)?;
            let scope = format!("{}.{e}", names.experts);
            let mine = tokens.index_select(&ids, 0)?;
            let y = through(expert, [&scope, gate, up, down], &mine, side.of_rows(&rows))?;
            out = out.index_add(&ids, &y.broadcast_mul(&weight)?, 0)?;
        }
        if let Some((expert, open)) = &self.shared {
            let open = side.through(names.shared_gate, open, &tokens)?;
            let open = (open.neg()?.exp()? + 1.0)?.recip()?; // [n, 1]
            let y = through(expert, [names.shared_expert, gate, up, down], &tokens, side)?;
            out = (out + y.broadcast_mul(&open)?)?;
        }
        Ok(out.reshape(x.shape())?)
    }

    /// The experts of the largest weights; the first of equals.
    fn best(&self, weights: &[f32]) -> Result<Vec<u32>> {
        if weights.iter().any(|w| !w.is_finite()) {
            return Err(Error::invalid("mixture of experts: the router gave a NaN or an infinity"));
        }
        let mut order: Vec<u32> = (0..weights.len() as u32).collect();
        order.sort_by(|a, b| weights[*b as usize].total_cmp(&weights[*a as usize]));
        order.truncate(self.chosen);
        Ok(order)
    }
}
