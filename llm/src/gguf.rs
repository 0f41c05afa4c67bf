//! GGUF files of text models: metadata to a decoder's config, tensor names to ours.
//!
//! The metadata are put into the words of a Hugging Face `config.json`, so that each family is described in one place. What
//! the converter (llama.cpp's `convert_hf_to_gguf.py`) changes is undone here: it permutes the rows of Llama's queries and
//! keys, so that neighbours turn together; it adds the one to Gemma's norms; and it transposes GPT-2's matrices. Keys and names
//! of tensors are those of llama.cpp's `gguf-py/gguf/constants.py`.

mod experts;
mod t5;

pub use t5::{is_encoder_decoder, reader, reader_config, reader_weights};

use crate::config::Window;
use crate::{Decoder, DecoderConfig, trace};
use candle_core::{DType, Tensor};
use serde_json::{Map, Value as Json, json};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use vela_nn::gguf::{Gguf, Value};
use vela_nn::quant::Precision;
use vela_nn::rope::{RopeScaling, RopeStyle};
use vela_nn::{Error, NormConfig, Result, Weights};

/// `general.architecture`, and what Hugging Face calls it.
const ARCHITECTURES: [(&str, &str); 7] = [
    ("llama", "llama"),
    ("gpt2", "gpt2"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("gemma", "gemma"),
    ("gemma2", "gemma2"),
    ("gemma3", "gemma3_text"),
];

/// The GGUF file that a path means: the file itself (by its first bytes), or the only `*.gguf` of a folder without a
/// `config.json`.
pub fn find(path: &Path) -> Option<PathBuf> {
    use std::io::Read;
    if path.is_dir() {
        let entries = std::fs::read_dir(path).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        let mut files = entries.filter(|path| path.extension().is_some_and(|e| e == "gguf"));
        let (first, second) = (files.next()?, files.next());
        return (second.is_none() && !path.join("config.json").exists()).then_some(first);
    }
    let mut magic = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    (read.is_ok() && &magic == b"GGUF").then(|| path.to_owned())
}

/// Every stage of a file's model on `in.input_ids`, in exact products, and the first rows of a tensor of each format
/// (`out.dequant.*`) that the reference run has.
pub fn trace(path: &Path, golden: &HashMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    let file = Gguf::open(path)?;
    if is_encoder_decoder(&file) {
        return trace::encoder_decoder(&reader(&file, Precision::Exact)?, golden);
    }
    let decoder = decoder(&file, Precision::Exact)?;
    let ids = trace::input(golden, "in.input_ids")?.to_dtype(DType::U32)?;
    let mut stages = BTreeMap::new();
    trace::stages_of(&decoder, &decoder.embed(&ids)?, "out.", golden, &mut stages)?;
    for name in file.names() {
        let blocks = file.tensor(name)?;
        let stage = format!("out.dequant.{}", blocks.format().name());
        if let Some(rows) = golden.get(&stage).and_then(|want| want.dims().first().copied())
            && blocks.rows().0 >= rows
            && !stages.contains_key(&stage)
        {
            stages.insert(stage, blocks.tensor()?.narrow(0, 0, rows)?);
        }
    }
    Ok(stages)
}

/// The decoder of an open file, its weights multiplied as `precision` says.
///
/// # Errors
/// An unknown architecture, missing metadata, missing, surplus or mis-shaped tensors.
pub fn decoder(file: &Gguf, precision: Precision) -> Result<Decoder> {
    let config = config(file)?;
    let weights = weights(file, &config, precision)?;
    let decoder = Decoder::new(Some(&weights), &weights.pp(config.names.table().body), &config)?;
    weights.finish()?;
    Ok(decoder)
}

/// The decoder that a file describes.
///
/// # Errors
/// An unknown architecture, something missing or of the wrong kind, something that we cannot do.
pub fn config(file: &Gguf) -> Result<DecoderConfig> {
    let architecture = file.text("general.architecture")?;
    let Some((_, family)) = ARCHITECTURES.iter().find(|(name, _)| *name == architecture) else {
        return Err(unknown(architecture));
    };
    let reader = Reader { file, architecture };
    let experts = experts::count(&reader)?;
    let words = match (*family, experts) {
        ("gpt2", _) => reader.gpt2()?,
        (_, Some(count)) => {
            let mut words = reader.words("mixtral")?;
            experts::words(&reader, count, &mut words)?;
            words
        }
        (family, None) => reader.words(family)?,
    };
    let mut config = DecoderConfig::from_hf(&Json::Object(words))?;
    config.names = config.names.by_rows();
    reader.attention(&mut config)?;
    if architecture == "llama" {
        config.rope.style = RopeStyle::Interleaved;
    }
    if let NormConfig::RmsNorm { eps, .. } = config.norm {
        config.norm = NormConfig::RmsNorm { eps, one_plus: false };
    }
    if let Ok(factors) = file.tensor(FACTORS) {
        let factors = factors.tensor()?.flatten_all()?.to_vec1::<f32>()?;
        config.rope.scaling = llama3(&factors, config.rope.theta, config.rope.rotary_dim)?;
    }
    Ok(config)
}

/// Why an architecture is not one decoder of ours.
fn unknown(architecture: &str) -> Error {
    match architecture {
        t5::ARCHITECTURE => Error::invalid(
            "GGUF: expected a model of one stack, got an encoder-decoder (T5): `vela chat` runs those",
        ),
        "opt" => Error::invalid(
            "GGUF has no architecture for OPT (llama.cpp's list of architectures, `gguf-py/gguf/constants.py`, has none): \
             expected its Hugging Face folder, got a file that calls itself 'opt'",
        ),
        other => {
            let known: Vec<&str> = ARCHITECTURES.iter().map(|(name, _)| *name).collect();
            let known = known.join(", ");
            Error::invalid(format!(
                "GGUF architecture '{other}' is not known; known: {known}, {}",
                t5::ARCHITECTURE
            ))
        }
    }
}

/// Divisors of the rotary frequencies.
const FACTORS: &str = "rope_freqs.weight";

/// The tensors of a file under the names of its family.
///
/// # Errors
/// Experts that do not fit the config; two tensors of one name.
pub fn weights(file: &Gguf, config: &DecoderConfig, precision: Precision) -> Result<Weights> {
    let names = config.names.table();
    let parts = [
        ("attn_norm", names.norm1),
        ("post_attention_norm", names.norm1_after),
        ("attn_q", names.q),
        ("attn_k", names.k),
        ("attn_v", names.v),
        ("attn_qkv", names.qkv),
        ("attn_output", names.o),
        ("attn_q_norm", names.q_norm),
        ("attn_k_norm", names.k_norm),
        ("ffn_norm", names.norm2),
        ("post_ffw_norm", names.norm2_after),
        ("ffn_gate", names.gate),
        ("ffn_up", names.up),
        ("ffn_down", names.down),
        ("ffn_gate_inp", names.router),
    ];
    let body = names.body;
    let rename = |name: &str| {
        // What we do not know keeps its name, and is reported as surplus.
        let Some((path, kind)) = name.rsplit_once('.') else { return name.to_owned() };
        let inside = path.strip_prefix("blk.").and_then(|path| path.split_once('.'));
        match (path, inside) {
            ("rope_freqs", _) => String::new(),
            ("token_embd", _) => format!("{body}.{}.{kind}", names.embedding),
            ("position_embd", _) if !names.positions.is_empty() => {
                format!("{body}.{}.{kind}", names.positions)
            }
            ("output_norm", _) => format!("{body}.{}.{kind}", names.final_norm),
            ("output", _) => format!("{}.{kind}", names.head),
            (_, Some((layer, part))) => {
                let known = parts.iter().find(|(theirs, ours)| *theirs == part && !ours.is_empty());
                let ours = known.map(|(_, ours)| (*ours).to_owned());
                match ours.or_else(|| experts::renamed(part, &names)) {
                    Some(ours) => format!("{body}.{}.{layer}.{ours}.{kind}", names.layers),
                    None => name.to_owned(),
                }
            }
            _ => name.to_owned(),
        }
    };
    Weights::from_blocks(experts::unstacked(file, config)?, precision).renamed(rename)
}

/// A file's metadata under the keys of its architecture.
struct Reader<'a> {
    file: &'a Gguf,
    architecture: &'a str,
}

impl Reader<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.file.metadata().get(&format!("{}.{key}", self.architecture))
    }

    fn wrong(&self, key: &str, expected: &str, got: &Value) -> Error {
        Error::invalid(format!("GGUF: {}.{key}: expected {expected}, got {got:?}", self.architecture))
    }

    /// A count; a list must say the same of every layer.
    fn count(&self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let all = value.as_numbers().and_then(|list| {
            let first = *list.first()?;
            (list.iter().all(|n| *n == first) && first >= 0.0).then_some(first as u64)
        });
        let count = value.as_count().or(all);
        count.map(Some).ok_or_else(|| self.wrong(key, "one count for all layers", value))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_number().map(Some).ok_or_else(|| self.wrong(key, "a number", value))
    }

    fn need<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| Error::invalid(format!("GGUF: metadata {}.{key} is missing", self.architecture)))
    }

    /// Token ids: the rows of the table.
    fn vocab(&self) -> Result<usize> {
        match *self.file.tensor("token_embd.weight")?.shape() {
            [vocab, _] => Ok(vocab),
            _ => Err(Error::invalid("GGUF: token_embd.weight: expected two dimensions")),
        }
    }

    /// The width of a head.
    fn head_dim(&self) -> Result<u64> {
        let count = |key: &str| self.need(key, self.count(key)?);
        let head_dim = match self.count("attention.key_length")? {
            Some(size) => size,
            None => count("embedding_length")? / count("attention.head_count")?.max(1),
        };
        match self.count("attention.value_length")?.filter(|other| *other != head_dim) {
            None => Ok(head_dim),
            Some(other) => Err(Error::invalid(format!(
                "GGUF: keys of {head_dim} and values of {other}: only equal widths are supported"
            ))),
        }
    }

    /// GPT-2's metadata as its `config.json`.
    fn gpt2(&self) -> Result<Map<String, Json>> {
        let count = |key: &str| self.need(key, self.count(key)?);
        let eps = "attention.layer_norm_epsilon";
        let words = [
            ("model_type", json!("gpt2")),
            ("vocab_size", json!(self.vocab()?)),
            ("n_embd", json!(count("embedding_length")?)),
            ("n_inner", json!(count("feed_forward_length")?)),
            ("n_layer", json!(count("block_count")?)),
            ("n_head", json!(count("attention.head_count")?)),
            ("n_positions", json!(count("context_length")?)),
            ("layer_norm_epsilon", json!(self.need(eps, self.number(eps)?)?)),
            // The older converter wrote the table a second time.
            ("tie_word_embeddings", json!(!self.file.tensors().contains_key("output.weight"))),
        ];
        Ok(words.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    /// The metadata as a `config.json`.
    fn words(&self, family: &str) -> Result<Map<String, Json>> {
        let count = |key: &str| self.need(key, self.count(key)?);
        let (width, heads) = (count("embedding_length")?, count("attention.head_count")?);
        let (layers, head_dim, vocab) = (count("block_count")?, self.head_dim()?, self.vocab()?);
        let eps =
            self.need("attention.layer_norm_rms_epsilon", self.number("attention.layer_norm_rms_epsilon")?)?;
        let tensors = self.file.tensors();
        let mut words = Map::new();
        let mut put = |key: &str, value: Json| drop(words.insert(key.to_owned(), value));
        put("model_type", json!(family));
        put("vocab_size", json!(vocab));
        put("hidden_size", json!(width));
        put("intermediate_size", json!(count("feed_forward_length")?));
        put("num_hidden_layers", json!(layers));
        put("num_attention_heads", json!(heads));
        put("num_key_value_heads", json!(self.count("attention.head_count_kv")?.unwrap_or(heads)));
        put("head_dim", json!(head_dim));
        put("rms_norm_eps", json!(eps));
        put("max_position_embeddings", json!(self.count("context_length")?));
        put("rope_theta", json!(self.number("rope.freq_base")?.unwrap_or(10_000.0)));
        if let Some(turned) = self.count("rope.dimension_count")? {
            put("partial_rotary_factor", json!(turned as f64 / head_dim.max(1) as f64));
        }
        put("tie_word_embeddings", json!(!tensors.contains_key("output.weight")));
        put("attention_bias", json!(tensors.contains_key("blk.0.attn_output.bias")));
        if let Some(scaling) = self.scaling()? {
            put("rope_scaling", scaling);
        }
        if let Some(cap) = self.number("attn_logit_softcapping")? {
            put("attn_logit_softcapping", json!(cap));
        }
        if let Some(cap) = self.number("final_logit_softcapping")? {
            put("final_logit_softcapping", json!(cap));
        }
        // The largest Gemmas (46 and 62 layers) scale by another width than a head's; the file does not say so.
        let wide = matches!((family, layers), ("gemma2", 46) | ("gemma3_text", 62));
        put("query_pre_attn_scalar", json!(if wide { width / heads.max(1) } else { head_dim }));
        if family.starts_with("gemma") {
            put("sliding_window", json!(self.count("attention.sliding_window")?.unwrap_or(4096)));
            put("rope_local_base_freq", json!(self.number("rope.freq_base_swa")?.unwrap_or(10_000.0)));
        }
        Ok(words)
    }

    /// What the file says of attention, whether the family's `config.json` has words for it or not: Mistral's window comes
    /// under the name of Llama. A window of 0 is none.
    fn attention(&self, config: &mut DecoderConfig) -> Result<()> {
        if let Some(size) = self.count("attention.sliding_window")?.filter(|size| *size > 0) {
            let everywhere = Window { size: size as usize, full_layers: Vec::new(), rope: None };
            let window = config.window.get_or_insert(everywhere);
            if let Some(full_layers) = self.full_layers(config.layers)? {
                window.full_layers = full_layers;
            }
        }
        if let Some(scale) = self.number("attention.scale")?.filter(|scale| *scale != 0.0) {
            config.attention_scale = Some(scale as f32);
        }
        Ok(())
    }

    /// The layers without a window, if the file says which: each last of so many (0: none), or those that a list calls false.
    fn full_layers(&self, layers: usize) -> Result<Option<Vec<usize>>> {
        let key = "attention.sliding_window_pattern";
        let Some(value) = self.get(key) else { return Ok(None) };
        let full = match (value.as_count(), value.as_numbers()) {
            (Some(period), _) => {
                (0..layers).filter(|layer| period > 0 && (*layer as u64 + 1).is_multiple_of(period)).collect()
            }
            (_, Some(windowed)) if windowed.len() == layers => {
                (0..layers).filter(|layer| windowed[*layer] == 0.0).collect()
            }
            _ => return Err(self.wrong(key, &format!("a count or {layers} truth values"), value)),
        };
        Ok(Some(full))
    }

    fn scaling(&self) -> Result<Option<Json>> {
        let kind = match self.get("rope.scaling.type") {
            None => return Ok(None),
            Some(value) => value.as_text().ok_or_else(|| self.wrong("rope.scaling.type", "a name", value))?,
        };
        let factor = self.number("rope.scaling.factor")?;
        match kind {
            "none" => Ok(None),
            "linear" => Ok(Some(json!({"rope_type": "linear", "factor": factor}))),
            "yarn" => {
                let original = self.count("rope.scaling.original_context_length")?;
                let mut yarn = json!({"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original});
                if let Some(magnitude) = self.number("rope.scaling.attn_factor")? {
                    yarn["attention_factor"] = json!(magnitude);
                }
                Ok(Some(yarn))
            }
            other => Err(Error::invalid(format!(
                "GGUF: rope scaling '{other}' is not known; known: none, linear, yarn"
            ))),
        }
    }
}

/// Llama 3's stretching, told by the divisors that it gives: the converter writes only those. Its published parameters are
/// always a low factor of 1 and a high factor of 4; the stretch is the largest divisor, and any divisor between tells the
/// positions of training. Without one between they are 8192, as published.
fn llama3(divisors: &[f32], theta: f32, rotary_dim: usize) -> Result<RopeScaling> {
    let (low, high) = (1.0, 4.0);
    let factor = divisors.iter().fold(1f32, |a, b| a.max(*b));
    let stretch = f64::from(factor);
    let wavelength =
        |i: usize| std::f64::consts::TAU * f64::from(theta).powf(2.0 * i as f64 / rotary_dim.max(1) as f64);
    let between = divisors.iter().enumerate().find(|(_, divisor)| **divisor > 1.0 && **divisor < factor);
    let original = between.map_or(8192.0, |(i, divisor)| {
        let smooth = (1.0 / f64::from(*divisor) - 1.0 / stretch) / (1.0 - 1.0 / stretch);
        (wavelength(i) * (low + (high - low) * smooth)).round()
    });
    let expected = |i: usize| {
        let wavelength = wavelength(i);
        if wavelength < original / high {
            return 1.0;
        }
        if wavelength > original / low {
            return stretch;
        }
        let smooth = (original / wavelength - low) / (high - low);
        1.0 / ((1.0 - smooth) / stretch + smooth)
    };
    let fits = |(i, divisor): (usize, &f32)| (f64::from(*divisor) / expected(i) - 1.0).abs() < 1e-3;
    if divisors.len() != rotary_dim / 2 || !divisors.iter().enumerate().all(fits) {
        return Err(Error::invalid(format!(
            "GGUF: {FACTORS}: these are not the divisors of Llama 3's scaling"
        )));
    }
    Ok(RopeScaling::Llama3 {
        factor,
        low_freq_factor: low as f32,
        high_freq_factor: high as f32,
        original_positions: original as usize,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_divisors_of_llama_3_are_recognised() {
        let make = |factor: f64, original: f64| -> Vec<f32> {
            let one = |i: i32| {
                let wavelength = std::f64::consts::TAU * 500_000f64.powf(f64::from(i) / 32.0);
                let smooth = ((original / wavelength - 1.0) / 3.0).clamp(0.0, 1.0);
                (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
            };
            (0..32).map(one).collect()
        };
        for (stretch, original) in [(32f32, 8192usize), (8.0, 8192), (4.0, 64), (16.0, 100_000)] {
            let found = llama3(&make(f64::from(stretch), original as f64), 500_000.0, 64);
            let fits = matches!(found, Ok(RopeScaling::Llama3 { factor, original_positions, .. })
                if factor == stretch && original_positions == original);
            assert!(fits, "{stretch}, {original}: {found:?}");
        }
        let mut wrong = make(8.0, 8192.0);
        wrong[12] *= 1.1;
        assert!(llama3(&wrong, 500_000.0, 64).is_err() && llama3(&make(8.0, 8192.0), 10_000.0, 64).is_err());
    }
}
