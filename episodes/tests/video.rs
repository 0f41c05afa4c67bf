//! Datasets with pictures as H.264: what is read is near what was seen and each frame is itself, kills, refusals.

use std::path::{Path, PathBuf};
use vela_embodiment::{Action, Embodiment, Error, Frame, Observation, Result, Stamp};
use vela_episodes::check::{check, repair};
use vela_episodes::copy::copy;
use vela_episodes::{Dataset, DatasetWriter, PictureFormat};

/// Sides that no macroblock of 16x16 fits.
const SIZE: (u32, u32) = (72, 50);

fn io(source: std::io::Error) -> Error {
    Error::Io { path: "test".into(), source }
}

fn so101((width, height): (u32, u32)) -> Result<Embodiment> {
    let mut embodiment = Embodiment::so101()?;
    for camera in &mut embodiment.cameras {
        (camera.width, camera.height) = (width, height);
    }
    Ok(embodiment)
}

/// A soft ground whose colours turn, and a white square that moves: every frame differs from its neighbours.
fn picture((width, height): (u32, u32), camera: usize, episode: usize, frame: usize) -> Vec<u8> {
    let (left, top) = ((frame * 3) as u32 % (width - 12), (8 + 5 * episode) as u32);
    let pixel = |x: u32, y: u32| {
        if (left..left + 12).contains(&x) && (top..top + 12).contains(&y) {
            return [235, 235, 235];
        }
        [(x * 2) as u8, (y * 3) as u8, (40 + 60 * camera + 7 * frame % 80) as u8]
    };
    (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(x, y))).collect()
}

fn moment(embodiment: &Embodiment, episode: usize, frame: usize, fps: f64) -> (Observation, Action) {
    let stamp = Stamp::from_secs(f64::from((frame as f64 / fps) as f32));
    let frames = embodiment.cameras.iter().enumerate().map(|(k, camera)| Frame {
        camera: camera.name.clone(),
        width: camera.width,
        height: camera.height,
        rgb: picture((camera.width, camera.height), k, episode, frame).into(),
        stamp,
    });
    let observation = Observation {
        frames: frames.collect(),
        joint_positions: vec![frame as f64 / 64.0; embodiment.joints.len()],
        instruction: "push".into(),
        stamp,
    };
    (observation, Action { joint_targets: vec![0.5; embodiment.joints.len()] })
}

fn add(writer: &mut DatasetWriter, embodiment: &Embodiment, frames: usize) -> Result<()> {
    let (episode, fps) = (writer.episodes(), f64::from(writer.fps()));
    for frame in 0..frames {
        let (observation, action) = moment(embodiment, episode, frame, fps);
        writer.add_frame(&observation, &action)?;
    }
    Ok(())
}

fn record(writer: &mut DatasetWriter, embodiment: &Embodiment, frames: usize) -> Result<()> {
    add(writer, embodiment, frames)?;
    writer.end_episode("push", serde_json::json!({ "seed": 0 })).map(|_| ())
}

/// Peak signal to noise of two pictures, dB.
fn psnr(a: &[u8], b: &[u8]) -> f64 {
    let square = |(a, b): (&u8, &u8)| (f64::from(*a) - f64::from(*b)).powi(2);
    let mean = a.iter().zip(b).map(square).sum::<f64>() / a.len() as f64;
    10.0 * (255.0 * 255.0 / mean.max(1e-9)).log10()
}

/// The worst of an episode's pictures, dB; each must be nearer to its own original than to its neighbours'.
fn worst(dataset: &Dataset, index: usize) -> Result<f64> {
    let episode = dataset.encoded(index)?;
    let mut worst = f64::INFINITY;
    for frame in (0..episode.len()).rev().chain(0..episode.len()) {
        for (k, camera) in episode.cameras.iter().enumerate() {
            let rgb = episode.rgb(k, frame)?;
            let near = |frame: usize| psnr(&rgb, &picture((camera.width, camera.height), k, index, frame));
            let own = near(frame);
            assert!(own > near(frame + 1) + 3.0, "episode {index}, frame {frame}, camera {k}");
            assert!(frame == 0 || own > near(frame - 1) + 3.0, "episode {index}, frame {frame}, camera {k}");
            worst = worst.min(own);
        }
    }
    Ok(worst)
}

fn temporary() -> Result<tempfile::TempDir> {
    tempfile::tempdir().map_err(io)
}

fn folder(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("set")
}

fn text<T>(result: Result<T>) -> String {
    result.err().map(|e| e.to_string()).unwrap_or_default()
}

fn sound(folder: &Path) -> Result<Dataset> {
    let dataset = Dataset::open(folder)?;
    assert_eq!(check(&dataset, &mut || ())?.problems, Vec::<String>::new());
    Ok(dataset)
}

#[test]
fn every_frame_is_itself_at_any_rate_and_near_what_was_seen() -> Result<()> {
    for fps in [10, 30, 80] {
        let (dir, so101) = (temporary()?, so101(SIZE)?);
        let mut writer = DatasetWriter::create_with(&folder(&dir), &so101, fps, PictureFormat::VIDEO)?;
        // Odd and even lengths: the last group of pictures is whole or not.
        for frames in [7, 1, 12] {
            record(&mut writer, &so101, frames)?;
        }
        let dataset = sound(&folder(&dir))?;
        assert_eq!((dataset.len(), dataset.total_frames()), (3, 20));
        for index in 0..3 {
            let worst = worst(&dataset, index)?;
            assert!(worst > 36.0, "{fps} per second, episode {index}: {worst:.1} dB");
        }
        let stats = dataset.stats()?;
        assert_eq!(stats["observation.images.front"]["count"][0], 20);
        assert!(folder(&dir).join("videos/observation.images.wrist/chunk-000/file-002.mp4").exists());
    }
    Ok(())
}

#[test]
fn a_larger_quantiser_gives_smaller_files_and_worse_pictures() -> Result<()> {
    let mut before = (0, f64::INFINITY);
    for qp in [40, 28, 20, 12] {
        let (dir, so101) = (temporary()?, so101((96, 96))?);
        let mut writer = DatasetWriter::create_with(&folder(&dir), &so101, 30, PictureFormat::H264 { qp })?;
        record(&mut writer, &so101, 20)?;
        drop(writer);
        let film = folder(&dir).join("videos/observation.images.front/chunk-000/file-000.mp4");
        let bytes = std::fs::metadata(film).map_err(io)?.len();
        let worst = worst(&sound(&folder(&dir))?, 0)?;
        println!("quantiser {qp}: {bytes} bytes for 20 pictures of 96x96, worst {worst:.1} dB");
        assert!(before.0 == 0 || (bytes > before.0 && worst > before.1 + 0.5), "quantiser {qp}");
        before = (bytes, worst);
    }
    Ok(())
}

#[test]
fn a_kill_in_the_middle_of_an_episode_loses_no_picture() -> Result<()> {
    let (dir, so101) = (temporary()?, so101(SIZE)?);
    let mut writer = DatasetWriter::create_with(&folder(&dir), &so101, 30, PictureFormat::VIDEO)?;
    record(&mut writer, &so101, 4)?;
    add(&mut writer, &so101, 7)?;
    drop(writer);
    // As if it had died between the video and the commit, and in the middle of the next video.
    let films = folder(&dir).join("videos/observation.images.front/chunk-000");
    std::fs::copy(films.join("file-000.mp4"), films.join("file-001.mp4")).map_err(io)?;
    std::fs::write(films.join("file-009.mp4.new"), b"half").map_err(io)?;
    let dataset = Dataset::open(&folder(&dir))?;
    assert_eq!((dataset.len(), dataset.has_leftover()), (1, true));
    let problems = check(&dataset, &mut || ())?.problems;
    assert!(problems.iter().any(|problem| problem.contains("a video of no episode")), "{problems:?}");
    // Continued as it is, whatever new datasets would have.
    let mut writer = DatasetWriter::create(&folder(&dir), &so101, 30)?;
    assert_eq!((writer.episodes(), writer.recovered_frames()), (2, 7));
    record(&mut writer, &so101, 5)?;
    drop(writer);
    assert_eq!(repair(&folder(&dir))?.removed_files, 1);
    let dataset = sound(&folder(&dir))?;
    for (index, frames) in [4, 7, 5].into_iter().enumerate() {
        assert_eq!(dataset.entries()[index].length, frames);
        assert!(worst(&dataset, index)? > 36.0, "episode {index}");
    }
    assert_eq!(dataset.entries()[1].extra["interrupted"], true);
    // An episode that is given up leaves nothing.
    let mut writer = DatasetWriter::create(&folder(&dir), &so101, 30)?;
    add(&mut writer, &so101, 3)?;
    writer.discard_episode()?;
    record(&mut writer, &so101, 3)?;
    assert!(worst(&sound(&folder(&dir))?, 3)? > 36.0);
    // A video whose episode was never committed goes.
    std::fs::copy(films.join("file-000.mp4"), films.join("file-004.mp4")).map_err(io)?;
    drop(writer);
    assert_eq!(repair(&folder(&dir))?.removed_files, 1);
    sound(&folder(&dir))?;
    Ok(())
}

#[test]
fn converted_to_av1_every_frame_is_itself_and_it_is_converted_back() -> Result<()> {
    let (dir, so101) = (temporary()?, so101(SIZE)?);
    let mut writer = DatasetWriter::create(&folder(&dir), &so101, 30)?;
    for frames in [7, 1, 12] {
        record(&mut writer, &so101, frames)?;
    }
    drop(writer);
    let seen = Dataset::open(&folder(&dir))?;
    let all = [(&seen, vec![0, 1, 2])];
    let mut before = (0, f64::INFINITY);
    for crf in [50, 30, 10] {
        let out = dir.path().join(crf.to_string());
        copy(&all, &out, Some(PictureFormat::Av1 { crf }), &mut || ())?;
        let dataset = sound(&out)?;
        assert_eq!(dataset.stats()?, seen.stats()?);
        let worst = [0, 1, 2].into_iter().map(|k| worst(&dataset, k)).collect::<Result<Vec<_>>>()?;
        let worst = worst.into_iter().fold(f64::INFINITY, f64::min);
        let film = out.join("videos/observation.images.front/chunk-000/file-002.mp4");
        let bytes = std::fs::metadata(film).map_err(io)?.len();
        println!("AV1, crf {crf}: {bytes} bytes for 12 pictures of {SIZE:?}, worst {worst:.1} dB");
        assert!(worst > 28.0 && (before.0 == 0 || (bytes > before.0 && worst > before.1 + 0.5)), "crf {crf}");
        before = (bytes, worst);
    }
    // Not to be added to, but repaired, and made H.264 or stills of.
    let made = dir.path().join("30");
    assert!(text(DatasetWriter::create(&made, &so101, 30)).contains("expected h264"));
    let new = dir.path().join("new");
    let why = text(DatasetWriter::create_with(&new, &so101, 30, PictureFormat::AV1));
    assert!(why.contains("expected h264, which can be converted to av1 later"), "{why}");
    assert_eq!(repair(&made)?.removed_files, 0);
    let dataset = Dataset::open(&made)?;
    copy(&[(&dataset, vec![2])], &new, Some(PictureFormat::Png), &mut || ())?;
    assert_eq!(sound(&new)?.episode(0)?.frames, dataset.episode(2)?.frames);
    Ok(())
}

#[test]
fn small_and_narrow_pictures_are_coded() -> Result<()> {
    for size in [(16, 16), (18, 16), (16, 130), (322, 18)] {
        let (dir, so101) = (temporary()?, so101(size)?);
        let mut writer = DatasetWriter::create_with(&folder(&dir), &so101, 30, PictureFormat::VIDEO)?;
        record(&mut writer, &so101, 5)?;
        drop(writer);
        let made = dir.path().join("av1");
        copy(&[(&sound(&folder(&dir))?, vec![0])], &made, Some(PictureFormat::AV1), &mut || ())?;
        let (film, again) = (sound(&folder(&dir))?.episode(0)?, sound(&made)?.episode(0)?);
        for (a, b) in film.frames.iter().zip(&again.frames) {
            for (a, b) in a.observation.frames.iter().zip(&b.observation.frames) {
                assert!(psnr(&a.rgb, &b.rgb) > 25.0, "{size:?}: {:.1} dB", psnr(&a.rgb, &b.rgb));
            }
        }
    }
    Ok(())
}

/// What a frame costs the recorder's thread at 640x480; `cargo test -- --ignored --nocapture` prints it.
#[test]
#[ignore = "a measurement"]
fn time_of_a_picture_of_640x480() -> Result<()> {
    use vela_embodiment::Clock;
    let (dir, so101) = (temporary()?, so101((640, 480))?);
    let clock = vela_embodiment::MonotonicClock::new();
    for (name, format) in [("h264", PictureFormat::VIDEO), ("png", PictureFormat::Png)] {
        let folder = dir.path().join(name);
        let mut writer = DatasetWriter::create_with(&folder, &so101, 30, format)?;
        let mut each = Vec::new();
        for frame in 0..90 {
            let (observation, action) = moment(&so101, 0, frame, 30.0);
            let before = clock.now();
            writer.add_frame(&observation, &action)?;
            each.push(clock.now().secs_since(before) * 1e3 / so101.cameras.len() as f64);
        }
        let before = clock.now();
        writer.end_episode("push", serde_json::Value::Null)?;
        let commit = clock.now().secs_since(before) * 1e3;
        each.sort_by(f64::total_cmp);
        let (median, late) = (each[45], each[88]);
        println!("{name}: {median:.1} ms a picture (99 %: {late:.1} ms), commit {commit:.0} ms");
    }
    Ok(())
}

#[test]
fn what_cannot_be_video_is_refused_by_name() -> Result<()> {
    let dir = temporary()?;
    let video = |robot: &Embodiment, format| DatasetWriter::create_with(&folder(&dir), robot, 30, format);
    for size in [(63, 48), (64, 47), (8, 48), (4000, 64)] {
        let why = text(video(&so101(size)?, PictureFormat::VIDEO));
        assert!(why.contains("even sides") && why.contains(&format!("{}x{}", size.0, size.1)), "{why}");
    }
    for qp in [0, 11, 52] {
        let why = text(video(&so101(SIZE)?, PictureFormat::H264 { qp }));
        assert!(why.contains("12 (best) to 51") && why.contains(&qp.to_string()), "{why}");
    }
    assert!(!folder(&dir).join("meta/info.json").exists(), "a refusal leaves nothing");
    let so101 = so101(SIZE)?;
    record(&mut video(&so101, PictureFormat::VIDEO)?, &so101, 2)?;
    assert!(text(video(&so101, PictureFormat::Png)).contains("pictures as png against h264"));
    let other = temporary()?;
    record(&mut DatasetWriter::create(&folder(&other), &so101, 30)?, &so101, 2)?;
    let why = text(DatasetWriter::create_with(&folder(&other), &so101, 30, PictureFormat::VIDEO));
    assert!(why.contains("pictures as h264 against png"), "{why}");
    Ok(())
}
