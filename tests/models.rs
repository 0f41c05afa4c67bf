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
