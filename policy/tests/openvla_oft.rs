//! OpenVLA-OFT, for which there is no reference run: its mechanism against a script of ours in NumPy
//! (`reference/openvla_oft.py`, which also writes the two files as PyTorch does), and what is refused.

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use vela_nn::{Error, Result};
use vela_policy::*;

const HEAD: &str = "action_head--5000_checkpoint.pt";
const STATE: &str = "proprio_projector--5000_checkpoint.pt";

fn case() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/openvla")
}

fn reference() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/reference")
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).map(|_| ()).map_err(Error::invalid)
}

/// A folder of OpenVLA-OFT on the network of OpenVLA's reference run.
fn folder() -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir().map_err(Error::invalid)?;
    for name in ["config.json", "model.safetensors"] {
        copy(&case().join(name), &dir.path().join(name))?;
    }
    for name in [HEAD, STATE] {
        copy(&reference().join(name), &dir.path().join(name))?;
    }
    let range = |from: f64, n: usize| (0..n).map(|i| from + i as f64 * 0.1).collect::<Vec<_>>();
    let mask = [true, true, true, true, true, true, false];
    let statistics = json!({"libero": {
        "action": {"q01": range(-2.0, 7), "q99": range(1.0, 7), "mask": mask},
        "proprio": {"q01": range(-1.0, 8), "q99": range(3.0, 8)}}});
    std::fs::write(dir.path().join("dataset_statistics.json"), statistics.to_string())
        .map_err(Error::invalid)?;
    Ok(dir)
}

fn refusal(dir: &Path) -> String {
    OpenVlaOft::load(dir, Storage::Plain).err().map(|e| e.to_string()).unwrap_or_default()
}

#[test]
fn a_chunk_is_what_numpy_makes_of_the_same_pictures_words_and_state() -> Result<()> {
    let dir = folder()?;
    let golden = candle_core::safetensors::load(case().join("golden.safetensors"), &Device::Cpu)?;
    let text = std::fs::read_to_string(reference().join("openvla_oft.json")).map_err(Error::invalid)?;
    let want: Value = serde_json::from_str(&text).map_err(Error::invalid)?;
    let numbers =
        |value: &Value| -> Result<Vec<f32>> { serde_json::from_value(value.clone()).map_err(Error::invalid) };
    let rows: Vec<Vec<f32>> = serde_json::from_value(want["actions"].clone()).map_err(Error::invalid)?;
    let (state, want) = (numbers(&want["state"])?, Tensor::new(rows, &Device::Cpu)?);
    let pictures = vec![golden["in.pixel_values"].clone(); 2];
    let ids: Vec<u32> = golden["in.input_ids"].flatten_all()?.to_dtype(DType::U32)?.to_vec1()?;
    for (storage, bound) in [(Storage::Plain, 1e-4), (Storage::Float32, 1e-4), (Storage::Bf16, 0.05)] {
        let model = OpenVlaOft::load(dir.path(), storage)?;
        assert_eq!((model.chunk, model.dims, model.state_dims()), (8, 7, Some(8)));
        let got = model.chunk(&pictures, Some(&state), &ids)?;
        let stage = vela_nn::parity::compare("actions", &got, &want)?;
        println!("{} {stage:?}", storage.name());
        assert!(stage.max_abs_over_spread < bound, "{stage:?}");
    }
    // In physical units: the last number is not scaled.
    let model = OpenVlaOft::load(dir.path(), Storage::Plain)?;
    let physical: Vec<f64> =
        state.iter().enumerate().map(|(i, x)| f64::from(*x) * 2.0 + 1.0 + i as f64 * 0.1).collect();
    let actions = model.act(&pictures, Some(&physical), &ids, "libero")?;
    let first = want.to_vec2::<f32>()?.swap_remove(0);
    for (d, (got, z)) in actions[0].iter().zip(&first).enumerate() {
        let z = f64::from(*z);
        let want = if d == 6 { z } else { 0.5 * (z + 1.0) * 3.0 - 2.0 + d as f64 * 0.1 };
        assert!((got - want).abs() < 1e-3, "{d}: {got} {want}");
    }
    assert!(model.chunk(&pictures, None, &ids).is_err_and(|e| e.to_string().contains("expected a state")));
    assert!(model.act(&pictures, Some(&physical), &ids, "bridge").is_err());
    Ok(())
}

#[test]
fn what_the_folder_is_and_what_is_refused() -> Result<()> {
    let dir = folder()?;
    let path = |name: &str| dir.path().join(name);
    let summary = describe(dir.path())?;
    assert_eq!((summary.kind.as_str(), summary.compared, summary.horizon), ("openvla_oft", false, 8));
    assert!(summary.to_string().contains("structure only, never compared"), "{summary}");
    // Files of different steps, of several steps, and none.
    std::fs::rename(path(STATE), path("proprio_projector--4000_checkpoint.pt")).map_err(Error::invalid)?;
    let error = refusal(dir.path());
    assert!(error.contains("head is of step 5000, the proprio projector of step 4000"), "{error}");
    copy(&path("proprio_projector--4000_checkpoint.pt"), &path(STATE))?;
    assert!(refusal(dir.path()).contains("expected the file of one step, got 4000, 5000"));
    std::fs::remove_file(path("proprio_projector--4000_checkpoint.pt")).map_err(Error::invalid)?;
    std::fs::write(path("vision_backbone--5000_checkpoint.pt"), b"").map_err(Error::invalid)?;
    assert!(refusal(dir.path()).contains("FiLM"));
    std::fs::remove_file(path("vision_backbone--5000_checkpoint.pt")).map_err(Error::invalid)?;
    // A head that is no archive, and a robot whose joints are not the state.
    let robot = vela_embodiment::Embodiment::so101().map_err(Error::invalid)?;
    let error =
        open(dir.path(), &robot, &Choices::default()).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("its state of 8 numbers is not the robot's 6 joints"), "{error}");
    std::fs::write(path(HEAD), b"\x80\x02cposix\nsystem\n.").map_err(Error::invalid)?;
    assert!(refusal(dir.path()).contains("zip"), "{}", refusal(dir.path()));
    std::fs::remove_file(path("model.safetensors")).map_err(Error::invalid)?;
    std::fs::create_dir(path("lora_adapter")).map_err(Error::invalid)?;
    assert!(refusal(dir.path()).contains("not merged"));
    Ok(())
}
