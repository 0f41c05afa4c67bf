//! What is imitated: moments of recorded episodes.

use crate::error::{Error, Result};
use vela_embodiment::Observation;
use vela_episodes::{Dataset, EncodedEpisode};

/// What was seen and what was done from then on.
pub struct Moment {
    /// Pictures, joints, sentence.
    pub observation: Observation,
    /// Joint targets, `[horizon][joints]`, rad or m; the last one that was recorded is repeated to the end.
    pub actions: Vec<Vec<f64>>,
    /// How many of them were recorded: the others do not count.
    pub recorded: usize,
}

/// Moments by number.
pub trait Moments: Sync {
    /// How many there are.
    fn count(&self) -> usize;

    /// One of them with `horizon` actions.
    ///
    /// # Errors
    /// A picture that cannot be decoded; a number that is too large.
    fn moment(&self, at: usize, horizon: usize) -> Result<Moment>;
}

/// The frames of a LeRobot dataset. Pictures stay encoded until they are asked for.
pub struct RecordedMoments {
    episodes: Vec<EncodedEpisode>,
}

impl RecordedMoments {
    /// Reads all episodes.
    ///
    /// # Errors
    /// What the dataset's reader refuses; a dataset without a frame.
    pub fn new(dataset: &Dataset) -> Result<Self> {
        let refuse = |why: String| Error::Parse { what: dataset.folder().display().to_string(), why };
        let episodes = (0..dataset.len())
            .map(|k| dataset.encoded(k).map_err(|e| refuse(format!("episode {k}: {e}"))))
            .collect::<Result<Vec<_>>>()?;
        if episodes.iter().all(EncodedEpisode::is_empty) {
            return Err(refuse("expected frames to learn from, there are none".into()));
        }
        Ok(Self { episodes })
    }
}

impl Moments for RecordedMoments {
    fn count(&self) -> usize {
        self.episodes.iter().map(EncodedEpisode::len).sum()
    }

    fn moment(&self, at: usize, horizon: usize) -> Result<Moment> {
        let mut rest = at;
        for episode in &self.episodes {
            if rest >= episode.len() {
                rest -= episode.len();
                continue;
            }
            let refuse =
                |why: String| Error::Parse { what: format!("episode {}, frame {rest}", episode.index), why };
            let observation = episode.frame(rest).map_err(|e| refuse(e.to_string()))?.observation;
            let mut actions: Vec<Vec<f64>> =
                episode.actions.iter().skip(rest).take(horizon).cloned().collect();
            let recorded = actions.len();
            let last = actions.last().cloned().ok_or_else(|| refuse("there is no action".into()))?;
            actions.resize(horizon, last);
            return Ok(Moment { observation, actions, recorded });
        }
        Err(Error::Parse { what: format!("moment {at}"), why: format!("there are {}", self.count()) })
    }
}
