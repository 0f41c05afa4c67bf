//! Whole VLMs: from a picture to the answer, several pictures, every version's tensor names, fewer tokens, what is refused.

use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::path::PathBuf;
use vela_fusion::{Encoded, Room, Visual, Vlm, VlmConfig, Wording, names};
use vela_llm::{Cache, Lora, trace::config_json};
use vela_nn::parity::compare;
use vela_nn::{Error, Result, Weights};
use vela_vision::trace::picture;
use vela_vision::{Picture, Prepared, Preprocessor};

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

fn golden(name: &str) -> Result<HashMap<String, Tensor>> {
    Ok(candle_core::safetensors::load(case(name).join("golden.safetensors"), &Device::Cpu)?)
}

fn integers(x: &Tensor) -> Result<Vec<u32>> {
    Ok(x.flatten_all()?.to_dtype(candle_core::DType::U32)?.to_vec1()?)
}

/// A picture through the folder's own preprocessor, tower and projector.
fn look(vlm: &Vlm, name: &str, picture: &Picture) -> Result<Encoded> {
    vlm.encode(&Visual::picture(&Preprocessor::load(&case(name))?.apply(picture)?)?)
}

#[test]
fn from_a_picture_to_the_same_answer() -> Result<()> {
    for name in
        ["smolvlm", "llava", "llava_next", "internvl", "qwen2_vl", "paligemma", "blip2_opt", "blip2_t5"]
    {
        let (vlm, golden) = (Vlm::load(&case(name))?, golden(name)?);
        let seen = look(&vlm, name, &picture(&golden["in.image"])?)?;
        let prompt = vlm.prompt(&integers(&golden["in.input_ids"])?, &[seen])?;
        let want = integers(&golden["out.generated"])?;
        assert_eq!(vlm.answer(&prompt, want.len(), &[])?, want, "{name}");
        assert_eq!(vlm.answer(&prompt, 99, &want[2..3])?.last(), Some(&want[2]), "{name}: stops");
    }
    Ok(())
}

#[test]
fn adapters_written_by_peft_answer_as_in_peft() -> Result<()> {
    for (name, base) in [("smolvlm_all", "smolvlm"), ("llava_text", "llava")] {
        let adapter = case("peft").join(name);
        let golden = golden(base)?;
        let want = candle_core::safetensors::load(adapter.join("golden.safetensors"), &Device::Cpu)?;
        let (ids, tokens) = (integers(&golden["in.input_ids"])?, integers(&want["out.generated"])?);
        let (plain, adapted) = (Vlm::load(&case(base))?, Vlm::load_adapted(&case(base), Some(&adapter))?);
        let off = |vlm: &Vlm| -> Result<f64> {
            let seen = look(vlm, base, &picture(&golden["in.image"])?)?;
            let prompt = vlm.prompt(&ids, &[seen])?;
            let hidden = vlm.read(&prompt, &mut Cache::new(), &mut |_, _| {})?;
            let logits = vlm.decoder()?.logits(&vlm.decoder()?.normalise(&hidden)?)?;
            Ok(compare("", &logits, &want["out.logits"])?.max_abs_over_spread.into())
        };
        assert!(off(&plain)? > 0.05, "{name}: the adapter changes next to nothing");
        let far = off(&adapted)?;
        assert!(far < 1e-4, "{name}: {far:e} of the spread");
        let seen = look(&adapted, base, &picture(&golden["in.image"])?)?;
        let prompt = adapted.prompt(&ids, &[seen])?;
        assert_eq!(adapted.answer(&prompt, tokens.len(), &[])?, tokens, "{name}");
    }
    Ok(())
}

/// An adapter of the decoder alone can also stay beside it, whatever the checkpoint calls its parts; one of the tower
/// cannot, and the error names it.
#[test]
fn a_decoders_adapter_is_found_under_a_vlms_names() -> Result<()> {
    let vlm = Vlm::load(&case("llava"))?;
    let lora = Lora::load(&case("peft").join("llava_text"), vlm.decoder()?.config())?;
    assert_eq!(lora.len(), 2 * vlm.decoder()?.config().layers);
    let vlm = Vlm::load(&case("smolvlm"))?;
    let refused = Lora::load(&case("peft").join("smolvlm_all"), vlm.decoder()?.config());
    let why = refused.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(why.contains("vision_model.encoder.layers.0"), "{why}");
    let other = Vlm::load_adapted(&case("paligemma"), Some(&case("peft").join("smolvlm_all")));
    let why = other.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(why.contains("the checkpoint has no such module") || why.contains("expected"), "{why}");
    Ok(())
}

/// The names that a newer version of the reference library writes.
fn newer(name: &str, keep_vision_model: bool) -> String {
    let name = name.replace("language_model.lm_head.", "lm_head.");
    if name.starts_with("lm_head") || name.starts_with("model.text_model") {
        return name;
    }
    let name = name.replace("language_model.model.", "language_model.");
    let name =
        if keep_vision_model { name } else { name.replace("vision_tower.vision_model.", "vision_tower.") };
    match name.strip_prefix("model.") {
        Some(text)
            if name.starts_with("model.layers")
                || name.starts_with("model.embed")
                || name == "model.norm.weight" =>
        {
            format!("model.language_model.{text}")
        }
        Some(_) => name,
        None => format!("model.{name}"),
    }
}

#[test]
fn every_version_of_the_tensor_names_loads() -> Result<()> {
    for name in ["llava", "llava_next", "paligemma", "internvl", "llava_onevision", "qwen2_vl", "qwen2_5_vl"]
    {
        let dir = case(name);
        let config = VlmConfig::from_hf(&config_json(&dir)?)?;
        let stored = candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu)?;
        let golden = golden(name)?;
        let ids = integers(&golden["in.input_ids"])?;
        let image = picture(&golden["in.image"])?;
        for keep in [true, false] {
            let tensors: HashMap<String, Tensor> =
                stored.iter().map(|(name, x)| (newer(name, keep), x.clone())).collect();
            assert!(tensors.keys().any(|name| !stored.contains_key(name)), "{name}: names did not change");
            let weights = names::renamed(&Weights::from_tensors(tensors), &config.vision_kind)?;
            let vlm = Vlm::new(&weights, &config)?;
            weights.finish()?;
            let embeds = vlm.prompt(&ids, &[look(&vlm, name, &image)?])?.embeds;
            assert!(compare(name, &embeds, &golden["out.embeddings"])?.pass, "{name} {keep}");
        }
    }
    Ok(())
}

#[test]
fn several_pictures_go_to_their_own_places() -> Result<()> {
    let (vlm, golden) = (Vlm::load(&case("llava"))?, golden("llava")?);
    let image = picture(&golden["in.image"])?;
    let other = Picture::new(5, 7, (0..105).collect())?;
    let (a, b) = (look(&vlm, "llava", &image)?, look(&vlm, "llava", &other)?);
    let placeholder = vlm.config().image_token;
    let room = |seen: &Encoded| -> Result<Vec<u32>> { Ok(vec![placeholder; seen.tokens.dim(0)?]) };
    let ids = [&[1][..], &room(&a)?, &[7, 8], &room(&b)?, &[9]].concat();
    let both = vlm.prompt(&ids, &[a.clone(), b.clone()])?.embeds;
    let k = a.tokens.dim(0)?;
    let row = |from: usize| -> Result<Tensor> { Ok(both.squeeze(0)?.narrow(0, from, k)?) };
    assert!(compare("first", &row(1)?, &a.tokens)?.pass && compare("second", &row(3 + k)?, &b.tokens)?.pass);
    assert!(vlm.prompt(&ids, &[a]).is_err_and(|e| e.to_string().contains("room for 32, got 16")));

    // With places along axes, each picture starts where the text before it ends.
    let qwen = Vlm::load(&case("qwen2_vl"))?;
    let seen = look(&qwen, "qwen2_vl", &image)?;
    let n = seen.tokens.dim(0)?;
    let id = qwen.config().image_token;
    let ids = [&[1][..], &vec![id; n], &[2], &vec![id; n]].concat();
    let prompt = qwen.prompt(&ids, &[seen.clone(), seen.clone()])?;
    let rows = prompt.positions.squeeze(1)?.to_vec2::<u32>()?;
    let grid = seen.span.map(|span| span.grid).unwrap_or_default();
    let beyond = 1 + grid.into_iter().max().unwrap_or(0) as u32;
    assert_eq!((rows[0][1 + n], rows[1][2 + n]), (beyond, beyond + 1));
    Ok(())
}

#[test]
fn text_makes_room_for_what_was_seen() -> Result<()> {
    let (vlm, golden) = (Vlm::load(&case("smolvlm"))?, golden("smolvlm")?);
    let prepared = Preprocessor::load(&case("smolvlm"))?.apply(&picture(&golden["in.image"])?)?;
    let seen = vlm.encode(&Visual::picture(&prepared)?)?;
    let room = Room::of(&prepared, &seen)?;
    assert_eq!((room.rows, room.columns, room.parts, room.tokens), (2, 2, 5, 20));
    let text = Wording::of(&vlm.config().kind)?.expand("<image>", &[room])?;
    assert_eq!(text.matches("<image>").count(), 20);
    assert!(text.contains("<row_2_col_2><image><image><image><image>\n"));
    Ok(())
}

#[test]
fn tokens_can_be_merged_where_they_have_no_places() -> Result<()> {
    let (vlm, golden) = (Vlm::load(&case("llava"))?, golden("llava")?);
    let all = look(&vlm, "llava", &picture(&golden["in.image"])?)?;
    let n = all.tokens.dim(0)?;
    assert_eq!(all.merged(n)?.tokens.to_vec2::<f32>()?, all.tokens.to_vec2::<f32>()?);
    for keep in [0, n + 1] {
        let want = format!("expected 1 to {n} tokens to be kept, got {keep}");
        assert!(all.merged(keep).is_err_and(|e| e.to_string().contains(&want)));
    }
    let seen = all.merged(5)?;
    assert_eq!(seen.tokens.dim(0)?, 5);
    let ids = [vec![1], vec![vlm.config().image_token; 5], vec![2]].concat();
    assert_eq!(vlm.answer(&vlm.prompt(&ids, &[seen])?, 3, &[])?.len(), 3);
    let qwen = Vlm::load(&case("qwen2_vl"))?;
    let golden = self::golden("qwen2_vl")?;
    let seen = look(&qwen, "qwen2_vl", &picture(&golden["in.image"])?)?;
    assert!(seen.merged(5).is_err_and(|e| e.to_string().contains("places of their own")));
    Ok(())
}

#[test]
fn where_the_text_tells_places_merging_is_refused() -> Result<()> {
    for (name, want) in [
        ("qwen2_vl", "places of their own"),
        ("llava_next", "marks where a row"),
        ("smolvlm", "got one in 5 parts"),
        ("llava", ""),
    ] {
        let (vlm, golden) = (Vlm::load(&case(name))?, golden(name)?);
        let prepared = Preprocessor::load(&case(name))?.apply(&picture(&golden["in.image"])?)?;
        let visual = Visual::picture(&prepared)?;
        assert!(vlm.encode_merged(&visual, None).is_ok(), "{name}");
        match vlm.encode_merged(&visual, Some(3)) {
            Ok(seen) => assert!(want.is_empty() && seen.tokens.dim(0)? == 3, "{name}"),
            Err(e) => assert!(!want.is_empty() && e.to_string().contains(want), "{name}: {e}"),
        }
    }
    Ok(())
}

#[test]
fn frames_of_a_video_are_read() -> Result<()> {
    let frames: Vec<Picture> = (0..3)
        .map(|i| Picture::new(40, 30, (0..3600).map(|x| (x * 7 + i * 50) as u8).collect()))
        .collect::<Result<_>>()?;
    for name in ["llava_onevision", "qwen2_vl", "qwen2_5_vl"] {
        let vlm = Vlm::load(&case(name))?;
        let prepared = Preprocessor::load(&case(name))?.apply_frames(&frames)?;
        let seen = vlm.encode(&Visual::video(&prepared, 0.5)?)?;
        let token = vlm.config().video_token.ok_or_else(|| Error::invalid("no video token"))?;
        let ids = [vec![1], vec![token; seen.tokens.dim(0)?], vec![2]].concat();
        assert_eq!(vlm.answer(&vlm.prompt(&ids, &[seen])?, 2, &[])?.len(), 2, "{name}");
    }
    Ok(())
}

#[test]
fn configs_and_inputs_that_cannot_work_are_refused() -> Result<()> {
    let refused = |edit: &dyn Fn(&mut serde_json::Value), why: &str| -> Result<()> {
        let mut config = config_json(&case("llava"))?;
        edit(&mut config);
        let error = VlmConfig::from_hf(&config).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains(why), "expected '{why}' in '{error}'");
        Ok(())
    };
    refused(&|c| c["model_type"] = "teapot".into(), "teapot")?;
    refused(&|c| c["vision_feature_layer"] = serde_json::json!([-2, -5]), "one number")?;
    refused(&|c| c["vision_feature_layer"] = (-9).into(), "-9")?;
    refused(&|c| c["vision_feature_select_strategy"] = "odd".into(), "odd")?;
    refused(&|c| c["vision_config"]["model_type"] = "teapot".into(), "teapot")?;
    refused(&|c| c["text_config"]["model_type"] = "teapot".into(), "teapot")?;
    refused(&|c| c["image_token_index"] = serde_json::Value::Null, "image_token_index")?;
    let vlm = Vlm::load(&case("llava"))?;
    let patches = Preprocessor::load(&case("qwen2_vl"))?.apply(&Picture::new(40, 40, vec![0; 4800])?)?;
    assert!(matches!(patches, Prepared::Patches(_)));
    assert!(vlm.encode(&Visual::picture(&patches)?).is_err_and(|e| e.to_string().contains("got patches")));
    Ok(())
}
