//! Networks of the published shapes with random weights, for measuring: nothing is read and nothing useful is said.

use crate::expert::{ExpertConfig, TimePlace};
use crate::flow::FlowConfig;
use crate::lerobot::Folder;
use crate::normalise::{Normaliser, Scaling};
use crate::openvla::{OpenVla, Sizes};
use crate::storage::Storage;
use crate::vla::{Form, StatePlace, Vla, VlaConfig};
use crate::{Act, DiffusionPolicy};
use serde_json::{Value, json};
use vela_embodiment::ActionSpace;
use vela_fusion::{Projection, ProjectorConfig};
use vela_llm::DecoderConfig;
use vela_nn::{Error, Result, Weights};
use vela_vision::VisionConfig;

/// The shapes that [`make`] knows.
pub const KNOWN: [&str; 6] = ["act", "diffusion", "openvla", "pi0", "pi05", "smolvla"];

/// A network of random weights.
pub enum Arch {
    /// ACT of its published sizes.
    Act(Box<Act>),
    /// Diffusion Policy of its published sizes.
    Diffusion(Box<DiffusionPolicy>),
    /// SmolVLA, pi0 or pi0.5 of their published sizes.
    Vla(Box<Vla>, Box<VlaConfig>),
    /// OpenVLA-7B.
    OpenVla(Box<OpenVla>, Box<Sizes>),
}

/// A network by name, for `views` cameras of `size` (height, width; VLAs have a size of their own), its matrices kept as
/// `storage` says.
///
/// # Errors
/// An unknown name; no views; storage that the network does not have.
pub fn make(name: &str, views: usize, size: (usize, usize), seed: u64, storage: Storage) -> Result<Arch> {
    if views == 0 {
        return Err(Error::invalid("expected at least one view, got 0"));
    }
    let weights = storage.of(Weights::noise(seed))?;
    Ok(match name {
        "act" => Arch::Act(Box::new(Act::load(&Folder::from_config(act(views, size))?, &weights)?)),
        "diffusion" => {
            if matches!(storage, Storage::Bf16 | Storage::Int8) {
                let name = storage.name();
                return Err(Error::invalid(format!(
                    "diffusion policy: convolutions are float32, not {name}"
                )));
            }
            let folder = Folder::from_config(diffusion(views, size))?;
            Arch::Diffusion(Box::new(DiffusionPolicy::load(&folder, &weights)?))
        }
        "smolvla" | "pi0" | "pi05" => {
            let (config, form) =
                if name == "smolvla" { smolvla(views)? } else { pi0(views, name == "pi05")? };
            Arch::Vla(Box::new(Vla::with_form(&weights, &config, form)?), Box::new(config))
        }
        "openvla" => {
            let sizes = Sizes::from_config(&json!({}))?;
            Arch::OpenVla(Box::new(OpenVla::made_up(&weights, &sizes)?), Box::new(sizes))
        }
        other => {
            let known = KNOWN.join(", ");
            return Err(Error::invalid(format!("no shape is called '{other}'; known: {known}")));
        }
    })
}

/// Features of an arm of `joints` joints with cameras.
fn features(joints: usize, views: usize, (height, width): (usize, usize)) -> (Value, Value) {
    let mut inputs = json!({"observation.state": {"type": "STATE", "shape": [joints]}});
    for i in 0..views {
        inputs[format!("observation.images.view{i}")] =
            json!({"type": "VISUAL", "shape": [3, height, width]});
    }
    (inputs, json!({"action": {"type": "ACTION", "shape": [joints]}}))
}

fn act(views: usize, size: (usize, usize)) -> Value {
    let (inputs, outputs) = features(14, views, size);
    json!({"type": "act", "input_features": inputs, "output_features": outputs, "n_obs_steps": 1, "chunk_size": 100,
        "n_action_steps": 100, "vision_backbone": "resnet18", "pre_norm": false, "dim_model": 512, "n_heads": 8,
        "dim_feedforward": 3200, "feedforward_activation": "relu", "n_encoder_layers": 4, "n_decoder_layers": 1,
        "latent_dim": 32, "temporal_ensemble_coeff": null})
}

fn diffusion(views: usize, size: (usize, usize)) -> Value {
    let (inputs, outputs) = features(2, views, size);
    json!({"type": "diffusion", "input_features": inputs, "output_features": outputs, "n_obs_steps": 2, "horizon": 16,
        "n_action_steps": 8, "vision_backbone": "resnet18", "resize_shape": null, "crop_shape": null,
        "use_group_norm": true, "spatial_softmax_num_keypoints": 32, "down_dims": [512, 1024, 2048], "kernel_size": 5,
        "n_groups": 8, "diffusion_step_embed_dim": 128, "use_film_scale_modulation": true,
        "noise_scheduler_type": "DDPM", "num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2",
        "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "epsilon", "clip_sample": true,
        "clip_sample_range": 1.0, "num_inference_steps": null})
}

/// What SmolVLA and pi0 have in common; the rest is theirs.
fn vla(views: usize, vision: VisionConfig, decoder: DecoderConfig, expert: DecoderConfig) -> VlaConfig {
    let as_is = Normaliser {
        scaling: Scaling::Identity,
        first: Vec::new(),
        second: Vec::new(),
        eps: Normaliser::EPS,
    };
    VlaConfig {
        kind: "vela_vla".into(),
        projector: ProjectorConfig {
            input: vision.width,
            output: decoder.width,
            shuffle: 1,
            projection: Projection::Linear { bias: true },
        },
        vision,
        decoder,
        expert: ExpertConfig {
            layers: expert,
            self_attention_every: 1,
            causal: false,
            action_dims: 32,
            time_periods: [4e-3, 4.0],
        },
        flow: FlowConfig::default(),
        cameras: (0..views).map(|i| format!("view{i}")).collect(),
        camera_embeddings: false,
        state_dims: 32,
        image_scale: 1.0,
        word_scale: 1.0,
        prompt_suffix: "\n".into(),
        space: ActionSpace::JointPositions,
        horizon: 50,
        execute: 50,
        state: as_is.clone(),
        action: as_is,
        rtc: None,
    }
}

/// SmolVLA on SmolVLM2-500M: 16 layers of the decoder, an expert of three quarters of its width.
fn smolvla(views: usize) -> Result<(VlaConfig, Form)> {
    let vision = VisionConfig::from_hf(&json!({"model_type": "siglip_vision_model", "hidden_size": 768,
        "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 16,
        "image_size": 512, "vision_use_head": false}))?;
    let layers = |vocab: usize, width: usize, inner: usize| {
        DecoderConfig::from_hf(&json!({"model_type": "llama", "vocab_size": vocab, "hidden_size": width,
            "intermediate_size": inner, "num_hidden_layers": 16, "num_attention_heads": 15,
            "num_key_value_heads": 5, "head_dim": 64, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0}))
    };
    let mut config = vla(views, vision, layers(49_280, 960, 2560)?, layers(1, 720, 2048)?);
    config.projector.shuffle = 4;
    config.projector.projection = Projection::Linear { bias: false };
    config.expert.self_attention_every = 2;
    config.expert.causal = true;
    (config.image_scale, config.word_scale) = (960f32.sqrt(), 960f32.sqrt());
    Ok((config, Form::default()))
}

/// pi0 and pi0.5 on PaliGemma 3B at 224 pixels, with an expert of Gemma's kind and 300 million parameters.
fn pi0(views: usize, tuned: bool) -> Result<(VlaConfig, Form)> {
    let vision = VisionConfig::from_hf(&json!({"model_type": "siglip_vision_model", "hidden_size": 1152,
        "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16, "patch_size": 14,
        "image_size": 224, "vision_use_head": false}))?;
    let layers = |vocab: usize, width: usize, inner: usize| {
        DecoderConfig::from_hf(&json!({"model_type": "gemma", "vocab_size": vocab, "hidden_size": width,
            "intermediate_size": inner, "num_hidden_layers": 18, "num_attention_heads": 8, "num_key_value_heads": 1,
            "head_dim": 256, "rms_norm_eps": 1e-6}))
    };
    let config = vla(views, vision, layers(257_152, 2048, 16_384)?, layers(1, 1024, 4096)?);
    let form = match tuned {
        true => Form { state: StatePlace::Words, time: TimePlace::Norms },
        false => Form { state: StatePlace::Suffix, time: TimePlace::Beside },
    };
    Ok((config, form))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moment::{Moment, Network};
    use vela_nn::random;

    #[test]
    fn act_of_its_published_shape_answers_without_a_checkpoint() -> Result<()> {
        let Arch::Act(act) = make("act", 2, (64, 96), 1, Storage::Plain)? else {
            return Err(Error::invalid("not an ACT"));
        };
        let pictures = [random::normal(1, "a", (1, 3, 64, 96))?, random::normal(1, "b", (1, 3, 64, 96))?];
        let state = random::normal(1, "state", (1, 14))?;
        let actions = act.forward(&pictures, Some(&state), &mut |_, _| {})?;
        assert_eq!((actions.dims(), actions.track_op()), (&[1, 100, 14][..], false));
        assert!(actions.flatten_all()?.to_vec1::<f32>()?.iter().all(|x| x.is_finite()));
        assert!(make("act", 0, (64, 96), 1, Storage::Plain).is_err());
        assert!(
            make("teapot", 1, (64, 96), 1, Storage::Plain).is_err_and(|e| e.to_string().contains("smolvla"))
        );
        Ok(())
    }

    #[test]
    fn published_shapes_are_sound() -> Result<()> {
        for (config, _) in [smolvla(2)?, pi0(3, false)?, pi0(1, true)?] {
            config.vision.check()?;
            config.decoder.check()?;
            assert_eq!(config.expert.layers.layers, config.decoder.layers);
            assert_eq!(config.expert.layers.head_dim, config.decoder.head_dim);
        }
        // Its widths would take a while to draw.
        let mut narrow = diffusion(1, (96, 96));
        narrow["down_dims"] = json!([16, 32]);
        narrow["num_inference_steps"] = json!(2);
        let folder = Folder::from_config(narrow)?;
        let network = DiffusionPolicy::load(&folder, &Weights::noise(1))?;
        let moment = Moment {
            pictures: vec![random::normal(1, "picture", (3, 96, 96))?],
            state: vec![0.1, 0.2],
            instruction: String::new(),
        };
        assert_eq!(network.act(&[moment.clone(), moment], 1)?.dims(), [8, 2]);
        Ok(())
    }
}
