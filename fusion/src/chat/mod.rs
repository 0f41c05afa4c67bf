//! A model to talk with, about pictures if it sees: where it is loaded from, and a conversation as the engine reads it.
//!
//! [`ChatModel::load`] takes a text model or a VLM; [`ChatModel::look`] encodes a picture, once as long as it is
//! remembered; [`ChatModel::prompt`] writes a conversation; [`ChatModel::attention`] says what an answer looked at.
//! Pictures are known by a hash of their bytes, so that the engine's prefix cache finds their keys and values again.

mod attention;
mod pictures;
mod places;
mod words;

pub use attention::PictureAttention;
pub use pictures::{PictureStats, Seen};
pub use places::{Area, Places};
pub use words::{Part, Turn};

use crate::positions::{Span, axes};
use crate::{Counting, Reading, Style, Vlm, Wording};
use pictures::Pictures;
use serde_json::Value as Json;
use std::path::Path;
use std::sync::Arc;
use vela_llm::engine::{PromptItem, Request};
use vela_llm::trace::config_json;
use vela_llm::{ChatTemplate, Decoder, Lora, RenderOptions, TextModel, Tokenizer, model};
use vela_nn::{Error, Result};
use vela_vision::{Limits, Preprocessor};
use words::Form;

/// Positions if the file does not say how many.
const CONTEXT: usize = 2048;

/// A model to talk with.
#[derive(Debug)]
pub struct ChatModel {
    text: TextModel,
    form: Form,
    tools: bool,
    eyes: Option<Eyes>,
}

/// What a model sees with.
#[derive(Debug)]
struct Eyes {
    vlm: Vlm,
    preprocessor: Preprocessor,
    wording: Wording,
    pictures: Pictures,
}

/// A conversation as the engine reads it.
#[derive(Clone, Debug)]
pub struct ChatPrompt {
    /// Tokens, and the rows of pictures.
    pub items: Vec<PromptItem>,
    /// The first so many positions see each other wholly.
    pub whole: usize,
    /// Where each position is along time, rows and columns, if the model counts along them and there is a picture.
    pub axes: Option<Vec<[u32; 3]>>,
    /// The pictures that the rows are of, in order.
    pub pictures: Vec<Arc<Seen>>,
}

impl ChatPrompt {
    /// Of tokens alone.
    pub fn of_tokens(ids: &[u32]) -> Self {
        let items = ids.iter().copied().map(PromptItem::Token).collect();
        Self { items, whole: 0, axes: None, pictures: Vec::new() }
    }

    /// The greedy request for at most `max_tokens` more tokens, ended by any of `stop`.
    pub fn request(self, max_tokens: usize, stop: &[u32]) -> Request {
        let (prompt, whole, axes, stop) = (self.items, self.whole, self.axes, stop.to_vec());
        Request { prompt, whole, axes, stop, ..Request::new(&[], max_tokens) }
    }
}

impl ChatModel {
    /// Reads a VLM's or a text model's folder, or a GGUF file. Encoded pictures are remembered up to `picture_bytes`.
    ///
    /// # Errors
    /// What the readers of the parts refuse; a VLM whose decoder reads an encoder.
    pub fn load(path: &Path, picture_bytes: usize) -> Result<Self> {
        Self::load_adapted(path, None, picture_bytes)
    }

    /// The same with a LoRA adapter (a PEFT folder): of a VLM, it may be of any part and is merged into the weights; of a
    /// text model, which may be quantised, it is put beside them.
    ///
    /// # Errors
    /// As [`ChatModel::load`]; an adapter that is not of this model.
    pub fn load_adapted(path: &Path, adapter: Option<&Path>, picture_bytes: usize) -> Result<Self> {
        if path.is_dir() && path.join("config.json").is_file() {
            let config = config_json(path)?;
            if config["model_type"].as_str().is_some_and(|kind| Wording::of(kind).is_ok()) {
                return Self::load_vlm(path, adapter, &config, picture_bytes);
            }
        }
        let mut text = model::load(path)?;
        if let Some(adapter) = adapter {
            let lora = Lora::load(adapter, text.decoder.config())?;
            text.decoder = Arc::new(text.decoder.with_adapter(Arc::new(lora))?);
        }
        Ok(Self::of_text(text))
    }

    fn load_vlm(dir: &Path, adapter: Option<&Path>, config: &Json, picture_bytes: usize) -> Result<Self> {
        let tokenizer = Tokenizer::load(&dir.join("tokenizer.json"))?;
        let template = ChatTemplate::from_dir(dir)?;
        let vlm = Vlm::load_adapted(dir, adapter)?;
        let preprocessor = Preprocessor::load(dir)?;
        let of_text = &config["text_config"];
        let mut ends = config.clone();
        if ends["eos_token_id"].is_null() {
            ends["eos_token_id"] = of_text["eos_token_id"].clone();
        }
        let stop = model::folder_stop(dir, &ends, template.as_ref(), &tokenizer)?;
        let lengths = [&of_text["max_position_embeddings"], &config["max_position_embeddings"]];
        let context = lengths.iter().find_map(|length| length.as_u64()).map_or(CONTEXT, |n| n as usize);
        let decoder = Arc::new(vlm.decoder()?.clone());
        Self::of_vlm(
            vlm,
            preprocessor,
            TextModel { decoder, reader: None, tokenizer, template, stop, context },
            picture_bytes,
        )
    }

    /// A text model.
    pub fn of_text(text: TextModel) -> Self {
        let (form, tools) = Form::of(text.template.as_ref(), false);
        Self { text, form, tools, eyes: None }
    }

    /// A VLM, its preprocessor, and the text side of it (whose decoder must be the VLM's).
    ///
    /// # Errors
    /// A tokenizer that does not know the model's placeholder.
    pub fn of_vlm(
        vlm: Vlm,
        preprocessor: Preprocessor,
        text: TextModel,
        picture_bytes: usize,
    ) -> Result<Self> {
        let wording = Wording::of(&vlm.config().kind)?;
        let (word, wanted) = (wording.picture, vlm.config().image_token);
        let leads = matches!(wording.style, Style::Lead { .. });
        if !leads && text.tokenizer.id(word) != Some(wanted) {
            let got = text.tokenizer.id(word);
            return Err(Error::invalid(format!(
                "tokenizer: expected {word} to be the token {wanted} of config.json, got {got:?}"
            )));
        }
        let (form, tools) = Form::of(text.template.as_ref(), true);
        let eyes = Some(Eyes { vlm, preprocessor, wording, pictures: Pictures::new(picture_bytes) });
        Ok(Self { text, form, tools, eyes })
    }

    /// The same with so many tokens of each picture, those that are alike merged ([`Vlm::encode_merged`]); `None`: all.
    ///
    /// # Errors
    /// A model without eyes.
    pub fn keeping(mut self, keep: Option<usize>) -> Result<Self> {
        match &mut self.eyes {
            Some(eyes) => eyes.pictures.keep = keep,
            None if keep.is_none() => {}
            None => {
                return Err(Error::invalid("this model reads text only and has no image tokens to merge"));
            }
        }
        Ok(self)
    }

    /// What reads and writes.
    pub fn decoder(&self) -> &Arc<Decoder> {
        &self.text.decoder
    }

    /// Text to tokens and back.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.text.tokenizer
    }

    /// How a conversation is written, if the model was made for them.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.text.template.as_ref()
    }

    /// Tokens that end an answer.
    pub fn stop(&self) -> &[u32] {
        &self.text.stop
    }

    /// Positions that it was made for.
    pub fn context(&self) -> usize {
        self.text.context
    }

    /// Whether it reads pictures.
    pub fn sees(&self) -> bool {
        self.eyes.is_some()
    }

    /// Whether its chat template has a place for tools.
    pub fn takes_tools(&self) -> bool {
        self.tools
    }

    /// What happened to pictures so far.
    pub fn picture_stats(&self) -> PictureStats {
        self.eyes.as_ref().map(|eyes| eyes.pictures.stats()).unwrap_or_default()
    }

    /// A JPEG, PNG or WebP file as the decoder reads it; encoded only if it is not remembered. One picture at a time is
    /// unpacked and encoded: who comes while another does waits on this thread.
    ///
    /// # Errors
    /// A model without eyes; a file that [`vela_vision::Picture::decode`] or the preprocessor refuses.
    pub fn look(&self, file: &[u8], limits: &Limits) -> Result<Arc<Seen>> {
        let Some(eyes) = &self.eyes else {
            return Err(Error::invalid("this model reads text only, got a picture"));
        };
        eyes.pictures.look(&eyes.vlm, &eyes.preprocessor, file, limits)
    }

    /// A conversation up to where the assistant's next turn begins.
    ///
    /// # Errors
    /// A model without a chat template (those that answer one question about pictures need none); what the template
    /// refuses; a picture's placeholder in a text.
    pub fn prompt(&self, turns: &[Turn], options: &RenderOptions) -> Result<ChatPrompt> {
        let seen: Vec<Arc<Seen>> = turns.iter().flat_map(Turn::pictures).cloned().collect();
        let Some(eyes) = &self.eyes else {
            if !seen.is_empty() {
                return Err(Error::invalid("this model reads text only, got a picture"));
            }
            let text = self.render(turns, "", options)?;
            return Ok(ChatPrompt::of_tokens(&self.text.tokenizer.encode_rendered(&text)?));
        };
        let words = [Some(eyes.wording.picture), eyes.wording.video];
        for word in words.into_iter().flatten() {
            if turns.iter().flat_map(Turn::texts).any(|text| text.contains(word)) {
                return Err(Error::invalid(format!(
                    "a text may not hold {word}: that is where the model's pictures go"
                )));
            }
        }
        let ids = match (eyes.wording.style, &self.text.template) {
            (Style::Lead { before, .. }, None) => self.lead(eyes, turns, &seen, before)?,
            _ => {
                let text = self.render(turns, eyes.wording.picture, options)?;
                let rooms: Vec<_> = seen.iter().map(|seen| seen.room).collect();
                self.text.tokenizer.encode_rendered(&eyes.wording.expand(&text, &rooms)?)?
            }
        };
        eyes.chat_prompt(&ids, &seen)
    }

    /// The pictures first, then one question: families without chat template.
    fn lead(&self, eyes: &Eyes, turns: &[Turn], seen: &[Arc<Seen>], before: &str) -> Result<Vec<u32>> {
        let [turn] = turns else {
            let got = turns.len();
            return Err(Error::invalid(format!(
                "this model answers one question and has no chat template: expected one message, got {got}"
            )));
        };
        let text = eyes.wording.expand(&turn.texts().collect::<String>(), &[])?;
        let tokens = seen.iter().map(|seen| seen.room.tokens).sum();
        let mut ids = vec![eyes.vlm.config().image_token; tokens];
        // Where the family does not spell its first token, the tokenizer adds it to the text.
        ids.extend(match before.is_empty() {
            true => self.text.tokenizer.encode(&text)?,
            false => self.text.tokenizer.encode_rendered(&text)?,
        });
        Ok(ids)
    }

    fn render(&self, turns: &[Turn], picture: &str, options: &RenderOptions) -> Result<String> {
        let Some(template) = &self.text.template else {
            return Err(Error::invalid(
                "this model has no chat template: it continues texts, it was not made for conversations",
            ));
        };
        let messages: Vec<Json> = turns.iter().map(|turn| self.form.message(turn, picture)).collect();
        template.render(&messages, options)
    }
}

impl Eyes {
    fn chat_prompt(&self, ids: &[u32], seen: &[Arc<Seen>]) -> Result<ChatPrompt> {
        let config = self.vlm.config();
        let items = items(ids, config.image_token, seen)?;
        let axes = match config.counting {
            Counting::Axes { .. } if !seen.is_empty() => {
                let spans: Vec<Span> = seen.iter().filter_map(|seen| seen.encoded.span).collect();
                Some(axes(ids, (config.image_token, &spans), (config.video_token, &[]))?.0)
            }
            _ => None,
        };
        let whole = match config.reading {
            Reading::Causal => 0,
            Reading::Prefix => ids.len(),
        };
        let window = config.decoder.window.as_ref().map_or(usize::MAX, |window| window.size);
        if whole > window {
            return Err(Error::invalid(format!(
                "prompt: expected at most {window} tokens (a layer's window), got {whole}"
            )));
        }
        Ok(ChatPrompt { items, whole, axes, pictures: seen.to_vec() })
    }
}

/// `ids` with each stretch of placeholders replaced by the next rows of the pictures, in order.
fn items(ids: &[u32], placeholder: u32, seen: &[Arc<Seen>]) -> Result<Vec<PromptItem>> {
    let (rooms, rows) = (
        ids.iter().filter(|id| **id == placeholder).count(),
        seen.iter().map(|seen| seen.room.tokens).sum::<usize>(),
    );
    if rooms != rows {
        return Err(Error::invalid(format!("image tokens: the text has room for {rooms}, got {rows}")));
    }
    let (mut items, mut pictures) = (Vec::with_capacity(ids.len()), seen.iter());
    let (mut at, mut current, mut used) = (0, None, 0);
    while at < ids.len() {
        if ids[at] != placeholder {
            items.push(PromptItem::Token(ids[at]));
            at += 1;
            continue;
        }
        let picture: &Arc<Seen> = match current.filter(|seen: &&Arc<Seen>| used < seen.room.tokens) {
            Some(seen) => seen,
            None => {
                used = 0;
                pictures.next().ok_or_else(|| Error::invalid("image tokens: a picture without tokens"))?
            }
        };
        current = Some(picture);
        let run = ids[at..].iter().take_while(|id| **id == placeholder).count();
        let count = run.min(picture.room.tokens - used);
        let rows = picture.encoded.tokens.narrow(0, used, count)?;
        items.push(PromptItem::Embeds { hash: picture.hash_from(used), rows });
        (at, used) = (at + count, used + count);
    }
    Ok(items)
}

#[cfg(test)]
mod tests;
