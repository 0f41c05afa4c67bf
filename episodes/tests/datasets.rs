//! Datasets over real files: round trips, kills, other robots, torn files, LeRobot's own shapes.

use std::path::{Path, PathBuf};
use vela_embodiment::{
    Action, Applied, Checked, Clock, Embodiment, Environment, Episode, Error, Frame, GateConfig, Observation,
    Outcome, Result, Robot, SafetyGate, Stamp, VirtualClock,
};
use vela_episodes::copy::copy;
use vela_episodes::{Dataset, DatasetWriter, PictureFormat, Recorder, SI_UNITS};

fn so101() -> Result<Embodiment> {
    let mut embodiment = Embodiment::so101()?;
    for camera in &mut embodiment.cameras {
        (camera.width, camera.height) = (12, 8);
    }
    Ok(embodiment)
}

/// A frame whose every number tells which frame it is; all exact in 32 bits.
fn moment(embodiment: &Embodiment, episode: usize, frame: usize, task: &str) -> (Observation, Action) {
    let stamp = Stamp::from_secs(f64::from((frame as f64 / 30.0) as f32));
    let joint = |k: usize, offset: f64| offset + episode as f64 + frame as f64 / 64.0 + k as f64 / 8.0;
    let frames = embodiment.cameras.iter().enumerate().map(|(k, camera)| Frame {
        camera: camera.name.clone(),
        width: camera.width,
        height: camera.height,
        rgb: (0..camera.width * camera.height * 3)
            .map(|b| (b as usize * 7 + frame * 31 + k * 90) as u8)
            .collect(),
        stamp,
    });
    let observation = Observation {
        frames: frames.collect(),
        joint_positions: (0..6).map(|k| joint(k, 0.0)).collect(),
        instruction: task.into(),
        stamp,
    };
    (observation, Action { joint_targets: (0..6).map(|k| joint(k, 0.5)).collect() })
}

fn record(writer: &mut DatasetWriter, embodiment: &Embodiment, frames: usize, task: &str) -> Result<()> {
    let episode = writer.episodes();
    for frame in 0..frames {
        let (observation, action) = moment(embodiment, episode, frame, task);
        writer.add_frame(&observation, &action)?;
    }
    writer.end_episode(task, serde_json::json!({ "seed": episode })).map(|_| ())
}

fn check(folder: &Path, embodiment: &Embodiment, episodes: &[(usize, &str)]) -> Result<()> {
    let dataset = Dataset::open(folder)?;
    assert_eq!(dataset.len(), episodes.len());
    for (index, (length, task)) in episodes.iter().enumerate() {
        let episode = dataset.episode(index)?;
        assert_eq!((episode.frames.len(), episode.task.as_str()), (*length, *task));
        assert_eq!(episode.extra["seed"], index);
        for (k, frame) in episode.frames.iter().enumerate() {
            let (observation, action) = moment(embodiment, index, k, task);
            assert_eq!(frame.observation, observation, "episode {index}, frame {k}");
            assert_eq!(frame.action, action.joint_targets);
        }
    }
    Ok(())
}

fn text<T>(result: Result<T>) -> String {
    result.err().map(|e| e.to_string()).unwrap_or_default()
}

fn folder(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("set")
}

fn temporary() -> Result<tempfile::TempDir> {
    tempfile::tempdir().map_err(|source| Error::Io { path: "temporary folder".into(), source })
}

#[test]
fn what_is_read_is_what_was_seen() -> Result<()> {
    let (dir, so101) = (temporary()?, so101()?);
    let mut writer = DatasetWriter::create(&folder(&dir), &so101, 30)?;
    record(&mut writer, &so101, 7, "pick up the red cube")?;
    record(&mut writer, &so101, 3, "touch the blue ball")?;
    record(&mut writer, &so101, 5, "pick up the red cube")?;
    let episodes = [(7, "pick up the red cube"), (3, "touch the blue ball"), (5, "pick up the red cube")];
    check(&folder(&dir), &so101, &episodes)?;
    let dataset = Dataset::open(&folder(&dir))?;
    assert_eq!(dataset.state_names(), so101.joint_names());
    assert_eq!((dataset.total_frames(), dataset.fps()), (15, 30.0));
    dataset.require_same(&so101)?;
    let second = dataset.encoded(1)?.frame(2)?;
    assert_eq!(second.observation, moment(&so101, 1, 2, "touch the blue ball").0);
    assert!(text(dataset.episode(3)).contains("unknown episode '3'"));
    Ok(())
}

#[test]
fn a_kill_in_the_middle_of_an_episode_loses_no_frame() -> Result<()> {
    let (dir, so101) = (temporary()?, so101()?);
    let mut writer = DatasetWriter::create(&folder(&dir), &so101, 30)?;
    record(&mut writer, &so101, 4, "a")?;
    for frame in 0..3 {
        let (observation, action) = moment(&so101, 1, frame, "b");
        writer.add_frame(&observation, &action)?;
    }
    assert!(!Dataset::open(&folder(&dir))?.has_leftover(), "it is still being recorded");
    drop(writer);
    // What is committed opens as it is; the rest is brought in when recording goes on.
    let dataset = Dataset::open(&folder(&dir))?;
    assert_eq!((dataset.len(), dataset.has_leftover()), (1, true));
    let mut writer = DatasetWriter::create(&folder(&dir), &so101, 30)?;
    assert_eq!((writer.episodes(), writer.frames(), writer.pending_frames()), (2, 7, 0));
    assert_eq!(writer.recovered_frames(), 3);
    record(&mut writer, &so101, 6, "c")?;
    let dataset = Dataset::open(&folder(&dir))?;
    let interrupted = dataset.episode(1)?;
    assert_eq!((interrupted.task.as_str(), interrupted.extra["interrupted"].as_bool()), ("b", Some(true)));
    for (k, frame) in interrupted.frames.iter().enumerate() {
        let (observation, action) = moment(&so101, 1, k, "b");
        assert_eq!((&frame.observation, &frame.action), (&observation, &action.joint_targets));
    }
    assert_eq!((dataset.len(), dataset.has_leftover()), (3, false));
    assert_eq!(dataset.episode(2)?.frames[5].observation, moment(&so101, 2, 5, "c").0);
    assert!(vela_episodes::check::check(&dataset, &mut || ())?.problems.is_empty());
    Ok(())
}

#[test]
fn a_kill_between_frames_and_commit_is_cut_off_when_reopened() -> Result<()> {
    let (dir, so101) = (temporary()?, so101()?);
    let mut writer = DatasetWriter::create(&folder(&dir), &so101, 30)?;
    record(&mut writer, &so101, 4, "a")?;
    let episodes = folder(&dir).join("meta/episodes/chunk-000/file-000.parquet");
    let committed =
        std::fs::read(&episodes).map_err(|source| Error::Io { path: "episodes".into(), source })?;
    record(&mut writer, &so101, 5, "b")?;
    drop(writer);
    // As if the process had died after the frames of "b" and before their commit.
    std::fs::write(&episodes, committed).map_err(|source| Error::Io { path: "episodes".into(), source })?;
    check(&folder(&dir), &so101, &[(4, "a")])?;
    let mut writer = DatasetWriter::create(&folder(&dir), &so101, 30)?;
    record(&mut writer, &so101, 2, "c")?;
    check(&folder(&dir), &so101, &[(4, "a"), (2, "c")])?;
    let stats = Dataset::open(&folder(&dir))?.stats()?;
    assert_eq!(stats["observation.state"]["count"][0], 6);
    Ok(())
}

#[test]
fn statistics_are_those_computed_by_hand() -> Result<()> {
    let (dir, so101) = (temporary()?, so101()?);
    let mut writer = DatasetWriter::create(&folder(&dir), &so101, 30)?;
    record(&mut writer, &so101, 2, "a")?;
    record(&mut writer, &so101, 1, "a")?;
    // The first joint is 0, 1/64 and 1.
    let check = |writer: &DatasetWriter| {
        let Some((state, _)) = writer.stats() else { return false };
        let mean = (1.0 / 64.0 + 1.0) / 3.0;
        let variance = ((mean * mean) + (1.0 / 64.0f64 - mean).powi(2) + (1.0 - mean).powi(2)) / 3.0;
        (state.mean[0] - mean).abs() < 1e-9
            && (state.std[0] - variance.sqrt()).abs() < 1e-9
            && (state.min[0], state.max[0], state.count) == (0.0, 1.0, 3)
    };
    assert!(check(&writer), "{:?}", writer.stats());
    drop(writer);
    assert!(check(&DatasetWriter::create(&folder(&dir), &so101, 30)?), "after reopening");
    let stats = Dataset::open(&folder(&dir))?.stats()?;
    assert_eq!(stats["observation.images.front"]["mean"].as_array().map(Vec::len), Some(3));
    assert!(stats["observation.images.front"]["max"][0][0][0].as_f64().is_some_and(|x| x <= 1.0));
    Ok(())
}

#[test]
fn another_robot_or_rate_is_refused_with_the_difference() -> Result<()> {
    let (dir, so101) = (temporary()?, so101()?);
    record(&mut DatasetWriter::create(&folder(&dir), &so101, 30)?, &so101, 1, "a")?;
    let mut other = so101.clone();
    other.cameras[0].width = 13;
    other.cameras.pop();
    let why = text(DatasetWriter::create(&folder(&dir), &other, 30));
    assert!(why.contains("13x8 against 12x8") || why.contains("wrist"), "{why}");
    let why = text(DatasetWriter::create(&folder(&dir), &so101, 25));
    assert!(why.contains("25 frames per second against 30"), "{why}");
    assert!(text(Dataset::open(&folder(&dir))?.require_same(&other)).contains("wrist"));
    Ok(())
}

/// Said beside the numbers, and never mixed: not in one dataset, not by merging two.
#[test]
fn joints_in_other_units_stay_apart() -> Result<()> {
    let (dir, so101) = (temporary()?, so101()?);
    let (ours, theirs) = (folder(&dir), dir.path().join("degrees"));
    record(&mut DatasetWriter::create(&ours, &so101, 30)?, &so101, 1, "a")?;
    let degrees = |place: &Path| DatasetWriter::create_in(place, &so101, 30, None, "degrees");
    record(&mut degrees(&theirs)?, &so101, 1, "a")?;
    record(&mut degrees(&theirs)?, &so101, 1, "a")?;
    let (ours, theirs) = (Dataset::open(&ours)?, Dataset::open(&theirs)?);
    assert_eq!((ours.units(), theirs.units(), theirs.len()), (Some(SI_UNITS), Some("degrees"), 2));
    let difference = format!("joints in degrees against {SI_UNITS}");
    assert!(text(degrees(&folder(&dir))).contains(&difference));
    assert!(text(DatasetWriter::create(theirs.folder(), &so101, 30)).contains("against degrees"));
    let merged = copy(&[(&ours, vec![0]), (&theirs, vec![0])], &dir.path().join("both"), None, &mut || ());
    assert!(text(merged).contains(&difference));
    let copied = dir.path().join("copied");
    copy(&[(&theirs, vec![1])], &copied, None, &mut || ())?;
    assert_eq!(Dataset::open(&copied)?.units(), Some("degrees"), "a copy says it too");
    Ok(())
}

#[test]
fn two_writers_of_one_dataset_are_refused() -> Result<()> {
    let (dir, so101) = (temporary()?, so101()?);
    let _first = DatasetWriter::create(&folder(&dir), &so101, 30)?;
    assert!(text(DatasetWriter::create(&folder(&dir), &so101, 30)).contains("another process"));
    Ok(())
}

#[test]
fn bad_frames_are_refused_and_an_empty_episode_is_no_episode() -> Result<()> {
    let (dir, so101) = (temporary()?, so101()?);
    let mut writer = DatasetWriter::create(&folder(&dir), &so101, 30)?;
    let (observation, mut action) = moment(&so101, 0, 0, "a");
    action.joint_targets[1] = f64::NAN;
    assert!(text(writer.add_frame(&observation, &action)).contains("not finite"));
    action.joint_targets.pop();
    assert!(text(writer.add_frame(&observation, &action)).contains("6 joint targets"));
    assert!(text(writer.end_episode("a", serde_json::Value::Null)).contains("at least one frame"));
    Ok(())
}

#[test]
fn torn_files_missing_columns_and_older_versions_are_refused() -> Result<()> {
    let (dir, so101) = (temporary()?, so101()?);
    record(&mut DatasetWriter::create(&folder(&dir), &so101, 30)?, &so101, 9, "a")?;
    let io = |source| Error::Io { path: "test".into(), source };
    let data = folder(&dir).join("data/chunk-000/file-000.parquet");
    let whole = std::fs::read(&data).map_err(io)?;
    for keep in [0, 3, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&data, &whole[..keep]).map_err(io)?;
        let why = text(Dataset::open(&folder(&dir))?.episode(0));
        assert!(why.contains("file-000.parquet") && why.contains("torn"), "{keep} bytes: {why}");
        assert!(text(DatasetWriter::create(&folder(&dir), &so101, 30)).contains("torn"));
    }
    std::fs::write(&data, &whole).map_err(io)?;
    let info = folder(&dir).join("meta/info.json");
    let good = std::fs::read_to_string(&info).map_err(io)?;
    std::fs::write(&info, good.replace("images.wrist", "images.side")).map_err(io)?;
    let why = text(Dataset::open(&folder(&dir))?.episode(0));
    assert!(why.contains("observation.images.side") && why.contains("observation.images.wrist"), "{why}");
    std::fs::write(&info, good.replace("\"v3.0\"", "\"v2.0\"")).map_err(io)?;
    let why = text(Dataset::open(&folder(&dir)));
    assert!(why.contains("expected a LeRobot dataset of version v2.1 or v3.0, got v2.0"), "{why}");
    std::fs::write(&info, good.replace("\"v3.0\"", "\"v2.1\"")).map_err(io)?;
    assert!(text(Dataset::open(&folder(&dir))).contains("data_path: expected data/chunk-{episode_chunk"));
    std::fs::write(&info, good.replace("\"image\"", "\"video\"")).map_err(io)?;
    assert!(text(Dataset::open(&folder(&dir))).contains("video_path: expected videos/{video_key}/"));
    std::fs::write(&info, good.replace("12", "13")).map_err(io)?;
    assert!(text(Dataset::open(&folder(&dir))?.episode(0)).contains("expected 13x8, got 12x8"));
    Ok(())
}

#[test]
fn jpeg_pictures_are_near_and_smaller_files_are_many() -> Result<()> {
    let (dir, so101) = (temporary()?, so101()?);
    let mut writer =
        DatasetWriter::create_with(&folder(&dir), &so101, 30, PictureFormat::Jpeg { quality: 95 })?;
    for _ in 0..130 {
        record(&mut writer, &so101, 1, "a")?;
    }
    drop(writer);
    assert!(folder(&dir).join("meta/episodes/chunk-000/file-001.parquet").exists());
    let mut writer = DatasetWriter::create(&folder(&dir), &so101, 30)?;
    record(&mut writer, &so101, 2, "b")?;
    let dataset = Dataset::open(&folder(&dir))?;
    assert_eq!((dataset.len(), dataset.total_frames()), (131, 132));
    assert_eq!(dataset.episode(130)?.frames[1].observation, moment(&so101, 130, 1, "b").0);
    assert_eq!(dataset.episode(129)?.frames[0].observation.joint_positions[0], 129.0);
    Ok(())
}

/// An arm that is where it was told to be.
struct Obedient {
    embodiment: Embodiment,
    joints: Vec<f64>,
    clock: std::sync::Arc<VirtualClock>,
    instruction: String,
}

impl Robot for Obedient {
    fn embodiment(&self) -> &Embodiment {
        &self.embodiment
    }
    fn observe(&mut self) -> Result<Observation> {
        let mut observation = moment(&self.embodiment, 0, 0, &self.instruction).0;
        observation.joint_positions.clone_from(&self.joints);
        Ok(observation)
    }
    fn apply(&mut self, action: Checked<Action>) -> Result<Applied> {
        self.joints = action.into_inner().joint_targets;
        self.clock.advance_secs(self.embodiment.period_secs());
        Ok(Applied { joint_targets: self.joints.clone(), stamp: self.clock.now() })
    }
    fn clock(&self) -> std::sync::Arc<dyn Clock> {
        self.clock.clone()
    }
}

impl Environment for Obedient {
    fn reset(&mut self, episode: &Episode) -> Result<()> {
        self.joints = vec![0.0; 6];
        self.instruction.clone_from(&episode.task);
        Ok(())
    }
    fn outcome(&self) -> Outcome {
        Outcome::default()
    }
}

#[test]
fn a_recorder_records_what_was_sent_and_forgets_what_was_not_committed() -> Result<()> {
    let (dir, so101) = (temporary()?, so101()?);
    let writer = DatasetWriter::create(&folder(&dir), &so101, 30)?;
    let arm = Obedient {
        embodiment: so101.clone(),
        joints: vec![],
        clock: Default::default(),
        instruction: String::new(),
    };
    let mut recorder = Recorder::new(arm, writer)?;
    assert!(recorder.end_episode(serde_json::Value::Null).is_err());
    for (task, commit) in [("first", true), ("lost", false), ("second", true)] {
        recorder.reset(&Episode { task: task.into(), ..Episode::default() })?;
        let mut gate = SafetyGate::new(&so101, GateConfig::default(), &[0.0; 6])?;
        for tick in 0..5 {
            let observation = recorder.observe()?;
            let now = recorder.clock().now();
            let asked = Action { joint_targets: vec![0.002 * f64::from(tick); 6] };
            if tick == 4 {
                recorder.label(Action { joint_targets: vec![0.25; 6] });
            }
            assert_eq!(observation.joint_positions.len(), 6);
            recorder.apply(gate.check(Some((&asked, now)), now).action)?;
        }
        if commit {
            recorder.end_episode(serde_json::json!({ "success": true }))?;
        }
    }
    let (_, writer) = recorder.finish()?;
    assert_eq!((writer.episodes(), writer.frames()), (2, 10));
    let dataset = Dataset::open(&folder(&dir))?;
    let episodes = dataset.iter().collect::<Result<Vec<_>>>()?;
    assert_eq!((episodes[0].task.as_str(), episodes[1].task.as_str()), ("first", "second"));
    let frames = &episodes[1].frames;
    assert_eq!(frames[3].observation.joint_positions, frames[2].action, "the arm obeys");
    assert_eq!(frames[4].action, [0.25; 6], "the label stands in for what was sent");
    assert_eq!(episodes[0].extra["success"], true);
    Ok(())
}
