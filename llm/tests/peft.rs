//! Adapters that PEFT itself wrote (`scripts/golden_peft.py`) give PEFT's own logits and tokens, beside the weights and merged.

use candle_core::{DType, Device, Tensor};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vela_llm::generate::{Options, Session, run};
use vela_llm::{Cache, Decoder, Lora, load, lora};
use vela_nn::parity::compare;
use vela_nn::{Mask, Result};

type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

fn logits(decoder: &Decoder, ids: &Tensor) -> Result<Tensor> {
    let positions = Tensor::arange(0, ids.dim(1)? as u32, &Device::Cpu)?;
    let hidden = decoder.forward(&decoder.embed(ids)?, &positions, &Mask::Causal, &mut Cache::new())?;
    decoder.logits(&decoder.normalise(&hidden)?)
}

fn greedy(decoder: Decoder, prompt: &[u32], count: usize) -> Result<Vec<u32>> {
    let mut session = Session::new(Arc::new(decoder), prompt.len() + count + 1)?;
    let options = Options { max_tokens: count, ..Options::default() };
    let mut made = Vec::new();
    run(&mut session, prompt, &options, None, None, &mut |choice| {
        made.push(choice.token);
        Ok(true)
    })?;
    Ok(made)
}

#[test]
fn adapters_written_by_peft_answer_as_in_peft() -> Outcome {
    for (name, base, matrices) in [
        ("llama_qv", "llama", 4),
        // Everything but the key projections: six matrices in each of two layers.
        ("llama_patterns", "llama", 12),
        ("llama_layer", "llama", 2),
        ("gpt2_conv1d", "gpt2", 6),
        ("phi3_fused", "phi3", 4),
    ] {
        let (model, adapter) = (case(base), case("peft").join(name));
        let ids = candle_core::safetensors::load(model.join("golden.safetensors"), &Device::Cpu)?;
        let ids = ids["in.input_ids"].to_dtype(DType::U32)?;
        let golden = candle_core::safetensors::load(adapter.join("golden.safetensors"), &Device::Cpu)?;
        let (want, tokens) = (&golden["out.logits"], golden["out.generated"].to_dtype(DType::U32)?);
        let tokens: Vec<u32> = tokens.flatten_all()?.to_vec1()?;
        let plain = load(&model)?;
        let lora = Arc::new(Lora::load(&adapter, plain.config())?);
        assert_eq!(lora.len(), matrices, "{name}");
        let without = compare("", &logits(&plain, &ids)?, want)?.max_abs_over_spread;
        assert!(without > 0.05, "{name}: the adapter changes next to nothing: {without}");
        for (way, decoder) in
            [("beside", plain.with_adapter(lora)?), ("merged", lora::merged(&model, &adapter)?)]
        {
            let off = compare("", &logits(&decoder, &ids)?, want)?.max_abs_over_spread;
            assert!(off < 1e-4, "{name}, {way}: {off:e} of the spread");
            let prompt: Vec<u32> = ids.flatten_all()?.to_vec1()?;
            assert_eq!(greedy(decoder, &prompt, tokens.len())?, tokens, "{name}, {way}");
        }
    }
    Ok(())
}
