//! A decoder as data, and how Hugging Face's `config.json` says it, in its old and its new spelling.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use vela_nn::{Activation, Error, NormConfig, Result, RopeConfig, RopeScaling, RopeStyle};

/// A decoder-only transformer as data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderConfig {
    /// Token ids.
    pub vocab: usize,
    /// Width of a hidden state.
    pub width: usize,
    /// Width inside the gated feed-forward network.
    pub inner_width: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Every normalisation.
    pub norm: NormConfig,
    /// Of the feed-forward network.
    pub activation: Activation,
    /// How positions turn queries and keys.
    pub rope: RopeConfig,
    /// Biases of q, k and v.
    pub qkv_bias: bool,
    /// Bias of the output projection of attention.
    pub output_bias: bool,
    /// Biases of the feed-forward network.
    pub mlp_bias: bool,
    /// Whether the output projection is the embedding table.
    pub tied: bool,
}

impl DecoderConfig {
    /// Factor on `q · k`.
    pub fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Refuses sizes that cannot work.
    pub fn check(&self) -> Result<()> {
        let sizes = [self.vocab, self.width, self.inner_width, self.heads, self.kv_heads, self.head_dim];
        if sizes.contains(&0) {
            return Err(Error::invalid(format!("decoder config: sizes must be positive: {self:?}")));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let (heads, kv) = (self.heads, self.kv_heads);
            return Err(Error::invalid(format!(
                "decoder config: {heads} heads are no multiple of {kv} kv heads"
            )));
        }
        if self.rope.rotary_dim > self.head_dim {
            let (rotary, head) = (self.rope.rotary_dim, self.head_dim);
            return Err(Error::invalid(format!(
                "decoder config: rotary width {rotary} is over head width {head}"
            )));
        }
        Ok(())
    }

    /// Reads a Hugging Face `config.json` (or its `text_config`).
    ///
    /// # Errors
    /// An unknown `model_type`, a missing size, a field of the wrong kind.
    pub fn from_hf(config: &Value) -> Result<Self> {
        let kind = config.get("model_type").and_then(Value::as_str).unwrap_or("absent");
        if kind != "llama" {
            return Err(Error::invalid(format!("text model_type '{kind}' is not known; known: llama")));
        }
        let heads = count(config, "num_attention_heads", None)?;
        let width = count(config, "hidden_size", None)?;
        let head_dim = count(config, "head_dim", Some(width / heads.max(1)))?;
        let attention_bias = flag(config, "attention_bias", false)?;
        let made = Self {
            vocab: count(config, "vocab_size", None)?,
            width,
            inner_width: count(config, "intermediate_size", None)?,
            layers: count(config, "num_hidden_layers", None)?,
            heads,
            kv_heads: count(config, "num_key_value_heads", Some(heads))?,
            head_dim,
            norm: NormConfig::RmsNorm { eps: number(config, "rms_norm_eps", 1e-6)? as f32, one_plus: false },
            activation: activation(config, "silu")?,
            rope: rope(config, head_dim)?,
            qkv_bias: attention_bias,
            output_bias: attention_bias,
            mlp_bias: flag(config, "mlp_bias", false)?,
            tied: flag(config, "tie_word_embeddings", false)?,
        };
        made.check()?;
        Ok(made)
    }
}

/// Old spelling: `rope_theta` and `rope_scaling` at the top; new spelling: both inside `rope_parameters`.
fn rope(config: &Value, head_dim: usize) -> Result<RopeConfig> {
    let inner = |field: &str| config.get(field).filter(|value| value.is_object());
    let nothing = Value::Null;
    let parameters = inner("rope_parameters").or(inner("rope_scaling")).unwrap_or(&nothing);
    let theta = number(parameters, "rope_theta", number(config, "rope_theta", 10_000.0)?)?;
    let kind = parameters.get("rope_type").or(parameters.get("type")).and_then(Value::as_str);
    let need = |field: &str| -> Result<f32> {
        let value = number(parameters, field, f64::NAN)? as f32;
        if value.is_nan() {
            Err(Error::invalid(format!("config.json: rope: {field} is missing")))
        } else {
            Ok(value)
        }
    };
    let original =
        |field: &str| count(parameters, field, Some(count(config, "max_position_embeddings", Some(0))?));
    let scaling = match kind {
        None | Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: need("factor")? },
        Some("llama3") => RopeScaling::Llama3 {
            factor: need("factor")?,
            low_freq_factor: need("low_freq_factor")?,
            high_freq_factor: need("high_freq_factor")?,
            original_positions: original("original_max_position_embeddings")?,
        },
        Some(other) => {
            let known = "default, linear, llama3";
            return Err(Error::invalid(format!(
                "config.json: rope type '{other}' is not known; known: {known}"
            )));
        }
    };
    let rotary_dim = (head_dim as f64 * number(config, "partial_rotary_factor", 1.0)?) as usize;
    Ok(RopeConfig { rotary_dim, theta: theta as f32, style: RopeStyle::HalfSplit, scaling })
}

fn wrong(field: &str, expected: &str, got: &Value) -> Error {
    Error::invalid(format!("config.json: {field}: expected {expected}, got {got}"))
}

fn count(config: &Value, field: &str, default: Option<usize>) -> Result<usize> {
    match (config.get(field), default) {
        (None | Some(Value::Null), Some(default)) => Ok(default),
        (None, None) => Err(Error::invalid(format!("config.json: {field} is missing"))),
        (Some(value), _) => value.as_u64().map(|x| x as usize).ok_or_else(|| wrong(field, "a count", value)),
    }
}

fn number(config: &Value, field: &str, default: f64) -> Result<f64> {
    match config.get(field) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value.as_f64().ok_or_else(|| wrong(field, "a number", value)),
    }
}

fn flag(config: &Value, field: &str, default: bool) -> Result<bool> {
    match config.get(field) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value.as_bool().ok_or_else(|| wrong(field, "true or false", value)),
    }
}

fn activation(config: &Value, default: &str) -> Result<Activation> {
    match config.get("hidden_act") {
        None | Some(Value::Null) => Activation::from_name(default),
        Some(Value::String(name)) => Activation::from_name(name),
        Some(other) => Err(wrong("hidden_act", "a name", other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn old_and_new_rope_spellings_mean_the_same() -> Result<()> {
        let base = json!({"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 9});
        let with = |extra: Value| {
            let mut config = base.clone();
            if let (Some(config), Some(extra)) = (config.as_object_mut(), extra.as_object()) {
                config.extend(extra.clone());
            }
            DecoderConfig::from_hf(&config)
        };
        let old = with(json!({"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}}))?;
        let new =
            with(json!({"rope_parameters": {"rope_theta": 500.0, "rope_type": "linear", "factor": 4.0}}))?;
        assert_eq!(old, new);
        assert_eq!(with(json!({"rope_scaling": null}))?.rope, RopeConfig::new(4, 10_000.0));
        assert!(with(json!({"rope_scaling": {"type": "spiral"}})).is_err());
        assert!(with(json!({"model_type": "teapot"})).is_err_and(|e| e.to_string().contains("known: llama")));
        Ok(())
    }
}
