//! Milliseconds per chunk of a policy folder on this machine: median and 99th percentile, and where the time goes.
//! `cargo run --release -p vela-policy --example chunk_latency -- DIR [THREADS]`, or no DIR for a fresh network of the
//! tabletop policy's sizes.

use candle_core::{Device, Tensor};
use std::error::Error;
use std::time::Instant;
use vela_embodiment::ActionSpace;
use vela_fusion::{Projection, ProjectorConfig};
use vela_llm::DecoderConfig;
use vela_nn::{Activation, NormConfig, RopeConfig, Weights, random, threads};
use vela_policy::{ExpertConfig, FlowConfig, Normaliser, Scaling, Vla, VlaConfig, VlaInputs};
use vela_vision::{Pooling, VisionConfig};

fn config() -> VlaConfig {
    let decoder = DecoderConfig {
        vocab: 64,
        width: 192,
        inner_width: 512,
        layers: 4,
        heads: 6,
        kv_heads: 3,
        head_dim: 32,
        norm: NormConfig::RmsNorm { eps: 1e-5, one_plus: false },
        activation: Activation::Silu,
        rope: RopeConfig::new(32, 10_000.0),
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        tied: true,
        ..DecoderConfig::default()
    };
    let as_is =
        Normaliser { scaling: Scaling::Identity, first: vec![], second: vec![], eps: Normaliser::EPS };
    VlaConfig {
        kind: "vela_vla".into(),
        vision: VisionConfig {
            image_size: 96,
            patch_size: 8,
            channels: 3,
            width: 128,
            inner_width: 384,
            layers: 4,
            heads: 4,
            norm: NormConfig::LayerNorm { eps: 1e-6, bias: true },
            activation: Activation::GeluTanh,
            final_norm: true,
            pooling: Pooling::None,
            ..VisionConfig::default()
        },
        projector: ProjectorConfig {
            input: 128,
            output: 192,
            shuffle: 2,
            projection: Projection::Mlp { hidden: 192, activation: Activation::GeluTanh },
        },
        expert: ExpertConfig {
            layers: DecoderConfig { vocab: 1, width: 128, inner_width: 384, ..decoder.clone() },
            self_attention_every: 1,
            causal: false,
            action_dims: 6,
            time_periods: [4e-3, 4.0],
        },
        decoder,
        flow: FlowConfig { steps: 6, ..FlowConfig::default() },
        cameras: vec!["front".into(), "wrist".into()],
        camera_embeddings: true,
        state_dims: 6,
        image_scale: 192f32.sqrt(),
        word_scale: 192f32.sqrt(),
        prompt_suffix: String::new(),
        space: ActionSpace::JointDeltas,
        horizon: 16,
        execute: 8,
        state: as_is.clone(),
        action: as_is,
        rtc: None,
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (folder, count) = match arguments.as_slice() {
        [] => (None, 0),
        [folder] => (Some(folder), 0),
        [folder, count, ..] => (Some(folder), count.parse()?),
    };
    threads::set(count);
    let (config, weights) = match folder.filter(|name| *name != "fresh") {
        None => (config(), Weights::fresh(1)),
        Some(dir) => {
            let dir = std::path::Path::new(dir);
            (serde_json::from_slice(&std::fs::read(dir.join("config.json"))?)?, Weights::load_dir(dir)?)
        }
    };
    let vla = Vla::new(&weights, &config)?;
    let size = config.vision.image_size;
    let inputs = VlaInputs {
        frames: random::uniform(1, "frames", -1.0, 1.0, vec![1, config.cameras.len(), 3, size, size])?,
        words: Tensor::from_vec((0..7).map(|i| i + 2).collect::<Vec<u32>>(), (1, 7), &Device::Cpu)?,
        word_valid: vec![true; 7],
        state: random::normal(1, "state", (1, config.state_dims))?,
    };
    let noise = random::normal(1, "noise", (1, config.horizon, config.expert.action_dims))?;
    let (mut prefix_ms, mut sample_ms, mut all_ms) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..150 {
        let start = Instant::now();
        let prefix = vla.prefix(&inputs)?;
        let read = start.elapsed().as_secs_f64() * 1e3;
        vla.sample(&prefix, &noise, &mut |_, _, _| {})?;
        let all = start.elapsed().as_secs_f64() * 1e3;
        if round >= 30 {
            prefix_ms.push(read);
            sample_ms.push(all - read);
            all_ms.push(all);
        }
    }
    println!("threads {}", threads::current());
    for (what, mut ms) in [("prefix", prefix_ms), ("sample", sample_ms), ("chunk", all_ms)] {
        ms.sort_by(f64::total_cmp);
        println!("{what}: p50 {:.2} ms, p99 {:.2} ms", ms[ms.len() / 2], ms[ms.len() * 99 / 100]);
    }
    Ok(())
}
