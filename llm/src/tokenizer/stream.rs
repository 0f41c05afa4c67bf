//! Text from tokens as they come, whole characters only.

use super::Tokenizer;
use vela_nn::Result;

/// Collects the bytes of tokens and gives out whole characters. What it gave out in the end is what decoding all tokens
/// at once gives.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    held: Vec<u8>,
    started: bool,
}

impl TextStream {
    /// A stream at the start of a text.
    pub fn new() -> Self {
        Self::default()
    }

    /// The text that `id` completes; special tokens add none. Bytes that can be no character become U+FFFD.
    ///
    /// # Errors
    /// As [`Tokenizer::piece`].
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        let piece = tokenizer.piece(id)?;
        if tokenizer.is_special(id) {
            return Ok(String::new());
        }
        let skip = !self.started && piece.first() == Some(&b' ') && tokenizer.spelling()?.drops_first_space();
        self.started = true;
        self.held.extend_from_slice(piece.get(usize::from(skip)..).unwrap_or_default());
        let mut text = String::new();
        let mut read = 0;
        while let Some(rest) = self.held.get(read..).filter(|rest| !rest.is_empty()) {
            match std::str::from_utf8(rest) {
                Ok(whole) => {
                    text.push_str(whole);
                    read = self.held.len();
                }
                Err(error) => {
                    let whole = rest.get(..error.valid_up_to()).unwrap_or_default();
                    text.push_str(&String::from_utf8_lossy(whole));
                    read += error.valid_up_to();
                    let Some(bad) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    read += bad;
                }
            }
        }
        self.held.drain(..read);
        Ok(text)
    }

    /// Ends the text: half a character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }
}
