//! Questions about pictures, to be answered beside the actions.

use crate::adapt::PictureSet;
use crate::error::{Error, Result};
use std::path::Path;
use vela_vision::{Limits, Picture};

/// A question about a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The picture, `[height, width, 3]`.
    pub rgb: Vec<u8>,
    /// Its width and height, pixels.
    pub size: [usize; 2],
    /// The question.
    pub question: String,
    /// The answer.
    pub answer: String,
}

/// Questions by number.
pub trait Questions: Sync + Send {
    /// How many there are.
    fn count(&self) -> usize;

    /// One of them.
    ///
    /// # Errors
    /// A picture that cannot be read; a number that is too large.
    fn asked(&self, at: usize) -> Result<Asked>;
}

/// The questions of a folder in the layout of easy-VQA. Pictures are read when they are asked about.
pub struct PictureQuestions {
    set: PictureSet,
    /// Picture and question of each number.
    index: Vec<(usize, usize)>,
}

impl PictureQuestions {
    /// Reads the half `train` of a folder.
    ///
    /// # Errors
    /// A file that is not there or is something else; no question at all.
    pub fn load(folder: &Path) -> Result<Self> {
        let set = PictureSet::load(folder, "train")?;
        let of = |(k, picture): (usize, &crate::adapt::PictureQuestions)| {
            (0..picture.asked.len()).map(move |asked| (k, asked))
        };
        let index = set.pictures.iter().enumerate().flat_map(of).collect();
        Ok(Self { set, index })
    }
}

impl Questions for PictureQuestions {
    fn count(&self) -> usize {
        self.index.len()
    }

    fn asked(&self, at: usize) -> Result<Asked> {
        let (picture, asked) = *self.index.get(at).ok_or_else(|| Error::Parse {
            what: format!("question {at}"),
            why: format!("there are {}", self.index.len()),
        })?;
        let picture = &self.set.pictures[picture];
        let seen = Picture::open(&picture.path, &Limits::default())?;
        let asked = &picture.asked[asked];
        Ok(Asked {
            size: [seen.width, seen.height],
            rgb: seen.rgb,
            question: asked.question.clone(),
            answer: asked.answer.clone(),
        })
    }
}
