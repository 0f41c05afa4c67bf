//! A text model from where users have it, a Hugging Face folder or a GGUF file: decoder, tokenizer and chat template.

use crate::generate::Session;
use crate::trace::config_json;
use crate::{ChatTemplate, Decoder, EncoderDecoder, Message, RenderOptions, Tokenizer};
use serde_json::Value as Json;
use std::path::Path;
use std::sync::Arc;
use vela_nn::quant::Precision;
use vela_nn::{Error, Gguf, Result, gguf};

/// Positions if the file does not say how many.
const CONTEXT: usize = 2048;

/// What ends an answer in one family or another, whatever the file's own list says.
const ENDS: [&str; 9] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "</s>",
];

/// A model that reads and writes text.
#[derive(Clone, Debug)]
pub struct TextModel {
    /// The model; of an encoder-decoder the stack that writes.
    pub decoder: Arc<Decoder>,
    /// The whole of an encoder-decoder (T5), whose encoder reads the prompts.
    pub reader: Option<Arc<EncoderDecoder>>,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// How a conversation is written, if the model was made for them.
    pub template: Option<ChatTemplate>,
    /// Tokens that end an answer.
    pub stop: Vec<u32>,
    /// Positions that it was made for.
    pub context: usize,
}

/// Reads a model: a `.gguf` file, or a folder with `config.json`, `*.safetensors` and `tokenizer.json`.
///
/// # Errors
/// What the readers of the parts refuse.
pub fn load(path: &Path) -> Result<TextModel> {
    let model = match crate::gguf::find(path) {
        Some(file) => from_gguf(&file),
        None if path.is_dir() => from_dir(path),
        None => Err(Error::parse(path.display(), "expected a GGUF file or a model folder")),
    };
    vela_nn::give_back();
    model
}

fn from_dir(dir: &Path) -> Result<TextModel> {
    let config = config_json(dir)?;
    let tokenizer = Tokenizer::load(&dir.join("tokenizer.json"))?;
    let template = ChatTemplate::from_dir(dir)?;
    let stop = folder_stop(dir, &config, template.as_ref(), &tokenizer)?;
    if config["model_type"] == "t5" {
        let reader = EncoderDecoder::load(dir)?;
        let decoder = Arc::new(reader.decoder().clone());
        // Its positions are distances: no number of them is the last.
        let (reader, context) = (Some(Arc::new(reader)), CONTEXT);
        return Ok(TextModel { decoder, reader, tokenizer, template, stop, context });
    }
    let decoder = Arc::new(crate::load::load(dir)?);
    let context = context_of(&config);
    Ok(TextModel { decoder, reader: None, tokenizer, template, stop, context })
}

/// Positions that the model of a `config.json` was made for.
pub(crate) fn context_of(config: &Json) -> usize {
    let lengths = ["max_position_embeddings", "n_positions", "n_ctx"];
    lengths.iter().find_map(|name| config[*name].as_u64()).map_or(CONTEXT, |n| n as usize)
}

fn from_gguf(path: &Path) -> Result<TextModel> {
    let file = Gguf::open(path)?;
    let metadata = file.metadata();
    // A large vocabulary takes as long as the weights.
    let (tokenizer, stack) = std::thread::scope(|scope| {
        let tokenizer = scope.spawn(|| Tokenizer::from_gguf(metadata));
        let stack = stack(&file);
        (tokenizer.join(), stack)
    });
    let tokenizer = tokenizer.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let template = ChatTemplate::from_gguf(metadata)?;
    let stop = gguf_stop(&file, &tokenizer);
    let (decoder, reader) = stack?;
    let context = match &reader {
        // Its positions are distances: no number of them is the last.
        Some(_) => CONTEXT,
        None => {
            let key = format!("{}.context_length", file.text("general.architecture")?);
            metadata.get(&key).and_then(gguf::Value::as_count).map_or(CONTEXT, |n| n as usize)
        }
    };
    Ok(TextModel { decoder, reader, tokenizer, template, stop, context })
}

/// The stack of a file that writes, and the whole of an encoder-decoder.
fn stack(file: &Gguf) -> Result<(Arc<Decoder>, Option<Arc<EncoderDecoder>>)> {
    if crate::gguf::is_encoder_decoder(file) {
        let reader = crate::gguf::reader(file, Precision::Fast)?;
        return Ok((Arc::new(reader.decoder().clone()), Some(Arc::new(reader))));
    }
    Ok((Arc::new(crate::gguf::decoder(file, Precision::Fast)?), None))
}

/// The tokens that end an answer of a folder's model.
///
/// # Errors
/// A `generation_config.json` that cannot be read.
pub fn folder_stop(
    dir: &Path,
    config: &Json,
    template: Option<&ChatTemplate>,
    tokenizer: &Tokenizer,
) -> Result<Vec<u32>> {
    let mut stop = Vec::new();
    let generation = dir.join("generation_config.json");
    if generation.is_file() {
        let text = std::fs::read_to_string(&generation)
            .map_err(|source| Error::Io { path: generation.clone(), source })?;
        let value: Json = serde_json::from_str(&text).map_err(|e| Error::parse(generation.display(), e))?;
        stop.extend(ids(&value["eos_token_id"]));
    }
    stop.extend(ids(&config["eos_token_id"]));
    let named = |name: &str| template.and_then(|t| t.special(name)).and_then(|t| tokenizer.id(t));
    stop.extend(named("eos_token"));
    Ok(ends(stop, tokenizer))
}

/// The tokens that end an answer of a GGUF file's model.
pub fn gguf_stop(file: &Gguf, tokenizer: &Tokenizer) -> Vec<u32> {
    let id = |key: &&str| {
        let value = file.metadata().get(&format!("tokenizer.ggml.{key}"))?.as_count()?;
        u32::try_from(value).ok()
    };
    ends(["eos_token_id", "eot_token_id", "eom_token_id"].iter().filter_map(id).collect(), tokenizer)
}

/// A token id, or a list of them.
fn ids(value: &Json) -> Vec<u32> {
    let one = |value: &Json| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value.as_array() {
        Some(list) => list.iter().filter_map(one).collect(),
        None => one(value).into_iter().collect(),
    }
}

/// The file's own, and the known ones that stand for no text here.
fn ends(mut stop: Vec<u32>, tokenizer: &Tokenizer) -> Vec<u32> {
    let known = ENDS.iter().filter_map(|name| tokenizer.id(name));
    stop.extend(known.filter(|id| tokenizer.is_special(*id)));
    stop.sort_unstable();
    stop.dedup();
    stop
}

impl TextModel {
    /// An empty session for at most `context` positions.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn session(&self, context: usize) -> Result<Session> {
        match &self.reader {
            None => Session::new(Arc::clone(&self.decoder), context),
            Some(reader) => Session::of_reader(Arc::clone(reader), context),
        }
    }

    /// The tokens of a conversation, up to where the assistant's next turn begins.
    ///
    /// # Errors
    /// A model without a chat template; what the template refuses.
    pub fn prompt(&self, messages: &[Message], now: Option<i64>) -> Result<Vec<u32>> {
        let Some(template) = &self.template else {
            return Err(Error::invalid(
                "this model has no chat template: it continues texts, it was not made for conversations",
            ));
        };
        let options =
            RenderOptions { add_generation_prompt: true, tools: None, now, extra: serde_json::Map::new() };
        self.tokenizer.encode_rendered(&template.render(messages, &options)?)
    }
}
