//! Any policy folder that we know as a policy for a robot.

use crate::answer::{answer, newest};
use crate::lerobot::hash_of_file;
use crate::moment::FolderPolicy;
use crate::openvla::{OpenVla, prompt};
use crate::openvla_oft::{OpenVlaOftPolicy, is_oft};
use crate::rtc::Rtc;
use crate::storage::{Storage, weights_file};
use crate::{Act, DiffusionPolicy, Pi0, Pi0Fast, SmolVla, VlaPolicy};
use std::path::Path;
use vela_embodiment::{ActionChunk, ActionSpace, Embodiment, InferOptions, Observation, Policy, PolicySpec};
use vela_llm::Tokenizer;
use vela_llm::trace::config_json;
use vela_nn::{Error, Result};

/// What a folder may leave open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// The data set whose units the actions are in (OpenVLA); needed only if the folder knows several.
    pub dataset: Option<String>,
    /// The camera of a policy that has one and does not name it (OpenVLA); else the robot's first. Of OpenVLA-OFT, several with
    /// commas between them; else all of the robot's.
    pub camera: Option<String>,
    /// How its matrices are kept.
    pub storage: Storage,
    /// Whether its chunks go on where the last ones lead.
    pub rtc: Rtc,
}

/// The kinds whose chunks can go on where the last ones lead: those that denoise them by a flow.
const GUIDED: [&str; 4] = ["vela_vla", "smolvla", "pi0", "pi05"];

/// Opens a policy folder of any kind for a robot: `vela_vla`, `act`, `diffusion`, `smolvla`, `pi0`, `pi05`,
/// `pi0_fast`, `openvla`.
///
/// # Errors
/// An unknown kind; whatever is wrong with the folder; a robot that it was not made for, with the exact difference;
/// real-time chunking of a kind that cannot.
pub fn open(dir: &Path, robot: &Embodiment, choices: &Choices) -> Result<Box<dyn Policy>> {
    let config = config_json(dir)?;
    let kind = config.get("type").or(config.get("model_type")).and_then(serde_json::Value::as_str);
    let kind = kind.unwrap_or("absent");
    if choices.rtc == Rtc::On && !GUIDED.contains(&kind) {
        let guided = GUIDED.join(", ");
        return Err(Error::invalid(format!(
            "real-time chunking: expected a policy that denoises its chunks by a flow ({guided}), '{kind}' does not"
        )));
    }
    let guided = |mut policy: VlaPolicy| -> Box<dyn Policy> {
        policy.set_guide(choices.rtc.guide(policy.guide()));
        Box::new(policy)
    };
    Ok(match kind {
        "vela_vla" => {
            let policy = VlaPolicy::load_kept(dir, choices.storage)?;
            policy.spec().embodiment.require_same(robot).map_err(Error::invalid)?;
            guided(policy)
        }
        "act" => {
            let (folder, weights, network) = Act::open(dir, choices.storage)?;
            Box::new(FolderPolicy::new(&folder, &weights, Box::new(network), robot)?)
        }
        "diffusion" => {
            let (folder, weights, network) = DiffusionPolicy::open(dir, choices.storage)?;
            Box::new(FolderPolicy::new(&folder, &weights, Box::new(network), robot)?)
        }
        "smolvla" => guided(SmolVla::load(dir, choices.storage)?.policy(robot)?),
        "pi0" | "pi05" => guided(Pi0::load(dir, choices.storage)?.policy(robot)?),
        "pi0_fast" => {
            let (folder, weights, network) = Pi0Fast::open(dir, choices.storage)?;
            Box::new(FolderPolicy::new(&folder, &weights, Box::new(network), robot)?)
        }
        "openvla" if is_oft(dir) => Box::new(OpenVlaOftPolicy::new(dir, robot, choices)?),
        "openvla" => Box::new(OpenVlaPolicy::new(dir, robot, choices)?),
        other => {
            return Err(Error::invalid(format!(
                "{}: '{other}' is no policy that is known; known: act, diffusion, openvla, pi0, pi05, pi0_fast, smolvla, vela_vla",
                dir.display()
            )));
        }
    })
}

/// OpenVLA as a policy: one picture and a sentence in, one displacement of the gripper out.
pub struct OpenVlaPolicy {
    model: OpenVla,
    tokenizer: Tokenizer,
    spec: PolicySpec,
    dataset: String,
    camera: String,
}

impl OpenVlaPolicy {
    /// Reads the folder and its `tokenizer.json`.
    ///
    /// # Errors
    /// Statistics of several data sets and none chosen; a camera that the robot has not; actions that are not seven numbers.
    pub fn new(dir: &Path, robot: &Embodiment, choices: &Choices) -> Result<Self> {
        let model = OpenVla::load(dir, choices.storage)?;
        let dataset = chosen_dataset(choices, &model.datasets().collect::<Vec<_>>())?;
        let dims = model.ranges(&dataset)?.low.len();
        if dims != 7 || robot.gripper.is_none() {
            return Err(Error::invalid(format!(
                "openvla: expected actions of 7 numbers and a robot with a gripper; '{dataset}' has {dims}"
            )));
        }
        let names: Vec<&str> = robot.cameras.iter().map(|camera| camera.name.as_str()).collect();
        let camera = choices.camera.as_deref().or(names.first().copied()).unwrap_or_default().to_owned();
        if !names.contains(&camera.as_str()) {
            let known = names.join(", ");
            return Err(Error::invalid(format!(
                "openvla: the robot has no camera '{camera}'; it has: {known}"
            )));
        }
        let checkpoint = hash_of_file(&weights_file(dir))?;
        let spec = PolicySpec {
            embodiment: robot.clone(),
            space: ActionSpace::EndEffectorDeltas,
            horizon: 1,
            execute: 1,
            history: 1,
            checkpoint,
        };
        Ok(Self { tokenizer: Tokenizer::load(&dir.join("tokenizer.json"))?, model, spec, dataset, camera })
    }

    fn action(&self, observation: &Observation) -> Result<Vec<f64>> {
        observation.check(&self.spec.embodiment).map_err(Error::invalid)?;
        let camera = &self.camera;
        let frame =
            observation.frame(camera).ok_or_else(|| Error::invalid(format!("no camera '{camera}'")))?;
        let pixels = self.model.pixels(&frame.rgb, frame.width as usize, frame.height as usize)?;
        let ids = self.tokenizer.encode(&prompt(&observation.instruction))?;
        let said = self.model.act(&pixels, &ids, &self.dataset)?;
        displacement(&said, &self.spec.embodiment)
    }
}

impl Policy for OpenVlaPolicy {
    fn spec(&self) -> &PolicySpec {
        &self.spec
    }

    fn infer(
        &mut self,
        history: &[Observation],
        options: &InferOptions,
    ) -> vela_embodiment::Result<ActionChunk> {
        let actions = newest(history).and_then(|newest| Ok(vec![self.action(newest)?]));
        answer(&self.spec, history, options, 7, actions)
    }
}

/// The data set whose units the actions are in.
pub(crate) fn chosen_dataset(choices: &Choices, known: &[&str]) -> Result<String> {
    match (&choices.dataset, known) {
        (Some(name), _) => Ok(name.clone()),
        (None, [only]) => Ok((*only).to_owned()),
        (None, _) => {
            let known = known.join(", ");
            Err(Error::invalid(format!("openvla: expected a choice of data set; there are: {known}")))
        }
    }
}

/// Seven numbers of an OpenVLA (displacement, turns about x, y and z, gripper) as a displacement of ours for a robot with a
/// gripper.
pub(crate) fn displacement(said: &[f64], robot: &Embodiment) -> Result<Vec<f64>> {
    let [x, y, z, roll, pitch, yaw, grip] = *said else {
        return Err(Error::invalid(format!("openvla: expected 7 numbers, got {}", said.len())));
    };
    let turn = rotation_vector(roll, pitch, yaw);
    // 1 is open and 0 is closed in the data that it was trained on.
    let joint = robot.gripper.as_ref().map(|g| g.closed + grip.clamp(0.0, 1.0) * (g.open - g.closed));
    Ok([x, y, z].into_iter().chain(turn).chain(joint).collect())
}

/// Turns about x, then y, then z (fixed axes, rad) as one rotation vector, rad.
fn rotation_vector(roll: f64, pitch: f64, yaw: f64) -> [f64; 3] {
    let [(sr, cr), (sp, cp), (sy, cy)] = [roll, pitch, yaw].map(|angle| (angle / 2.0).sin_cos());
    // The unit quaternion of the product.
    let w = cr * cp * cy + sr * sp * sy;
    let axis = [sr * cp * cy - cr * sp * sy, cr * sp * cy + sr * cp * sy, cr * cp * sy - sr * sp * cy];
    let sine = axis.iter().map(|x| x * x).sum::<f64>().sqrt();
    // The shorter way round.
    let (w, sign) = if w < 0.0 { (-w, -1.0) } else { (w, 1.0) };
    let factor = if sine < 1e-12 { 2.0 } else { 2.0 * sine.atan2(w) / sine };
    axis.map(|x| sign * factor * x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_about_one_axis_are_themselves_and_others_compose() {
        let close = |a: [f64; 3], b: [f64; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9);
        assert!(close(rotation_vector(0.3, 0.0, 0.0), [0.3, 0.0, 0.0]));
        assert!(close(rotation_vector(0.0, 0.0, -1.2), [0.0, 0.0, -1.2]));
        assert!(close(rotation_vector(0.0, 0.0, 0.0), [0.0; 3]));
        // Half a turn about x and half about y are half a turn about z.
        let half = std::f64::consts::PI;
        let got = rotation_vector(half, half, 0.0);
        assert!((got[2].abs() - half).abs() < 1e-9 && got[0].abs() < 1e-9, "{got:?}");
    }
}
