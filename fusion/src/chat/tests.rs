//! From a file and a conversation to the reference's answer, through the engine; a picture is encoded once.

use super::*;
use serde_json::{Map, json};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use vela_llm::engine::{Completion, Engine, EngineConfig};
use vela_nn::{Device, Tensor};

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

/// A tokenizer of printable letters, with some ids called otherwise.
fn letters(count: u32, named: &[(u32, &str)]) -> Result<Tokenizer> {
    let name = |id: u32| match named.iter().find(|(of, _)| *of == id) {
        Some((_, name)) => (*name).to_owned(),
        None => char::from_u32(if id < 94 { 33 + id } else { 0x120 + id - 94 })
            .map(String::from)
            .unwrap_or_default(),
    };
    let vocab: Map<String, Json> = (0..count).map(|id| (name(id), json!(id))).collect();
    let special = |(id, name): &(u32, &str)| {
        json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let file = json!({"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": named.iter().map(special).collect::<Vec<_>>(), "normalizer": null, "pre_tokenizer": bytes,
        "post_processor": null, "decoder": bytes, "model": {"type": "BPE", "vocab": vocab, "merges": []}});
    Tokenizer::from_bytes(file.to_string().as_bytes())
}

/// A golden VLM with a tokenizer of letters and a template.
fn model(name: &str, template: Option<&str>, bytes: usize) -> Result<ChatModel> {
    let vlm = Vlm::load(&case(name))?;
    let (wording, image) = (Wording::of(&vlm.config().kind)?, vlm.config().image_token);
    let vocab = vlm.config().decoder.vocab as u32;
    let tokenizer = letters(vocab.max(image + 1), &[(1, "<bos>"), (2, "</s>"), (image, wording.picture)])?;
    let template = template.map(|text| ChatTemplate::new(text, BTreeMap::new())).transpose()?;
    let decoder = Arc::new(vlm.decoder()?.clone());
    let text = TextModel { decoder, reader: None, tokenizer, template, stop: vec![2], context: 512 };
    ChatModel::of_vlm(vlm, Preprocessor::load(&case(name))?, text, bytes)
}

fn png(x: &Tensor) -> Result<Vec<u8>> {
    let (height, width, _) = x.dims3()?;
    let mut file = std::io::Cursor::new(Vec::new());
    let pixels: Vec<u8> = x.flatten_all()?.to_vec1()?;
    image::write_buffer_with_format(
        &mut file,
        &pixels,
        width as u32,
        height as u32,
        image::ExtendedColorType::Rgb8,
        image::ImageFormat::Png,
    )
    .map_err(|e| Error::parse("png", e))?;
    Ok(file.into_inner())
}

fn golden(name: &str) -> Result<HashMap<String, Tensor>> {
    Ok(candle_core::safetensors::load(case(name).join("golden.safetensors"), &Device::Cpu)?)
}

fn integers(x: &Tensor) -> Result<Vec<u32>> {
    Ok(x.flatten_all()?.to_dtype(candle_core::DType::U32)?.to_vec1()?)
}

fn engine(model: &ChatModel) -> Result<Engine> {
    let config = EngineConfig { cache_bytes: 1 << 22, context: 512, ..EngineConfig::default() };
    Engine::start(model.decoder().clone(), config, Arc::new(|| 0))
}

fn answer(engine: &Engine, prompt: ChatPrompt, count: usize) -> Result<Completion> {
    let answer = engine.submit(prompt.request(count, &[])).map_err(|e| Error::invalid(e.to_string()))?;
    Ok(answer.wait())
}

#[test]
fn the_engine_gives_the_reference_s_answer_and_sees_a_picture_once() -> Result<()> {
    for name in ["smolvlm", "llava", "llava_next", "internvl", "qwen2_vl", "paligemma", "blip2_opt"] {
        let (model, golden) = (model(name, None, 1 << 20)?, golden(name)?);
        let file = png(&golden["in.image"])?;
        let eyes = model.eyes.as_ref().ok_or_else(|| Error::invalid("no eyes"))?;
        let engine = engine(&model)?;
        let want = integers(&golden["out.generated"])?;
        let mut cached = Vec::new();
        for _ in 0..2 {
            let seen = model.look(&file, &Limits::default())?;
            let prompt = eyes.chat_prompt(&integers(&golden["in.input_ids"])?, &[seen])?;
            let got = answer(&engine, prompt, want.len())?;
            assert_eq!(got.tokens(), want, "{name}");
            cached.push((got.usage.cached_tokens, got.usage.prompt_tokens));
        }
        let stats = model.picture_stats();
        assert_eq!((stats.encoded, stats.hits, stats.kept), (1, 1, 1), "{name}");
        assert!(cached[0].0 == 0 && cached[1].0 + 1 == cached[1].1, "{name}: {cached:?}");
    }
    Ok(())
}

const TEMPLATE: &str = "<bos>{% for m in messages %}{{ m.role }}:{% for c in m.content %}\
    {% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}</s>{% endfor %}assistant:";

#[test]
fn a_second_question_reads_on_after_the_first() -> Result<()> {
    let model = model("llava", Some(TEMPLATE), 1 << 20)?;
    let golden = golden("llava")?;
    let other = Tensor::zeros((7, 5, 3), candle_core::DType::U8, &Device::Cpu)?;
    let (a, b) = (
        model.look(&png(&golden["in.image"])?, &Limits::default())?,
        model.look(&png(&other)?, &Limits::default())?,
    );
    let user = |parts: Vec<Part>| Turn { role: "user".into(), parts, extra: Map::new() };
    let first = user(vec![Part::Picture(a.clone()), Part::Picture(b.clone()), Part::Text("what".into())]);
    let options = RenderOptions::default();
    let prompt = model.prompt(std::slice::from_ref(&first), &options)?;
    let k = a.room.tokens;
    let hashes: Vec<u128> = prompt
        .items
        .iter()
        .filter_map(|item| match item {
            PromptItem::Embeds { hash, rows } => (rows.dims() == [k, 48]).then_some(*hash),
            PromptItem::Token(_) => None,
        })
        .collect();
    assert_eq!(hashes, [a.hash, b.hash]);
    let engine = engine(&model)?;
    let one = answer(&engine, prompt, 4)?;
    let said = Turn::text("assistant", "so");
    let next = [first, said, Turn::text("user", "and?")];
    let two = answer(&engine, model.prompt(&next, &options)?, 4)?;
    assert!(two.usage.cached_tokens >= one.usage.prompt_tokens - "assistant:".len(), "{:?}", two.usage);
    // In the other order they are another conversation.
    let swapped = user(vec![Part::Picture(b), Part::Picture(a), Part::Text("what".into())]);
    let three = answer(&engine, model.prompt(&[swapped], &options)?, 4)?;
    assert!(three.usage.cached_tokens < 10, "{:?}", three.usage);
    Ok(())
}

#[test]
fn templates_are_asked_what_they_take() -> Result<()> {
    let text = "{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}";
    let model = model("llava", Some(text), 1 << 20)?;
    assert_eq!((model.form, model.takes_tools()), (Form::Text, true));
    assert_eq!(self::model("llava", Some(TEMPLATE), 0)?.form, Form::List);
    let seen = model.look(&png(&golden("llava")?["in.image"])?, &Limits::default())?;
    let turn = Turn {
        role: "user".into(),
        parts: vec![Part::Picture(seen), Part::Text("hi".into())],
        extra: Map::new(),
    };
    assert_eq!(model.form.message(&turn, "<image>"), json!({"role": "user", "content": "<image>\nhi"}));
    let refused = model.prompt(&[Turn::text("user", "an <image> of mine")], &RenderOptions::default());
    assert!(refused.is_err_and(|e| e.to_string().contains("may not hold <image>")));
    Ok(())
}

#[test]
fn what_is_remembered_has_an_end() -> Result<()> {
    let model = model("llava", None, 16 * 48 * 4 + 10)?;
    for _ in 0..2 {
        for shade in [0u8, 9] {
            let picture = Tensor::full(shade, (7, 5, 3), &Device::Cpu)?;
            model.look(&png(&picture)?, &Limits::default())?;
        }
    }
    let stats = model.picture_stats();
    assert_eq!((stats.encoded, stats.hits, stats.kept, stats.kept_bytes), (4, 0, 1, 16 * 48 * 4));
    assert!(model.look(b"no picture", &Limits::default()).is_err());
    Ok(())
}

/// Keeps what the decoder asks, and answers it with Candle's own operations.
#[derive(Default)]
struct Asked(Vec<Vec<f32>>, usize);

impl vela_llm::KeyValues for Asked {
    fn attend(
        &mut self,
        _: usize,
        q: &Tensor,
        keys: Tensor,
        values: Tensor,
        rule: &vela_llm::Attend,
    ) -> Result<Tensor> {
        let (s, of) = (keys.dim(1)?, rule.heads);
        let unit = Tensor::eye(s, candle_core::DType::F32, &Device::Cpu)?.expand((1, of.key, s, s))?;
        let split = vela_nn::attention::split_heads;
        let seen = vela_nn::oracle::attention(
            &split(q, of.query)?,
            &split(&keys, of.key)?,
            &unit.contiguous()?,
            rule.mask,
            rule.scale,
            rule.soft_cap,
        )?;
        // Of the positions watched, the mean over heads.
        let watched = seen.squeeze(0)?.narrow(1, self.1, s - self.1)?.mean(0)?.mean(0)?;
        self.0.push(watched.to_vec1()?);
        rule.apply(q, &keys, &values)
    }

    fn store(&mut self, _: usize, _: Tensor, _: Tensor) -> Result<()> {
        Ok(())
    }

    fn len(&self) -> usize {
        0
    }
}

#[test]
fn what_an_answer_looked_at_is_the_mean_of_its_attention() -> Result<()> {
    // One grid, tiles, a canvas, places along axes, a prefix that sees itself.
    for name in ["llava", "smolvlm", "internvl", "llava_next", "qwen2_vl", "paligemma"] {
        let (model, golden) = (model(name, None, 1 << 20)?, golden(name)?);
        let eyes = model.eyes.as_ref().ok_or_else(|| Error::invalid("no eyes"))?;
        let ids = integers(&golden["in.input_ids"])?;
        let seen = model.look(&png(&golden["in.image"])?, &Limits::default())?;
        let prompt = eyes.chat_prompt(&ids, std::slice::from_ref(&seen))?;
        let answer = integers(&golden["out.generated"])?;
        let got = model.attention(&prompt, &answer, None)?;
        let [map] = got.as_slice() else { return Err(Error::invalid("expected one map")) };
        assert_eq!(map.weights.len(), map.grid[0] * map.grid[1], "{name}");
        // The same by way of the VLM's own prompt: prompt and answer but for its last token, as one text.
        let chosen = &answer[..answer.len() - 1];
        let whole = [&ids, chosen].concat();
        let read = eyes.vlm.prompt(&whole, std::slice::from_ref(&seen.encoded))?;
        let prompted: Vec<bool> = (0..whole.len()).map(|at| at < ids.len()).collect();
        let mut asked = Asked(Vec::new(), ids.len() - 1);
        let (embeds, positions) = (&read.embeds, &read.positions);
        let sight = eyes.vlm.sight(&prompted)?;
        model.decoder().forward(embeds, positions, &sight.full, &mut asked)?;
        let image = eyes.vlm.config().image_token;
        let mean = |at: usize| asked.0.iter().map(|layer| layer[at]).sum::<f32>() / asked.0.len() as f32;
        let of_image: Vec<f32> = (0..ids.len()).filter(|at| ids[*at] == image).map(mean).collect();
        let share: f32 = of_image.iter().sum();
        assert!((map.share - share).abs() < 1e-5, "{name}: {} {share}", map.share);
        let places = seen.places.as_ref().ok_or_else(|| Error::invalid(name))?;
        for (a, b) in map.weights.iter().zip(places.spread(&of_image)) {
            assert!((a - b).abs() < 1e-5, "{name}: {a} {b}");
        }
        // Only the ends of a canvas's rows lie nowhere.
        let kept: f32 = map.weights.iter().sum();
        let whole = name != "llava_next" && (kept - share).abs() < 1e-5;
        assert!(whole || (name == "llava_next" && kept < share), "{name}: {kept} of {share}");
    }
    // Queries of a Q-Former lie nowhere.
    let (model, golden) = (model("blip2_opt", None, 1 << 20)?, golden("blip2_opt")?);
    let eyes = model.eyes.as_ref().ok_or_else(|| Error::invalid("no eyes"))?;
    let seen = model.look(&png(&golden["in.image"])?, &Limits::default())?;
    let prompt = eyes.chat_prompt(&integers(&golden["in.input_ids"])?, &[seen])?;
    assert!(model.attention(&prompt, &[5], None).is_err_and(|e| e.to_string().contains("no places")));
    Ok(())
}
