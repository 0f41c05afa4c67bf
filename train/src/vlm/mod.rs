//! A small VLM from pictures with questions: its words, its folder, what a step reads, and the steps.
//!
//! Entry points: [`VlmTrainConfig`] (a run as a file), [`Album`] (the simulator's side), [`VlmTrainer`] (steps, averages,
//! checkpoints) and [`Folder`] (what is written down).

mod config;
mod dense;
mod folder;
mod sequence;
mod trainer;
mod words;

pub use config::{VlmSizes, VlmTrainConfig};
pub use dense::Spot;
pub use folder::Folder;
pub use sequence::{Form, Phrase, Sequence};
pub use trainer::{VlmReport, VlmTrainer};
pub use words::{CHAT_TEMPLATE, tokenizer};

/// A question and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuestionAnswer {
    /// What kind of question it is, for the report.
    pub kind: &'static str,
    /// The question.
    pub question: String,
    /// The answer.
    pub answer: String,
}

/// Pictures with questions; the simulator's side of the training.
pub trait Album: Sync {
    /// How many pictures.
    fn count(&self) -> usize;

    /// A picture, `[height, width, 3]` in bytes, of the size that the tower reads.
    fn picture(&self, index: usize) -> &[u8];

    /// What it shows, for the loss on the image tokens.
    fn spots(&self, index: usize) -> Vec<Spot>;

    /// About `count` questions about it, decided by the seed.
    fn questions(&self, index: usize, count: usize, seed: u64) -> Vec<QuestionAnswer>;

    /// About `count` questions without a picture, decided by the seed.
    fn texts(&self, count: usize, seed: u64) -> Vec<QuestionAnswer>;
}
