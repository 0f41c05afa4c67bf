//! Whom the tokens of a prompt see: what is before them, or all of the prompt, and that also in layers that else see only what is
//! near (PaliGemma 2).

use candle_core::{Device, Tensor};
use vela_llm::{Attend, Cache, KeyValues};
use vela_nn::{Mask, Result};

/// Whom the tokens of a prompt see.
#[derive(Clone, Debug)]
pub struct Sight {
    /// In layers that see everything.
    pub full: Mask,
    /// In layers with a window, if the window is not simply to be laid over `full`.
    pub near: Option<Mask>,
}

impl Sight {
    /// What is before them.
    pub fn causal() -> Self {
        Self { full: Mask::Causal, near: None }
    }

    /// The tokens of the prompt (`true`) see each other wholly, however far apart; those of the answer see what is before
    /// them, within the window if the layer has one.
    pub fn prefix(prompt: &[bool], window: Option<usize>) -> Result<Self> {
        let mut written = 0;
        let block = |read: &bool| {
            written += u32::from(!read);
            written
        };
        let blocks: Vec<u32> = prompt.iter().map(block).collect();
        let t = prompt.len();
        let sees = |i: usize, j: usize, size: usize| (prompt[i] && prompt[j]) || (j <= i && i - j < size);
        let near = |size: usize| -> Result<Mask> {
            let all: Vec<u8> = (0..t * t).map(|at| u8::from(sees(at / t, at % t, size))).collect();
            Ok(Mask::Dense(Tensor::from_vec(all, (1, t, t), &Device::Cpu)?))
        };
        Ok(Self {
            full: Mask::blocks(blocks.clone(), blocks, Vec::new()),
            near: window.map(near).transpose()?,
        })
    }
}

/// A cache in whose window layers a prompt sees what its [`Sight`] says.
pub(crate) struct Seeing<'a> {
    pub cache: &'a mut Cache,
    pub near: Option<&'a Mask>,
}

impl KeyValues for Seeing<'_> {
    fn attend(
        &mut self,
        layer: usize,
        q: &Tensor,
        keys: Tensor,
        values: Tensor,
        rule: &Attend,
    ) -> Result<Tensor> {
        match (self.near, rule.window) {
            (Some(mask), Some(_)) => {
                self.cache.attend(layer, q, keys, values, &Attend { window: None, mask, ..*rule })
            }
            _ => self.cache.attend(layer, q, keys, values, rule),
        }
    }

    fn store(&mut self, layer: usize, keys: Tensor, values: Tensor) -> Result<()> {
        self.cache.store(layer, keys, values)
    }

    fn recall(&self, layer: usize, q: &Tensor, rule: &Attend) -> Result<Tensor> {
        self.cache.recall(layer, q, rule)
    }

    fn len(&self) -> usize {
        self.cache.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_sees_itself_beyond_the_window_and_an_answer_does_not() -> Result<()> {
        let sight = Sight::prefix(&[true, true, true, false, false], Some(2))?;
        let drawn = |mask: &Mask| -> Result<String> {
            let cells: Vec<String> = mask.dense(1, 5, 5)?.iter().map(u8::to_string).collect();
            Ok(cells.chunks(5).map(|row| row.concat()).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(drawn(&sight.full)?, "11100 11100 11100 11110 11111");
        assert_eq!(
            sight.near.as_ref().map(drawn).transpose()?.as_deref(),
            Some("11100 11100 11100 00110 00011")
        );
        assert!(Sight::prefix(&[true], None)?.near.is_none());
        Ok(())
    }
}
