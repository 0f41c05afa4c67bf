//! What is learnt from: moments of an episode, each with what the expert would do next.
//!
//! A lesson is one episode, played by the expert or by the learner; every example in it carries the expert's
//! own chunk for that moment (DAgger: Ross, Gordon and Bagnell 2011), and, for the auxiliary losses alone,
//! truths of the simulator that no policy ever sees.

use crate::error::{Error, Result, at};
use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::path::Path;
use vela_embodiment::Policy;

/// One moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Pictures, `[cameras, height, width, 3]`.
    pub frames: Vec<u8>,
    /// Measured joints, `[joints]`, rad or m.
    pub state: Vec<f32>,
    /// The expert's joint targets for the next ticks, `[horizon, joints]`, rad or m.
    pub actions: Vec<f32>,
    /// What each pixel shows, `[cameras, height, width]`: the low five bits its class, the high three its role
    /// in the sentence (0 none, 1 what is named first, 2 where it goes).
    pub labels: Vec<u8>,
    /// Position of the thing named first, then of the destination (or zeros), m, and whether there is one.
    pub truth: [f32; 7],
}

/// One episode.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lesson {
    /// The sentence.
    pub instruction: String,
    /// Its moments.
    pub examples: Vec<Example>,
    /// Whether whoever drove it succeeded.
    pub success: bool,
}

/// Who moves the arm in a lesson.
pub enum Driver<'a> {
    /// The expert, disturbed now and then so that recovering is seen too.
    Expert,
    /// Nobody: the lesson is the first moment alone.
    Nobody,
    /// The learner.
    Student(&'a mut dyn Policy),
}

/// Makes lessons; the simulator's side of imitation.
pub trait Teacher: Sync {
    /// The lesson of a seed. Same seed, same driver: same lesson.
    ///
    /// # Errors
    /// The environment or the student failed.
    fn lesson(&self, seed: u64, driver: Driver<'_>) -> Result<Lesson>;
}

impl Lesson {
    /// Writes the lesson as one safetensors file, whole or not at all.
    pub fn save(&self, path: &Path, shape: &[usize; 3]) -> Result<()> {
        let [cameras, height, width] = *shape;
        let n = self.examples.len();
        let rows = |f: fn(&Example) -> &[f32]| -> Vec<f32> {
            self.examples.iter().flat_map(|e| f(e).iter().copied()).collect()
        };
        let bytes = |f: fn(&Example) -> &[u8]| -> Vec<u8> {
            self.examples.iter().flat_map(|e| f(e).iter().copied()).collect()
        };
        let tensor = |data: Vec<f32>| -> Result<Tensor> {
            let width = data.len() / n.max(1);
            Ok(Tensor::from_vec(data, (n, width), &Device::Cpu)?)
        };
        let words = self.instruction.clone().into_bytes();
        let count = words.len();
        let tensors = HashMap::from([
            ("frames", Tensor::from_vec(bytes(|e| &e.frames), (n, cameras, height, width, 3), &Device::Cpu)?),
            ("labels", Tensor::from_vec(bytes(|e| &e.labels), (n, cameras, height, width), &Device::Cpu)?),
            ("state", tensor(rows(|e| &e.state))?),
            ("actions", tensor(rows(|e| &e.actions))?),
            ("truth", tensor(rows(|e| &e.truth))?),
            ("instruction", Tensor::from_vec(words, count, &Device::Cpu)?),
            ("success", Tensor::new(&[u8::from(self.success)], &Device::Cpu)?),
        ]);
        let partial = path.with_extension("partial");
        candle_core::safetensors::save(&tensors, &partial)?;
        std::fs::rename(&partial, path).map_err(at(path))
    }

    /// Reads what [`Self::save`] wrote.
    pub fn load(path: &Path) -> Result<Self> {
        let tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
        let refuse = |why: &str| Error::Parse { what: path.display().to_string(), why: why.to_owned() };
        let get =
            |name: &str| tensors.get(name).ok_or_else(|| refuse(&format!("tensor '{name}' is missing")));
        let n = get("state")?.dim(0)?;
        let rows = |name: &str| -> Result<Vec<Vec<f32>>> { Ok(get(name)?.to_vec2::<f32>()?) };
        let bytes =
            |name: &str| -> Result<Vec<Vec<u8>>> { Ok(get(name)?.reshape((n, ()))?.to_vec2::<u8>()?) };
        let (states, actions, truths) = (rows("state")?, rows("actions")?, rows("truth")?);
        let (frames, labels) = (bytes("frames")?, bytes("labels")?);
        let mut examples = Vec::with_capacity(n);
        for ((((frames, labels), state), actions), truth) in
            frames.into_iter().zip(labels).zip(states).zip(actions).zip(truths)
        {
            let truth = truth.try_into().map_err(|_| refuse("truth must hold seven numbers"))?;
            examples.push(Example { frames, state, actions, labels, truth });
        }
        if examples.len() != n {
            return Err(refuse("its tensors differ in length"));
        }
        let instruction = String::from_utf8(get("instruction")?.to_vec1::<u8>()?)
            .map_err(|_| refuse("the instruction is not UTF-8"))?;
        let success = get("success")?.to_vec1::<u8>()? == [1];
        Ok(Self { instruction, examples, success })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lesson_survives_the_disk() -> Result<()> {
        let example = Example {
            frames: (0..2 * 4 * 4 * 3).map(|x| x as u8).collect(),
            state: vec![0.5; 6],
            actions: vec![0.25; 12],
            labels: vec![33; 2 * 4 * 4],
            truth: [0.1; 7],
        };
        let lesson = Lesson {
            instruction: "touch the red cube".into(),
            examples: vec![example.clone(), example],
            success: true,
        };
        let dir = std::env::temp_dir().join(format!("vela-lesson-{}", std::process::id()));
        std::fs::create_dir_all(&dir).map_err(at(&dir))?;
        let path = dir.join("0.safetensors");
        lesson.save(&path, &[2, 4, 4])?;
        assert_eq!(Lesson::load(&path)?, lesson);
        std::fs::write(&path, b"torn").map_err(at(&path))?;
        assert!(Lesson::load(&path).is_err());
        std::fs::remove_dir_all(&dir).map_err(at(&dir))
    }
}
