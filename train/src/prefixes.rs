//! What a frozen trunk made of moments, kept on disk: heads that share the trunk learn without running it again.

use crate::batch::deltas;
use crate::error::{Error, Result};
use crate::kept;
use crate::lesson::{Example, Lesson};
use candle_core::{DType, Device, Tensor};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::path::Path;
use vela_embodiment::{Frame, Observation, Policy, Stamp};
use vela_policy::{Normaliser, VlaPolicy};

/// Moments as heads see them.
#[derive(Clone, Debug)]
pub struct Prefixes {
    /// The trunk's hidden states, 16-bit floats, `[moments, tokens, width]`.
    pub hidden: Tensor,
    /// The expert's targets relative to the measured joints, `[moments, horizon, joints]`, rad or m.
    pub actions: Tensor,
    /// Hash of the trunk's weights.
    pub trunk: String,
}

impl Prefixes {
    /// Of every moment of a lesson.
    ///
    /// # Errors
    /// A lesson without moments, or one that does not fit the trunk.
    pub fn of_lesson(trunk: &mut VlaPolicy, lesson: &Lesson) -> Result<Self> {
        let joints = trunk.spec().embodiment.joints.len();
        let (mut hidden, mut actions) = (Vec::new(), Vec::new());
        for example in &lesson.examples {
            let seen = observation(trunk, example, &lesson.instruction)?;
            hidden.push(trunk.conditioning(&seen, None)?.to_dtype(DType::F16)?);
            actions.extend(deltas(example).into_iter().flatten());
        }
        let moments = hidden.len();
        let shape = (moments, actions.len() / (moments * joints).max(1), joints);
        Ok(Self {
            hidden: Tensor::cat(&hidden, 0)?,
            actions: Tensor::from_vec(actions, shape, &Device::Cpu)?,
            trunk: trunk.spec().checkpoint.clone(),
        })
    }

    /// All of them, in order.
    ///
    /// # Errors
    /// None at all, or of different trunks or sizes.
    pub fn join(all: &[Self]) -> Result<Self> {
        let refuse = |why: &str| Error::Parse { what: "prefixes".into(), why: why.to_owned() };
        let trunk = all.first().ok_or_else(|| refuse("expected lessons, got none"))?.trunk.clone();
        if all.iter().any(|one| one.trunk != trunk) {
            return Err(refuse("they are of different trunks"));
        }
        let put = |part: fn(&Self) -> &Tensor| Tensor::cat(&all.iter().map(part).collect::<Vec<_>>(), 0);
        Ok(Self { hidden: put(|p| &p.hidden)?, actions: put(|p| &p.actions)?, trunk })
    }

    /// Moments.
    pub fn len(&self) -> usize {
        self.hidden.dims().first().copied().unwrap_or(0)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes one safetensors file, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        kept::save(path, &self.trunk, &[("hidden", &self.hidden), ("actions", &self.actions)])
    }

    /// Reads what [`Self::save`] wrote.
    ///
    /// # Errors
    /// A torn file; prefixes of another trunk than that of this hash.
    pub fn load(path: &Path, trunk: &str) -> Result<Self> {
        let [hidden, actions] = kept::load(path, trunk, ["hidden", "actions"])?;
        if hidden.rank() != 3 || hidden.dtype() != DType::F16 {
            let why = "expected 16-bit prefixes [moments, tokens, width]".into();
            return Err(Error::Parse { what: path.display().to_string(), why });
        }
        Ok(Self { hidden, actions, trunk: trunk.to_owned() })
    }

    /// The first `horizon` actions of every moment, scaled so that the range from the 1 % to the 99 % quantile of each joint
    /// becomes [-1, 1].
    ///
    /// # Errors
    /// A longer horizon than there is.
    pub fn lessons(&self, horizon: usize) -> Result<HeadLessons> {
        let (actions, scaling) = kept::scaled(&self.actions, horizon)?;
        Ok(HeadLessons { hidden: self.hidden.clone(), actions, scaling })
    }
}

/// What a head of one horizon learns from.
pub struct HeadLessons {
    hidden: Tensor,
    actions: Tensor,
    /// Scaling of the actions.
    pub scaling: Normaliser,
}

impl HeadLessons {
    /// Conditioning `[rows, tokens, width]` and scaled actions `[rows, horizon, joints]` of moments drawn evenly.
    pub fn draw(&self, rows: usize, rng: &mut ChaCha8Rng) -> Result<(Tensor, Tensor)> {
        let moments = self.hidden.dim(0)?;
        let drawn: Vec<u32> = (0..rows).map(|_| rng.random_range(0..moments) as u32).collect();
        let drawn = Tensor::from_vec(drawn, rows, &Device::Cpu)?;
        let hidden = self.hidden.index_select(&drawn, 0)?.to_dtype(DType::F32)?;
        Ok((hidden, self.actions.index_select(&drawn, 0)?))
    }

    /// Some moments' scaled actions, for fitting a tokenizer: `count` of them, evenly spread, `horizon * joints` numbers each,
    /// held within [-1, 1].
    pub fn chunks(&self, count: usize) -> Result<Vec<Vec<f32>>> {
        let all = self.actions.clamp(-1.0, 1.0)?.flatten_from(1)?.to_vec2::<f32>()?;
        let apart = (all.len() / count.max(1)).max(1);
        Ok(all.into_iter().step_by(apart).take(count).collect())
    }
}

/// The observation that an example was made of; a lesson's moments carry no stamp.
pub(crate) fn observation(trunk: &VlaPolicy, example: &Example, instruction: &str) -> Result<Observation> {
    let cameras = &trunk.spec().embodiment.cameras;
    let mut rest = example.frames.as_slice();
    let mut frames = Vec::with_capacity(cameras.len());
    for camera in cameras {
        let size = camera.width as usize * camera.height as usize * 3;
        let (rgb, others) = rest.split_at_checked(size).ok_or_else(|| Error::Parse {
            what: "lesson".into(),
            why: format!("expected a picture of {} x {} per camera", camera.width, camera.height),
        })?;
        frames.push(Frame {
            camera: camera.name.clone(),
            width: camera.width,
            height: camera.height,
            rgb: rgb.into(),
            stamp: Stamp(0),
        });
        rest = others;
    }
    Ok(Observation {
        frames,
        joint_positions: example.state.iter().map(|q| f64::from(*q)).collect(),
        instruction: instruction.to_owned(),
        stamp: Stamp(0),
    })
}
