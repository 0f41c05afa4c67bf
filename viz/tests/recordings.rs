//! Recordings: what is in them, that they land in a file, and that they never hold up the caller.

use std::collections::BTreeMap;
use vela_embodiment::{Embodiment, Frame, Geometry, Observation, Stamp, Trip, TripReason};
use vela_viz::{Backlog, Destination, Form, Report, Show, Solid, Tick};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn tick(embodiment: &Embodiment, k: u64) -> Tick {
    let stamp = Stamp::from_secs(7.0 + k as f64 / 30.0);
    let frames = embodiment.cameras.iter().map(|camera| Frame {
        camera: camera.name.clone(),
        width: camera.width,
        height: camera.height,
        rgb: vec![k as u8; (camera.width * camera.height * 3) as usize].into(),
        stamp,
    });
    let trips = vec![Trip::new(TripReason::Velocity, "joint 'elbow_flex': too fast", stamp)];
    Tick {
        observation: Observation {
            frames: frames.collect(),
            joint_positions: vec![0.01 * k as f64; embodiment.joints.len()],
            instruction: "touch the red cube".into(),
            stamp,
        },
        joint_targets: vec![0.01 * k as f64; embodiment.joints.len()],
        held: false,
        trips: if k == 3 { trips } else { Vec::new() },
        base_from_solids: vec![nalgebra::Isometry3::translation(0.2, 0.0, 0.01)],
    }
}

fn episode(show: &Show, embodiment: &Embodiment, number: usize) {
    show.begin_episode(number, "touch the red cube", Stamp::from_secs(7.0));
    show.solids(vec![Solid {
        name: "red cube".into(),
        form: Form::Plain(Geometry::Sphere { radius: 0.01 }),
        rgba: [1.0, 0.0, 0.0, 1.0],
        base_from_solid: nalgebra::Isometry3::identity(),
    }]);
    for k in 0..10 {
        show.tick(tick(embodiment, k));
        show.plan(&vec![vec![0.1; embodiment.joints.len()]; 4], Stamp::from_secs(7.0));
        show.latency("policy", 0.008, Stamp::from_secs(7.0));
    }
    show.end_episode(true, "in 0.3 s", Stamp::from_secs(7.4));
}

#[test]
fn every_kind_of_thing_is_in_the_recording() -> Outcome {
    let so101 = Embodiment::so101()?;
    let (show, storage) = Show::to_memory(&so101)?;
    episode(&show, &so101, 1);
    episode(&show, &so101, 2);
    let report = show.finish()?;
    assert_eq!(report, Report { shown: 2 * (3 + 30), dropped: 0 });
    let mut rows: BTreeMap<String, usize> = BTreeMap::new();
    for message in storage.take() {
        if let rerun::log::LogMsg::ArrowMsg(_, message) = &message {
            let chunk = rerun::log::Chunk::from_arrow_msg(message)?;
            *rows.entry(chunk.entity_path().to_string()).or_default() += chunk.num_rows();
        }
    }
    let count = |path: &str| rows.get(path).copied().unwrap_or_default();
    assert_eq!(count("/cameras/front"), 20, "{rows:?}");
    assert_eq!(count("/world/arm/gripper"), 20);
    assert_eq!(count("/joints/elbow_flex/measured"), 21, "one static row names the curve");
    assert_eq!(count("/joints/elbow_flex/gate"), 3);
    assert_eq!(count("/world/things/episode_2/red_cube"), 11);
    assert_eq!(count("/world/plan"), 24);
    assert!(count("/task") == 4 && count("/log") == 6 && count("/latency/policy") == 21, "{rows:?}");
    assert!(rows.keys().any(|path| path.ends_with("EyeControls3D")), "{rows:?}");
    Ok(())
}

#[test]
fn a_file_is_written_and_a_bad_path_is_refused() -> Outcome {
    let (so101, dir) = (Embodiment::so101()?, tempfile::tempdir()?);
    let path = dir.path().join("run.rrd");
    let show = Show::open(&Destination::File(path.clone()), &so101, Backlog::Wait)?;
    episode(&show, &so101, 1);
    show.finish()?;
    let bytes = std::fs::read(&path)?;
    assert!(bytes.len() > 10_000 && bytes.starts_with(b"RRF2"), "{} bytes", bytes.len());
    let nowhere = Destination::File(dir.path().join("no/such/folder/run.rrd"));
    let why = Show::open(&nowhere, &so101, Backlog::Drop).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(why.contains("no/such/folder"), "{why}");
    Ok(())
}

#[test]
fn calls_return_at_once_when_the_thread_is_behind() -> Outcome {
    let (so101, dir) = (Embodiment::so101()?, tempfile::tempdir()?);
    let show = Show::open(&Destination::File(dir.path().join("run.rrd")), &so101, Backlog::Drop)?;
    let ticks: Vec<Tick> = (0..2000).map(|k| tick(&so101, k)).collect();
    let calls = ticks.len() as u64;
    for tick in ticks {
        show.tick(tick);
    }
    let report = show.finish()?;
    assert!(report.dropped > 0 && report.shown + report.dropped == calls, "{report:?}");
    Ok(())
}
