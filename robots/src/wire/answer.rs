//! Policy to robot: a chunk, whole, or one sentence that says why there is none.

use super::packed::Rows;
use super::{Kind, pack, refuse, unpack};
use serde::{Deserialize, Serialize};
use vela_embodiment::{ActionChunk, ActionSpace, Result, Stamp};

/// One answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The question's number, echoed.
    pub sequence: u64,
    /// Seconds that the policy thought.
    pub infer_secs: f64,
    /// The chunk, or why there is none.
    pub chunk: std::result::Result<ActionChunk, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    sequence: u64,
    infer_secs: f64,
    refused: Option<String>,
    chunk: Option<Chunk>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Chunk {
    space: Space,
    actions: Rows,
    period_secs: f64,
    observation_stamp: u64,
    seed: u64,
    checkpoint: String,
}

/// The wire's own names of the action spaces.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Space {
    JointPositions,
    JointDeltas,
    EndEffectorDeltas,
}

/// Bytes of an answer.
///
/// # Errors
/// The actions differ in width, or the message is too large.
pub fn encode(answer: &Answer) -> Result<Vec<u8>> {
    let chunk = match &answer.chunk {
        Ok(chunk) => Some(Chunk {
            space: match chunk.space {
                ActionSpace::JointPositions => Space::JointPositions,
                ActionSpace::JointDeltas => Space::JointDeltas,
                ActionSpace::EndEffectorDeltas => Space::EndEffectorDeltas,
            },
            actions: Rows::pack(&chunk.actions)
                .ok_or_else(|| refuse("the actions of the chunk differ in width".into()))?,
            period_secs: chunk.period_secs,
            observation_stamp: chunk.observation_stamp.0,
            seed: chunk.seed,
            checkpoint: chunk.checkpoint.clone(),
        }),
        Err(_) => None,
    };
    let refused = answer.chunk.as_ref().err().cloned();
    pack(Kind::Answer, &Body { sequence: answer.sequence, infer_secs: answer.infer_secs, refused, chunk })
}

/// The answer in these bytes. Its numbers may be anything: [`ActionChunk::check`] comes after.
///
/// # Errors
/// Whatever is wrong with them, in one sentence.
pub fn decode(bytes: &[u8]) -> Result<Answer> {
    let body: Body = unpack(Kind::Answer, bytes)?;
    let chunk = match (body.chunk, body.refused) {
        (Some(chunk), None) => Ok(ActionChunk {
            space: match chunk.space {
                Space::JointPositions => ActionSpace::JointPositions,
                Space::JointDeltas => ActionSpace::JointDeltas,
                Space::EndEffectorDeltas => ActionSpace::EndEffectorDeltas,
            },
            actions: chunk
                .actions
                .unpack()
                .ok_or_else(|| refuse("the numbers of the chunk do not fill its actions".into()))?,
            period_secs: chunk.period_secs,
            observation_stamp: Stamp(chunk.observation_stamp),
            seed: chunk.seed,
            checkpoint: chunk.checkpoint,
        }),
        (None, Some(why)) => Err(why),
        _ => return Err(refuse("the answer must have either a chunk or a refusal".into())),
    };
    Ok(Answer { sequence: body.sequence, infer_secs: body.infer_secs, chunk })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_and_a_refusal_come_back_whole() -> Result<()> {
        let answer = super::super::fuzz::sample_answer();
        assert_eq!(decode(&encode(&answer)?)?, answer);
        let refusal = Answer { chunk: Err("out of memory".into()), ..answer };
        assert_eq!(decode(&encode(&refusal)?)?, refusal);
        Ok(())
    }

    #[test]
    fn a_nan_crosses_the_wire_and_is_refused_by_the_check() -> Result<()> {
        let mut answer = super::super::fuzz::sample_answer();
        if let Ok(chunk) = &mut answer.chunk {
            chunk.actions[1][0] = f64::NAN;
        }
        let back = decode(&encode(&answer)?)?;
        assert!(back.chunk.is_ok_and(|chunk| chunk.check(2).is_err()));
        Ok(())
    }
}
