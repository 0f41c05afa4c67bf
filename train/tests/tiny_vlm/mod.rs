//! A tiny VLM of random parts and a tiny set of questions, as folders.

use serde_json::{Value, json};
use std::error::Error;
use std::path::Path;
use vela_fusion::{Vlm, VlmConfig};
use vela_nn::{Tensor, Weights};
use vela_train::adapt::{AdaptConfig, AdapterConfig};
use vela_train::vlm::{CHAT_TEMPLATE, tokenizer};

pub type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const COLOURS: [(&str, [u8; 3]); 3] =
    [("red", [220, 10, 10]), ("blue", [10, 10, 220]), ("green", [10, 200, 10])];
const PLACEHOLDER: &str = "<IMG_CONTEXT>";

/// Writes the folder of the parts.
pub fn write_parts(dir: &Path) -> Outcome {
    std::fs::create_dir_all(dir)?;
    let words = ["what", "color", "is", "it", "not", "red", "blue", "green", "yes", "no"].map(str::to_owned);
    let mut tokens: Value = serde_json::from_slice(tokenizer(&words)?.json())?;
    let vocab = tokens["model"]["vocab"].as_object().map_or(0, |vocab| vocab.len());
    let end = tokens["model"]["vocab"]["<end_of_utterance>"].clone();
    let flags = json!({"id": vocab, "content": PLACEHOLDER, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true});
    tokens["added_tokens"].as_array_mut().ok_or("no added tokens")?.push(flags);
    let config = json!({
        "model_type": "internvl", "image_token_id": vocab, "downsample_ratio": 0.5, "vision_feature_layer": -1,
        "eos_token_id": end, "tie_word_embeddings": true,
        "vision_config": {"model_type": "dinov2", "image_size": 28, "patch_size": 7, "hidden_size": 16,
            "mlp_ratio": 2, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "gelu"},
        "text_config": {"model_type": "llama", "vocab_size": vocab, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 128, "tie_word_embeddings": true}
    });
    let preprocessor = json!({"image_processor_type": "ViTImageProcessor", "do_resize": true,
        "size": {"height": 28, "width": 28}, "resample": 3, "do_rescale": true, "do_normalize": true,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]});
    let weights = Weights::fresh(7);
    Vlm::new(&weights, &VlmConfig::from_hf(&config)?)?;
    let mut map = serde_json::Map::new();
    for (ours, theirs, file) in [
        ("vision.", "model.vision_tower.", "vision.safetensors"),
        ("text.", "model.language_model.", "text.safetensors"),
    ] {
        let mut tensors: Vec<(String, Tensor)> = Vec::new();
        for (name, var) in weights.trainable() {
            let Some(rest) = name.strip_prefix(ours) else { continue };
            // Fresh words are small beside what layers add.
            let scale = if rest.starts_with("embed_tokens") { 20.0 } else { 1.0 };
            map.insert(format!("{theirs}{rest}"), file.into());
            tensors.push((format!("{theirs}{rest}"), (var.as_tensor() * scale)?));
        }
        vela_nn::save(&dir.join(file), &tensors)?;
    }
    for part in ["layer_norm", "linear_1", "linear_2"] {
        for kind in ["weight", "bias"] {
            map.insert(format!("model.multi_modal_projector.{part}.{kind}"), "projector.safetensors".into());
        }
    }
    let index = json!({"metadata": {}, "weight_map": map});
    for (name, value) in [
        ("config.json", config),
        ("preprocessor_config.json", preprocessor),
        ("tokenizer.json", tokens),
        ("tokenizer_config.json", json!({"eos_token": "<end_of_utterance>"})),
        ("model.safetensors.index.json", index),
    ] {
        std::fs::write(dir.join(name), value.to_string())?;
    }
    std::fs::write(dir.join("chat_template.jinja"), CHAT_TEMPLATE.replace("<image>", PLACEHOLDER))?;
    Ok(())
}

/// Writes both halves of a set of plain pictures.
pub fn write_questions(dir: &Path) -> Outcome {
    for half in ["train", "test"] {
        let images = dir.join(half).join("images");
        std::fs::create_dir_all(&images)?;
        let mut questions: Vec<Value> = Vec::new();
        for (i, (colour, rgb)) in COLOURS.iter().enumerate() {
            image::RgbImage::from_pixel(20, 20, image::Rgb(*rgb)).save(images.join(format!("{i}.png")))?;
            let verdict = |is: bool| if is { "yes" } else { "no" };
            questions.push(json!(["what color is it?", colour, i]));
            questions.push(json!(["is it red?", verdict(i == 0), i]));
            questions.push(json!(["is it not blue?", verdict(i != 1), i]));
        }
        std::fs::write(dir.join(half).join("questions.json"), Value::from(questions).to_string())?;
    }
    Ok(())
}

/// A short run on them.
pub fn run(parts: &Path, data: &Path) -> AdaptConfig {
    AdaptConfig {
        seed: 3,
        parts: parts.into(),
        data: data.into(),
        first_pictures: None,
        word_steps: 30,
        word_pictures: 3,
        projector_steps: 20,
        steps: 150,
        pictures: 3,
        questions: 3,
        learning_rate: 1e-2,
        adapter_share: 1.0,
        warmup_steps: 5,
        weight_decay: 0.0,
        clip_norm: 1.0,
        checkpoint_every: 50,
        adapter: AdapterConfig {
            rank: 4,
            targets: ["q_proj", "v_proj", "o_proj", "down_proj"].map(str::to_owned).into(),
            base: "tiny".into(),
        },
    }
}
