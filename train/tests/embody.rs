//! A policy for another robot, begun with the one that ships: what it has seen and read stays, what meets the robot is new.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use vela_embodiment::{Embodiment, Frame, InferOptions, Observation, Policy, Stamp};
use vela_nn::{Device, Tensor};
use vela_policy::{Storage, VlaParts, VlaPolicy};
use vela_train::Result;
use vela_train::finetune::{Moment, Moments, embody};

type Outcome<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

fn base() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tabletop")
}

/// Four joints of the SO-101 and one camera of another name.
fn robot() -> Outcome<Embodiment> {
    let mut robot = Embodiment::so101()?;
    robot.joints.truncate(4);
    robot.cameras.truncate(1);
    (robot.cameras[0].name, robot.cameras[0].width, robot.cameras[0].height) = ("side".into(), 96, 96);
    Ok(robot)
}

fn observation() -> Observation {
    let rgb = vec![80; 96 * 96 * 3].into();
    Observation {
        frames: vec![Frame { camera: "side".into(), width: 96, height: 96, rgb, stamp: Stamp(0) }],
        joint_positions: vec![0.1; 4],
        instruction: "shut the door".into(),
        stamp: Stamp(0),
    }
}

struct Still;

impl Moments for Still {
    fn count(&self) -> usize {
        3
    }

    fn moment(&self, at: usize, horizon: usize) -> Result<Moment> {
        let actions = vec![vec![0.1 + 0.01 * at as f64; 4]; horizon];
        Ok(Moment { observation: observation(), actions, recorded: horizon })
    }
}

#[test]
fn what_was_learnt_stays_and_what_meets_the_robot_is_new() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (begun, robot) = (dir.path().join("begun"), robot()?);
    let sentences = BTreeSet::from(["Shut the door".to_owned(), "push the red cube".to_owned()]);
    embody(&base(), &robot, &Still, &sentences, 5, &begun)?;

    let tensors = |dir: &Path| candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu);
    let (own, new) = (tensors(&base())?, tensors(&begun)?);
    let same = |a: &Tensor, b: &Tensor| -> Outcome<bool> {
        Ok(a.dims() == b.dims()
            && (a - b)?.abs()?.max_all()?.to_dtype(vela_nn::DType::F32)?.to_scalar::<f32>()? == 0.0)
    };
    let mut kept = 0;
    for (name, tensor) in &own {
        let new = new.get(name).ok_or(format!("{name} is gone"))?;
        if same(tensor, new)? {
            kept += 1;
        } else if new.dim(0)? > tensor.dim(0)? && new.rank() == 2 && !name.contains("proj") {
            // The rows of words and cameras that there were.
            assert!(same(tensor, &new.narrow(0, 0, tensor.dim(0)?)?)?, "{name}");
        }
    }
    assert!(kept * 10 > own.len() * 8, "{kept} of {}", own.len());

    // Whoever opens the folder has a policy of four joints that reads the new words.
    let parts = VlaParts::open(&begun, &robot, Storage::Plain)?;
    assert_eq!((parts.config().state_dims, parts.config().expert.action_dims), (4, 4));
    let mut policy = VlaPolicy::load(&begun)?;
    let chunk = policy.infer(&[observation()], &InferOptions::default())?;
    assert!(chunk.actions.iter().all(|row| row.len() == 4));
    Ok(())
}

#[test]
fn another_picture_size_and_another_kind_of_policy_are_refused() -> Outcome {
    let dir = tempfile::tempdir()?;
    let begun = dir.path().join("begun");
    let say = |base: &Path, robot: &Embodiment| match embody(base, robot, &Still, &BTreeSet::new(), 5, &begun)
    {
        Ok(()) => String::new(),
        Err(e) => e.to_string(),
    };
    let mut wide = robot()?;
    wide.cameras[0].width = 128;
    assert!(say(&base(), &wide).contains("camera 'side': expected 96 x 96 pixels, got 128 x 96"));
    let smolvla = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/smolvla");
    assert!(!say(&smolvla, &robot()?).is_empty());
    assert!(!begun.exists());
    Ok(())
}
