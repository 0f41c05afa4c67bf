//! A VLM that answers one question about one picture at a time, greedily: what the evaluations need.

use crate::builtin;
use anyhow::{Context, Result};
use std::path::Path;
use vela_fusion::{Encoded, Room, Visual, Vlm, Wording};
use vela_llm::trace::config_json;
use vela_llm::{ChatTemplate, Message, RenderOptions, Tokenizer, model::folder_stop};
use vela_vision::{Picture, Preprocessor};

/// A VLM with what stands around it.
pub struct Answerer {
    /// The model.
    vlm: Vlm,
    /// Pictures to what it reads.
    preprocessor: Preprocessor,
    /// Text to tokens and back.
    tokenizer: Tokenizer,
    /// How a conversation is written.
    template: ChatTemplate,
    /// Tokens that end an answer.
    stop: Vec<u32>,
    /// Tokens of each picture, those that are alike merged; all if nothing is said.
    keep: Option<usize>,
}

/// A picture that was looked at.
pub struct Look {
    encoded: Encoded,
    room: Room,
}

/// No answer is longer, tokens.
const LONGEST: usize = 64;

impl Answerer {
    /// The one inside the binary, or a folder's, with so many tokens of each picture (`None`: all).
    pub fn choose(model: &str, keep: Option<usize>) -> Result<Self> {
        if model != "builtin" {
            return Ok(Self { keep, ..Self::load(Path::new(model))? });
        }
        let (vlm, preprocessor, text) = builtin::vlm().context("the VLM inside the binary")?;
        let template = text.template.context("the VLM inside the binary has no chat template")?;
        Ok(Self { vlm, preprocessor, tokenizer: text.tokenizer, template, stop: text.stop, keep })
    }

    /// Reads a Hugging Face folder.
    fn load(dir: &Path) -> Result<Self> {
        let config = config_json(dir)?;
        let tokenizer = Tokenizer::load(&dir.join("tokenizer.json"))?;
        let template = ChatTemplate::from_dir(dir)?
            .with_context(|| format!("{}: expected a chat template, found none", dir.display()))?;
        let stop = folder_stop(dir, &config, Some(&template), &tokenizer)?;
        let (vlm, preprocessor) = (Vlm::load(dir)?, Preprocessor::load(dir)?);
        Ok(Self { vlm, preprocessor, tokenizer, template, stop, keep: None })
    }

    /// Looks at a picture, `[height, width, 3]` in bytes.
    pub fn look(&self, rgb: &[u8], width: usize, height: usize) -> Result<Look> {
        let picture = Picture { width, height, rgb: rgb.to_vec() };
        let prepared = self.preprocessor.apply(&picture)?;
        let encoded = self.vlm.encode_merged(&Visual::picture(&prepared)?, self.keep)?;
        Ok(Look { room: Room::of(&prepared, &encoded)?, encoded })
    }

    /// The greedy answer to a question about a picture, or about none.
    pub fn answer(&self, look: Option<&Look>, question: &str) -> Result<String> {
        let wording = Wording::of(&self.vlm.config().kind)?;
        let picture = look.map_or("", |_| wording.picture);
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        let text = self.template.render(&[Message::new("user", format!("{picture}{question}"))], &options)?;
        let rooms: Vec<Room> = look.iter().map(|look| look.room).collect();
        let ids = self.tokenizer.encode_rendered(&wording.expand(&text, &rooms)?)?;
        let seen: Vec<Encoded> = look.iter().map(|look| look.encoded.clone()).collect();
        let prompt = self.vlm.prompt(&ids, &seen)?;
        let mut answer = self.vlm.answer(&prompt, LONGEST, &self.stop)?;
        answer.retain(|id| !self.stop.contains(id));
        Ok(self.tokenizer.decode(&answer)?)
    }
}
