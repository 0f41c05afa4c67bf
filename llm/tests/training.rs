//! Training goes through the same decoder: gradients of every family's parts against finite differences.

use candle_core::{Device, Tensor, Var};
use std::path::PathBuf;
use vela_llm::{Cache, Decoder, DecoderConfig, EncoderDecoder, EncoderDecoderConfig, trace::config_json};
use vela_nn::{Activation, Mask, Result, Weights, random};

fn config(name: &str) -> Result<serde_json::Value> {
    config_json(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name))
}

fn ids() -> Result<Tensor> {
    Ok(Tensor::new(&[[5u32, 9, 2, 100, 31, 7, 7, 64, 12, 3], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]], &Device::Cpu)?)
}

/// A sum of squares, weighed so that no symmetry hides a gradient.
fn loss_of(logits: &Tensor) -> Result<Tensor> {
    let weights = random::uniform(7, "loss", 0.5, 1.5, logits.shape())?;
    Ok((logits.sqr()? * weights)?.mean_all()?)
}

/// Each variable's slope along its own gradient, by the gradient and by a central difference.
fn slopes_agree(name: &str, vars: &[(String, Var)], loss: impl Fn() -> Result<Tensor>) -> Result<()> {
    let here = loss()?;
    let gradients = here.backward()?;
    let here = f64::from(here.to_scalar::<f32>()?);
    let norm = |t: &Tensor| -> Result<f64> { Ok(f64::from(t.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>()?)) };
    for (key, var) in vars {
        let Some(gradient) = gradients.get(var) else {
            // An expert that no token chose.
            assert!(key.contains("experts"), "{name}: {key} has no gradient");
            continue;
        };
        let (slope, start) = (norm(gradient)?, var.as_tensor().copy()?);
        let step = (3e-4 * here / slope.max(1e-9)).min(0.01 * (norm(&start)? + 0.1));
        let at = |sign: f64| -> Result<f64> {
            var.set(&(&start + (gradient * (sign * step / slope.max(1e-9)))?)?)?;
            Ok(f64::from(loss()?.to_scalar::<f32>()?))
        };
        let difference = (at(1.0)? - at(-1.0)?) / (2.0 * step);
        var.set(&start)?;
        // What rounding of the loss leaves of the difference.
        let noise = 5e-7 * here / step;
        let far = (difference - slope).abs();
        assert!(
            far < 0.03 * slope + noise,
            "{name}: {key}: slope {slope} by gradient, {difference} by difference, noise {noise}"
        );
    }
    Ok(())
}

#[test]
fn gradients_of_every_family_are_the_slopes() -> Result<()> {
    for name in ["llama_leftpad", "mistral", "qwen3", "gemma2", "gemma3_text", "opt", "phi", "phi3"] {
        let weights = Weights::fresh(3);
        let decoder =
            Decoder::new(Some(&weights), &weights.pp("model"), &DecoderConfig::from_hf(&config(name)?)?)?;
        let ids = ids()?;
        let positions = Tensor::arange(0, ids.dim(1)? as u32, &Device::Cpu)?;
        slopes_agree(name, &weights.trainable(), || {
            let mut cache = Cache::new();
            let hidden = decoder.forward(&decoder.embed(&ids)?, &positions, &Mask::Causal, &mut cache)?;
            loss_of(&decoder.logits(&decoder.normalise(&hidden)?)?)
        })?;
    }
    Ok(())
}

#[test]
fn gradients_reach_experts_and_their_router() -> Result<()> {
    for name in ["mixtral", "qwen2_moe"] {
        let weights = Weights::fresh(5);
        let decoder =
            Decoder::new(Some(&weights), &weights.pp("model"), &DecoderConfig::from_hf(&config(name)?)?)?;
        let ids = ids()?;
        let positions = Tensor::arange(0, ids.dim(1)? as u32, &Device::Cpu)?;
        let run = || -> Result<Tensor> {
            let mut cache = Cache::new();
            let hidden = decoder.forward(&decoder.embed(&ids)?, &positions, &Mask::Causal, &mut cache)?;
            loss_of(&decoder.logits(&decoder.normalise(&hidden)?)?)
        };
        let gradients = run()?.backward()?;
        for (key, var) in weights.trainable() {
            let found =
                gradients.get(&var).map(|g| Ok::<_, vela_nn::Error>(g.abs()?.sum_all()?.to_scalar::<f32>()?));
            let found = found.transpose()?.unwrap_or(0.0);
            let chosen = !key.contains(".experts.") || found > 0.0;
            assert!(!chosen || (found > 0.0 && found.is_finite()), "{name}: {key}: {found}");
        }
        // With a fixed choice the slope along the experts' own weights is that of the gradient.
        let experts: Vec<(String, Var)> = weights
            .trainable()
            .into_iter()
            .filter(|(key, _)| key.contains("layers.1.") && key.contains("expert"))
            .collect();
        slopes_agree(name, &experts, run)?;
    }
    Ok(())
}

#[test]
fn gradients_cross_from_decoder_to_encoder() -> Result<()> {
    let weights = Weights::fresh(4);
    let model = EncoderDecoder::new(&weights, &EncoderDecoderConfig::from_hf(&config("t5")?)?)?;
    let ids = ids()?;
    let positions = Tensor::arange(0, ids.dim(1)? as u32, &Device::Cpu)?;
    slopes_agree("t5", &weights.trainable(), || {
        let embeds = model.encoder().embed(&ids)?;
        let encoded = model.encode(&embeds, &Mask::None, &mut |_, _| {})?;
        let mut cache = model.cache(&encoded, Mask::None)?;
        let hidden = model.decoder().forward(&embeds, &positions, &Mask::Causal, &mut cache)?;
        loss_of(&model.decoder().logits(&model.decoder().normalise(&hidden)?)?)
    })
}

#[test]
fn the_later_t5_is_gated_and_has_a_projection_of_its_own() -> Result<()> {
    let mut config = config("t5")?;
    config["feed_forward_proj"] = "gated-gelu".into();
    config["tie_word_embeddings"] = false.into();
    config["scale_decoder_outputs"] = serde_json::Value::Null;
    let config = EncoderDecoderConfig::from_hf(&config)?;
    assert_eq!((config.decoder.logit_scale, config.encoder.activation), (None, Activation::GeluTanh));
    let weights = Weights::fresh(4);
    let model = EncoderDecoder::new(&weights, &config)?;
    let names: Vec<String> = weights.trainable().into_iter().map(|(name, _)| name).collect();
    for name in [
        "lm_head.weight",
        "encoder.block.1.layer.1.DenseReluDense.wi_0.weight",
        "decoder.block.0.layer.2.DenseReluDense.wi_1.weight",
    ] {
        assert!(names.iter().any(|made| made == name), "{name} is not among {names:?}");
    }
    let encoded = model.encode(&model.encoder().embed(&ids()?)?, &Mask::None, &mut |_, _| {})?;
    assert_eq!(model.greedy(&encoded.narrow(0, 0, 1)?, 3, &[])?.len(), 3);
    Ok(())
}

#[test]
fn a_transposed_matrix_cannot_be_trained() -> Result<()> {
    let weights = Weights::fresh(3);
    let config = DecoderConfig::from_hf(&config("gpt2")?)?;
    let error = Decoder::new(Some(&weights), &weights.pp("transformer"), &config).map(|_| ());
    let text = error.map_or_else(|e| e.to_string(), |()| "accepted".into());
    assert!(text.contains("transformer.h.0.attn.c_attn: a matrix that is stored [input, output]"), "{text}");
    Ok(())
}
