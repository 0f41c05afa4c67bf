//! From a network's actions to the chunk that answers an observation: the same for every policy.

use vela_embodiment::{ActionChunk, InferOptions, Observation, PolicySpec};
use vela_nn::{Error, Result};

/// The observation that is to be answered: the last.
pub(crate) fn newest(history: &[Observation]) -> Result<&Observation> {
    history.last().ok_or_else(|| Error::invalid("expected one observation, got none"))
}

/// `actions` (`[horizon][dims]`, in the policy's own space) as the answer to the newest of `history`; refused unless they are
/// finite and `dims` wide.
pub(crate) fn answer(
    spec: &PolicySpec,
    history: &[Observation],
    options: &InferOptions,
    dims: usize,
    actions: Result<Vec<Vec<f64>>>,
) -> vela_embodiment::Result<ActionChunk> {
    let failed = |e: Error| vela_embodiment::Error::Policy(e.to_string());
    let chunk = ActionChunk {
        space: spec.space.clone(),
        actions: actions.map_err(failed)?,
        period_secs: spec.embodiment.period_secs(),
        observation_stamp: newest(history).map_err(failed)?.stamp,
        seed: options.seed,
        checkpoint: spec.checkpoint.clone(),
    };
    chunk.check(dims)?;
    Ok(chunk)
}
