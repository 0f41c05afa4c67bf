//! The scripted experts do their tasks through the safety gate, also when another object is named or the arm is shaken.

use vela_embodiment::{Embodiment, Environment, Episode, Expert, GateConfig, Result, Robot, SafetyGate};
use vela_sim::expert::ScriptedExpert;
use vela_sim::tabletop::Tabletop;
use vela_sim::tasks::{Split, TaskKind};

/// Plays the table's present episode to its end; in the ticks that `disturbed` picks the arm is sent elsewhere.
fn play(table: &mut Tabletop, disturbed: impl Fn(u64) -> bool) -> Result<bool> {
    let mut expert = ScriptedExpert::new(table.embodiment())?;
    let start = table.state().joint_positions;
    let mut gate = SafetyGate::new(table.embodiment(), GateConfig::default(), &start)?;
    for tick in 0.. {
        if table.outcome().finished {
            break;
        }
        let mut action = expert.label(table)?;
        if disturbed(tick) {
            action.joint_targets = table.state().joint_targets.iter().map(|q| q - 0.01).collect();
        }
        let now = table.clock().now();
        let verdict = gate.check(Some((&action, now)), now);
        assert!(!verdict.held || disturbed(tick), "held at {tick}: {:?}", verdict.trips);
        table.apply(verdict.action)?;
    }
    Ok(table.outcome().success)
}

#[test]
fn every_expert_succeeds_on_nearly_every_seed_of_every_split() -> Result<()> {
    let so101 = Embodiment::so101()?;
    for split in Split::ALL {
        let mut table = Tabletop::blind(&so101, split)?;
        for kind in TaskKind::ALL {
            let mut won = 0;
            for seed in 0..8 {
                table.reset(&Episode { task: kind.name().into(), seed, randomise: seed % 2 == 1 })?;
                won += i32::from(play(&mut table, |_| false)?);
            }
            assert!(won >= 7, "{} {}: {won} of 8", split.name(), kind.name());
        }
    }
    Ok(())
}

#[test]
fn the_same_scene_with_another_object_named_sends_the_arm_to_that_one() -> Result<()> {
    let so101 = Embodiment::so101()?;
    let mut table = Tabletop::blind(&so101, Split::Test)?;
    let (mut asked, mut won) = (0, 0);
    for seed in 0..10 {
        table.reset(&Episode { task: "reach".into(), seed, randomise: false })?;
        let Some(other) = table.task().swapped(table.scene()) else { continue };
        table.ask(&other);
        asked += 1;
        won += i32::from(play(&mut table, |_| false)?);
    }
    assert!(asked >= 8 && won == asked, "{won} of {asked}");
    Ok(())
}

#[test]
fn an_expert_finds_its_way_back_from_where_somebody_else_moved_the_arm() -> Result<()> {
    let so101 = Embodiment::so101()?;
    let mut table = Tabletop::blind(&so101, Split::Test)?;
    let mut won = 0;
    for seed in 0..8 {
        table.reset(&Episode { task: "pick".into(), seed, randomise: false })?;
        won += i32::from(play(&mut table, |tick| (12..26).contains(&tick))?);
    }
    assert!(won >= 7, "{won} of 8");
    Ok(())
}

#[test]
fn the_same_seed_gives_the_same_bytes() -> Result<()> {
    let so101 = Embodiment::so101()?;
    let run = || -> Result<(u64, Vec<u8>)> {
        let mut table = Tabletop::lockstep(&so101, Split::Train)?;
        table.reset(&Episode { task: "place".into(), seed: 4, randomise: true })?;
        play(&mut table, |_| false)?;
        let frames = table.observe()?.frames;
        Ok((table.world().hash(), frames.iter().flat_map(|frame| frame.rgb.to_vec()).collect()))
    };
    assert!(run()? == run()?);
    Ok(())
}
