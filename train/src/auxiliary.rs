//! Auxiliary losses: what the picture shows, which part of it the sentence means, and where that is.
//!
//! Their layers exist in training only. They give the vision encoder and the decoder something to learn at every
//! patch and token, where imitation alone gives a few numbers per picture; the policy's inputs stay pictures,
//! joints and words.

use crate::error::Result;
use vela_nn::{Linear, Tensor, Weights, cross_entropy};

/// Classes of a patch; labels are below this.
pub const CLASSES: usize = 32;
/// Metres that count as one in the position loss.
const METRES: f64 = 0.1;

/// The heads.
pub struct Auxiliary {
    patch: Linear,
    offset: Linear,
    grounding: Linear,
    place: Linear,
    position: Linear,
}

/// What the heads are asked, for `b` moments.
pub struct Labels {
    /// Class of each patch, `[b * cameras * patches]`.
    pub patches: Tensor,
    /// From each patch's centre to the middle of what it shows, in patches, `[b * cameras, patches, 2]`.
    pub offsets: Tensor,
    /// 1 for patches that show something with a middle, `[b * cameras, patches, 2]`.
    pub offset_mask: Tensor,
    /// Whether each image token shows what is named first and where it goes, `[b, tokens, 2]`.
    pub grounding: Tensor,
    /// Positions of both, m, `[b, 6]`.
    pub positions: Tensor,
    /// Which of the six numbers count, `[b, 6]`.
    pub position_mask: Tensor,
}

impl Auxiliary {
    /// Heads on patch tokens of `vision_width` and hidden states of `width`.
    pub fn new(weights: &Weights, vision_width: usize, width: usize) -> Result<Self> {
        Ok(Self {
            patch: Linear::new(&weights.pp("patch"), vision_width, CLASSES, true)?,
            offset: Linear::new(&weights.pp("offset"), vision_width, 2, true)?,
            grounding: Linear::new(&weights.pp("grounding"), width, 2, true)?,
            place: Linear::new(&weights.pp("place"), width, 6, true)?,
            position: Linear::new(&weights.pp("position"), width, 6, true)?,
        })
    }

    /// Cross-entropy of what each patch shows, and squared error of where its middle is;
    /// `patch_tokens [b * cameras, patches, vision_width]`.
    pub fn patch_loss(&self, patch_tokens: &Tensor, labels: &Labels) -> Result<Tensor> {
        let logits = self.patch.forward(patch_tokens)?.flatten(0, 1)?;
        let named = cross_entropy(&logits, &labels.patches, None)?;
        let error = (self.offset.forward(patch_tokens)? - &labels.offsets)?;
        Ok((named + (error.sqr()? * &labels.offset_mask)?.mean_all()?)?)
    }

    /// Binary cross-entropy of the named parts; `hidden [b, tokens, width]` of the image tokens. Tokens that show a
    /// named part are few, so they weigh eight times. Tokens that show one also say where it is, in decimetres.
    pub fn grounding_loss(&self, hidden: &Tensor, labels: &Labels) -> Result<Tensor> {
        let logits = self.grounding.forward(hidden)?;
        let truth = &labels.grounding;
        let plain = (logits.relu()? - (&logits * truth)?)?;
        let loss = (plain + ((logits.abs()?.neg()?.exp()? + 1.0)?).log()?)?;
        let weight = ((truth * 7.0)? + 1.0)?;
        let named = (loss * weight)?.mean_all()?;
        let (b, tokens, _) = truth.dims3()?;
        // Three coordinates each, where the token shows the thing.
        let shows =
            truth.unsqueeze(3)?.broadcast_as((b, tokens, 2, 3))?.contiguous()?.reshape((b, tokens, 6))?;
        let there = (&labels.positions / METRES)?.unsqueeze(1)?;
        let error = self.place.forward(hidden)?.broadcast_sub(&there)?;
        let placed = ((error.sqr()? * shows)?.mean_all()? * 8.0)?;
        Ok((named + placed)?)
    }

    /// Mean squared error of the positions, in units of a decimetre; `hidden [b, width]` of the state token.
    pub fn position_loss(&self, hidden: &Tensor, labels: &Labels) -> Result<Tensor> {
        let error = (self.position.forward(hidden)? - (&labels.positions / METRES)?)?;
        Ok((error.sqr()? * &labels.position_mask)?.mean_all()?)
    }
}
