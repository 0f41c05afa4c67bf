//! LeRobot folders as policies, and what is wrong with them: each is refused with one sentence that says what.

use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vela_embodiment::{Camera, Embodiment, Frame, InferOptions, Observation, Policy, Stamp};
use vela_nn::{Error, Result};
use vela_policy::*;

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

/// A copy of a case that may be spoilt.
fn copy(name: &str) -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir().map_err(Error::invalid)?;
    for entry in std::fs::read_dir(case(name)).map_err(Error::invalid)? {
        let path = entry.map_err(Error::invalid)?.path();
        let name = path.file_name().unwrap_or_default().to_owned();
        if path.is_dir() {
            let inner = dir.path().join(&name);
            std::fs::create_dir_all(&inner).map_err(Error::invalid)?;
            for file in std::fs::read_dir(&path).map_err(Error::invalid)? {
                let file = file.map_err(Error::invalid)?;
                std::fs::copy(file.path(), inner.join(file.file_name())).map_err(Error::invalid)?;
            }
        } else if name != "golden.safetensors" {
            std::fs::copy(&path, dir.path().join(name)).map_err(Error::invalid)?;
        }
    }
    Ok(dir)
}

fn edit(path: &Path, from: &str, to: &str) -> Result<()> {
    let text = std::fs::read_to_string(path).map_err(Error::invalid)?;
    assert!(text.contains(from), "{} has no {from}", path.display());
    std::fs::write(path, text.replace(from, to)).map_err(Error::invalid)
}

/// An arm with `joints` joints and these cameras.
fn arm(joints: usize, cameras: &[(&str, u32, u32)]) -> Result<Embodiment> {
    let mut embodiment = Embodiment::so101().map_err(Error::invalid)?;
    embodiment.joints.truncate(joints);
    embodiment.cameras = cameras
        .iter()
        .map(|(name, width, height)| Camera { name: (*name).into(), width: *width, height: *height })
        .collect();
    Ok(embodiment)
}

fn seen(embodiment: &Embodiment, brightness: u8) -> Observation {
    let frame = |camera: &Camera| Frame {
        camera: camera.name.clone(),
        width: camera.width,
        height: camera.height,
        rgb: (0..camera.width * camera.height * 3)
            .map(|i| (i % 200) as u8 ^ brightness)
            .collect::<Vec<_>>()
            .into(),
        stamp: Stamp(7),
    };
    Observation {
        frames: embodiment.cameras.iter().map(frame).collect(),
        joint_positions: vec![0.1; embodiment.joints.len()],
        instruction: "pick up the red cube".into(),
        stamp: Stamp(7),
    }
}

fn act(dir: &Path, embodiment: &Embodiment) -> Result<FolderPolicy> {
    let (folder, weights, network) = Act::open(dir, Storage::Plain)?;
    FolderPolicy::new(&folder, &weights, Box::new(network), embodiment)
}

fn why(result: Result<FolderPolicy>) -> String {
    result.err().map(|e| e.to_string()).unwrap_or_default()
}

#[test]
fn act_answers_and_repeats_itself() -> Result<()> {
    let arm = arm(6, &[("top", 64, 96)])?;
    let mut policy = act(&case("act"), &arm)?;
    let chunk = policy.infer(&[seen(&arm, 0)], &InferOptions::default()).map_err(Error::invalid)?;
    assert_eq!((chunk.horizon(), policy.spec().execute, chunk.checkpoint.len()), (10, 10, 64));
    let again = policy.infer(&[seen(&arm, 0)], &InferOptions::default()).map_err(Error::invalid)?;
    assert_eq!(chunk, again);
    let other = policy.infer(&[seen(&arm, 3)], &InferOptions::default()).map_err(Error::invalid)?;
    assert_ne!(chunk.actions, other.actions);
    Ok(())
}

#[test]
fn temporal_ensembling_is_on_where_the_folder_asks_for_it() -> Result<()> {
    let (dir, arm) = (copy("act")?, arm(6, &[("top", 64, 96)])?);
    edit(
        &dir.path().join("config.json"),
        "\"temporal_ensemble_coeff\": null",
        "\"temporal_ensemble_coeff\": 0.01",
    )?;
    let (mut plain, mut ensembled) = (act(&case("act"), &arm)?, act(dir.path(), &arm)?);
    let tick = (arm.period_secs() * 1e9).round() as u64;
    let mut at = |ticks: u64, brightness: u8| -> Result<bool> {
        let observation = Observation { stamp: Stamp(7 + ticks * tick), ..seen(&arm, brightness) };
        let ask = |policy: &mut FolderPolicy| {
            policy.infer(std::slice::from_ref(&observation), &InferOptions::default()).map_err(Error::invalid)
        };
        let (one, many) = (ask(&mut plain)?, ask(&mut ensembled)?);
        assert_eq!(one.horizon(), many.horizon());
        let close = |a: &Vec<f64>, b: &Vec<f64>| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        Ok(one.actions.iter().zip(&many.actions).all(|(a, b)| close(a, b)))
    };
    assert!(at(0, 0)?, "the first chunk is alone");
    assert!(!at(1, 90)?, "the second is averaged with the first");
    assert!(at(50, 120)?, "after a pause nothing is left of it");
    assert!(at(3, 90)?, "and when time goes back");
    Ok(())
}

#[test]
fn robots_that_take_turns_are_told_what_each_alone_would_be() -> Result<()> {
    let (dir, arm) = (copy("act")?, arm(6, &[("top", 64, 96)])?);
    let config = dir.path().join("config.json");
    edit(&config, "\"temporal_ensemble_coeff\": null", "\"temporal_ensemble_coeff\": 0.01")?;
    let tick = (arm.period_secs() * 1e9).round() as u64;
    let ask = |policy: &mut FolderPolicy, ticks: u8, brightness: u8| {
        let stamp = Stamp(7 + u64::from(ticks) * tick);
        let observation = Observation { stamp, ..seen(&arm, brightness + 20 * ticks) };
        policy.infer(&[observation], &InferOptions::default()).map_err(Error::invalid)
    };
    let alone = |brightness: u8| -> Result<Vec<_>> {
        let mut policy = act(dir.path(), &arm)?;
        (0..4).map(|ticks| ask(&mut policy, ticks, brightness)).collect()
    };
    let (left, right) = (alone(0)?, alone(120)?);
    let mut shared = act(dir.path(), &arm)?;
    for ticks in 0..4 {
        for (robot, brightness, expected) in [("left", 0, &left), ("right", 120, &right)] {
            shared.turn_to(robot);
            assert_eq!(
                ask(&mut shared, ticks, brightness)?,
                expected[usize::from(ticks)],
                "{robot}, {ticks}"
            );
        }
    }
    // Whoever was never told apart is one robot: then the one's past shows in the other's answer.
    let mut mixed = act(dir.path(), &arm)?;
    ask(&mut mixed, 0, 0)?;
    assert_ne!(ask(&mut mixed, 1, 120)?, right[1]);
    Ok(())
}

#[test]
fn a_policy_s_pictures_and_joints_are_normalised_as_the_reference_does() -> Result<()> {
    for name in ["act", "diffusion", "diffusion_ddim"] {
        let golden = candle_core::safetensors::load(case(name).join("golden.safetensors"), &Device::Cpu)?;
        let folder = Folder::read(&case(name), &[])?;
        let weights = vela_nn::Weights::load_dir(&case(name))?;
        let state = folder.scaling_in("observation.state", "STATE", &weights)?;
        let flat = |name: &str| -> Result<Vec<f32>> { Ok(golden[name].flatten_all()?.to_vec1()?) };
        let (raw, want) = (flat("in.raw.observation.state")?, flat("in.observation.state")?);
        let dims = folder.inputs.width("STATE")?;
        let made: Vec<f32> =
            raw.chunks(dims).map(|row| state.normalise(row)).collect::<Result<Vec<_>>>()?.concat();
        assert!(made.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-5), "{name}");
        for camera in folder.cameras()? {
            let Some(raw) = golden.get(&format!("in.raw.{}", camera.feature)) else { continue };
            let scaling = folder.scaling_in(&camera.feature, "VISUAL", &weights)?;
            let mut values = raw.flatten_all()?.to_vec1::<f32>()?;
            scaling.normalise_planes(&mut values, 3)?;
            let want = flat(&format!("in.{}", camera.feature))?;
            assert!(values.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-4), "{name} {}", camera.name);
        }
    }
    Ok(())
}

#[test]
fn a_wrong_camera_and_a_wrong_joint_are_named() -> Result<()> {
    let error = why(act(&case("act"), &arm(6, &[("front", 64, 96)])?));
    assert!(error.contains("camera 'top'") && error.contains("front"), "{error}");
    let error = why(act(&case("act"), &arm(6, &[("top", 640, 480)])?));
    assert!(error.contains("64 x 96") && error.contains("640 x 480"), "{error}");
    let error = why(act(&case("act"), &arm(5, &[("top", 64, 96)])?));
    assert!(error.contains("6 joints") && error.contains("5 joints"), "{error}");
    Ok(())
}

#[test]
fn swapped_joints_are_refused_where_the_folder_names_them() -> Result<()> {
    let (dir, arm) = (copy("act")?, arm(6, &[("top", 64, 96)])?);
    let mut other = arm.clone();
    std::fs::write(dir.path().join("embodiment.json"), serde_json::to_vec(&other).map_err(Error::invalid)?)
        .map_err(Error::invalid)?;
    act(dir.path(), &arm)?;
    other.joints.swap(1, 2);
    std::fs::write(dir.path().join("embodiment.json"), serde_json::to_vec(&other).map_err(Error::invalid)?)
        .map_err(Error::invalid)?;
    let error = why(act(dir.path(), &arm));
    assert!(error.contains("shoulder_pan, elbow_flex, shoulder_lift"), "{error}");
    Ok(())
}

/// Writes a case's state file anew with one statistic changed.
fn spoil(dir: &Path, file: &str, statistic: &str, change: impl Fn(&mut Vec<f32>)) -> Result<()> {
    let path = dir.join(file);
    let mut tensors: HashMap<String, Tensor> = candle_core::safetensors::load(&path, &Device::Cpu)?;
    let mut values = tensors[statistic].flatten_all()?.to_vec1::<f32>()?;
    change(&mut values);
    tensors.insert(statistic.into(), Tensor::new(values, &Device::Cpu)?);
    std::fs::remove_file(&path).map_err(Error::invalid)?;
    Ok(candle_core::safetensors::save(&tensors, path)?)
}

const BEFORE: &str = "policy_preprocessor_step_3_normalizer_processor.safetensors";
const AFTER: &str = "policy_postprocessor_step_0_unnormalizer_processor.safetensors";

#[test]
fn statistics_that_are_no_use_are_refused() -> Result<()> {
    let arm = arm(6, &[("top", 64, 96)])?;
    for (statistic, file, what) in [
        ("observation.state.mean", BEFORE, "not finite"),
        ("action.std", AFTER, "not finite"),
        ("observation.images.top.mean", BEFORE, "not finite"),
    ] {
        let dir = copy("act")?;
        spoil(dir.path(), file, statistic, |values| values[0] = f32::NAN)?;
        let error = why(act(dir.path(), &arm));
        assert!(error.contains(what), "{statistic}: {error}");
    }
    let dir = copy("act")?;
    spoil(dir.path(), BEFORE, "observation.state.std", |values| values.truncate(4))?;
    assert!(why(act(dir.path(), &arm)).contains("lengths 6 and 4"), "{}", why(act(dir.path(), &arm)));
    let dir = copy("act")?;
    for statistic in ["action.mean", "action.std"] {
        spoil(dir.path(), AFTER, statistic, |values| values.truncate(4))?;
    }
    let error = why(act(dir.path(), &arm));
    assert!(error.contains("action") && error.contains("6 numbers, got 4"), "{error}");
    Ok(())
}

#[test]
fn quantiles_without_width_are_refused() -> Result<()> {
    let (dir, arm) = (copy("act")?, arm(6, &[("top", 64, 96)])?);
    edit(
        &dir.path().join("policy_postprocessor.json"),
        "\"ACTION\": \"MEAN_STD\"",
        "\"ACTION\": \"QUANTILES\"",
    )?;
    act(dir.path(), &arm)?;
    let high = candle_core::safetensors::load(dir.path().join(AFTER), &Device::Cpu)?["action.q99"]
        .to_vec1::<f32>()?;
    spoil(dir.path(), AFTER, "action.q01", |values| values[3] = high[3])?;
    let error = why(act(dir.path(), &arm));
    assert!(error.contains("action: dimension 3") && error.contains("no width"), "{error}");
    Ok(())
}

#[test]
fn step_files_that_are_missing_strange_or_outside_are_refused() -> Result<()> {
    let arm = arm(6, &[("top", 64, 96)])?;
    let spoilt = |change: &dyn Fn(&Path) -> Result<()>| -> Result<String> {
        let dir = copy("act")?;
        change(dir.path())?;
        Ok(why(act(dir.path(), &arm)))
    };
    let error = spoilt(&|dir| std::fs::remove_file(dir.join(BEFORE)).map_err(Error::invalid))?;
    assert!(error.contains(BEFORE), "{error}");
    let error = spoilt(&|dir| std::fs::write(dir.join(AFTER), b"torn").map_err(Error::invalid))?;
    assert!(error.contains(AFTER), "{error}");
    let error = spoilt(&|dir| edit(&dir.join("policy_preprocessor.json"), BEFORE, "../../etc/passwd"))?;
    assert!(error.contains("not a plain file name"), "{error}");
    let error = spoilt(&|dir| {
        edit(&dir.join("policy_preprocessor.json"), "to_batch_processor", "mystery_processor")
    })?;
    assert!(error.contains("mystery_processor"), "{error}");
    let error = spoilt(&|dir| {
        edit(&dir.join("policy_preprocessor.json"), "\"rename_map\": {}", "\"rename_map\": {\"a\": \"b\"}")
    })?;
    assert!(error.contains("renamed"), "{error}");
    // Another step's file in its place: the statistics of other features.
    let error = spoilt(&|dir| {
        std::fs::copy(case("diffusion").join(BEFORE), dir.join(BEFORE)).map(|_| ()).map_err(Error::invalid)
    })?;
    assert!(error.contains("6 numbers, got 5"), "{error}");
    let error = spoilt(&|dir| edit(&dir.join("config.json"), "\"pre_norm\": false", "\"pre_norm\": 3"))?;
    assert!(error.contains("config.json"), "{error}");
    let error = spoilt(&|dir| edit(&dir.join("config.json"), "resnet18", "resnet50"))?;
    assert!(error.contains("vision_backbone"), "{error}");
    Ok(())
}

#[test]
fn diffusion_policy_reads_two_moments_and_its_seed() -> Result<()> {
    // Joints and actions of one number: the case has five and four, which no arm here fits.
    let error = {
        let (folder, weights, network) = DiffusionPolicy::open(&case("diffusion"), Storage::Plain)?;
        why(FolderPolicy::new(&folder, &weights, Box::new(network), &arm(5, &[("top", 80, 64)])?))
    };
    assert!(error.contains("4 actions") && error.contains("5 joints"), "{error}");
    let (_, _, network) = DiffusionPolicy::open(&case("diffusion"), Storage::Plain)?;
    assert_eq!((network.history(), Network::horizon(&network)), (2, 6));
    let moment = |shift: f32| -> Result<Moment> {
        Ok(Moment {
            pictures: vec![vela_nn::random::normal(1, "picture", (3, 64, 80))?],
            state: vec![shift; 5],
            instruction: Arc::<str>::from("").to_string(),
        })
    };
    let moments = [moment(0.1)?, moment(0.2)?];
    let answer = |seed| -> Result<Vec<f32>> { Ok(network.act(&moments, seed)?.flatten_all()?.to_vec1()?) };
    assert_eq!((answer(1)?.len(), answer(1)?), (24, answer(1)?));
    assert_ne!(answer(1)?, answer(2)?);
    assert!(network.act(&moments[..1], 1).is_err());
    Ok(())
}

#[test]
fn folders_are_described() -> Result<()> {
    for (name, head, history, horizon) in [
        ("act", "regression of a chunk", 1, 10),
        ("diffusion", "DDPM, predicts epsilon, 10 of 100", 2, 6),
        ("diffusion_ddim", "DDIM", 2, 6),
        ("smolvla", "flow, 10 steps", 1, 10),
        ("pi0", "flow, 10 steps", 1, 10),
        ("pi05", "flow, 10 steps", 1, 10),
    ] {
        let summary = describe(&case(name))?;
        assert!(summary.head.contains(head) && summary.compared, "{name}: {summary:?}");
        assert_eq!(
            (summary.history, summary.horizon, summary.statistics.len()),
            (history, horizon, 2),
            "{name}"
        );
        assert!(!summary.cameras.is_empty() && summary.weight_bytes > 1000 && summary.state_dims.is_some());
        assert!(summary.to_string().contains("compared with a reference run"), "{summary}");
    }
    assert!(describe(&case("siglip")).is_err_and(|e| e.to_string().contains("no policy")));
    Ok(())
}

#[test]
fn any_folder_opens_by_one_door() -> Result<()> {
    let choices = Choices::default();
    let mut policy = open(&case("act"), &arm(6, &[("top", 64, 96)])?, &choices)?;
    let robot = policy.spec().embodiment.clone();
    let chunk = policy.infer(&[seen(&robot, 0)], &InferOptions::default()).map_err(Error::invalid)?;
    assert_eq!(chunk.horizon(), 10);
    for (name, cameras) in
        [("smolvla", ["camera1", "camera2"]), ("pi0", ["base", "wrist"]), ("pi05", ["base", "wrist"])]
    {
        let robot = arm(6, &cameras.map(|camera| (camera, 80, 48)))?;
        let policy = open(&case(name), &robot, &choices)?;
        assert_eq!(policy.spec().horizon, 10, "{name}");
        let error = open(&case(name), &arm(6, &[("left", 80, 48)])?, &choices).err().map(|e| e.to_string());
        assert!(error.unwrap_or_default().contains(cameras[0]), "{name}");
    }
    let error = open(&case("siglip"), &robot, &choices).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("'siglip' is no policy"), "{error}");
    Ok(())
}

#[test]
fn openvla_moves_the_gripper_in_the_units_of_its_data_set() -> Result<()> {
    let dir = copy("openvla")?;
    // The case has no tokenizer; any will do to ask it something.
    std::fs::copy(case("pi0").join("tokenizer.json"), dir.path().join("tokenizer.json"))
        .map_err(Error::invalid)?;
    let robot = Embodiment::so101().map_err(Error::invalid)?;
    let mut choices = Choices { camera: Some(robot.cameras[1].name.clone()), ..Choices::default() };
    let mut policy = open(dir.path(), &robot, &choices)?;
    let ask = |policy: &mut Box<dyn Policy>| {
        let observation = Observation { instruction: "no".into(), ..seen(&robot, 5) };
        policy.infer(&[observation], &InferOptions::default()).map_err(Error::invalid)
    };
    // Words outside its small vocabulary are an error and not a panic.
    if let Ok(chunk) = ask(&mut policy) {
        assert_eq!((chunk.actions[0].len(), chunk.horizon()), (7, 1));
        assert!(chunk.actions[0][2] >= -0.36 && chunk.actions[0][2] <= 1.91, "{chunk:?}");
    }
    choices.dataset = Some("bridge".into());
    let error = open(dir.path(), &robot, &choices).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("'bridge'") && error.contains("tiny"), "{error}");
    choices = Choices { camera: Some("nose".into()), ..Choices::default() };
    let error = open(dir.path(), &robot, &choices).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("no camera 'nose'"), "{error}");
    Ok(())
}

#[test]
fn a_fine_tune_that_says_no_vlm_layers_means_all_that_are_stored() -> Result<()> {
    let dir = copy("smolvla")?;
    edit(&dir.path().join("config.json"), "\"num_vlm_layers\": 3", "\"num_vlm_layers\": 0")?;
    assert_eq!(SmolVla::load(dir.path(), Storage::Plain)?.config.decoder.layers, 3);
    Ok(())
}

#[test]
fn real_time_chunking_follows_the_folder_unless_it_is_told_otherwise_and_what_cannot_refuses() -> Result<()> {
    let robot = arm(6, &[("camera1", 80, 48), ("camera2", 80, 48)])?;
    let stated = copy("smolvla")?;
    let path = stated.path().join("config.json");
    let text = std::fs::read_to_string(&path).map_err(Error::invalid)?;
    let rtc = r#""rtc_config": {"enabled": true, "prefix_attention_schedule": "ONES", "max_guidance_weight": 10.0, "execution_horizon": 8}"#;
    std::fs::write(&path, text.replace(r#""rtc_config": null"#, rtc)).map_err(Error::invalid)?;
    let old = vec![vec![0.3; 6]; 6];
    let options = InferOptions { seed: 1, delay_ticks: 2, unexecuted: old.clone() };
    // How far the first action is from what the arm is about to do.
    let off = |dir: &Path, rtc: Rtc| -> Result<f64> {
        let mut policy = open(dir, &robot, &Choices { rtc, ..Choices::default() })?;
        let chunk = policy.infer(&[seen(&robot, 0)], &options).map_err(Error::invalid)?;
        Ok(chunk.actions[0].iter().map(|x| (x - old[0][0]).abs()).sum())
    };
    let (plain, silent) = (off(&case("smolvla"), Rtc::Off)?, off(&case("smolvla"), Rtc::AsStated)?);
    assert_eq!((plain, off(stated.path(), Rtc::Off)?), (silent, plain));
    for guided in [off(&case("smolvla"), Rtc::On)?, off(stated.path(), Rtc::AsStated)?] {
        assert!(guided < 0.5 * plain, "{guided} and {plain}");
    }
    let choices = Choices { rtc: Rtc::On, ..Choices::default() };
    let refused = open(&case("act"), &arm(6, &[("top", 64, 96)])?, &choices).err().map(|e| e.to_string());
    assert!(refused.is_some_and(|why| why.contains("by a flow") && why.contains("'act' does not")));
    Ok(())
}
