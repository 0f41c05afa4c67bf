//! The assembled VLM: a vision tower, a projector and a decoder.

use crate::positions::{Span, axes};
use crate::sight::Seeing;
use crate::{Counting, Packing, Projector, QFormer, Reading, Sight, TowerConfig, VlmConfig, pack, splice};
use candle_core::{DType, Device, Tensor};
use std::path::Path;
use std::sync::Arc;
use vela_llm::{
    Cache, Decoder, EncoderDecoder, Lora, generate::best, lora::merged_weights, trace::config_json,
};
use vela_nn::{Error, Mask, Result, Weights};
use vela_vision::tiling::Size;
use vela_vision::{Grid, NativeVit, Prepared, Tap, Vit, merge_alike};

/// A vision tower.
#[derive(Clone, Debug)]
pub enum Tower {
    /// For pictures of one size.
    Fixed(Box<Vit>),
    /// For pictures and videos at their own size.
    Native(Box<NativeVit>),
}

/// What writes.
#[derive(Clone, Debug)]
pub enum Text {
    /// A decoder that reads the prompt itself.
    Decoder(Box<Decoder>),
    /// An encoder that reads the prompt and a decoder that reads the encoder (T5).
    EncoderDecoder(Box<EncoderDecoder>),
}

/// A VLM.
#[derive(Clone, Debug)]
pub struct Vlm {
    config: VlmConfig,
    tower: Tower,
    qformer: Option<QFormer>,
    projector: Projector,
    newline: Option<Tensor>,
    text: Text,
}

/// A picture or video as a tower reads it.
#[derive(Clone, Debug)]
pub enum Visual {
    /// The parts of one picture, `[parts, 3, h, w]`.
    Parts {
        /// The parts.
        pixels: Tensor,
        /// Width and height of the picture that they come from.
        size: Size,
        /// Which patches are there, where a part is a canvas that is not full.
        filled: Option<Vec<bool>>,
    },
    /// Frames of a video, `[frames, 3, h, w]`.
    Frames(Tensor),
    /// Patches at the picture's or video's own size, `[n, values]`.
    Patches {
        /// The patches.
        patches: Tensor,
        /// Steps of time, rows and columns.
        grid: Grid,
        /// Of a video, the seconds from one step to the next.
        seconds: Option<f64>,
    },
}

impl Visual {
    /// A picture made ready.
    pub fn picture(prepared: &Prepared) -> Result<Self> {
        Ok(match prepared {
            Prepared::Tiles(tiles) => Self::Parts { pixels: tiles.tensor()?, size: tiles.size, filled: None },
            Prepared::Patches(patches) => {
                Self::Patches { patches: patches.tensor()?, grid: patches.grid, seconds: None }
            }
        })
    }

    /// The frames of a video made ready, `seconds` apart.
    pub fn video(prepared: &Prepared, seconds: f64) -> Result<Self> {
        Ok(match prepared {
            Prepared::Tiles(tiles) => Self::Frames(tiles.tensor()?),
            Prepared::Patches(patches) => {
                Self::Patches { patches: patches.tensor()?, grid: patches.grid, seconds: Some(seconds) }
            }
        })
    }

    fn is_video(&self) -> bool {
        matches!(self, Self::Frames(_) | Self::Patches { seconds: Some(_), .. })
    }
}

/// A picture or video as the decoder reads it.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// `[k, width]`: what stands in the place of its placeholders.
    pub tokens: Tensor,
    /// Whether it is a video, with placeholders of its own.
    pub video: bool,
    /// Where its tokens are, if they have places of their own.
    pub span: Option<Span>,
}

impl Encoded {
    /// Fewer tokens: those that are alike become one, until `keep` are left ([`merge_alike`]).
    ///
    /// # Errors
    /// Nothing to keep, or more than there is; tokens that have places of their own, of which no mean can be taken.
    pub fn merged(&self, keep: usize) -> Result<Self> {
        if self.span.is_some() {
            return Err(Error::invalid(
                "this model's image tokens have places of their own and cannot be merged",
            ));
        }
        Ok(Self { tokens: merge_alike(&self.tokens, keep)?.tokens, ..self.clone() })
    }
}

/// A prompt as the decoder reads it.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// `[1, t, width]`.
    pub embeds: Tensor,
    /// `[t]` or `[3, 1, t]` (u32).
    pub positions: Tensor,
    /// Whom its tokens see.
    pub sight: Sight,
    /// The position of the first token of the answer.
    pub next: u32,
}

impl Vlm {
    /// Reads a checkpoint under our names ([`crate::names`]).
    pub fn new(weights: &Weights, config: &VlmConfig) -> Result<Self> {
        Self::joined(weights, weights, config)
    }

    /// The same with a projector out of weights of its own: one that is to be trained between parts that are not.
    pub fn joined(weights: &Weights, projector: &Weights, config: &VlmConfig) -> Result<Self> {
        let vision = weights.pp("vision");
        let text = weights.pp("text");
        Ok(Self {
            tower: match &config.tower {
                TowerConfig::Fixed(tower) => Tower::Fixed(Box::new(Vit::new(&vision, tower)?)),
                TowerConfig::Native(tower) => Tower::Native(Box::new(NativeVit::new(&vision, tower)?)),
            },
            qformer: config.qformer.as_ref().map(|config| QFormer::new(weights, config)).transpose()?,
            projector: Projector::new(&projector.pp("projector"), &config.projector)?,
            newline: match config.packing {
                Packing::Each => None,
                Packing::Canvas { .. } => Some(weights.get(config.decoder.width, "image_newline")?),
            },
            text: match &config.encoder_decoder {
                Some(both) => Text::EncoderDecoder(Box::new(EncoderDecoder::new(&text, both)?)),
                None => Text::Decoder(Box::new(Decoder::new(Some(weights), &text, &config.decoder)?)),
            },
            config: config.clone(),
        })
    }

    /// Reads a Hugging Face folder. A LoRA adapter of the decoder in it (as PEFT saves it) is put beside the decoder's
    /// matrices. The model is only asked: its matrices have no gradient.
    ///
    /// # Errors
    /// What the config's readers refuse; every missing, unused or mis-shaped tensor, in one error.
    pub fn load(dir: &Path) -> Result<Self> {
        Self::load_adapted(dir, None)
    }

    /// The same with another LoRA adapter, of whatever parts of the model, merged into its weights.
    ///
    /// # Errors
    /// As [`Vlm::load`]; what [`vela_llm::lora::merged_weights`] refuses.
    pub fn load_adapted(dir: &Path, adapter: Option<&Path>) -> Result<Self> {
        let config = VlmConfig::from_hf(&config_json(dir)?)?;
        let mut weights = Weights::load_dir(dir)?;
        if let Some(adapter) = adapter {
            weights = merged_weights(adapter, &weights, crate::names::ours)?;
        }
        let weights = crate::names::renamed(&weights, &config.vision_kind)?.packed()?;
        let mut vlm = Self::new(&weights, &config)?;
        let tied = config.decoder.tied;
        // Copies of the one table, which some writers keep.
        let copies =
            ["lm_head.weight", "text.encoder.embed_tokens.weight", "text.decoder.embed_tokens.weight"];
        weights.finish_allowing(|name| tied && copies.contains(&name))?;
        if let (Text::Decoder(decoder), true) = (&mut vlm.text, dir.join("adapter_config.json").exists()) {
            let lora = Arc::new(Lora::load(dir, &config.decoder)?);
            **decoder = decoder.with_adapter(lora)?;
        }
        Ok(vlm)
    }

    /// What it is.
    pub fn config(&self) -> &VlmConfig {
        &self.config
    }

    /// The vision tower.
    pub fn tower(&self) -> &Tower {
        &self.tower
    }

    /// The projector.
    pub fn projector(&self) -> &Projector {
        &self.projector
    }

    /// What writes.
    pub fn text(&self) -> &Text {
        &self.text
    }

    /// The decoder that reads prompts.
    ///
    /// # Errors
    /// The model has an encoder for that.
    pub fn decoder(&self) -> Result<&Decoder> {
        match &self.text {
            Text::Decoder(decoder) => Ok(decoder),
            Text::EncoderDecoder(_) => Err(Error::invalid("this model's prompts are read by its encoder")),
        }
    }

    /// A picture or video to what the decoder reads.
    pub fn encode(&self, visual: &Visual) -> Result<Encoded> {
        self.encode_tapped(visual, &mut |_, _| {})
    }

    /// The same with so many tokens of the picture, those that are alike merged ([`Encoded::merged`]); `None`: all.
    ///
    /// # Errors
    /// Tokens whose places are told, by positions, tiles, ends of rows or frames; what [`Encoded::merged`] refuses.
    pub fn encode_merged(&self, visual: &Visual, keep: Option<usize>) -> Result<Encoded> {
        let Some(keep) = keep else { return self.encode(visual) };
        if self.config.packing != Packing::Each {
            return Err(Error::invalid(
                "this model marks where a row of image tokens ends: they cannot be merged",
            ));
        }
        let parts = match visual {
            Visual::Parts { pixels: parts, .. } | Visual::Frames(parts) => parts.dim(0)?,
            Visual::Patches { .. } => 1,
        };
        if parts != 1 {
            return Err(Error::invalid(format!(
                "token merging: expected a picture that the model reads whole, got one in {parts} parts"
            )));
        }
        self.encode(visual)?.merged(keep)
    }

    /// As [`Vlm::encode`]; taps the tower's stages as `vision.{stage}`, the Q-Former's as `qformer.{stage}`,
    /// `vision_hidden` (what the projector reads) and `image_features` (what it gives).
    pub fn encode_tapped(&self, visual: &Visual, tap: &mut Tap) -> Result<Encoded> {
        let video = visual.is_video();
        let (features, span) = match (&self.tower, visual) {
            (Tower::Fixed(_), Visual::Parts { pixels, filled, .. }) => {
                (self.features(pixels, filled.as_deref(), tap)?, None)
            }
            (Tower::Fixed(_), Visual::Frames(frames)) => (self.features(frames, None, tap)?, None),
            (Tower::Native(tower), Visual::Patches { patches, grid, seconds }) => {
                let hidden =
                    tower.forward(patches, &[*grid], &mut |name, x| tap(&format!("vision.{name}"), x))?;
                tap("vision_hidden", &hidden);
                let features = self.projector.forward_blocks(&hidden)?;
                tap("image_features", &features);
                let merge = self.config.projector.shuffle;
                // The reference's frames of a picture are no time apart.
                let step = match (self.config.counting, seconds) {
                    (Counting::Axes { per_second: Some(per_second) }, Some(seconds)) => seconds * per_second,
                    _ => 1.0,
                };
                let span = Span { grid: [grid[0], grid[1] / merge, grid[2] / merge], step };
                return Ok(Encoded { tokens: features, video, span: Some(span) });
            }
            (Tower::Fixed(_), Visual::Patches { .. }) => {
                return Err(Error::invalid("this tower reads pictures of one size, got patches"));
            }
            (Tower::Native(_), _) => {
                return Err(Error::invalid("this tower reads patches, got pictures of one size"));
            }
        };
        let tokens = match visual {
            Visual::Parts { size, .. } => {
                self.config.packing.pack(&features, self.newline.as_ref(), *size)?
            }
            // Frames of a model without packing are pictures one after the other.
            _ if self.config.packing == Packing::Each => features.flatten(0, 1)?,
            _ => pack::pack_frames(&features, self.newline.as_ref())?,
        };
        Ok(Encoded { tokens, video, span })
    }

    /// Pictures `[n, 3, h, w]`, each one part, to image tokens `[n, k, width]`.
    pub fn image_features(&self, pixels: &Tensor) -> Result<Tensor> {
        self.features(pixels, None, &mut |_, _| {})
    }

    fn features(&self, pixels: &Tensor, filled: Option<&[bool]>, tap: &mut Tap) -> Result<Tensor> {
        let mut hidden = self.hidden(pixels, filled, tap)?;
        if let Some(qformer) = &self.qformer {
            hidden = qformer.forward(&hidden, &mut |name, x| tap(&format!("qformer.{name}"), x))?;
        }
        tap("vision_hidden", &hidden);
        let features = self.projector.forward(&hidden)?;
        tap("image_features", &features);
        Ok(features)
    }

    /// Pictures `[n, 3, h, w]` to what is taken from the tower, `[n, patches, width]`: with a frozen tower, all that
    /// training needs of a picture.
    pub fn hidden_features(&self, pixels: &Tensor) -> Result<Tensor> {
        self.hidden(pixels, None, &mut |_, _| {})
    }

    fn hidden(&self, pixels: &Tensor, filled: Option<&[bool]>, tap: &mut Tap) -> Result<Tensor> {
        let Tower::Fixed(tower) = &self.tower else {
            return Err(Error::invalid("this tower reads patches, got pictures of one size"));
        };
        let mut hidden = match self.config.features.blocks {
            Some(blocks) => tower.after_blocks(pixels, blocks, filled)?,
            None => tower.forward_filled(pixels, filled, &mut |name, x| tap(&format!("vision.{name}"), x))?,
        };
        if self.config.features.drop_class {
            let prefix = tower.config().prefix();
            hidden = hidden.narrow(1, prefix, hidden.dim(1)? - prefix)?.contiguous()?;
        }
        Ok(hidden)
    }

    /// A prompt `ids` with pictures and videos, each in the place of the next placeholders of its kind.
    ///
    /// # Errors
    /// Placeholders and tokens that do not agree in number.
    pub fn prompt(&self, ids: &[u32], seen: &[Encoded]) -> Result<Prompt> {
        let embeds = self.embed(ids, seen)?;
        let t = ids.len();
        let (positions, next) = match self.config.counting {
            Counting::Line(first) => {
                (Tensor::arange(first, first + t as u32, &Device::Cpu)?, first + t as u32)
            }
            Counting::Axes { .. } => {
                let spans = |video: bool| -> Vec<Span> {
                    seen.iter().filter(|x| x.video == video).filter_map(|x| x.span).collect()
                };
                let images = spans(false);
                let (places, next) =
                    axes(ids, (self.config.image_token, &images), (self.config.video_token, &spans(true)))?;
                let flat = (0..3).flat_map(|axis| places.iter().map(move |place| place[axis])).collect();
                (Tensor::from_vec(flat, (3, 1, t), &Device::Cpu)?, next)
            }
        };
        Ok(Prompt { embeds, positions, sight: self.sight(&vec![true; t])?, next })
    }

    /// Whom the tokens of a text see of which `prompt` says what is read and what was written in answer.
    pub fn sight(&self, prompt: &[bool]) -> Result<Sight> {
        match self.config.reading {
            Reading::Causal => Ok(Sight::causal()),
            Reading::Prefix => {
                Sight::prefix(prompt, self.config.decoder.window.as_ref().map(|window| window.size))
            }
        }
    }

    /// Reads a prompt into a cache: hidden states before the final norm, `[1, t, width]`; taps the decoder's stages.
    ///
    /// # Errors
    /// The model has an encoder for that.
    pub fn read(&self, prompt: &Prompt, cache: &mut Cache, tap: &mut Tap) -> Result<Tensor> {
        let mut cache = Seeing { cache, near: prompt.sight.near.as_ref() };
        let (embeds, positions) = (&prompt.embeds, &prompt.positions);
        self.decoder()?.forward_tapped(embeds, positions, &prompt.sight.full, &mut cache, tap)
    }

    /// The embeddings of [`Vlm::prompt`], `[1, t, width]`. Differentiable.
    pub fn embed(&self, ids: &[u32], seen: &[Encoded]) -> Result<Tensor> {
        let (decoder, image) = (self.reader(), self.config.image_token);
        let vocab = decoder.config().vocab as u32;
        let placeholder = |id: u32| id == image || Some(id) == self.config.video_token;
        // A placeholder may lie outside the table; its own embedding is not used.
        let known = ids.iter().map(|id| if placeholder(*id) && *id >= vocab { 0 } else { *id }).collect();
        let text = decoder.embed(&Tensor::from_vec(known, (1, ids.len()), &Device::Cpu)?)?;
        // Where videos have no placeholder of their own they are pictures one after the other.
        let own = self.config.video_token;
        let of_kind = |video: bool| -> Vec<&Tensor> {
            seen.iter().filter(|x| own.is_none() || x.video == video).map(|x| &x.tokens).collect()
        };
        let text = splice(&text, ids, image, &of_kind(false))?;
        match own {
            Some(video) => splice(&text, ids, video, &of_kind(true)),
            None => Ok(text),
        }
    }

    /// What embeds the prompt.
    fn reader(&self) -> &Decoder {
        match &self.text {
            Text::Decoder(decoder) => decoder,
            Text::EncoderDecoder(both) => both.encoder(),
        }
    }

    /// The greedy answer: at most `count` tokens, ending with one of `stop`.
    ///
    /// # Errors
    /// Logits that are not finite.
    pub fn answer(&self, prompt: &Prompt, count: usize, stop: &[u32]) -> Result<Vec<u32>> {
        let decoder = match &self.text {
            Text::EncoderDecoder(both) => {
                let encoded = both.encode(&prompt.embeds, &Mask::None, &mut |_, _| {})?;
                return both.greedy(&encoded, count, stop);
            }
            Text::Decoder(decoder) => decoder,
        };
        let mut cache = Cache::new();
        let mut hidden = self.read(prompt, &mut cache, &mut |_, _| {})?;
        let mut made: Vec<u32> = Vec::new();
        if count == 0 {
            return Ok(made);
        }
        loop {
            let last = hidden.narrow(1, hidden.dim(1)? - 1, 1)?.contiguous()?;
            let logits = decoder.logits(&decoder.normalise(&last)?)?;
            let next = best(&logits.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?)?;
            made.push(next);
            if made.len() >= count || stop.contains(&next) {
                return Ok(made);
            }
            let embeds = decoder.embed(&Tensor::new(&[[next]], &Device::Cpu)?)?;
            // Text counts alike on all axes.
            let position = Tensor::new(&[prompt.next + made.len() as u32 - 1], &Device::Cpu)?;
            hidden = decoder.forward(&embeds, &position, &Mask::Causal, &mut cache)?;
        }
    }
}
