//! What ships fits what it was made for: the arm, the simulator, the size.

use std::path::Path;

type Outcome = Result<(), Box<dyn std::error::Error>>;

#[test]
fn the_tabletop_policy_belongs_to_this_simulator_and_this_arm() -> Outcome {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tabletop");
    let trained_in = std::fs::read_to_string(dir.join("simulator.txt"))?;
    let now = vela_sim::fingerprint()?;
    assert_eq!(
        trained_in.trim(),
        now,
        "the simulator has changed since the policy was trained: evaluate it again (`vela eval`), train it further, and \
         write the new fingerprint and figures to its card"
    );
    let policy = vela_policy::VlaPolicy::load(&dir)?;
    vela_embodiment::Embodiment::so101()?.require_same(&vela_embodiment::Policy::spec(&policy).embodiment)?;
    let bytes = std::fs::metadata(dir.join("model.safetensors"))?.len();
    assert!(bytes <= 12 << 20, "{bytes} bytes, at most 12 MiB are built into the binary");
    Ok(())
}

#[test]
fn the_vlm_in_the_binary_answers_about_pictures_that_it_never_saw() -> Outcome {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tabletop-vlm");
    let bytes = std::fs::metadata(dir.join("model.safetensors"))?.len();
    assert!(bytes <= 12 << 20, "{bytes} bytes, at most 12 MiB are built into the binary");
    let trained_on = std::fs::read_to_string(dir.join("simulator.txt"))?;
    assert_eq!(
        trained_on.trim(),
        vela_sim::fingerprint()?,
        "evaluate the VLM again: `vela eval vqa` and `pope`"
    );
    let run = |what: &str, model: &str| -> Result<serde_json::Value, Box<dyn std::error::Error>> {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_vela"))
            .args(["eval", what, "--pictures", "24", "--seed", "2000000", "--json", "--model", model])
            .output()?;
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Ok(serde_json::from_slice(&out.stdout)?)
    };
    let vqa = run("vqa", "builtin")?;
    let rate = |path: &str| vqa.pointer(path).and_then(serde_json::Value::as_f64).unwrap_or(-1.0);
    let (seen, grey) = (rate("/all/picture/rate"), rate("/all/grey/rate"));
    assert!(seen > 0.7 && grey < 0.35 && seen > grey + 0.2, "with the picture {seen}, with grey {grey}");
    // The folder beside is the model inside.
    assert_eq!(run("vqa", &dir.display().to_string())?["kinds"], vqa["kinds"]);
    let pope = run("pope", "builtin")?;
    for setting in ["random", "popular", "adversarial"] {
        let accuracy = pope["settings"][setting]["accuracy"]["rate"].as_f64().unwrap_or(-1.0);
        assert!(accuracy > 0.8, "{setting}: {accuracy}");
    }
    Ok(())
}
