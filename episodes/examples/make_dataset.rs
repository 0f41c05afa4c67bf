//! Writes a small dataset of a made-up motion, to be opened with other people's tools:
//! `cargo run --release -p vela-episodes --example make_dataset -- FOLDER`.

use vela_embodiment::{Action, Embodiment, Error, Frame, Observation, Result, Stamp};
use vela_episodes::DatasetWriter;

fn main() -> Result<()> {
    let folder = std::env::args().nth(1).ok_or_else(|| Error::Parse {
        what: "arguments".into(),
        why: "expected the folder to write to".into(),
    })?;
    let so101 = Embodiment::so101()?;
    let mut writer = DatasetWriter::create(std::path::Path::new(&folder), &so101, 30)?;
    for (episode, task) in
        ["touch the red cube", "pick up the green ball", "touch the red cube"].iter().enumerate()
    {
        for tick in 0..20 * (episode + 1) {
            let secs = tick as f64 / 30.0;
            let joints: Vec<f64> = (0..6).map(|k| (secs + k as f64).sin() * 0.5).collect();
            let frames = so101.cameras.iter().map(|camera| {
                let pixel = |x: u32, y: u32| [(x * 2) as u8, (y * 2) as u8, (tick * 4) as u8];
                let rows = (0..camera.height).flat_map(|y| (0..camera.width).flat_map(move |x| pixel(x, y)));
                Frame {
                    camera: camera.name.clone(),
                    width: camera.width,
                    height: camera.height,
                    rgb: rows.collect::<Vec<u8>>().into(),
                    stamp: Stamp::from_secs(secs),
                }
            });
            let observation = Observation {
                frames: frames.collect(),
                joint_positions: joints.clone(),
                instruction: (*task).into(),
                stamp: Stamp::from_secs(secs),
            };
            let joint_targets = joints.iter().map(|q| q + 0.01).collect();
            writer.add_frame(&observation, &Action { joint_targets })?;
        }
        writer.end_episode(task, serde_json::json!({ "seed": episode, "success": true }))?;
    }
    println!("{} episodes, {} frames in {folder}", writer.episodes(), writer.frames());
    Ok(())
}
