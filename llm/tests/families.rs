//! What must hold for every family, on the tiny random weights of its reference run: the cache, batches and chunks change
//! nothing.

use candle_core::{DType, Device, Tensor};
use std::path::PathBuf;
use std::sync::Arc;
use vela_llm::{Cache, Decoder, EncoderDecoder, load};
use vela_nn::parity::compare;
use vela_nn::{Error, Mask, Result};

const FAMILIES: [&str; 16] = [
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "llama",
    "llama_linear",
    "llama_llama3",
    "mistral",
    "mixtral",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
];

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

fn model(name: &str) -> Result<(Decoder, Tensor)> {
    let dir = case(name);
    let golden = candle_core::safetensors::load(dir.join("golden.safetensors"), &Device::Cpu)?;
    let decoder = load(&dir)?;
    let embeds = decoder.embed(&golden["in.input_ids"].to_dtype(DType::U32)?)?;
    Ok((decoder, embeds))
}

/// `x [b, t, width]` read from position `from` on.
fn read(decoder: &Decoder, x: &Tensor, from: usize, cache: &mut Cache) -> Result<Tensor> {
    let positions = Tensor::arange(from as u32, (from + x.dim(1)?) as u32, &Device::Cpu)?;
    decoder.forward(x, &positions, &Mask::Causal, cache)
}

fn same(what: &str, got: &Tensor, want: &Tensor) -> Result<()> {
    let difference = compare("", got, want)?.max_abs_over_spread;
    assert!(difference < 1e-5, "{what}: {difference:e} of the spread");
    Ok(())
}

/// Reads `embeds` in pieces that end at `ends`, and holds the whole to one pass.
fn in_pieces(what: &str, decoder: &Decoder, embeds: &Tensor, ends: &[usize], cache: Cache) -> Result<()> {
    let full = read(decoder, embeds, 0, &mut cache.clone())?;
    let (mut cache, mut parts, mut start) = (cache, Vec::new(), 0);
    for end in ends {
        parts.push(read(decoder, &embeds.narrow(1, start, end - start)?.contiguous()?, start, &mut cache)?);
        start = *end;
    }
    assert_eq!(cache.len(), embeds.dim(1)?);
    same(what, &Tensor::cat(&parts, 1)?, &full)
}

fn every(check: impl Fn(&str, &Decoder, &Tensor) -> Result<()>) -> Result<()> {
    for name in FAMILIES {
        let (decoder, embeds) = model(name)?;
        check(name, &decoder, &embeds)?;
    }
    Ok(())
}

#[test]
fn prefill_and_decode_equal_one_full_forward() -> Result<()> {
    every(|name, decoder, embeds| {
        let t = embeds.dim(1)?;
        for first in [1, 7, t - 1] {
            in_pieces(name, decoder, embeds, &(first..=t).collect::<Vec<_>>(), Cache::new())?;
        }
        Ok(())
    })
}

#[test]
fn chunked_prefill_equals_whole() -> Result<()> {
    every(|name, decoder, embeds| {
        let t = embeds.dim(1)?;
        in_pieces(name, decoder, embeds, &[5, 10, 15, t], Cache::new())?;
        in_pieces(name, decoder, embeds, &[9, t], Cache::new())
    })
}

#[test]
fn batch_n_equals_n_singles() -> Result<()> {
    every(|name, decoder, embeds| {
        let rows = [embeds.clone(), (embeds * 0.5)?, embeds.flip(&[1])?];
        let all = read(decoder, &Tensor::cat(&rows, 0)?, 0, &mut Cache::new())?;
        for (i, row) in rows.iter().enumerate() {
            same(name, &all.narrow(0, i, 1)?, &read(decoder, row, 0, &mut Cache::new())?)?;
        }
        Ok(())
    })
}

#[test]
fn padding_in_front_changes_nothing() -> Result<()> {
    every(|name, decoder, embeds| {
        let (_, t, width) = embeds.dims3()?;
        let pad = 3;
        let noise = (Tensor::ones((1, pad, width), DType::F32, &Device::Cpu)? * 0.3)?;
        let positions: Vec<u32> = (0..pad + t).map(|i| i.saturating_sub(pad) as u32).collect();
        let positions = Tensor::new(positions, &Device::Cpu)?;
        let blocks: Vec<u32> = (0..(pad + t) as u32).collect();
        let mask = Mask::blocks(blocks.clone(), blocks, (0..pad + t).map(|i| i >= pad).collect());
        let x = Tensor::cat(&[&noise, embeds], 1)?;
        let got = decoder.forward(&x, &positions, &mask, &mut Cache::new())?.narrow(1, pad, t)?;
        same(name, &got, &read(decoder, embeds, 0, &mut Cache::new())?)
    })
}

#[test]
fn a_refused_guess_and_another_row_leave_no_trace() -> Result<()> {
    every(|name, decoder, embeds| {
        let t = embeds.dim(1)?;
        let two = Tensor::cat(&[embeds, &(embeds * 0.5)?], 0)?;
        let full = read(decoder, &two, 0, &mut Cache::new())?;
        let mut cache = Cache::new();
        read(decoder, &two, 0, &mut cache)?;
        cache.truncate(t - 4)?;
        let swapped = Tensor::new(&[1u32, 0], &Device::Cpu)?;
        let mut cache = cache.select(&swapped)?;
        let rest = two.index_select(&swapped, 0)?.narrow(1, t - 4, 4)?.contiguous()?;
        let got = read(decoder, &rest, t - 4, &mut cache)?.index_select(&swapped, 0)?;
        same(name, &got, &full.narrow(1, t - 4, 4)?)
    })
}

#[test]
fn filling_the_cache_gives_the_same_keys_and_values_as_a_forward() -> Result<()> {
    every(|name, decoder, embeds| {
        let positions = Tensor::arange(0, embeds.dim(1)? as u32, &Device::Cpu)?;
        let (mut filled, mut full) = (Cache::new(), Cache::new());
        decoder.fill(embeds, &positions, &Mask::None, &mut filled)?;
        decoder.forward(embeds, &positions, &Mask::None, &mut full)?;
        for layer in 0..decoder.config().layers {
            let (Some((k, v)), Some((fk, fv))) = (filled.layer(layer), full.layer(layer)) else {
                return Err(Error::invalid(format!("{name}: layer {layer} is missing")));
            };
            same(name, k, fk)?;
            same(name, v, fv)?;
        }
        assert!(filled.layer(decoder.config().layers).is_none());
        Ok(())
    })
}

#[test]
fn an_encoder_decoder_decodes_as_it_reads() -> Result<()> {
    let dir = case("t5");
    let golden = candle_core::safetensors::load(dir.join("golden.safetensors"), &Device::Cpu)?;
    let model = EncoderDecoder::load(&dir)?;
    let embed = |name: &str| model.encoder().embed(&golden[name].to_dtype(DType::U32)?);
    let (read_in, written) = (embed("in.input_ids")?, embed("in.decoder_input_ids")?);
    let encode = |x: &Tensor| model.encode(x, &Mask::None, &mut |_, _| {});
    let encoded = encode(&read_in)?;
    let t = written.dim(1)?;
    let cache = || model.cache(&encoded, Mask::None);
    in_pieces("decode", model.decoder(), &written, &(1..=t).collect::<Vec<_>>(), cache()?)?;
    in_pieces("chunks", model.decoder(), &written, &[4, t], cache()?)?;

    // Two rows at once, the second padded behind.
    let short = read_in.narrow(1, 0, 20)?;
    let both = Tensor::cat(&[&read_in, &short.pad_with_zeros(1, 0, 6)?], 0)?;
    let real: Vec<bool> = (0..52).map(|i| i < 26 + 20).collect();
    let mask = |t: usize| Mask::blocks(vec![0; t], vec![0; 26], real.clone());
    let memory = model.encode(&both, &mask(26), &mut |_, _| {})?;
    let single = encode(&short)?;
    same("encoder", &memory.narrow(0, 1, 1)?.narrow(1, 0, 20)?, &single)?;
    let got = read(
        model.decoder(),
        &Tensor::cat(&[&written, &written], 0)?,
        0,
        &mut Cache::with_memory(Arc::new(model.decoder().remember(&memory, mask(t))?)),
    )?;
    same("row 0", &got.narrow(0, 0, 1)?, &read(model.decoder(), &written, 0, &mut cache()?)?)?;
    let want = read(model.decoder(), &written, 0, &mut model.cache(&single, Mask::None)?)?;
    same("row 1", &got.narrow(0, 1, 1)?, &want)?;

    // One memory serves every beam; memories of their own cannot be shuffled.
    let beams = Tensor::cat(&[&written, &(&written * 0.5)?], 0)?;
    let mut shared = cache()?;
    let got = read(model.decoder(), &beams, 0, &mut shared)?;
    same("beam 0", &got.narrow(0, 0, 1)?, &read(model.decoder(), &written, 0, &mut cache()?)?)?;
    same("beam 1", &got.narrow(0, 1, 1)?, &read(model.decoder(), &(&written * 0.5)?, 0, &mut cache()?)?)?;
    let swapped = Tensor::new(&[1u32, 0], &Device::Cpu)?;
    assert_eq!(shared.select(&swapped)?.len(), t);
    let own = Cache::with_memory(Arc::new(model.decoder().remember(&memory, mask(t))?));
    assert!(own.select(&swapped).is_err());

    // Without a memory there is an error, not a guess.
    assert!(read(model.decoder(), &written, 0, &mut Cache::new()).is_err());
    assert!(model.encoder().remember(&encoded, Mask::None).is_err());
    Ok(())
}

#[test]
fn learned_positions_end() -> Result<()> {
    let (decoder, embeds) = model("gpt2")?;
    let error = read(&decoder, &embeds, 50, &mut Cache::new()).map(|_| ());
    let text = error.map_or_else(|e| e.to_string(), |()| "accepted".into());
    assert_eq!(text, "position 64 is beyond the 64 learned positions");
    Ok(())
}

#[test]
fn rope_style_is_half_split_for_llama() -> Result<()> {
    // Element i turns with element i + d/2, not with its neighbour: a unit vector along 0 at position 1 has its
    // sine at d/2.
    let (decoder, _) = model("llama")?;
    let d = decoder.config().head_dim;
    let mut unit = vec![0f32; d];
    unit[0] = 1.0;
    let x = Tensor::from_vec(unit, (1, 1, d), &Device::Cpu)?;
    let one = Tensor::new(&[1u32], &Device::Cpu)?;
    let y = decoder.angles(&one)?.apply_packed(&x, 1)?.flatten_all()?.to_vec1::<f32>()?;
    assert!((y[0] - 1f32.cos()).abs() < 1e-6 && (y[d / 2] - 1f32.sin()).abs() < 1e-6 && y[1] == 0.0);
    Ok(())
}
