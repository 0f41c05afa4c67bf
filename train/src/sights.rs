//! What a frozen tower saw, kept on disk with words and joints: projectors under a frozen decoder learn without running
//! the tower again.

use crate::batch::deltas;
use crate::error::{Error, Result};
use crate::kept;
use crate::lesson::Lesson;
use crate::prefixes::observation;
use candle_core::{DType, Device, Tensor};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::path::Path;
use vela_embodiment::Policy;
use vela_fusion::Projector;
use vela_policy::vla::Told;
use vela_policy::{Normaliser, Vla, VlaPolicy};

/// Moments as projectors see them.
#[derive(Clone, Debug)]
pub struct Sights {
    /// The tower's patch tokens, 16-bit floats, `[moments, cameras, patches, width]`.
    pub patch_tokens: Tensor,
    /// Words of the instruction, `[moments, words]` (u32), zeros behind them.
    pub words: Tensor,
    /// How many of the words are real, `[moments]` (u32).
    pub counts: Tensor,
    /// Joints as the network sees them, `[moments, state_dims]`.
    pub state: Tensor,
    /// The expert's targets relative to the measured joints, `[moments, horizon, joints]`, rad or m.
    pub actions: Tensor,
    /// Hash of the trunk's weights.
    pub trunk: String,
}

const PARTS: [&str; 5] = ["patch_tokens", "words", "counts", "state", "actions"];

impl Sights {
    /// Of every moment of a lesson.
    ///
    /// # Errors
    /// A lesson without moments, or one that does not fit the trunk.
    pub fn of_lesson(trunk: &mut VlaPolicy, lesson: &Lesson) -> Result<Self> {
        let joints = trunk.spec().embodiment.joints.len();
        let (mut seen, mut words, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        let (mut state, mut actions) = (Vec::new(), Vec::new());
        for example in &lesson.examples {
            let (tokens, inputs) = trunk.sight(&observation(trunk, example, &lesson.instruction)?)?;
            seen.push(tokens.unsqueeze(0)?.to_dtype(DType::F16)?);
            counts.push(inputs.words.dim(1)? as u32);
            words.push(inputs.words);
            state.push(inputs.state);
            actions.extend(deltas(example).into_iter().flatten());
        }
        let moments = seen.len();
        let shape = (moments, actions.len() / (moments * joints).max(1), joints);
        Ok(Self {
            patch_tokens: Tensor::cat(&seen, 0)?,
            words: Tensor::cat(&words, 0)?,
            counts: Tensor::from_vec(counts, moments, &Device::Cpu)?,
            state: Tensor::cat(&state, 0)?,
            actions: Tensor::from_vec(actions, shape, &Device::Cpu)?,
            trunk: trunk.spec().checkpoint.clone(),
        })
    }

    /// All of them, in order.
    ///
    /// # Errors
    /// None at all, or of different trunks or sizes.
    pub fn join(all: &[Self]) -> Result<Self> {
        let refuse = |why: &str| Error::Parse { what: "sights".into(), why: why.to_owned() };
        let trunk = all.first().ok_or_else(|| refuse("expected lessons, got none"))?.trunk.clone();
        if all.iter().any(|one| one.trunk != trunk) {
            return Err(refuse("they are of different trunks"));
        }
        let put = |part: fn(&Self) -> &Tensor| Tensor::cat(&all.iter().map(part).collect::<Vec<_>>(), 0);
        let lengths: Vec<usize> =
            all.iter().map(|one| one.words.dim(1)).collect::<candle_core::Result<_>>()?;
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let padded: Vec<Tensor> = all
            .iter()
            .zip(&lengths)
            .map(|(one, length)| one.words.pad_with_zeros(1, 0, longest - length))
            .collect::<candle_core::Result<_>>()?;
        Ok(Self {
            patch_tokens: put(|s| &s.patch_tokens)?,
            words: Tensor::cat(&padded, 0)?,
            counts: put(|s| &s.counts)?,
            state: put(|s| &s.state)?,
            actions: put(|s| &s.actions)?,
            trunk,
        })
    }

    /// Writes one safetensors file, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        let parts = [&self.patch_tokens, &self.words, &self.counts, &self.state, &self.actions];
        let parts: Vec<(&str, &Tensor)> = PARTS.into_iter().zip(parts).collect();
        kept::save(path, &self.trunk, &parts)
    }

    /// Reads what [`Self::save`] wrote.
    ///
    /// # Errors
    /// A torn file; sights of another trunk than that of this hash.
    pub fn load(path: &Path, trunk: &str) -> Result<Self> {
        let [patch_tokens, words, counts, state, actions] = kept::load(path, trunk, PARTS)?;
        if patch_tokens.rank() != 4 || patch_tokens.dtype() != DType::F16 {
            let why = "expected 16-bit patch tokens [moments, cameras, patches, width]".into();
            return Err(Error::Parse { what: path.display().to_string(), why });
        }
        Ok(Self { patch_tokens, words, counts, state, actions, trunk: trunk.to_owned() })
    }

    /// Moments.
    pub fn len(&self) -> usize {
        self.patch_tokens.dims().first().copied().unwrap_or(0)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// With the first `horizon` actions of every moment, scaled as those of [`crate::Prefixes::lessons`].
    ///
    /// # Errors
    /// A longer horizon than there is.
    pub fn lessons(&self, horizon: usize) -> Result<SightLessons<'_>> {
        let (actions, scaling) = kept::scaled(&self.actions, horizon)?;
        Ok(SightLessons { sights: self, actions, scaling })
    }
}

/// What a projector and a head of one horizon learn from.
pub struct SightLessons<'a> {
    sights: &'a Sights,
    actions: Tensor,
    /// Scaling of the actions.
    pub scaling: Normaliser,
}

impl SightLessons<'_> {
    /// Conditioning `[rows * draws, tokens, width]` that `vla` makes through `projector`, and scaled actions
    /// `[rows * draws, horizon, joints]`, of moments drawn evenly; each stands `draws` times side by side, so that a head
    /// that draws noise draws as often for one reading. Differentiable in the projector.
    ///
    /// # Errors
    /// A network or a projector that the sights do not fit.
    pub fn draw(
        &self,
        vla: &Vla,
        projector: &Projector,
        [rows, draws]: [usize; 2],
        rng: &mut ChaCha8Rng,
    ) -> Result<(Tensor, Tensor)> {
        let moments = self.sights.len();
        let drawn: Vec<u32> = (0..rows).map(|_| rng.random_range(0..moments) as u32).collect();
        let drawn = Tensor::from_vec(drawn, rows, &Device::Cpu)?;
        let tokens = self.sights.patch_tokens.index_select(&drawn, 0)?.to_dtype(DType::F32)?;
        let counts = self.sights.counts.index_select(&drawn, 0)?.to_vec1::<u32>()?;
        let longest = counts.iter().copied().max().unwrap_or(0);
        let word_valid: Vec<bool> =
            counts.iter().flat_map(|count| (0..longest).map(move |k| k < *count)).collect();
        let words =
            self.sights.words.index_select(&drawn, 0)?.narrow(1, 0, longest as usize)?.contiguous()?;
        let state = self.sights.state.index_select(&drawn, 0)?;
        let told = Told { words: &words, word_valid: &word_valid, state: &state };
        let prefix = vla.prefix_through(projector, &tokens.flatten(0, 1)?, &told)?;
        let actions = self.actions.index_select(&drawn, 0)?;
        Ok((repeated(&vla.conditioning(&prefix)?, draws)?, repeated(&actions, draws)?))
    }
}

/// `x [b, ..]` with each row `times` times, side by side.
fn repeated(x: &Tensor, times: usize) -> Result<Tensor> {
    let (b, n, width) = x.dims3()?;
    let many = x.unsqueeze(1)?.broadcast_as((b, times, n, width))?.contiguous()?;
    Ok(many.reshape((b * times, n, width))?)
}
