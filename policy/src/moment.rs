//! LeRobot folders as policies for a robot: what every network is given, and what becomes of what it gives.

use crate::answer::answer;
use crate::ensemble::TemporalEnsemble;
use crate::lerobot::{CameraFeature, Folder};
use crate::normalise::Normaliser;
use candle_core::{Device, Tensor};
use std::collections::VecDeque;
use vela_embodiment::{
    ActionChunk, ActionSpace, Embodiment, InferOptions, Observation, Policy, PolicySpec, Stamp,
};
use vela_nn::{Error, Result, Weights};
use vela_vision::Planes;

/// One observation as a network sees it.
#[derive(Clone, Debug)]
pub struct Moment {
    /// One picture per camera, `[3, height, width]`, normalised as the folder says.
    pub pictures: Vec<Tensor>,
    /// Normalised joints.
    pub state: Vec<f32>,
    /// What the robot was asked to do.
    pub instruction: String,
}

/// A network between normalised inputs and normalised actions.
pub trait Network: Send {
    /// Actions per chunk.
    fn horizon(&self) -> usize;
    /// Actions to carry out before the next chunk.
    fn execute(&self) -> usize;
    /// Moments it wants, oldest first.
    fn history(&self) -> usize {
        1
    }
    /// Decay of temporal ensembling, if the policy is to be used with it.
    fn ensemble(&self) -> Option<f64> {
        None
    }
    /// Whether pictures may be of any size.
    fn resizes(&self) -> bool {
        false
    }
    /// Normalised actions `[horizon, dims]` that answer the newest of `moments` (oldest first).
    fn act(&self, moments: &[Moment], seed: u64) -> Result<Tensor>;
}

/// A LeRobot folder as a policy.
pub struct FolderPolicy {
    network: Box<dyn Network>,
    spec: PolicySpec,
    cameras: Vec<CameraFeature>,
    pictures: Vec<Normaliser>,
    state: Normaliser,
    action: Normaliser,
    /// Decay of temporal ensembling.
    ensemble: Option<f64>,
    past: Past,
    /// What other robots were told, whose turn it was last at the end.
    others: VecDeque<Past>,
}

/// The pasts of so many other robots are kept.
const PASTS: usize = 64;

/// What one robot was told lately.
#[derive(Default)]
struct Past {
    robot: String,
    ensemble: Option<TemporalEnsemble>,
    last: Option<Stamp>,
}

impl FolderPolicy {
    /// Joins a folder's network to its statistics and to a robot, whose cameras must have the names of the features.
    ///
    /// # Errors
    /// Joints, their order where the folder names them, or cameras that are not the robot's; statistics that are missing,
    /// not finite or without width.
    pub fn new(
        folder: &Folder,
        weights: &Weights,
        network: Box<dyn Network>,
        embodiment: &Embodiment,
    ) -> Result<Self> {
        let cameras = folder.cameras()?;
        let pictures = cameras
            .iter()
            .map(|camera| folder.scaling_in(&camera.feature, "VISUAL", weights))
            .collect::<Result<_>>()?;
        let (state, action) = statistics(folder, weights)?;
        fits(folder, &cameras, embodiment, network.resizes())?;
        let spec = PolicySpec {
            embodiment: embodiment.clone(),
            space: ActionSpace::JointPositions,
            horizon: network.horizon(),
            execute: network.execute(),
            history: network.history(),
            checkpoint: folder.checkpoint()?,
        };
        let ensemble = network.ensemble();
        let (past, others) = (Past::default(), VecDeque::new());
        Ok(Self { network, spec, cameras, pictures, state, action, ensemble, past, others })
    }

    /// A chunk `[horizon, dims]` for an observation at `stamp`, and the mean of it and what earlier ones said of its ticks.
    /// After more ticks than a chunk has, or when time goes back, earlier chunks are forgotten.
    fn ensembled(&mut self, chunk: Tensor, stamp: Stamp) -> Result<Tensor> {
        let Some(decay) = self.ensemble else { return Ok(chunk) };
        let Past { ensemble, last, .. } = &mut self.past;
        let ensemble = ensemble.get_or_insert_with(|| TemporalEnsemble::new(decay));
        let period = self.spec.embodiment.period_secs() * 1e9;
        let passed = last.and_then(|last| stamp.0.checked_sub(last.0));
        match passed.map(|nanos| (nanos as f64 / period).round() as usize) {
            // The last answer has used up its own tick.
            Some(ticks) if (1..self.spec.horizon).contains(&ticks) => ensemble.skip(ticks - 1)?,
            _ => ensemble.reset(),
        }
        *last = Some(stamp);
        let now = ensemble.update(&chunk.unsqueeze(0)?)?.unsqueeze(1)?;
        let all = match ensemble.rest() {
            Some(rest) => Tensor::cat(&[&now, rest], 1)?,
            None => now,
        };
        Ok(all.squeeze(0)?)
    }

    fn moment(&self, observation: &Observation) -> Result<Moment> {
        observation.check(&self.spec.embodiment).map_err(Error::invalid)?;
        let picture = |(camera, scaling): (&CameraFeature, &Normaliser)| -> Result<Tensor> {
            let name = &camera.name;
            let frame =
                observation.frame(name).ok_or_else(|| Error::invalid(format!("no camera '{name}'")))?;
            let (height, width) = (frame.height as usize, frame.width as usize);
            let mut planes = Planes::from_rgb(&frame.rgb, width, height)?;
            scaling.normalise_planes(&mut planes.data, 3)?;
            Ok(Tensor::from_vec(planes.data, (3, height, width), &Device::Cpu)?)
        };
        let joints: Vec<f32> = observation.joint_positions.iter().map(|q| *q as f32).collect();
        Ok(Moment {
            pictures: self.cameras.iter().zip(&self.pictures).map(picture).collect::<Result<_>>()?,
            state: self.state.normalise(&joints)?,
            instruction: observation.instruction.clone(),
        })
    }

    fn chunk(&mut self, history: &[Observation], seed: u64) -> Result<Vec<Vec<f64>>> {
        let (wanted, got) = (self.spec.history, history.len());
        let Some(first) = history.first() else {
            return Err(Error::invalid(format!("expected {wanted} observations, got none")));
        };
        // At the start of an episode the oldest one stands for those before it, as in the reference's queues.
        let padding = std::iter::repeat_n(first, wanted.saturating_sub(got));
        let newest = &history[got.saturating_sub(wanted)..];
        let moments: Vec<Moment> =
            padding.chain(newest).map(|observation| self.moment(observation)).collect::<Result<_>>()?;
        let normalised = self.network.act(&moments, seed)?;
        let stamp = history.last().map(|observation| observation.stamp).unwrap_or_default();
        let rows = self.ensembled(normalised, stamp)?.to_vec2::<f32>()?;
        let physical = |row: &Vec<f32>| -> Result<Vec<f64>> {
            Ok(self.action.unnormalise(row)?.iter().map(|x| f64::from(*x)).collect())
        };
        rows.iter().map(physical).collect()
    }
}

impl Policy for FolderPolicy {
    fn spec(&self) -> &PolicySpec {
        &self.spec
    }

    fn infer(
        &mut self,
        history: &[Observation],
        options: &InferOptions,
    ) -> vela_embodiment::Result<ActionChunk> {
        let actions = self.chunk(history, options.seed);
        answer(&self.spec, history, options, self.spec.embodiment.joints.len(), actions)
    }

    fn turn_to(&mut self, robot: &str) {
        if self.ensemble.is_none() || self.past.robot == robot {
            return;
        }
        let known = self.others.iter().position(|past| past.robot == robot);
        let next = known.and_then(|place| self.others.remove(place));
        let next = next.unwrap_or_else(|| Past { robot: robot.to_owned(), ..Past::default() });
        self.others.push_back(std::mem::replace(&mut self.past, next));
        if self.others.len() > PASTS {
            self.others.pop_front();
        }
    }
}

/// The scalings of joints and actions, refused if they are of no use.
pub fn statistics(folder: &Folder, weights: &Weights) -> Result<(Normaliser, Normaliser)> {
    let state = folder.scaling_in("observation.state", "STATE", weights)?;
    let action = folder.scaling_out("action", "ACTION", weights)?;
    state.check_widths("observation.state")?;
    action.check_widths("action")?;
    Ok((state, action))
}

/// Refuses a robot that a folder was not made for, with the exact difference.
pub fn fits(
    folder: &Folder,
    cameras: &[CameraFeature],
    embodiment: &Embodiment,
    resizes: bool,
) -> Result<()> {
    let robot = embodiment.joint_names();
    for (what, width) in
        [("joints", folder.inputs.width("STATE")?), ("actions", folder.outputs.width("ACTION")?)]
    {
        if width != robot.len() {
            let got = robot.len();
            return Err(Error::invalid(format!("the policy has {width} {what}, the robot has {got} joints")));
        }
    }
    if let Some(named) = joint_names(folder)
        && named != robot
    {
        let (expected, got) = (named.join(", "), robot.join(", "));
        return Err(Error::invalid(format!("the policy's joints are {expected}; the robot's are {got}")));
    }
    for camera in cameras {
        let (name, width, height) = (&camera.name, camera.width, camera.height);
        let Some(found) = embodiment.cameras.iter().find(|c| &c.name == name) else {
            let known: Vec<&str> = embodiment.cameras.iter().map(|c| c.name.as_str()).collect();
            return Err(Error::invalid(format!(
                "the policy sees through camera '{name}'; the robot's cameras are {}",
                known.join(", ")
            )));
        };
        if !resizes && (found.width as usize, found.height as usize) != (width, height) {
            return Err(Error::invalid(format!(
                "camera '{name}': the policy sees {width} x {height} pixels, the robot {} x {}",
                found.width, found.height
            )));
        }
    }
    Ok(())
}

/// The joints' names in order, where a folder gives them: in `embodiment.json`, or as `action_feature_names`.
pub fn joint_names(folder: &Folder) -> Option<Vec<String>> {
    let clean = |name: &str| name.strip_suffix(".pos").unwrap_or(name).to_owned();
    let strings = |values: &serde_json::Value| -> Option<Vec<String>> {
        values.as_array()?.iter().map(|name| name.as_str().map(clean)).collect()
    };
    if let Some(names) = folder.config.get("action_feature_names").and_then(strings) {
        return Some(names);
    }
    let text = std::fs::read(folder.dir.join("embodiment.json")).ok()?;
    let embodiment: Embodiment = serde_json::from_slice(&text).ok()?;
    Some(embodiment.joints.into_iter().map(|joint| joint.name).collect())
}
