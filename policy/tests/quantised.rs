//! Policies whose matrices are kept in fewer bits: how far their actions move, on the inputs of reference runs.

use candle_core::Device;
use std::path::PathBuf;
use vela_embodiment::Embodiment;
use vela_nn::{Error, Result};
use vela_policy::quantised::{on_golden, on_noise};
use vela_policy::*;

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

#[test]
fn actions_stay_where_they_are_in_float32_and_nearly_so_in_fewer_bits() -> Result<()> {
    for name in ["smolvla", "pi0", "pi05", "act"] {
        let golden = candle_core::safetensors::load(case(name).join("golden.safetensors"), &Device::Cpu)?;
        // Eight bits cost a network of 48 numbers a token more than one of a thousand: its sums are short.
        for (storage, bound) in [(Storage::Float32, 1e-4), (Storage::Bf16, 0.01), (Storage::Int8, 0.05)] {
            let error = on_golden(&case(name), &golden, storage)?;
            println!(
                "{name} {}: {:.3} % rms, {:.3} % worst",
                storage.name(),
                error.rms * 100.0,
                error.worst * 100.0
            );
            error.require(bound)?;
        }
    }
    Ok(())
}

#[test]
fn without_a_reference_run_noise_will_do() -> Result<()> {
    for name in ["smolvla", "pi0"] {
        let error = on_noise(&case(name), Storage::Int8)?;
        println!("{name} on noise: {error:?}");
        assert!(error.rms > 0.0 && error.require(1e-9).is_err());
        error.require(0.05)?;
    }
    Ok(())
}

#[test]
fn a_policy_opens_in_eight_bits_and_a_network_of_convolutions_does_not() -> Result<()> {
    let mut robot = Embodiment::so101().map_err(Error::invalid)?;
    for (camera, name) in robot.cameras.iter_mut().zip(["base", "wrist"]) {
        camera.name = name.into();
    }
    let choices = Choices { storage: Storage::Int8, ..Choices::default() };
    assert_eq!(open(&case("pi0"), &robot, &choices)?.spec().horizon, 10);
    let error = open(&case("diffusion"), &robot, &choices).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("convolutions are float32, not int8"), "{error}");
    Ok(())
}
