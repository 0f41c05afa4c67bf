//! A small VLM as a folder that any reader of the Idefics3 family opens.

use super::config::VlmSizes;
use super::words::{CHAT_TEMPLATE, END};
use crate::error::{Error, Result, at};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use vela_llm::Tokenizer;
use vela_nn::{Activation, DType, Device, NormConfig, Tensor};
use vela_vision::{Pooling, VisionConfig};

/// Everything in a VLM's folder but its weights.
#[derive(Clone, Debug)]
pub struct Folder {
    /// `config.json`.
    pub config: Value,
    /// `preprocessor_config.json`.
    pub preprocessor: Value,
    /// `tokenizer.json`.
    pub tokenizer: Tokenizer,
}

impl Folder {
    /// For a decoder of these sizes behind this tower.
    ///
    /// # Errors
    /// A tower that the family has no words for.
    pub fn new(tower: &VisionConfig, sizes: &VlmSizes, tokenizer: &Tokenizer) -> Result<Self> {
        let NormConfig::LayerNorm { eps, bias: true } = tower.norm else {
            return Err(refused(format!("expected layer norms with a bias, got {:?}", tower.norm)));
        };
        let plain =
            !tower.class_token && tower.registers == 0 && tower.final_norm && tower.pooling == Pooling::None;
        if !plain || tower.activation != Activation::GeluTanh || !tower.patch_bias {
            return Err(refused("expected patches alone, a final norm and GELU (tanh)".into()));
        }
        let id =
            |token: &str| tokenizer.id(token).ok_or_else(|| refused(format!("the tokenizer has no {token}")));
        let (pad, end, image) = (id("<pad>")?, id(END)?, id("<image>")?);
        let config = json!({
            "model_type": "idefics3",
            "architectures": ["Idefics3ForConditionalGeneration"],
            "image_token_id": image, "scale_factor": sizes.shuffle, "tie_word_embeddings": false,
            "eos_token_id": end, "pad_token_id": pad, "torch_dtype": "float16",
            "vision_config": {
                "model_type": "idefics3_vision", "image_size": tower.image_size, "patch_size": tower.patch_size,
                "num_channels": tower.channels, "hidden_size": tower.width, "intermediate_size": tower.inner_width,
                "num_hidden_layers": tower.layers, "num_attention_heads": tower.heads,
                "layer_norm_eps": f64::from(eps), "hidden_act": "gelu_pytorch_tanh", "attention_dropout": 0.0
            },
            "text_config": {
                "model_type": "llama", "vocab_size": tokenizer.vocab_size(), "hidden_size": sizes.width,
                "intermediate_size": sizes.inner_width, "num_hidden_layers": sizes.layers,
                "num_attention_heads": sizes.heads, "num_key_value_heads": sizes.kv_heads,
                "head_dim": sizes.head_dim, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
                "max_position_embeddings": sizes.positions, "tie_word_embeddings": false,
                "attention_bias": false, "mlp_bias": false, "eos_token_id": end, "pad_token_id": pad,
                "bos_token_id": null
            }
        });
        let edge = json!({"longest_edge": tower.image_size});
        let preprocessor = json!({
            "image_processor_type": "Idefics3ImageProcessor", "do_convert_rgb": true, "do_resize": true,
            "size": edge, "max_image_size": edge, "do_image_splitting": false, "resample": 1, "do_rescale": true,
            "rescale_factor": 1.0 / 255.0, "do_normalize": true, "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5], "do_pad": true
        });
        Ok(Self { config, preprocessor, tokenizer: tokenizer.clone() })
    }

    /// The tensors of such a folder under our names.
    pub fn tensors(dir: &Path) -> Result<HashMap<String, Tensor>> {
        let file = candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu)?;
        let ours = |name: &str| {
            STARTS.iter().find_map(|(ours, theirs)| Some(format!("{ours}{}", name.strip_prefix(theirs)?)))
        };
        Ok(file.into_iter().map(|(name, tensor)| (ours(&name).unwrap_or(name), tensor)).collect())
    }

    /// Writes the folder; the tensors, under our names, become 16-bit floats under the family's.
    pub fn save(&self, dir: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(at(dir))?;
        let pretty = |value: &Value| format!("{value:#}\n").into_bytes();
        let special = json!({"eos_token": END, "pad_token": "<pad>", "unk_token": "<unk>",
            "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false});
        for (name, bytes) in [
            ("config.json", pretty(&self.config)),
            ("preprocessor_config.json", pretty(&self.preprocessor)),
            ("tokenizer_config.json", pretty(&special)),
            ("tokenizer.json", self.tokenizer.json().to_vec()),
            ("chat_template.jinja", CHAT_TEMPLATE.as_bytes().to_vec()),
        ] {
            let path = dir.join(name);
            std::fs::write(&path, bytes).map_err(at(&path))?;
        }
        let halves: Vec<(String, Tensor)> = tensors
            .iter()
            .map(|(name, tensor)| Ok((theirs(name), tensor.to_dtype(DType::F16)?)))
            .collect::<Result<_>>()?;
        Ok(vela_nn::save(&dir.join("model.safetensors"), &halves)?)
    }
}

/// How tensors' names begin: ours, and the family's.
const STARTS: [(&str, &str); 3] =
    [("vision.", "model.vision_model."), ("projector.", "model.connector."), ("text.", "model.text_model.")];

/// What the family calls a tensor of ours.
fn theirs(name: &str) -> String {
    let found =
        STARTS.iter().find_map(|(ours, theirs)| Some(format!("{theirs}{}", name.strip_prefix(ours)?)));
    found.unwrap_or_else(|| name.to_owned())
}

fn refused(why: String) -> Error {
    Error::Parse { what: "the VLM's tower".into(), why }
}
