//! LeRobot's pi0-FAST folders (Pertsch et al. 2025, <https://arxiv.org/abs/2501.09747>): PaliGemma reads pictures, the task and the
//! state as one text that sees itself wholly, and says the chunk's FAST tokens one after another: `Action: `, tokens from
//! the end of its vocabulary, `|`.

use crate::fast::courses;
use crate::lerobot::{Folder, is_bookkeeping};
use crate::moment::{Moment, Network};
use crate::pi0::{PAD, Sizes, renamed, state_text, tokenizer_file};
use crate::storage::Storage;
use crate::tokens::draw;
use candle_core::{Device, Tensor};
use rand::RngCore;
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;
use vela_fusion::{Projection, Projector, ProjectorConfig};
use vela_llm::{Cache, Decoder, Tokenizer};
use vela_nn::{Error, Mask, Result, Weights, random};
use vela_vision::{Planes, Vit};

/// The fields of a pi0-FAST `config.json` that change what is computed.
#[derive(Clone, Debug, Deserialize)]
struct File {
    paligemma_variant: String,
    chunk_size: usize,
    n_action_steps: usize,
    #[serde(default)]
    use_relative_actions: bool,
    image_resolution: [usize; 2],
    #[serde(default)]
    empty_cameras: usize,
    tokenizer_max_length: usize,
    #[serde(default)]
    temperature: f64,
    max_decoding_steps: usize,
    fast_skip_tokens: u32,
    #[serde(default = "yes")]
    validate_action_token_prefix: bool,
}

fn yes() -> bool {
    true
}

/// A pi0-FAST network.
#[derive(Clone, Debug)]
pub struct Pi0Fast {
    vision: Vit,
    projector: Projector,
    decoder: Decoder,
    tokenizer: Tokenizer,
    begin: u32,
    end: u32,
    announcement: Vec<u32>,
    announced: bool,
    codec: Codec,
    file: File,
    dims: usize,
}

/// Processor steps that are carried out here.
const STEPS: [&str; 5] = [
    "pi0_fast_prepare_state_tokenizer_processor_step",
    "tokenizer_processor",
    // Of training.
    "action_tokenizer_processor",
    // Without effect unless they are switched on, which is refused.
    "relative_actions_processor",
    "absolute_actions_processor",
];

impl Pi0Fast {
    /// Reads `config.json`, the processors, `model.safetensors`, PaliGemma's tokenizer (in the folder itself or in a subfolder with
    /// its name) and FAST's, `processor_config.json` and `tokenizer.json` in a subfolder with its name.
    ///
    /// # Errors
    /// A file is missing or not understood; a setting that is not supported; a tensor is missing, unused or mis-shaped.
    pub fn open(dir: &Path, storage: Storage) -> Result<(Folder, Weights, Self)> {
        let folder = Folder::read(dir, &STEPS)?;
        let file: File = folder.fields()?;
        folder.refuse(
            "pi0_fast",
            &[
                (file.use_relative_actions, "use_relative_actions"),
                (file.empty_cameras > 0, "empty_cameras"),
                (file.image_resolution[0] != file.image_resolution[1], "pictures that are not square"),
                (file.n_action_steps == 0 || file.n_action_steps > file.chunk_size, "these n_action_steps"),
                (!file.temperature.is_finite() || file.temperature < 0.0, "this temperature"),
                (folder.inputs.of_kind("VISUAL").next().is_none(), "no cameras"),
            ],
        )?;
        let sizes = Sizes::of(&folder, &file.paligemma_variant, file.image_resolution[0])?;
        let (vision, text) = (sizes.vision_config()?, sizes.vlm.decoder(sizes.vocab_size)?);
        let stored = storage.stored(dir)?;
        let weights = storage.of(renamed(&stored)?)?;
        let model = weights.pp("vlm_with_expert").pp("vlm").pp("model");
        let projector = ProjectorConfig {
            input: vision.width,
            output: text.width,
            shuffle: 1,
            projection: Projection::Linear { bias: true },
        };
        let place = tokenizer_file(&folder)?;
        let tokenizer = Tokenizer::load(&place)?;
        let token = |text: &str| {
            tokenizer
                .id(text)
                .ok_or_else(|| Error::invalid(format!("{}: there is no token '{text}'", place.display())))
        };
        let begin = token(&first_token(&place)?)?;
        let mut announcement = tokenizer.encode("Action: ")?;
        announcement.retain(|id| *id != begin);
        let made = Self {
            vision: Vit::new(&model.pp("vision_model"), &vision)?,
            projector: Projector::new(&model.pp("connector"), &projector)?,
            decoder: Decoder::new(Some(&model), &model.pp("text_model"), &text)?,
            begin,
            end: token("|")?,
            announced: file.validate_action_token_prefix,
            codec: Codec::load(&folder, text.vocab as u32, file.fast_skip_tokens)?,
            dims: folder.outputs.width("ACTION")?,
            tokenizer,
            announcement,
            file,
        };
        weights.finish_allowing(is_bookkeeping)?;
        Ok((folder, stored, made))
    }

    /// What PaliGemma is told: the task and the normalised state.
    pub fn prompt(task: &str, state: &[f32]) -> String {
        format!("{};\n", state_text(task, state))
    }

    /// What it says to pictures `[views, 3, size, size]` in [-1, 1] and words: at most `count` tokens, up to and with the end
    /// token, drawn at `temperature` (0: the likeliest).
    pub fn say(
        &self,
        pictures: &Tensor,
        words: &[u32],
        count: usize,
        temperature: f64,
        rng: &mut dyn RngCore,
    ) -> Result<Vec<u32>> {
        let (mut logits, mut cache) = self.hear(pictures, words)?;
        let mut said = Vec::new();
        while said.len() < count {
            let token = draw(&logits, temperature, rng) as u32;
            said.push(token);
            if token == self.end || said.len() == count {
                break;
            }
            logits = self.go_on(token, &mut cache)?;
        }
        Ok(said)
    }

    /// Logits `[said + 1, vocab]` of the first token, and of what follows each of `said`.
    pub fn follow(&self, pictures: &Tensor, words: &[u32], said: &[u32]) -> Result<Tensor> {
        let (mut logits, mut cache) = self.hear(pictures, words)?;
        for token in said {
            logits.extend(self.go_on(*token, &mut cache)?);
        }
        let count = said.len() + 1;
        Ok(Tensor::from_vec(logits, (count, self.decoder.config().vocab), &Device::Cpu)?)
    }

    /// Logits of the first token.
    fn hear(&self, pictures: &Tensor, words: &[u32]) -> Result<(Vec<f32>, Cache)> {
        let mut ids = words.to_vec();
        ids.truncate(self.file.tokenizer_max_length);
        // As the reference has it, behind the words as well as before them.
        ids.push(self.begin);
        let features = self.projector.forward(&self.vision.forward(pictures)?)?;
        let (views, tokens, width) = features.dims3()?;
        let seen = features.reshape((1, views * tokens, width))?;
        let words = self.decoder.embed(&Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?)?;
        let mut cache = Cache::new();
        Ok((self.read(&Tensor::cat(&[&seen, &words], 1)?, &mut cache)?, cache))
    }

    fn go_on(&self, token: u32, cache: &mut Cache) -> Result<Vec<f32>> {
        self.read(&self.decoder.embed(&Tensor::new(&[[token]], &Device::Cpu)?)?, cache)
    }

    /// Logits after `embeds [1, t, width]`, which see each other and all that went before.
    fn read(&self, embeds: &Tensor, cache: &mut Cache) -> Result<Vec<f32>> {
        let (start, length) = (cache.len() as u32, embeds.dim(1)?);
        let positions = Tensor::arange(start, start + length as u32, &Device::Cpu)?;
        let hidden = self.decoder.forward(embeds, &positions, &Mask::None, cache)?;
        let last = hidden.narrow(1, length - 1, 1)?.contiguous()?;
        Ok(self.decoder.logits(&self.decoder.normalise(&last)?)?.flatten_all()?.to_vec1()?)
    }

    /// The normalised actions of what was said, `chunk_size` rows. As in the reference, what is over is dropped and what is
    /// missing is a coefficient of zero.
    ///
    /// # Errors
    /// No announcement where one is demanded, or a token among the actions that is none of FAST's. (The reference gives zeros
    /// then, which are a motion to the middle of every joint's range.)
    pub fn actions(&self, said: &[u32]) -> Result<Vec<f32>> {
        let until = said.iter().position(|id| *id == self.end).unwrap_or(said.len());
        let mut rest = &said[..until];
        let first = &self.announcement[..self.announcement.len().min(2)];
        if self.announced && !rest.starts_with(first) {
            let told = self.tokenizer.decode_all(&rest[..rest.len().min(4)])?;
            return Err(Error::invalid(format!(
                "pi0_fast: expected an answer that begins 'Action:', got '{told}'"
            )));
        }
        let mut tokens = Vec::with_capacity(rest.len());
        while let Some(id) = rest.first() {
            match rest.strip_prefix(self.announcement.as_slice()).filter(|_| !self.announcement.is_empty()) {
                Some(after) => rest = after,
                None => {
                    tokens.push(self.codec.token(*id).ok_or_else(|| {
                        let told = self.tokenizer.token(*id).unwrap_or_default();
                        Error::invalid(format!("pi0_fast: '{told}' (token {id}) is no action token"))
                    })?);
                    rest = &rest[1..];
                }
            }
        }
        self.codec.decode(&tokens, self.file.chunk_size, self.dims)
    }
}

impl Network for Pi0Fast {
    fn horizon(&self) -> usize {
        self.file.chunk_size
    }

    fn execute(&self) -> usize {
        self.file.n_action_steps
    }

    fn resizes(&self) -> bool {
        true
    }

    fn act(&self, moments: &[Moment], seed: u64) -> Result<Tensor> {
        let moment =
            moments.last().ok_or_else(|| Error::invalid("pi0_fast: expected one moment, got none"))?;
        let size = self.file.image_resolution[0];
        let one = |picture: &Tensor| -> Result<Planes> {
            let mut planes = Planes::from_tensor(picture)?.resize_with_pad(size, size, PAD, 0.0);
            planes.to_signed_range();
            Ok(planes)
        };
        let pictures: Vec<Planes> = moment.pictures.iter().map(one).collect::<Result<_>>()?;
        let words = self.tokenizer.encode(&Self::prompt(&moment.instruction, &moment.state))?;
        let mut rng = random::stream(seed, "action tokens");
        let (count, temperature) = (self.file.max_decoding_steps, self.file.temperature);
        let pictures = Planes::stack(&pictures, &Device::Cpu)?;
        let said = self.say(&pictures, &words, count, temperature, &mut rng)?;
        Ok(Tensor::from_vec(self.actions(&said)?, (self.file.chunk_size, self.dims), &Device::Cpu)?)
    }
}

/// The token that every text begins with, as `tokenizer_config.json` beside a tokenizer says; else PaliGemma's.
fn first_token(tokenizer: &Path) -> Result<String> {
    let path = tokenizer.with_file_name("tokenizer_config.json");
    let Ok(text) = std::fs::read(&path) else { return Ok("<bos>".into()) };
    let config: Value = serde_json::from_slice(&text).map_err(|e| Error::parse(path.display(), e))?;
    let token = config.get("bos_token").map(|token| token.get("content").unwrap_or(token));
    Ok(token.and_then(Value::as_str).unwrap_or("<bos>").to_owned())
}

/// FAST's own tokenizer as its folder has it: texts whose characters are rounded coefficients.
#[derive(Clone, Debug)]
struct Codec {
    tokenizer: Tokenizer,
    scale: f64,
    lowest: i64,
    /// Action token 0; the others go down from it.
    highest: u32,
}

impl Codec {
    fn load(folder: &Folder, vocab: u32, skipped: u32) -> Result<Self> {
        #[derive(Deserialize)]
        struct Processor {
            scale: f64,
            min_token: i64,
        }
        let name = folder.step_setting("action_tokenizer_processor", "action_tokenizer_name");
        let name = name.as_ref().or(folder.config.get("action_tokenizer_name")).and_then(Value::as_str);
        let name = name.unwrap_or("lerobot/fast-action-tokenizer").to_owned();
        let dir = folder.dir.join(Path::new(&name).file_name().unwrap_or_default());
        let path = dir.join("processor_config.json");
        let text = std::fs::read(&path).map_err(|_| {
            Error::invalid(format!(
                "{}: expected the action tokenizer '{name}' as processor_config.json and tokenizer.json in a subfolder of that name",
                folder.dir.display()
            ))
        })?;
        let processor: Processor =
            serde_json::from_slice(&text).map_err(|e| Error::parse(path.display(), e))?;
        let tokenizer = Tokenizer::load(&dir.join("tokenizer.json"))?;
        let highest = vocab.checked_sub(1).and_then(|last| last.checked_sub(skipped));
        match highest {
            Some(highest)
                if processor.scale.is_finite() && processor.scale > 0.0 && tokenizer.has_pieces() =>
            {
                Ok(Self { tokenizer, scale: processor.scale, lowest: processor.min_token, highest })
            }
            _ => Err(Error::invalid(format!("{}: an action tokenizer that cannot work", dir.display()))),
        }
    }

    fn token(&self, id: u32) -> Option<u32> {
        let token = self.highest.checked_sub(id)?;
        ((token as usize) < self.tokenizer.vocab_size()).then_some(token)
    }

    fn decode(&self, tokens: &[u32], horizon: usize, dims: usize) -> Result<Vec<f32>> {
        let mut bytes = Vec::new();
        for token in tokens {
            bytes.extend(self.tokenizer.piece(*token)?);
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| Error::invalid("pi0_fast: the action tokens end in the middle of a coefficient"))?;
        let mut coefficients: Vec<f64> =
            text.chars().map(|c| (i64::from(u32::from(c)) + self.lowest) as f64 / self.scale).collect();
        coefficients.resize(horizon * dims, 0.0);
        Ok(courses(horizon, dims, |k, d| coefficients[k * dims + d]))
    }
}
