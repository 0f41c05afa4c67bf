//! Pictures with questions on disk, in the layout of easy-VQA (Zhou 2019, <https://github.com/vzhou842/easy-VQA>).

use crate::error::{Error, Result, at};
use crate::vlm::QuestionAnswer;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One half of a set: what to learn from, or what to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PictureSet {
    /// Its pictures, by number.
    pub pictures: Vec<PictureQuestions>,
}

/// A picture with its questions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PictureQuestions {
    /// Its file.
    pub path: PathBuf,
    /// What is asked about it.
    pub asked: Vec<QuestionAnswer>,
}

impl PictureQuestions {
    /// What its answers name: those that are not yes or no, each once.
    pub fn named(&self) -> Vec<&str> {
        let mut named: Vec<&str> = self
            .asked
            .iter()
            .map(|asked| asked.answer.as_str())
            .filter(|answer| !is_verdict(answer))
            .collect();
        named.sort_unstable();
        named.dedup();
        named
    }
}

fn is_verdict(answer: &str) -> bool {
    ["yes", "no"].contains(&answer)
}

/// What kind of question it is, for a report.
pub fn kind_of(question: &str, answer: &str) -> &'static str {
    let denies = question.split([' ', '?']).any(|word| ["not", "no"].contains(&word));
    match (is_verdict(answer), denies) {
        (true, true) => "yes or no, denied",
        (true, false) => "yes or no",
        (false, _) if question.split([' ', '?']).any(|word| ["color", "colour"].contains(&word)) => "colour",
        (false, _) => "shape",
    }
}

impl PictureSet {
    /// Reads `folder/half`: `questions.json` (a list of question, answer and number of the picture) and `images/N.png`.
    ///
    /// # Errors
    /// A file that is not there or is something else; no question at all.
    pub fn load(folder: &Path, half: &str) -> Result<Self> {
        let (dir, path) = (folder.join(half), folder.join(half).join("questions.json"));
        let bytes = std::fs::read(&path).map_err(at(&path))?;
        let refuse = |why: String| Error::Parse { what: path.display().to_string(), why };
        let list: Vec<(String, String, usize)> = serde_json::from_slice(&bytes).map_err(|e| {
            refuse(format!("expected a list of [question, answer, number of the picture]: {e}"))
        })?;
        if list.is_empty() {
            return Err(refuse("there are no questions".into()));
        }
        let mut by_picture: BTreeMap<usize, Vec<QuestionAnswer>> = BTreeMap::new();
        for (question, answer, picture) in list {
            let kind = kind_of(&question, &answer);
            by_picture.entry(picture).or_default().push(QuestionAnswer { kind, question, answer });
        }
        let one = |(number, asked)| PictureQuestions {
            path: dir.join("images").join(format!("{number}.png")),
            asked,
        };
        Ok(Self { pictures: by_picture.into_iter().map(one).collect() })
    }

    /// Questions of all pictures.
    pub fn questions(&self) -> usize {
        self.pictures.iter().map(|picture| picture.asked.len()).sum()
    }

    /// By question, the answer that is most often right, the first in the alphabet of equals: what can be said without
    /// looking.
    pub fn blind(&self) -> BTreeMap<&str, &str> {
        let mut counts: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
        for asked in self.pictures.iter().flat_map(|picture| &picture.asked) {
            *counts.entry(&asked.question).or_default().entry(&asked.answer).or_default() += 1;
        }
        counts
            .into_iter()
            .filter_map(|(question, answers)| {
                let most = answers.values().max().copied()?;
                Some((question, answers.into_iter().find(|(_, count)| *count == most)?.0))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_apart() {
        let cases = [
            ("what color is the shape?", "red", "colour"),
            ("what is the blue shape?", "circle", "shape"),
            ("is there a circle?", "no", "yes or no"),
            ("is no circle present?", "no", "yes or no, denied"),
            ("does the image not contain a circle?", "yes", "yes or no, denied"),
        ];
        for (question, answer, kind) in cases {
            assert_eq!(kind_of(question, answer), kind);
        }
    }
}
