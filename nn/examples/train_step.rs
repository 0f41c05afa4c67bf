//! One training step of a 2.7 M-parameter transformer, batch 32 x 128 tokens: forward, backward, clipping, AdamW.
//!
//! `train_step [stock|fused] [steps] [shards] [threads]` prints one JSON line per step. `stock` is the same model composed of
//! Candle's own operations; `benches/train_step/torch_step.py` is the same step in PyTorch.

use std::time::Instant;
use vela_nn::{
    Activation, AdamW, AdamWConfig, DType, Embedding, Error, Gradients, Heads, Init, Linear, Mask, Mlp,
    MlpConfig, Norm, NormConfig, Result, Tensor, Weights, attention_packed, cross_entropy, gradients,
    merge_heads, oracle, shard_gradients, split_heads, threads,
};

const LAYERS: usize = 6;
const WIDTH: usize = 192;
const HEADS: usize = 6;
const HIDDEN: usize = 768;
const VOCABULARY: usize = 256;
const BATCH: usize = 32;
const TOKENS: usize = 128;
const NORM: NormConfig = NormConfig::LayerNorm { eps: 1e-5, bias: true };

struct Block {
    norm1: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm2: Norm,
    mlp: Mlp,
    fc1: Linear,
    fc2: Linear,
}

struct Model {
    tokens: Embedding,
    positions: Tensor,
    blocks: Vec<Block>,
    norm: Norm,
    head: Linear,
}

impl Model {
    fn new(weights: &Weights) -> Result<Self> {
        let block = |i: usize| -> Result<Block> {
            let w = weights.pp("blocks").pp(i);
            let linear = |name: &str, from, to| Linear::new(&w.pp(name), from, to, true);
            let config = MlpConfig {
                input: WIDTH,
                hidden: HIDDEN,
                output: WIDTH,
                activation: Activation::GeluTanh,
                gated: false,
                bias: true,
            };
            Ok(Block {
                norm1: Norm::new(&w.pp("norm1"), WIDTH, NORM)?,
                q: linear("q", WIDTH, WIDTH)?,
                k: linear("k", WIDTH, WIDTH)?,
                v: linear("v", WIDTH, WIDTH)?,
                out: linear("out", WIDTH, WIDTH)?,
                norm2: Norm::new(&w.pp("norm2"), WIDTH, NORM)?,
                mlp: Mlp::new(&w, config)?,
                fc1: linear("fc1", WIDTH, HIDDEN)?,
                fc2: linear("fc2", HIDDEN, WIDTH)?,
            })
        };
        Ok(Self {
            tokens: Embedding::new(&weights.pp("tokens"), VOCABULARY, WIDTH)?,
            positions: weights.get_init((TOKENS, WIDTH), "positions", Init::Normal(0.02))?,
            blocks: (0..LAYERS).map(block).collect::<Result<_>>()?,
            norm: Norm::new(&weights.pp("norm"), WIDTH, NORM)?,
            head: Linear::new(&weights.pp("head"), WIDTH, VOCABULARY, true)?,
        })
    }

    fn fused(&self, ids: &Tensor) -> Result<Tensor> {
        let (b, t) = ids.dims2()?;
        let mut x = (self.tokens.forward(ids)? + self.positions.broadcast_as((b, t, WIDTH))?)?;
        let heads = Heads { query: HEADS, key: HEADS };
        let scale = (WIDTH as f32 / HEADS as f32).powf(-0.5);
        for block in &self.blocks {
            let y = block.norm1.forward(&x)?;
            let (q, k, v) = (block.q.forward(&y)?, block.k.forward(&y)?, block.v.forward(&y)?);
            let y = attention_packed(&q, &k, &v, heads, &Mask::Causal, scale)?;
            x = (x + block.out.forward(&y)?)?;
            x = (&x + block.mlp.forward(&block.norm2.forward(&x)?)?)?;
        }
        self.head.forward(&self.norm.forward(&x)?)
    }

    fn stock(&self, ids: &Tensor) -> Result<Tensor> {
        let dense = |t: Option<&Tensor>| t.cloned().ok_or_else(|| Error::invalid("a quantised weight"));
        let linear = |l: &Linear, x: &Tensor| oracle::linear(x, &dense(l.weight())?, l.bias());
        let norm = |n: &Norm, x: &Tensor| oracle::norm(x, n.config(), n.weight(), n.bias());
        let mut x = oracle::embedding(&self.tokens.table()?, ids)?.broadcast_add(&self.positions)?;
        let scale = (WIDTH as f32 / HEADS as f32).powf(-0.5);
        for block in &self.blocks {
            let y = norm(&block.norm1, &x)?;
            let split = |l: &Linear| split_heads(&linear(l, &y)?, HEADS);
            let y = oracle::attention(
                &split(&block.q)?,
                &split(&block.k)?,
                &split(&block.v)?,
                &Mask::Causal,
                scale,
                None,
            )?;
            x = (x + linear(&block.out, &merge_heads(&y)?)?)?;
            let y = linear(&block.fc1, &norm(&block.norm2, &x)?)?;
            x = (&x + linear(&block.fc2, &oracle::activate(&y, Activation::GeluTanh)?)?)?;
        }
        linear(&self.head, &norm(&self.norm, &x)?)
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| arguments.get(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let stock = arguments.first().is_some_and(|a| a == "stock");
    let (steps, shards) = (number(1, 5), number(2, 8));
    threads::set(number(3, 2));

    let weights = Weights::fresh(0);
    let model = Model::new(&weights)?;
    let vars = weights.trainable();
    let mut optimiser = AdamW::new(vars.clone(), AdamWConfig::default());
    let numbers = vela_nn::random::uniform(0, "ids", 0.0, VOCABULARY as f32, (BATCH, TOKENS + 1))?
        .to_dtype(DType::U32)?;
    let (ids, targets) = (numbers.narrow(1, 0, TOKENS)?, numbers.narrow(1, 1, TOKENS)?);
    let rows = |t: &Tensor, from: usize, count: usize| -> Result<Tensor> {
        Ok(t.narrow(0, from, count)?.contiguous()?)
    };
    if !BATCH.is_multiple_of(shards) {
        return Err(Error::invalid(format!("{shards} shards do not divide a batch of {BATCH}")));
    }
    let size = BATCH / shards;
    for step in 0..steps + 2 {
        let start = Instant::now();
        let grads: Gradients = if stock {
            let targets = targets.flatten_all()?;
            let logits = model.stock(&rows(&ids, 0, BATCH)?)?.flatten_to(1)?;
            let log_sum = logits.exp()?.sum_keepdim(1)?.log()?;
            let picked = logits.broadcast_sub(&log_sum)?.gather(&targets.unsqueeze(1)?, 1)?;
            gradients(&vars, &picked.mean_all()?.neg()?)?
        } else {
            shard_gradients(&vars, shards, |shard| {
                let logits = model.fused(&rows(&ids, shard * size, size)?)?;
                cross_entropy(&logits, &rows(&targets, shard * size, size)?, None)
            })?
        };
        let norm = optimiser.step(&grads, 1e-3)?;
        if step >= 2 {
            let ms = 1e3 * start.elapsed().as_secs_f64();
            println!("{{\"step_ms\": {ms:.2}, \"loss\": {:.4}, \"norm\": {norm:.4}}}", grads.loss);
        }
    }
    Ok(())
}
