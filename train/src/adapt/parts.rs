//! The folder of the parts: the frozen VLM around a projector of its own, and how a question is written.

use crate::error::{Error, Result};
use candle_core::Tensor;
use std::path::Path;
use vela_fusion::{Room, Visual, Vlm, VlmConfig, Wording, names};
use vela_llm::trace::config_json;
use vela_llm::{ChatTemplate, Message, RenderOptions, Tokenizer, model::folder_stop};
use vela_nn::Weights;
use vela_vision::{Limits, Picture, Preprocessor};

/// A VLM's folder without its projector.
pub struct Parts {
    /// The model; its projector's weights are those that were given.
    pub vlm: Vlm,
    preprocessor: Preprocessor,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    wording: Wording,
    stop: Vec<u32>,
}

/// A question as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The whole prompt, with placeholders where the picture goes.
    pub prompt: Vec<u32>,
    /// The answer with what ends it.
    pub answer: Vec<u32>,
}

impl Parts {
    /// Reads a folder, with the projector out of `projector`.
    ///
    /// # Errors
    /// What the readers of the parts refuse; tensors that are missing, or left over and not a projector's.
    pub fn load(dir: &Path, projector: &Weights) -> Result<Self> {
        let config = config_json(dir)?;
        let vlm_config = VlmConfig::from_hf(&config)?;
        let files: Vec<_> = ["vision.safetensors", "text.safetensors"].map(|file| dir.join(file)).into();
        let weights = names::renamed(&Weights::load(&files)?, &vlm_config.vision_kind)?;
        let vlm = Vlm::joined(&weights, projector, &vlm_config)?;
        weights.finish()?;
        let template = ChatTemplate::from_dir(dir)?.ok_or_else(|| Error::Parse {
            what: dir.display().to_string(),
            why: "expected a chat template, found none".into(),
        })?;
        let tokenizer = Tokenizer::load(&dir.join("tokenizer.json"))?;
        Ok(Self {
            preprocessor: Preprocessor::load(dir)?,
            wording: Wording::of(&vlm_config.kind)?,
            stop: folder_stop(dir, &config, Some(&template), &tokenizer)?,
            tokenizer,
            template,
            vlm,
        })
    }

    /// What the projector reads of a picture, `[patches, width]`.
    ///
    /// # Errors
    /// A file that is no picture; one that the preprocessor makes several parts of.
    pub fn look(&self, path: &Path) -> Result<Tensor> {
        let prepared = self.preprocessor.apply(&Picture::open(path, &Limits::default())?)?;
        let Visual::Parts { pixels, filled: None, .. } = Visual::picture(&prepared)? else {
            return Err(Error::Parse {
                what: "the tower".into(),
                why: "expected one that reads pictures of one size".into(),
            });
        };
        Ok(self.vlm.hidden_features(&pixels)?.squeeze(0)?)
    }

    /// A question about one picture of `tokens` tokens, and its answer, as the folder's chat template writes them.
    ///
    /// # Errors
    /// A template that writes an answer otherwise than behind the prompt, or without a token that ends it.
    pub fn ask(&self, question: &str, answer: &str, tokens: usize) -> Result<Asked> {
        let asked = Message::new("user", format!("{}{question}", self.wording.picture));
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        let text = self.template.render(&[&asked], &options)?;
        let whole =
            self.template.render(&[&asked, &Message::new("assistant", answer)], &RenderOptions::default())?;
        let refuse = |why: &str| Error::Parse { what: "the chat template".into(), why: why.into() };
        let rest =
            whole.strip_prefix(&text).ok_or_else(|| refuse("expected the answer behind the prompt"))?;
        let mut answer = self.tokenizer.encode_rendered(rest)?;
        let end = answer.iter().position(|id| self.stop.contains(id));
        answer.truncate(end.ok_or_else(|| refuse("expected a token that ends the answer"))? + 1);
        let room = Room { rows: 0, columns: 0, parts: 1, tokens, video: false };
        let prompt = self.tokenizer.encode_rendered(&self.wording.expand(&text, &[room])?)?;
        Ok(Asked { prompt, answer })
    }

    /// The tokens of a word inside a text.
    pub fn word(&self, word: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode_rendered(&format!(" {word}"))?)
    }
}
