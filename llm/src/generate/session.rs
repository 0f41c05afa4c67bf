//! One sequence and the keys and values of what has been read of it.

use crate::paged::PagedBatch;
use crate::{Cache, Decoder, EncoderDecoder, KeyValues};
use candle_core::{Device, Tensor};
use std::sync::Arc;
use vela_nn::paged::{BLOCK, PagedKind, PagedStore, Span};
use vela_nn::{Error, Mask, Result};

/// Positions read at once: bounds the memory of a long prompt.
const CHUNK: usize = 256;

/// A decoder's memory of one sequence: it can go on, and it can go back.
pub struct Session {
    decoder: Arc<Decoder>,
    kept: Kept,
    ids: Vec<u32>,
    context: usize,
}

/// Where keys and values lie.
enum Kept {
    /// In pages, all of them this sequence's.
    Pages { store: PagedStore, blocks: Vec<u32> },
    /// As whole tensors, beside the memory of what an encoder read: `about`.
    Whole { cache: Cache, reader: Arc<EncoderDecoder>, about: Vec<u32> },
}

impl Session {
    /// An empty session for at most `context` positions. The system gives memory as it is used.
    ///
    /// # Errors
    /// A context of none, or more memory than can be had; a decoder that reads what an encoder has read.
    pub fn new(decoder: Arc<Decoder>, context: usize) -> Result<Self> {
        if context == 0 {
            return Err(Error::invalid("context: expected at least one position, got 0"));
        }
        let config = decoder.config();
        config.reads_alone()?;
        let blocks = context.div_ceil(BLOCK);
        let store = PagedStore::new(config.cache_shape(PagedKind::F32), blocks)?;
        let kept = Kept::Pages { store, blocks: (0..blocks as u32).collect() };
        Ok(Self { kept, ids: Vec::new(), context, decoder })
    }

    /// An empty session of an encoder-decoder, for answers of at most `context` tokens to prompts of at most as many.
    ///
    /// # Errors
    /// A context of none.
    pub fn of_reader(reader: Arc<EncoderDecoder>, context: usize) -> Result<Self> {
        if context == 0 {
            return Err(Error::invalid("context: expected at least one position, got 0"));
        }
        let decoder = Arc::new(reader.decoder().clone());
        let kept = Kept::Whole { cache: Cache::new(), reader, about: Vec::new() };
        Ok(Self { kept, ids: Vec::new(), context, decoder })
    }

    /// What the answer to `prompt` goes on from: the prompt; of an encoder-decoder the token that every answer starts
    /// with, once the encoder has read the prompt.
    ///
    /// # Errors
    /// No tokens; an id out of range.
    pub fn begin(&mut self, prompt: &[u32]) -> Result<Vec<u32>> {
        let Kept::Whole { cache, reader, about } = &mut self.kept else { return Ok(prompt.to_vec()) };
        if about != prompt {
            (*cache, *about) = (reader.read(prompt)?, prompt.to_vec());
            self.ids.clear();
        }
        Ok(vec![reader.start()])
    }

    /// The tokens that have been read.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Positions that there is room for, read ones included.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Token ids that the model knows.
    pub fn vocab(&self) -> usize {
        self.decoder.config().vocab
    }

    /// Forgets all but the first `length` tokens; fewer are left as they are.
    pub fn rewind(&mut self, length: usize) {
        self.ids.truncate(length);
    }

    /// Goes back to where this session and `ids` part, at most to `ids.len() - 1`, so that something is left to read.
    /// Gives the number of tokens that stay.
    pub fn rejoin(&mut self, ids: &[u32]) -> usize {
        let shared = self.ids.iter().zip(ids).take_while(|(a, b)| a == b).count();
        self.rewind(shared.min(ids.len().saturating_sub(1)));
        self.ids.len()
    }

    /// Reads on; gives the logits `[vocab]` after each of the last `rows` tokens.
    ///
    /// # Errors
    /// No tokens, or fewer than `rows`; an id out of range; more than the context holds.
    pub fn read(&mut self, ids: &[u32], rows: usize) -> Result<Vec<Vec<f32>>> {
        let (vocab, start) = (self.vocab(), self.ids.len());
        if ids.is_empty() || rows > ids.len() {
            return Err(Error::invalid(format!(
                "expected at least {} tokens to read, got {}",
                rows.max(1),
                ids.len()
            )));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::invalid(format!("token id {id} is out of range; the model has {vocab}")));
        }
        if start + ids.len() > self.context {
            let (all, room) = (start + ids.len(), self.context);
            return Err(Error::invalid(format!("{all} tokens are over the context of {room}")));
        }
        let silent = ids.len() - rows;
        let mut logits = Vec::with_capacity(rows);
        if let Kept::Whole { cache, .. } = &mut self.kept {
            cache.truncate(start)?;
        }
        let mut read = 0;
        for chunk in ids.chunks(CHUNK) {
            let spoken = (read + chunk.len()).saturating_sub(silent.max(read));
            logits.extend(self.step(chunk, start + read, spoken)?);
            read += chunk.len();
        }
        self.ids.extend_from_slice(ids);
        Ok(logits)
    }

    /// One forward pass; logits of the last `spoken` positions.
    fn step(&mut self, chunk: &[u32], start: usize, spoken: usize) -> Result<Vec<Vec<f32>>> {
        let rows = chunk.len();
        let positions = Tensor::arange(start as u32, (start + rows) as u32, &Device::Cpu)?;
        let embeds = self.decoder.embed(&Tensor::new(chunk, &Device::Cpu)?.unsqueeze(0)?)?;
        let forward = |kept: &mut dyn KeyValues| match spoken {
            0 => self.decoder.fill(&embeds, &positions, &Mask::Causal, kept),
            _ => self.decoder.forward(&embeds, &positions, &Mask::Causal, kept),
        };
        let hidden = match &mut self.kept {
            Kept::Whole { cache, .. } => forward(cache)?,
            Kept::Pages { store, blocks } => {
                let blocks = blocks.get(..(start + rows).div_ceil(BLOCK)).unwrap_or(blocks);
                let spans = [Span { blocks, start, rows, whole: 0 }];
                forward(&mut PagedBatch::new(store, &spans))?
            }
        };
        if spoken == 0 {
            return Ok(Vec::new());
        }
        let last = hidden.narrow(1, rows - spoken, spoken)?.contiguous()?;
        Ok(self.decoder.logits(&self.decoder.normalise(&last)?)?.squeeze(0)?.to_vec2::<f32>()?)
    }
}
