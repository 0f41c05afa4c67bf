//! What keeping keys and values in fewer bits costs: a text read with each kind of paged cache, compared with float32.
//!
//! `kv_accuracy --model DIR_OR_GGUF --text FILE [--tokens 512] [--lora DIR]`; the adapter is put beside the model. One JSON
//! line per kind: mean negative log-likelihood per token, mean and greatest divergence (Kullback-Leibler, nats) from
//! float32, share of positions with the same best token.

use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use vela_llm::engine::{BLOCK, PagedKind};
use vela_llm::paged::PagedBatch;
use vela_llm::{Decoder, Lora};
use vela_nn::paged::{PagedStore, Span};
use vela_nn::{Device, Mask, Tensor};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Rows of one forward pass.
const CHUNK: usize = 64;

/// Log-probabilities `[tokens][vocab]`, the prompt read in chunks: later chunks see what was kept of earlier ones.
fn read(decoder: &Decoder, ids: &[u32], kind: PagedKind) -> Outcome<Vec<Vec<f32>>> {
    let blocks: Vec<u32> = (0..ids.len().div_ceil(BLOCK) as u32).collect();
    let mut store = PagedStore::new(decoder.config().cache_shape(kind), blocks.len())?;
    let mut all = Vec::new();
    for (k, ids) in ids.chunks(CHUNK).enumerate() {
        let start = k * CHUNK;
        let spans = [Span { blocks: &blocks, start, rows: ids.len(), whole: 0 }];
        let positions = Tensor::arange(start as u32, (start + ids.len()) as u32, &Device::Cpu)?;
        let embeds = decoder.embed(&Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?)?;
        let mut batch = PagedBatch::new(&mut store, &spans);
        let hidden = decoder.forward(&embeds, &positions, &Mask::Causal, &mut batch)?;
        let logits = decoder.logits(&decoder.normalise(&hidden)?)?.squeeze(0)?.to_vec2::<f32>()?;
        for row in logits {
            let most = row.iter().fold(f32::NEG_INFINITY, |most, x| most.max(*x));
            let sum: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
            let log_sum = most + sum.ln() as f32;
            all.push(row.iter().map(|x| x - log_sum).collect());
        }
    }
    Ok(all)
}

fn best(row: &[f32]) -> usize {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap_or(0)
}

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| args.iter().position(|a| a == name).and_then(|at| args.get(at + 1));
    let path = option("--model").ok_or("--model DIR_OR_GGUF is missing")?;
    let text = std::fs::read_to_string(option("--text").ok_or("--text FILE is missing")?)?;
    let count: usize = option("--tokens").map_or(Ok(512), |n| n.parse())?;
    let mut model = vela_llm::model::load(Path::new(path))?;
    if let Some(dir) = option("--lora") {
        let lora = Lora::load(Path::new(dir), model.decoder.config())?;
        model.decoder = Arc::new(model.decoder.with_adapter(Arc::new(lora))?);
    }
    let mut ids = model.tokenizer.encode(&text)?;
    ids.truncate(count);
    let plain = read(&model.decoder, &ids, PagedKind::F32)?;
    for kind in [PagedKind::F32, PagedKind::F16, PagedKind::Int8] {
        let got = read(&model.decoder, &ids, kind)?;
        let likelihood = |rows: &[Vec<f32>]| -> f64 {
            let pairs = rows.iter().zip(&ids[1..]);
            pairs.map(|(row, id)| -f64::from(row[*id as usize])).sum::<f64>() / (ids.len() - 1) as f64
        };
        let divergence = |(p, q): (&Vec<f32>, &Vec<f32>)| -> f64 {
            p.iter().zip(q).map(|(p, q)| f64::from(p.exp()) * f64::from(p - q)).sum()
        };
        let divergences: Vec<f64> = plain.iter().zip(&got).map(divergence).collect();
        let same = plain.iter().zip(&got).filter(|(a, b)| best(a) == best(b)).count();
        println!(
            "{}",
            json!({
                "kind": kind, "tokens": ids.len(), "nll": likelihood(&got),
                "kl_mean": divergences.iter().sum::<f64>() / divergences.len() as f64,
                "kl_max": divergences.iter().fold(0f64, |most, x| most.max(*x)),
                "same_best": same as f64 / plain.len() as f64,
            })
        );
    }
    Ok(())
}
