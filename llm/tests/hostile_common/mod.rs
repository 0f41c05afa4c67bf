//! The doors through which files of strangers come in. Each takes any bytes, and says whether they were accepted; a
//! panic is the only failure. The fuzz targets in `fuzz/` go through the same doors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use vela_llm::{Cache, ChatTemplate, Decoder, DecoderConfig, EncoderDecoder, Lora, Message, RenderOptions};
use vela_llm::{Tokenizer, load};
use vela_nn::quant::Precision;
use vela_nn::{Device, Gguf, Mask, Result, Tensor, Weights};

/// A file or a folder of its own, gone at the end.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let place = Self(base.join(format!("vela-hostile-{}-{number}", std::process::id())));
        let _ = std::fs::create_dir_all(&place.0);
        place
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        let _ = std::fs::write(&path, bytes);
        path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Three tokens through a decoder that was accepted.
fn speak(decoder: &Decoder) -> Result<()> {
    let last = decoder.config().vocab.min(3) as u32 - 1;
    let ids = Tensor::new(&[[0, last, 0]], &Device::Cpu)?;
    let positions = Tensor::arange(0u32, 3, &Device::Cpu)?;
    let hidden = decoder.forward(&decoder.embed(&ids)?, &positions, &Mask::Causal, &mut Cache::new())?;
    decoder.logits(&decoder.normalise(&hidden)?).map(|_| ())
}

/// Three tokens about two from an encoder-decoder that was accepted.
fn answer(model: &EncoderDecoder) -> Result<()> {
    let last = model.encoder().config().vocab as u32 - 1;
    let embeds = model.encoder().embed(&Tensor::new(&[[0, last]], &Device::Cpu)?)?;
    let encoded = model.encode(&embeds, &Mask::None, &mut |_, _| {})?;
    model.greedy(&encoded, 3, &[]).map(|_| ())
}

/// A text through a tokenizer that was accepted.
fn read(tokenizer: &Tokenizer) -> Result<()> {
    let ids = tokenizer.encode("Hi \u{e9}\n\t<s> 12 the")?;
    tokenizer.decode(&ids)?;
    (0..tokenizer.vocab_size().min(64) as u32).for_each(|id| drop(tokenizer.piece(id)));
    Ok(())
}

/// A template in use.
fn write(template: &ChatTemplate) -> Result<()> {
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    template.render(&[Message::new("user", "Hi"), Message::new("assistant", "Ho")], &options).map(|_| ())
}

/// A GGUF file: its header, its tensors, the model, the tokenizer and the template in it.
pub fn gguf(bytes: &[u8]) -> bool {
    let place = Place::new();
    let Ok(file) = Gguf::open(&place.file("model.gguf", bytes)) else { return false };
    for blocks in file.tensors().values() {
        let _ = blocks.tensor();
    }
    let tokenizer = Tokenizer::from_gguf(file.metadata()).and_then(|tokenizer| read(&tokenizer));
    let template = ChatTemplate::from_gguf(file.metadata());
    let written = template.and_then(|template| template.as_ref().map_or(Ok(()), write));
    let reads = vela_llm::gguf::is_encoder_decoder(&file);
    let spoken = [Precision::Exact, Precision::Fast].map(|precision| match reads {
        true => vela_llm::gguf::reader(&file, precision).and_then(|model| answer(&model)),
        false => vela_llm::gguf::decoder(&file, precision).and_then(|decoder| speak(&decoder)),
    });
    tokenizer.is_ok() && written.is_ok() && spoken.iter().all(Result::is_ok)
}

/// A safetensors file under a config that fits the file that it was.
pub fn safetensors(config: &DecoderConfig, bytes: &[u8]) -> bool {
    let decoder = Weights::from_bytes(bytes).and_then(|w| load::from_weights(&w, config));
    decoder.and_then(|decoder| speak(&decoder)).is_ok()
}

/// A `config.json` before the weights of another.
pub fn config(bytes: &[u8], weights: &[u8]) -> bool {
    let Ok(value) = serde_json::from_slice(bytes) else { return false };
    let Ok(config) = DecoderConfig::from_hf(&value) else { return false };
    safetensors(&config, weights)
}

/// A chat template.
pub fn template(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    ChatTemplate::new(&text, BTreeMap::new()).and_then(|template| write(&template)).is_ok()
}

/// A `tokenizer.json`.
pub fn tokenizer(bytes: &[u8]) -> bool {
    Tokenizer::from_bytes(bytes).and_then(|tokenizer| read(&tokenizer)).is_ok()
}

/// The two files of an adapter.
pub fn adapter(config: &DecoderConfig, stated: &[u8], tensors: &[u8]) -> bool {
    let place = Place::new();
    place.file("adapter_config.json", stated);
    place.file("adapter_model.safetensors", tensors);
    Lora::load(&place.0, config).is_ok()
}

/// Valid files, as small as can be.
pub mod valid {
    use super::*;
    use serde_json::json;
    use vela_nn::gguf::Value;
    use vela_nn::quant::{Blocks, Format};

    /// A Llama of one layer.
    pub fn config() -> serde_json::Value {
        json!({"model_type": "llama", "vocab_size": 12, "hidden_size": 32, "intermediate_size": 32,
            "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 64, "rope_theta": 1e4, "tie_word_embeddings": true,
            "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32}})
    }

    /// Its weights.
    pub fn weights() -> Result<Vec<u8>> {
        let place = Place::new();
        let path = place.file("model.safetensors", &[]);
        let config = DecoderConfig::from_hf(&config())?;
        let weights = Weights::fresh(3);
        Decoder::new(Some(&weights), &weights.pp("model"), &config)?;
        let tensors: Vec<(String, Tensor)> =
            weights.trainable().into_iter().map(|(name, var)| (name, var.as_tensor().clone())).collect();
        vela_nn::save(&path, &tensors)?;
        std::fs::read(&path).map_err(vela_nn::Error::invalid)
    }

    /// What PEFT writes for its queries.
    pub fn adapter() -> Result<(serde_json::Value, Vec<u8>)> {
        let place = Place::new();
        let path = place.file("adapter_model.safetensors", &[]);
        let name = "base_model.model.model.layers.0.self_attn.q_proj";
        let ones = |shape: (usize, usize)| Tensor::ones(shape, vela_nn::DType::F32, &Device::Cpu);
        let tensors = [
            (format!("{name}.lora_A.weight"), ones((2, 32))?),
            (format!("{name}.lora_B.weight"), ones((32, 2))?),
        ];
        vela_nn::save(&path, &tensors)?;
        let stated = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ".*q_proj",
            "bias": "none", "rank_pattern": {"q_proj": 2}, "layers_to_transform": [0]});
        Ok((stated, std::fs::read(&path).map_err(vela_nn::Error::invalid)?))
    }

    const TEMPLATE: &str = "{% for m in messages %}<s>{{ m['role'] | upper }}: {{ m.content.strip() }}\n{% endfor %}\
        {% if add_generation_prompt %}{{ 'A' ~ ':' * 2 }}{% endif %}{% set n = namespace(x=1) %}{{ range(3)[n.x] }}";

    /// A chat template.
    pub fn template() -> &'static str {
        TEMPLATE
    }

    /// A GGUF file of such a model, with a tokenizer of twelve tokens: byte-level (`gpt2`), or of SentencePiece (`llama`); of
    /// one with three experts (`mixtral`); of an encoder-decoder with a unigram tokenizer (`t5`).
    pub fn gguf(kind: &str) -> Result<Vec<u8>> {
        let text = |text: &str| Value::Text(text.to_owned());
        let texts = |all: &[&str]| Value::TextList(all.iter().map(|text| (*text).to_owned()).collect());
        let tokens = match kind {
            "gpt2" => ["<s>", "</s>", "H", "i", "h", "e", "t", "th", "the", "\u{120}", "1", "2"],
            _ => ["<unk>", "<s>", "</s>", "H", "i", "h", "e", "t", "th", "the", "\u{2581}", "<0x41>"],
        };
        let architecture = if kind == "t5" { "t5" } else { "llama" };
        let mut values = BTreeMap::from([
            ("general.architecture".to_owned(), text(architecture)),
            (format!("{architecture}.attention.layer_norm_rms_epsilon"), Value::Float(1e-5)),
            ("tokenizer.chat_template".to_owned(), text(TEMPLATE)),
        ]);
        let mut counts = vec![
            ("block_count", 1),
            ("embedding_length", 32),
            ("feed_forward_length", 32),
            ("attention.head_count", 4),
            ("context_length", 64),
        ];
        counts.extend(match kind {
            "t5" => vec![("attention.relative_buckets_count", 4), ("decoder_start_token_id", 0)],
            "mixtral" => vec![("attention.head_count_kv", 2), ("expert_count", 3), ("expert_used_count", 2)],
            _ => vec![("attention.head_count_kv", 2)],
        });
        let counts = counts.into_iter().map(|(key, n)| (format!("{architecture}.{key}"), Value::Unsigned(n)));
        values.extend(counts);
        let kinds = if kind == "gpt2" {
            [3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
        } else {
            [2, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 6]
        };
        let own = [
            ("model", text(if kind == "mixtral" { "llama" } else { kind })),
            ("tokens", texts(&tokens)),
            ("token_type", Value::UnsignedList(kinds.to_vec())),
            ("merges", texts(&["t h", "th e"])),
            ("scores", Value::FloatList((0..12).map(|i| -f64::from(i)).collect())),
            ("bos_token_id", Value::Unsigned(1)),
            ("eos_token_id", Value::Unsigned(2)),
            ("unknown_token_id", Value::Unsigned(0)),
            ("add_bos_token", Value::Bool(true)),
        ];
        values.extend(own.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)));
        if kind == "t5" {
            let table = charsmap().into_iter().map(u64::from).collect();
            values.insert("tokenizer.ggml.precompiled_charsmap".into(), Value::UnsignedList(table));
            values.insert("tokenizer.ggml.remove_extra_whitespaces".into(), Value::Bool(true));
        }
        let shapes = if kind == "t5" { of_reader() } else { of_decoder(kind == "mixtral") };
        let mut tensors = BTreeMap::new();
        for (name, format, shape) in shapes {
            let bytes = vec![0x11; vela_nn::quant::size_of(format, &shape)?];
            tensors.insert(name, Blocks::new(format, &shape, bytes)?);
        }
        let place = Place::new();
        let path = place.0.join("model.gguf");
        vela_nn::gguf::write(&path, &values, &tensors)?;
        std::fs::read(&path).map_err(vela_nn::Error::invalid)
    }

    type Shape = (String, Format, Vec<usize>);

    fn of_decoder(experts: bool) -> Vec<Shape> {
        let mut all = vec![
            ("token_embd", Format::Q8_0, vec![12, 32]),
            ("output_norm", Format::F32, vec![32]),
            ("blk.0.attn_norm", Format::F32, vec![32]),
            ("blk.0.attn_q", Format::Q4_0, vec![32, 32]),
            ("blk.0.attn_k", Format::Q4_1, vec![16, 32]),
            ("blk.0.attn_v", Format::Q5_0, vec![16, 32]),
            ("blk.0.attn_output", Format::Q5_1, vec![32, 32]),
            ("blk.0.ffn_norm", Format::F32, vec![32]),
        ];
        all.extend(match experts {
            false => vec![
                ("blk.0.ffn_gate", Format::F16, vec![32, 32]),
                ("blk.0.ffn_up", Format::Bf16, vec![32, 32]),
                ("blk.0.ffn_down", Format::Q8_0, vec![32, 32]),
            ],
            true => vec![
                ("blk.0.ffn_gate_inp", Format::F32, vec![3, 32]),
                ("blk.0.ffn_gate_exps", Format::F16, vec![3, 32, 32]),
                ("blk.0.ffn_up_exps", Format::Q4_0, vec![3, 32, 32]),
                ("blk.0.ffn_down_exps", Format::Q8_0, vec![3, 32, 32]),
            ],
        });
        all.into_iter().map(|(name, format, shape)| (format!("{name}.weight"), format, shape)).collect()
    }

    fn of_reader() -> Vec<Shape> {
        let norms = ["attn_norm", "cross_attn_norm", "ffn_norm"];
        let matrices = ["attn_q", "attn_k", "attn_v", "attn_o", "ffn_up", "ffn_down"];
        let cross = ["cross_attn_q", "cross_attn_k", "cross_attn_v", "cross_attn_o"];
        let mut all = vec![("token_embd.weight".to_owned(), Format::Q8_0, vec![12, 32])];
        for stack in ["enc", "dec"] {
            let mut put = |part: &str, format: Format, shape: &[usize]| {
                all.push((format!("{stack}.{part}.weight"), format, shape.to_vec()));
            };
            put("output_norm", Format::F32, &[32]);
            put("blk.0.attn_rel_b", Format::F32, &[4, 4]);
            let own = |part: &&&str| stack == "dec" || !part.starts_with("cross");
            norms.iter().filter(own).for_each(|part| put(&format!("blk.0.{part}"), Format::F32, &[32]));
            let all = matrices.iter().chain(&cross);
            all.filter(own).for_each(|part| put(&format!("blk.0.{part}"), Format::Q8_0, &[32, 32]));
        }
        all
    }

    /// A table of characters that makes an A an a: a double array of two blocks, and the text.
    fn charsmap() -> Vec<u8> {
        let mut units = vec![0u32; 512];
        units[0] = 256 << 10;
        let next = 256 ^ 0x41;
        units[next as usize] = (next ^ 5) << 10 | 1 << 8 | 0x41;
        units[5] = 1 << 31;
        std::iter::once(2048).chain(units).flat_map(u32::to_le_bytes).chain(*b"a\0").collect()
    }

    /// A `tokenizer.json`.
    pub fn tokenizer() -> serde_json::Value {
        let bytes =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": {"type": "NFC"},
            "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true}],
            "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
            "model": {"type": "BPE", "merges": [["t", "h"], ["th", "e"]],
                "vocab": {"<s>": 0, "H": 1, "i": 2, "t": 3, "h": 4, "e": 5, "th": 6, "the": 7, "\u{120}": 8, "1": 9}}})
    }
}
