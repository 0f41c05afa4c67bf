//! Every head learns what it is shown, repeats itself under one seed, and treats two good ways as its kind does.

use candle_core::{Device, Tensor};
use rand::RngCore;
use vela_llm::{Decoder, DecoderConfig};
use vela_nn::{AdamW, AdamWConfig, Result, Weights, gradients, random};
use vela_policy::flow::{Direction, Solver};
use vela_policy::*;

const HORIZON: usize = 4;
const DIMS: usize = 2;
const BINS: Bins = Bins { count: 64, temperature: 0.0 };

fn body(kind: BodyKind) -> BodyConfig {
    BodyConfig { kind, conditioning: 3, width: 32, layers: 2, heads: 2 }
}

/// A head by name, and its weights.
type Named = (&'static str, Weights, Box<dyn Head>);

/// Draws conditioning and actions.
type Data<'a> = dyn Fn(&mut dyn RngCore) -> Result<(Tensor, Tensor)> + 'a;

/// A fresh head of each kind.
fn heads(weights: &dyn Fn() -> Weights) -> Result<Vec<Named>> {
    let mut all: Vec<Named> = Vec::new();
    let (wide, flat) = (body(BodyKind::Transformer), body(BodyKind::Mlp));
    let flow = |direction, solver, steps| FlowConfig { direction, solver, steps, ..FlowConfig::default() };
    let w = weights();
    all.push(("regression", w.clone(), Box::new(RegressionHead::new(&w, &wide, HORIZON, DIMS)?)));
    let w = weights();
    all.push(("tokens", w.clone(), Box::new(TokenHead::new(&w, &wide, BINS, HORIZON, DIMS)?)));
    let w = weights();
    all.push(("tokens in turn", w.clone(), Box::new(TurnHead::new(&w, &wide, BINS, HORIZON, DIMS)?)));
    let w = weights();
    let diffusion = DiffusionHead::new(&w, &flat, DiffusionConfig::default(), HORIZON, DIMS)?;
    all.push(("diffusion", w.clone(), Box::new(diffusion)));
    let w = weights();
    let ahead = flow(Direction::NoiseAtOne, Solver::Euler, 10);
    all.push(("flow", w.clone(), Box::new(FlowHead::new(&w, &flat, ahead, HORIZON, DIMS)?)));
    let w = weights();
    let back = flow(Direction::NoiseAtZero, Solver::Heun, 5);
    all.push(("flow, other way, Heun", w.clone(), Box::new(FlowHead::new(&w, &flat, back, HORIZON, DIMS)?)));
    let w = weights();
    let codec = Fast::fit(&courses(), HORIZON, DIMS, 20.0, 128)?;
    all.push(("FAST", w.clone(), Box::new(FastHead::new(&w, &wide, codec, 0.0)?)));
    let w = weights();
    let words = DecoderConfig::from_hf(
        &serde_json::json!({"model_type": "llama", "vocab_size": 80, "hidden_size": 24,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}),
    )?;
    let rt2 = Rt2Head::new(Decoder::new(Some(&w), &w, &words)?, TailBins::new(80, 64)?, HORIZON, DIMS, 0.0)?;
    all.push(("RT-2", w.clone(), Box::new(Prompted(rt2))));
    Ok(all)
}

/// Gives a decoder its prompt at its own width: the places and zeros.
struct Prompted(Rt2Head);

impl Prompted {
    fn widen(conditioning: &Tensor) -> Result<Tensor> {
        Ok(conditioning.pad_with_zeros(2, 0, 21)?)
    }
}

impl Head for Prompted {
    fn loss(&self, conditioning: &Tensor, actions: &Tensor, rng: &mut dyn RngCore) -> Result<Tensor> {
        self.0.loss(&Self::widen(conditioning)?, actions, rng)
    }

    fn sample(&self, conditioning: &Tensor, rng: &mut dyn RngCore) -> Result<Tensor> {
        self.0.sample(&Self::widen(conditioning)?, rng)
    }
}

/// What is to be done in each of eight places.
fn course(k: usize) -> Vec<f32> {
    let at = k as f32 / 8.0 - 0.5;
    (0..HORIZON).flat_map(|t| [at + 0.1 * t as f32, -at * 0.2 * t as f32]).collect()
}

fn courses() -> Vec<Vec<f32>> {
    (0..8).map(course).collect()
}

fn places() -> Result<Tensor> {
    random::normal(3, "places", (8, 2, 3))
}

fn train(head: &dyn Head, weights: &Weights, steps: usize, data: &Data) -> Result<f32> {
    let vars = weights.trainable();
    let mut optimiser = AdamW::new(vars.clone(), AdamWConfig::default());
    let mut rng = random::stream(1, "training");
    let mut last = 0.0;
    for step in 0..steps {
        let (conditioning, actions) = data(&mut rng)?;
        let found = gradients(&vars, &head.loss(&conditioning, &actions, &mut rng)?)?;
        last = found.loss;
        let rate = 3e-3 * (1.0 - step as f32 / steps as f32).max(0.05);
        optimiser.step(&found, rate)?;
    }
    Ok(last)
}

#[test]
fn every_head_learns_eight_courses_and_repeats_itself() -> Result<()> {
    let (conditioning, actions) = (places()?, Tensor::new(courses().concat(), &Device::Cpu)?);
    let actions = actions.reshape((8, HORIZON, DIMS))?;
    for (name, weights, head) in heads(&|| Weights::fresh(7))? {
        let denoises = name.starts_with("flow") || name == "diffusion";
        let times = if denoises { 12 } else { 1 };
        let data = |_: &mut dyn RngCore| -> Result<(Tensor, Tensor)> {
            Ok((conditioning.repeat((times, 1, 1))?, actions.repeat((times, 1, 1))?))
        };
        let loss = train(head.as_ref(), &weights, if denoises { 500 } else { 250 }, &data)?;
        let answer = |seed| head.sample(&conditioning, &mut random::stream(seed, "sampling"));
        let made = answer(5)?;
        let off = (&made - &actions)?.abs()?.mean_all()?.to_scalar::<f32>()?;
        println!("{name}: loss {loss:.4}, off by {off:.4}");
        assert!(off < 0.08, "{name}: off by {off}");
        let bytes = |t: &Tensor| -> Result<Vec<f32>> { Ok(t.flatten_all()?.to_vec1()?) };
        assert_eq!(bytes(&made)?, bytes(&answer(5)?)?, "{name}: one seed, one answer");
        assert_eq!(bytes(&made)? != bytes(&answer(6)?)?, denoises, "{name}: seeds matter where noise is");
    }
    Ok(())
}

#[test]
fn of_two_good_ways_regression_gives_the_average_and_diffusion_and_flow_choose() -> Result<()> {
    // Left or right of the obstacle, never through it.
    let two_ways = |rng: &mut dyn RngCore| -> Result<(Tensor, Tensor)> {
        let side = |rng: &mut dyn RngCore| if rng.next_u32() & 1 == 0 { 0.6f32 } else { -0.6 };
        let values: Vec<f32> = (0..64).flat_map(|_| vec![side(rng); HORIZON * DIMS]).collect();
        let actions = Tensor::from_vec(values, (64, HORIZON, DIMS), &Device::Cpu)?;
        Ok((Tensor::ones((64, 1, 3), candle_core::DType::F32, &Device::Cpu)?, actions))
    };
    for (name, weights, head) in heads(&|| Weights::fresh(8))? {
        let chooses = ["diffusion", "flow"].contains(&name);
        if !chooses && name != "regression" {
            continue;
        }
        train(head.as_ref(), &weights, 500, &two_ways)?;
        let one = Tensor::ones((40, 1, 3), candle_core::DType::F32, &Device::Cpu)?;
        let made = head.sample(&one, &mut random::stream(2, "sampling"))?;
        let means = made.flatten_from(1)?.mean(1)?.to_vec1::<f32>()?;
        let share = |test: &dyn Fn(f32) -> bool| means.iter().filter(|m| test(**m)).count();
        let (left, right) = (share(&|m| m > 0.4), share(&|m| m < -0.4));
        println!("{name}: {left} left, {right} right of {}", means.len());
        if chooses {
            assert!(left >= 8 && right >= 8 && left + right >= 30, "{name}: {means:?}");
        } else {
            // The median of two equal heaps lies anywhere between them; it cannot be both.
            assert!(left == 0 || right == 0, "{name}: {means:?}");
        }
    }
    Ok(())
}
