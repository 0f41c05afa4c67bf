//! Policies whose matrices are kept in fewer bits: how far their actions move, on the inputs of reference runs.

use candle_core::Device;
use std::path::PathBuf;
use vela_embodiment::Embodiment;
use vela_nn::{Error, Result};
use vela_policy::quantise::{Settings, quantise};
use vela_policy::quantised::{actions_on_golden, actions_on_noise, on_golden, on_noise};
use vela_policy::storage::form_of;
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

#[test]
fn a_folder_in_fewer_bits_is_smaller_opens_as_before_and_moves_the_actions_as_little_as_was_asked()
-> Result<()> {
    let scratch = tempfile::tempdir().map_err(Error::invalid)?;
    for name in ["smolvla", "pi0", "pi05", "act", "diffusion"] {
        let golden = candle_core::safetensors::load(case(name).join("golden.safetensors"), &Device::Cpu)?;
        let mut act = |dir: &std::path::Path| actions_on_golden(dir, &golden, Storage::Plain);
        for (form, max_error) in [(Storage::Bf16, 0.01), (Storage::Int8, 0.02)] {
            let out = scratch.path().join(format!("{name}-{}", form.name()));
            let settings = Settings { form, max_error, most_kept: 0.5 };
            let report = quantise(&case(name), &out, &settings, &mut act, &mut |_, _, _| {})?;
            println!(
                "{name} {}: {:.3} % rms, all {:.3} %; {} of {} bytes; kept {:?}",
                report.form,
                report.error.rms * 100.0,
                report.plain.rms * 100.0,
                report.bytes[1],
                report.bytes[0],
                report.groups.iter().filter(|group| group.kept).map(|group| &group.name).collect::<Vec<_>>()
            );
            assert!(report.error.rms <= max_error && report.bytes[1] < report.bytes[0]);
            assert_eq!(form_of(&out)?.as_deref(), Some(form.name()));
            // What was written is what was measured.
            let again = quantised::ActionError::between(&act(&case(name))?, &act(&out)?)?;
            assert_eq!(again, report.error);
            assert_eq!(describe(&out)?.horizon, describe(&case(name))?.horizon);
        }
    }
    Ok(())
}

#[test]
fn what_moves_the_actions_too_far_is_not_written() -> Result<()> {
    let scratch = tempfile::tempdir().map_err(Error::invalid)?;
    let mut act = |dir: &std::path::Path| actions_on_noise(dir, Storage::Plain);
    let refused = |case: PathBuf, settings: Settings, act: &mut quantise::Act| -> String {
        let out = scratch.path().join("out");
        let done = quantise::quantise(&case, &out, &settings, act, &mut |_, _, _| {});
        assert!(!out.exists() && std::fs::read_dir(scratch.path()).is_ok_and(|left| left.count() <= 1));
        done.err().map(|e| e.to_string()).unwrap_or_default()
    };
    let settings = Settings { form: Storage::Int8, max_error: 1e-6, most_kept: 0.25 };
    let error = refused(case("pi0"), settings, &mut act);
    assert!(error.contains("of their spread") && error.contains("nothing was written"), "{error}");
    let error = refused(case("pi0"), Settings { form: Storage::Float32, ..settings }, &mut act);
    assert!(error.contains("expected bf16 or int8"), "{error}");
    // Twice is once too often, and asked for in eight bits it says so.
    let small = scratch.path().join("small");
    let easy = Settings { form: Storage::Bf16, max_error: 0.1, ..settings };
    quantise(&case("pi0"), &small, &easy, &mut act, &mut |_, _, _| {})?;
    let error = refused(small.clone(), easy, &mut act);
    assert!(error.contains("in fewer bits already"), "{error}");
    let error = on_noise(&small, Storage::Int8).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("cannot be kept as int8"), "{error}");
    Ok(())
}
