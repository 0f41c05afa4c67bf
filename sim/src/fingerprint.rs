//! What identifies this simulator: a checkpoint that was trained in it carries this, and a test notices a change.

use crate::expert::ScriptedExpert;
use crate::tabletop::Tabletop;
use crate::tasks::{Split, TaskKind};
use vela_embodiment::{
    Embodiment, Environment, Episode, Expert, GateConfig, Result, Robot, SafetyGate, fnv1a,
};

/// Ticks of each task that go into it.
const TICKS: usize = 60;

/// Sixteen hex digits made of physics, pictures, sentences and experts: each task's first ticks, played by its expert,
/// and what the cameras see at the end. Equal bytes everywhere give equal digits.
///
/// # Errors
/// The world cannot be built.
pub fn fingerprint() -> Result<String> {
    let so101 = Embodiment::so101()?;
    let mut table = Tabletop::lockstep(&so101, Split::Train)?;
    let mut expert = ScriptedExpert::new(&so101)?;
    let mut digits = Vec::new();
    for kind in TaskKind::ALL {
        table.reset(&Episode { task: kind.name().into(), seed: 1, randomise: true })?;
        let start = table.observe()?;
        let mut gate = SafetyGate::new(&so101, GateConfig::default(), &start.joint_positions)?;
        for _ in 0..TICKS {
            let (action, now) = (expert.label(&table)?, table.clock().now());
            table.apply(gate.check(Some((&action, now)), now).action)?;
        }
        let last = table.observe()?;
        let pictures = last.frames.iter().flat_map(|frame| frame.rgb.iter().copied());
        let sentence = last.instruction.bytes();
        digits.extend(table.world().hash().to_le_bytes());
        digits.extend(fnv1a(pictures.chain(sentence)).to_le_bytes());
    }
    Ok(format!("{:016x}", fnv1a(digits)))
}
