//! A recorded episode played again on the simulated arm: what was sent is sent again, through the gate.

use anyhow::{Context, Result};
use vela_embodiment::{Action, Embodiment, Environment, Episode, GateConfig, Robot, SafetyGate};
use vela_episodes::{ActionError, EncodedEpisode};
use vela_sim::tabletop::Tabletop;

/// Ticks that the arm may take to where the episode begins.
const TO_START_TICKS: usize = 150;
/// How near it must come, rad or m.
const NEAR_START: f64 = 0.02;

/// How the arm followed.
#[derive(Clone, Debug, PartialEq)]
pub struct Followed {
    /// The episode's number.
    pub episode: usize,
    /// Whether the scene is the one in which it was recorded.
    pub same_scene: bool,
    /// Mean absolute difference between the joints then and now, rad or m.
    pub mae: f64,
    /// The largest one.
    pub max: f64,
    /// Ticks on which the gate stepped in.
    pub tripped_ticks: usize,
    /// Whether the task succeeded again; `None` in another scene.
    pub success: Option<bool>,
}

/// Plays an episode on `table`. One that `vela record` made begins in its own scene; for another the arm is first moved
/// to its start, in whatever scene there is. `gate` is what its own arm narrows.
///
/// # Errors
/// The gate refuses the arm's start, or the simulator fails.
pub fn play(
    table: &mut Tabletop,
    embodiment: &Embodiment,
    gate: &GateConfig,
    recorded: &EncodedEpisode,
) -> Result<Followed> {
    let noted = (recorded.extra["task"].as_str(), recorded.extra["seed"].as_u64());
    let same_scene = match noted {
        (Some(task), Some(seed)) => {
            let randomise = recorded.extra["randomise"].as_bool().unwrap_or(false);
            table.reset(&Episode { task: task.to_owned(), seed, randomise })?;
            true
        }
        _ => {
            table.reset(&Episode { task: "reach".into(), seed: 0, randomise: false })?;
            false
        }
    };
    let start = table.observe()?.joint_positions;
    let mut gate = SafetyGate::new(embodiment, gate.clone(), &start)
        .with_context(|| format!("the gate, before episode {}", recorded.index))?;
    let mut send = |table: &mut Tabletop, targets: &[f64]| -> Result<bool> {
        let now = table.clock().now();
        let verdict = gate.check(Some((&Action { joint_targets: targets.to_vec() }, now)), now);
        let tripped = !verdict.trips.is_empty();
        table.apply(verdict.action)?;
        Ok(tripped)
    };
    if let Some(first) = recorded.states.first().filter(|_| !same_scene) {
        for _ in 0..TO_START_TICKS {
            let joints = table.observe()?.joint_positions;
            if joints.iter().zip(first).all(|(a, b)| (a - b).abs() < NEAR_START) {
                break;
            }
            send(table, first)?;
        }
    }
    let mut difference = ActionError::new(&embodiment.joint_names());
    let mut tripped_ticks = 0;
    for (state, action) in recorded.states.iter().zip(&recorded.actions) {
        let now = table.observe()?.joint_positions;
        difference.add(std::slice::from_ref(state), 1.0, 0, &[now], 1.0)?;
        tripped_ticks += usize::from(send(table, action)?);
    }
    Ok(Followed {
        episode: recorded.index,
        same_scene,
        mae: difference.mean().unwrap_or_default(),
        max: difference.worst().iter().flatten().copied().fold(0.0, f64::max),
        tripped_ticks,
        success: same_scene.then(|| table.outcome().success),
    })
}
