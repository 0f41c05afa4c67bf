//! Checkpoints in and out, and an optimiser that resumes bit for bit.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use vela_nn::*;

fn folder(name: &str) -> std::path::PathBuf {
    let dir = std::env::temp_dir().join(format!("vela-nn-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

#[test]
fn one_error_names_everything_that_is_wrong() -> Result<()> {
    let tensor = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let all = [("a.weight", tensor(&[3, 2])?), ("a.bias", tensor(&[4])?), ("left.over", tensor(&[1])?)];
    let weights = Weights::from_tensors(all.into_iter().map(|(n, t)| (n.to_string(), t)).collect());
    Linear::new(&weights.pp("a"), 2, 3, true)?;
    Linear::new(&weights.pp("b").pp(0), 2, 3, false)?;
    let error = weights.finish().unwrap_err().to_string();
    for part in
        ["1 missing, 1 unused, 1 mis-shaped", "b.0.weight", "left.over", "a.bias: expected [3], got [4]"]
    {
        assert!(error.contains(part), "{part} in {error}");
    }
    let error = weights.finish_allowing(|name| name == "left.over").unwrap_err().to_string();
    assert!(error.contains("1 missing, 0 unused"), "{error}");
    Ok(())
}

#[test]
fn a_saved_checkpoint_comes_back_in_every_way() -> Result<()> {
    let fresh = Weights::fresh(7);
    let layer = Linear::new(&fresh.pp("layer"), 5, 3, true)?;
    let tensors: Vec<_> = fresh.trainable().into_iter().map(|(n, v)| (n, v.as_tensor().clone())).collect();
    let dir = folder("round");
    let path = dir.join("model.safetensors");
    save(&path, &tensors)?;
    let bytes = std::fs::read(&path).map_err(Error::invalid)?;
    let again = Weights::load_trainable(&path)?;
    let x = random::normal(1, "x", (2, 5))?;
    let expected = layer.forward(&x)?.to_vec2::<f32>()?;
    for weights in [Weights::load_dir(&dir)?, Weights::from_bytes(&bytes)?, again.clone()] {
        let layer = Linear::new(&weights.pp("layer"), 5, 3, true)?;
        weights.finish()?;
        let got = layer.forward(&x)?.to_vec2::<f32>()?;
        for (a, b) in got.iter().flatten().zip(expected.iter().flatten()) {
            assert!((a - b).abs() < 1e-5);
        }
    }
    assert_eq!(again.trainable().len(), 2);
    let renamed = Weights::load_dir(&dir)?.renamed(|name| name.replace("layer", "other"))?;
    assert!(renamed.contains("other.weight") && !renamed.contains("layer.weight"));
    // A torn file, and text that is no checkpoint, are errors that name it.
    std::fs::write(&path, &bytes[..bytes.len() - 4]).map_err(Error::invalid)?;
    assert!(Weights::load_dir(&dir).is_err_and(|e| e.to_string().contains("model.safetensors")));
    assert!(Weights::from_bytes(b"no").is_err());
    std::fs::remove_dir_all(&dir).map_err(Error::invalid)?;
    assert!(Weights::load_dir(&dir).is_err());
    Ok(())
}

#[test]
fn fresh_values_depend_on_seed_and_name_only() -> Result<()> {
    let first = Weights::fresh(1);
    let alone = first.pp("x").get(4, "w")?.to_vec1::<f32>()?;
    let second = Weights::fresh(1);
    second.get(9, "other")?;
    assert_eq!(alone, second.get(4, "x.w")?.to_vec1::<f32>()?);
    assert_ne!(alone, Weights::fresh(2).get(4, "x.w")?.to_vec1::<f32>()?);
    Ok(())
}

/// `steps` steps of a small regression; returns the weights after them.
fn train(
    weights: &Weights,
    layer: &Linear,
    optimiser: &mut AdamW,
    from: u64,
    steps: u64,
) -> Result<(f32, Vec<u32>)> {
    let vars = weights.trainable();
    let mut loss = 0.0;
    for step in from..from + steps {
        let grads = shard_gradients(&vars, 2, |shard| {
            let x = random::normal(step, &format!("{shard}"), (8, 4))?;
            Ok((layer.forward(&x)? - x.narrow(1, 0, 3)?)?.sqr()?.mean_all()?)
        })?;
        optimiser.step(&grads, 0.05)?;
        loss = grads.loss;
    }
    let mut bits = Vec::new();
    for (_, var) in &vars {
        bits.extend(var.flatten_all()?.to_vec1::<f32>()?.iter().map(|v| v.to_bits()));
    }
    Ok((loss, bits))
}

#[test]
fn training_resumes_bit_for_bit_and_learns() -> Result<()> {
    let config = AdamWConfig { max_grad_norm: 0.5, ..AdamWConfig::default() };
    let weights = Weights::fresh(3);
    let layer = Linear::new(&weights, 4, 3, true)?;
    let mut optimiser = AdamW::new(weights.trainable(), config);
    train(&weights, &layer, &mut optimiser, 0, 40)?;
    let state: HashMap<String, Tensor> = optimiser.state()?.into_iter().collect();
    let dir = folder("resume");
    let path = dir.join("model.safetensors");
    let tensors: Vec<_> = weights.trainable().into_iter().map(|(n, v)| (n, v.as_tensor().clone())).collect();
    save(&path, &tensors)?;
    let (loss, whole) = train(&weights, &layer, &mut optimiser, 40, 80)?;
    assert!(loss < 0.05, "{loss}");

    let weights = Weights::load_trainable(&path)?;
    let layer = Linear::new(&weights, 4, 3, true)?;
    weights.finish()?;
    let mut optimiser = AdamW::new(weights.trainable(), config);
    optimiser.load_state(&state)?;
    assert_eq!(optimiser.steps(), 40);
    assert_eq!(train(&weights, &layer, &mut optimiser, 40, 80)?.1, whole);
    std::fs::remove_dir_all(&dir).map_err(Error::invalid)?;

    let mut missing = state;
    missing.remove("bias.first");
    assert!(optimiser.load_state(&missing).is_err_and(|e| e.to_string().contains("bias.first")));
    let nan = Gradients { loss: 0.0, values: vec![vec![f32::NAN; 3], vec![0.0; 12]] };
    assert!(optimiser.step(&nan, 0.1).is_err());
    Ok(())
}

#[test]
fn rope_scalings_keep_high_frequencies_and_stretch_low_ones() -> Result<()> {
    let one = Tensor::new(&[1u32], &Device::Cpu)?;
    let angles = |scaling| -> Result<Vec<f32>> {
        let rope = Rope::new(RopeConfig { scaling, ..RopeConfig::new(64, 10_000.0) })?.at(&one)?;
        let (sin, cos) =
            (rope.sin()?.flatten_all()?.to_vec1::<f32>()?, rope.cos()?.flatten_all()?.to_vec1::<f32>()?);
        Ok(sin.iter().zip(cos).map(|(s, c)| s.atan2(c)).collect())
    };
    let plain = angles(RopeScaling::None)?;
    let linear = angles(RopeScaling::Linear { factor: 4.0 })?;
    assert!(plain.iter().zip(&linear).all(|(p, l)| (p / 4.0 - l).abs() < 1e-6));
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        original_positions: 2048,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: None,
        truncate: true,
    };
    let llama = RopeScaling::Llama3 {
        factor: 4.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_positions: 2048,
    };
    for scaled in [angles(yarn)?, angles(llama)?, angles(RopeScaling::Ntk { factor: 4.0 })?] {
        assert!((scaled[0] - plain[0]).abs() < 1e-5);
        assert!((scaled[31] * 4.0 - plain[31]).abs() < 1e-5, "{} {}", scaled[31], plain[31]);
    }
    assert!(Rope::new(RopeConfig::new(7, 1e4)).is_err());
    Ok(())
}
