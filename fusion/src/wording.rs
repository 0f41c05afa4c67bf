//! What stands in the text for a picture or video, until its tokens take the place: pure, and pinned by snapshots. The words are
//! those of each family's own processor.

use crate::Encoded;
use vela_nn::{Error, Result};
use vela_vision::Prepared;

/// A family's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wording {
    /// What a chat template writes for a picture.
    pub picture: &'static str,
    /// What it writes for a video.
    pub video: Option<&'static str>,
    /// What it becomes.
    pub style: Style,
}

/// What one placeholder becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Itself, once for each token.
    Repeat,
    /// Each tile with its row and column, each row on a line, the whole picture last (Idefics3, SmolVLM).
    Tiles,
    /// The same between two marks, each frame of a video with its number (InternVL).
    Marked,
    /// No placeholder: all tokens lead, then this, the text, and this.
    Lead {
        /// Between the tokens and the text.
        before: &'static str,
        /// After the text.
        after: &'static str,
    },
}

/// The room that a picture or video needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Rows of tiles; 0 where it was not split.
    pub rows: usize,
    /// Columns of tiles.
    pub columns: usize,
    /// Parts or frames.
    pub parts: usize,
    /// Tokens in all.
    pub tokens: usize,
    /// Whether it is a video.
    pub video: bool,
}

impl Room {
    /// What a picture or video needs, made ready and encoded.
    pub fn of(prepared: &Prepared, encoded: &Encoded) -> Result<Self> {
        let (rows, columns, parts) = match prepared {
            Prepared::Tiles(tiles) => (tiles.rows, tiles.columns, tiles.pictures.len()),
            Prepared::Patches(_) => (0, 0, 1),
        };
        Ok(Self { rows, columns, parts, tokens: encoded.tokens.dim(0)?, video: encoded.video })
    }
}

impl Wording {
    /// The words of a `model_type`.
    ///
    /// # Errors
    /// An unknown one.
    pub fn of(kind: &str) -> Result<Self> {
        let repeat = |picture, video| Self { picture, video, style: Style::Repeat };
        Ok(match kind {
            "llava" | "llava_next" => repeat("<image>", None),
            "llava_onevision" => repeat("<image>", Some("<video>")),
            "qwen2_vl" | "qwen2_5_vl" => repeat("<|image_pad|>", Some("<|video_pad|>")),
            "idefics3" | "smolvlm" => Self { picture: "<image>", video: None, style: Style::Tiles },
            "internvl" => Self { picture: "<IMG_CONTEXT>", video: Some("<video>"), style: Style::Marked },
            "paligemma" => {
                Self { picture: "<image>", video: None, style: Style::Lead { before: "<bos>", after: "\n" } }
            }
            "blip-2" => {
                Self { picture: "<image>", video: None, style: Style::Lead { before: "", after: "" } }
            }
            other => return Err(Error::invalid(format!("no wording is known for VLMs of type '{other}'"))),
        })
    }

    /// `text` with room for each picture and video, in order.
    ///
    /// # Errors
    /// Another number of placeholders than of pictures or videos.
    pub fn expand(&self, text: &str, rooms: &[Room]) -> Result<String> {
        if let Style::Lead { before, after } = self.style {
            let count: usize = rooms.iter().map(|room| room.tokens).sum();
            return Ok(format!("{}{before}{text}{after}", self.picture.repeat(count)));
        }
        let (mut pictures, mut videos) =
            (rooms.iter().filter(|r| !r.video), rooms.iter().filter(|r| r.video));
        let (mut out, mut rest) = (String::with_capacity(text.len()), text);
        loop {
            let find = |word: Option<&str>| word.and_then(|word| rest.find(word).map(|at| (at, word.len())));
            let (picture, video) = (find(Some(self.picture)), find(self.video));
            let (at, length, is_video) = match (picture, video) {
                (Some((p, length)), Some((v, _))) if p < v => (p, length, false),
                (_, Some((v, length))) => (v, length, true),
                (Some((p, length)), None) => (p, length, false),
                (None, None) => break,
            };
            let room = if is_video { videos.next() } else { pictures.next() };
            let room = room.ok_or_else(|| {
                let got = rooms.len();
                Error::invalid(format!(
                    "prompt: more placeholders than pictures and videos, of which there are {got}"
                ))
            })?;
            out.push_str(&rest[..at]);
            out.push_str(&self.one(room));
            rest = &rest[at + length..];
        }
        match pictures.count() + videos.count() {
            0 => Ok(out + rest),
            left => Err(Error::invalid(format!("prompt: {left} pictures or videos without placeholders"))),
        }
    }

    fn one(&self, room: &Room) -> String {
        let parts = room.parts.max(1);
        let each = self.picture.repeat(room.tokens / parts);
        match self.style {
            Style::Repeat | Style::Lead { .. } => {
                let word = if room.video { self.video.unwrap_or(self.picture) } else { self.picture };
                word.repeat(room.tokens)
            }
            Style::Tiles => {
                let fake = "<fake_token_around_image>";
                let mut text = String::new();
                for row in 1..=room.rows {
                    for column in 1..=room.columns {
                        text += &format!("{fake}<row_{row}_col_{column}>{each}");
                    }
                    text.push('\n');
                }
                if room.rows > 0 {
                    text.push('\n');
                }
                text + &format!("{fake}<global-img>{each}{fake}")
            }
            Style::Marked if room.video => (1..=parts)
                .map(|i| format!("Frame{i}: <img>{each}</img>\n"))
                .collect::<String>()
                .trim_end()
                .into(),
            Style::Marked => format!("<img>{}</img>", self.picture.repeat(room.tokens)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Room = Room { rows: 0, columns: 0, parts: 1, tokens: 2, video: false };

    #[test]
    fn idefics3_writes_tiles_row_by_row_and_the_whole_last() -> Result<()> {
        let split = Room { rows: 2, columns: 1, parts: 3, tokens: 6, video: false };
        let f = "<fake_token_around_image>";
        let two = "<image><image>";
        let want = format!(
            "User: {f}<row_1_col_1>{two}\n{f}<row_2_col_1>{two}\n\n{f}<global-img>{two}{f}What? {f}<global-img>{two}{f}"
        );
        assert_eq!(Wording::of("smolvlm")?.expand("User: <image>What? <image>", &[split, ONE])?, want);
        Ok(())
    }

    #[test]
    fn each_family_writes_its_own() -> Result<()> {
        let video = Room { parts: 2, tokens: 4, video: true, ..ONE };
        let said = |kind: &str, text: &str, rooms: &[Room]| Wording::of(kind)?.expand(text, rooms);
        assert_eq!(said("llava", "a <image>\nb", &[ONE])?, "a <image><image>\nb");
        assert_eq!(
            said("llava_onevision", "<video> <image>", &[ONE, video])?,
            "<video><video><video><video> <image><image>"
        );
        assert_eq!(
            said("qwen2_vl", "<|vision_start|><|image_pad|><|vision_end|>x", &[ONE])?,
            "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>x"
        );
        assert_eq!(said("internvl", "<IMG_CONTEXT>\nx", &[ONE])?, "<img><IMG_CONTEXT><IMG_CONTEXT></img>\nx");
        let c = "<IMG_CONTEXT><IMG_CONTEXT>";
        assert_eq!(
            said("internvl", "<video>\nx", &[video])?,
            format!("Frame1: <img>{c}</img>\nFrame2: <img>{c}</img>\nx")
        );
        assert_eq!(said("paligemma", "caption en", &[ONE])?, "<image><image><bos>caption en\n");
        assert_eq!(said("blip-2", "Question: why?", &[ONE])?, "<image><image>Question: why?");
        Ok(())
    }

    #[test]
    fn placeholders_and_pictures_must_agree() -> Result<()> {
        let llava = Wording::of("llava")?;
        assert!(llava.expand("<image>", &[]).is_err_and(|e| e.to_string().contains("more placeholders")));
        assert!(llava.expand("no", &[ONE]).is_err_and(|e| e.to_string().contains("without placeholders")));
        assert!(Wording::of("teapot").is_err());
        Ok(())
    }
}
