//! Checkpoints as users have them: in shards, in half precision, without the outermost name, with copies; and broken ones.

use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use vela_llm::{Cache, Decoder, load};
use vela_nn::{Error, Mask, Result};

type Tensors = HashMap<String, Tensor>;

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

fn tensors(name: &str) -> Result<Tensors> {
    Ok(candle_core::safetensors::load(case(name).join("model.safetensors"), &Device::Cpu)?)
}

/// A model folder for one test, gone at its end.
struct Folder(PathBuf);

impl Folder {
    /// With the config of a golden case.
    fn new(test: &str, name: &str) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("vela-loading-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&dir).map_err(Error::invalid)?;
        std::fs::copy(case(name).join("config.json"), dir.join("config.json")).map_err(Error::invalid)?;
        Ok(Self(dir))
    }

    fn with(test: &str, name: &str, tensors: &Tensors) -> Result<Self> {
        let folder = Self::new(test, name)?;
        candle_core::safetensors::save(tensors, folder.0.join("model.safetensors"))?;
        Ok(folder)
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        std::fs::write(self.0.join(file), text).map_err(Error::invalid)
    }

    fn refusal(&self) -> String {
        load(&self.0).map_or_else(|e| e.to_string(), |_| "loaded".into())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn logits(decoder: &Decoder) -> Result<Vec<f32>> {
    let ids = Tensor::new(&[[5u32, 9, 2, 100, 31]], &Device::Cpu)?;
    let positions = Tensor::arange(0u32, 5, &Device::Cpu)?;
    let hidden = decoder.forward(&decoder.embed(&ids)?, &positions, &Mask::Causal, &mut Cache::new())?;
    Ok(decoder.logits(&decoder.normalise(&hidden)?)?.flatten_all()?.to_vec1()?)
}

fn of(dir: &Path) -> Result<Vec<f32>> {
    logits(&load(dir)?)
}

#[test]
fn shards_are_one_checkpoint() -> Result<()> {
    let folder = Folder::new("shards", "llama")?;
    let mut map = serde_json::Map::new();
    let mut shards = [Tensors::new(), Tensors::new()];
    let mut names: Vec<(String, Tensor)> = tensors("llama")?.into_iter().collect();
    names.sort_by(|a, b| a.0.cmp(&b.0));
    let file = |i: usize| format!("model-0000{}-of-00002.safetensors", i + 1);
    for (i, (name, tensor)) in names.into_iter().enumerate() {
        map.insert(name.clone(), file(i % 2).into());
        shards[i % 2].insert(name, tensor);
    }
    for (i, shard) in shards.iter().enumerate() {
        candle_core::safetensors::save(shard, folder.0.join(file(i)))?;
    }
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
    folder.write("model.safetensors.index.json", &index.to_string())?;
    assert_eq!(of(&folder.0)?, of(&case("llama"))?);

    std::fs::remove_file(folder.0.join(file(1))).map_err(Error::invalid)?;
    assert!(folder.refusal().contains("model-00002-of-00002.safetensors"), "{}", folder.refusal());
    Ok(())
}

#[test]
fn half_precision_is_read_as_it_is_stored() -> Result<()> {
    for (dtype, test) in [(DType::F16, "f16"), (DType::BF16, "bf16")] {
        for name in ["llama", "gpt2", "phi3", "mixtral"] {
            let half: Tensors = tensors(name)?
                .into_iter()
                .map(|(key, t)| Ok((key, t.to_dtype(dtype)?)))
                .collect::<Result<_>>()?;
            let whole: Tensors = half
                .iter()
                .map(|(key, t)| Ok((key.clone(), t.to_dtype(DType::F32)?)))
                .collect::<Result<_>>()?;
            let stored = Folder::with(&format!("{test}-{name}"), name, &half)?;
            let rounded = Folder::with(&format!("{test}-{name}-whole"), name, &whole)?;
            let (got, want) = (of(&stored.0)?, of(&rounded.0)?);
            let far = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far < 1e-5, "{name} {test}: {far}");
        }
    }
    Ok(())
}

#[test]
fn a_bare_body_constants_and_copies_are_accepted() -> Result<()> {
    // GPT-2 as it was first published: no `transformer.`, and the causal mask among the tensors.
    let strip = |(name, t): (String, Tensor)| (name.trim_start_matches("transformer.").to_owned(), t);
    let mut bare: Tensors = tensors("gpt2")?.into_iter().map(strip).collect();
    bare.insert("h.0.attn.bias".into(), Tensor::ones((1, 1, 4, 4), DType::F32, &Device::Cpu)?);
    let folder = Folder::with("bare", "gpt2", &bare)?;
    assert_eq!(of(&folder.0)?, of(&case("gpt2"))?);

    let mut copied = tensors("llama_linear")?;
    copied.insert("lm_head.weight".into(), copied["model.embed_tokens.weight"].copy()?);
    let folder = Folder::with("copied", "llama_linear", &copied)?;
    assert_eq!(of(&folder.0)?, of(&case("llama_linear"))?);
    Ok(())
}

#[test]
fn one_error_names_all_that_is_wrong_in_every_family() -> Result<()> {
    for (name, missing, misshaped) in [
        ("llama", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"),
        (
            "gemma2",
            "model.layers.3.post_feedforward_layernorm.weight",
            "model.layers.0.self_attn.o_proj.weight",
        ),
        ("gpt2", "transformer.wpe.weight", "transformer.h.1.attn.c_attn.weight"),
        ("opt", "model.decoder.layers.0.fc2.bias", "model.decoder.embed_positions.weight"),
        ("phi", "lm_head.bias", "model.layers.0.self_attn.dense.weight"),
        ("phi3", "model.layers.0.mlp.gate_up_proj.weight", "model.layers.1.self_attn.qkv_proj.weight"),
        ("qwen2", "model.layers.0.self_attn.q_proj.bias", "lm_head.weight"),
        ("qwen3", "model.layers.0.self_attn.k_norm.weight", "model.layers.0.self_attn.q_norm.weight"),
        (
            "mixtral",
            "model.layers.0.block_sparse_moe.experts.3.w2.weight",
            "model.layers.1.block_sparse_moe.gate.weight",
        ),
        ("qwen2_moe", "model.layers.1.mlp.shared_expert_gate.weight", "model.layers.0.mlp.gate.weight"),
    ] {
        let mut broken = tensors(name)?;
        assert!(broken.remove(missing).is_some(), "{name}: {missing}");
        let odd = Tensor::zeros((3, 1), DType::F32, &Device::Cpu)?;
        assert!(broken.insert(misshaped.into(), odd.clone()).is_some(), "{name}: {misshaped}");
        broken.insert("surplus.weight".into(), odd);
        let text = Folder::with(&format!("broken-{name}"), name, &broken)?.refusal();
        let expected = [
            "1 missing, 1 unused, 1 mis-shaped".to_owned(),
            format!("missing     {missing}"),
            "unused      surplus.weight".to_owned(),
            format!("mis-shaped  {misshaped}: expected"),
        ];
        for part in expected {
            assert!(text.contains(&part), "{name}: expected '{part}' in: {text}");
        }
    }
    Ok(())
}

#[test]
fn broken_folders_are_refused() -> Result<()> {
    let config = std::fs::read_to_string(case("llama").join("config.json")).map_err(Error::invalid)?;
    let folder = Folder::with("config", "llama", &tensors("llama")?)?;
    let deep = config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 4000");
    for (text, expected) in [
        (deep.as_str(), "4000 layers, but there is no model.layers.3999.input_layernorm.weight"),
        ("{\"model_type\": ", "config.json: EOF while parsing"),
        ("{}", "text model_type 'absent' is not known"),
        ("[]", "text model_type 'absent' is not known"),
        ("{\"model_type\": 5}", "model_type: expected a name, got 5"),
    ] {
        folder.write("config.json", text)?;
        assert!(folder.refusal().contains(expected), "expected '{expected}', got '{}'", folder.refusal());
    }
    folder.write("config.json", &config)?;
    assert_eq!(folder.refusal(), "loaded");
    let whole = std::fs::read(folder.0.join("model.safetensors")).map_err(Error::invalid)?;
    for end in [0, 7, 8, 100, whole.len() - 1] {
        std::fs::write(folder.0.join("model.safetensors"), &whole[..end]).map_err(Error::invalid)?;
        let text = folder.refusal();
        assert!(text.contains("not a safetensors file"), "{end}: {text}");
    }
    std::fs::remove_file(folder.0.join("model.safetensors")).map_err(Error::invalid)?;
    assert!(folder.refusal().contains("found neither"), "{}", folder.refusal());
    Ok(())
}
