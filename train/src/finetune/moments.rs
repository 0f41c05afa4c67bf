//! What is imitated: moments of recorded episodes.

use crate::error::{Error, Result};
use std::collections::BTreeSet;
use vela_embodiment::{ActionSpace, Observation};
use vela_episodes::{Dataset, EncodedEpisode};
use vela_policy::Statistics;

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

    /// The numbers of one of them, without its pictures.
    ///
    /// # Errors
    /// A number that is too large.
    fn numbers(&self, at: usize, horizon: usize) -> Result<Numbers> {
        let mut moment = self.moment(at, horizon)?;
        moment.actions.truncate(moment.recorded);
        Ok(Numbers { joints: moment.observation.joint_positions, actions: moment.actions })
    }
}

/// Joints and what was done from then on.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbers {
    /// `[joints]`, rad or m.
    pub joints: Vec<f64>,
    /// Recorded joint targets, at most a horizon of them, `[ticks][joints]`, rad or m.
    pub actions: Vec<Vec<f64>>,
}

/// The statistics of joints and actions over all moments, actions as `space` has them.
///
/// # Errors
/// No moments; numbers that are not finite.
pub fn statistics(moments: &dyn Moments, space: &ActionSpace, horizon: usize) -> Result<Statistics> {
    let (mut states, mut actions) = (Vec::new(), Vec::new());
    let narrow = |row: &[f64]| row.iter().map(|x| *x as f32).collect::<Vec<f32>>();
    // Deltas grow along a chunk; a place is a place whenever it is reached.
    let horizon = if *space == ActionSpace::JointDeltas { horizon } else { 1 };
    for at in 0..moments.count() {
        let Numbers { joints, actions: rows } = moments.numbers(at, horizon)?;
        for row in &rows {
            actions.push(match space {
                ActionSpace::JointDeltas => row.iter().zip(&joints).map(|(a, q)| (a - q) as f32).collect(),
                _ => narrow(row),
            });
        }
        states.push(narrow(&joints));
    }
    let state = Statistics::of_rows("observation.state", &states)?;
    Ok(state.and(Statistics::of_rows("action", &actions)?))
}

/// The frames of a LeRobot dataset. Pictures stay encoded until they are asked for.
pub struct RecordedMoments {
    episodes: Vec<EncodedEpisode>,
}

impl RecordedMoments {
    /// Reads all episodes but those whose recording says that they failed.
    ///
    /// # Errors
    /// What the dataset's reader refuses; a dataset without a frame.
    pub fn new(dataset: &Dataset) -> Result<Self> {
        let refuse = |why: String| Error::Parse { what: dataset.folder().display().to_string(), why };
        let mut episodes = (0..dataset.len())
            .map(|k| dataset.encoded(k).map_err(|e| refuse(format!("episode {k}: {e}"))))
            .collect::<Result<Vec<_>>>()?;
        episodes.retain(|episode| episode.extra["success"] != false);
        if episodes.iter().all(EncodedEpisode::is_empty) {
            return Err(refuse("expected frames of episodes that did not fail, there are none".into()));
        }
        Ok(Self { episodes })
    }
}

impl RecordedMoments {
    /// All sentences, each once.
    pub fn sentences(&self) -> BTreeSet<String> {
        self.episodes.iter().flat_map(|episode| &episode.tasks).map(|task| task.to_string()).collect()
    }

    /// Episodes that are learnt from.
    pub fn episodes(&self) -> usize {
        self.episodes.len()
    }

    /// The episode of a moment, and its frame there.
    fn place(&self, at: usize) -> Result<(&EncodedEpisode, usize)> {
        let mut rest = at;
        for episode in &self.episodes {
            if rest < episode.len() {
                return Ok((episode, rest));
            }
            rest -= episode.len();
        }
        Err(Error::Parse { what: format!("moment {at}"), why: format!("there are {}", self.count()) })
    }
}

impl Moments for RecordedMoments {
    fn count(&self) -> usize {
        self.episodes.iter().map(EncodedEpisode::len).sum()
    }

    fn moment(&self, at: usize, horizon: usize) -> Result<Moment> {
        let (episode, frame) = self.place(at)?;
        let refuse =
            |why: String| Error::Parse { what: format!("episode {}, frame {frame}", episode.index), why };
        let observation = episode.frame(frame).map_err(|e| refuse(e.to_string()))?.observation;
        let mut actions: Vec<Vec<f64>> = episode.actions.iter().skip(frame).take(horizon).cloned().collect();
        let recorded = actions.len();
        let last = actions.last().cloned().ok_or_else(|| refuse("there is no action".into()))?;
        actions.resize(horizon, last);
        Ok(Moment { observation, actions, recorded })
    }

    fn numbers(&self, at: usize, horizon: usize) -> Result<Numbers> {
        let (episode, frame) = self.place(at)?;
        let joints = episode.states.get(frame).cloned().ok_or_else(|| Error::Parse {
            what: format!("episode {}, frame {frame}", episode.index),
            why: format!("there are {} states", episode.states.len()),
        })?;
        Ok(Numbers { joints, actions: episode.actions.iter().skip(frame).take(horizon).cloned().collect() })
    }
}
