//! Success rates of the scripted experts, through the safety gate, in lockstep, without pictures.
//!
//! `cargo run --release -p vela-sim --example expert_rates -- [--episodes N] [--seed S] [--task NAME] [--randomise]
//! [--split NAME] [--swap] [--shake] [--trace]`: prints a table and the seeds that failed. `--shake` moves the arm at random for a
//! third of a second now and then: an expert that labels any state finds its way back.

use rand::Rng;
use rayon::prelude::*;
use std::time::Instant;
use vela_embodiment::{
    Embodiment, Environment, Episode, Error, Expert, GateConfig, Outcome, Result, Robot, SafetyGate,
};
use vela_sim::expert::{ScriptedExpert, expert_chunk};
use vela_sim::tabletop::Tabletop;
use vela_sim::tasks::{Split, TaskKind};

#[derive(Default)]
struct Asked {
    episodes: u64,
    seed: u64,
    task: Option<TaskKind>,
    split: Split,
    randomise: bool,
    swap: bool,
    shake: bool,
    trace: bool,
}

struct Played {
    seed: u64,
    outcome: Outcome,
    held: u64,
    trips: u64,
    ticks: u64,
}

fn asked() -> Result<Asked> {
    let mut asked = Asked { episodes: 200, ..Asked::default() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value =
            || words.next().ok_or_else(|| Error::Parse { what: word.clone(), why: "needs a value".into() });
        let number = |text: String| {
            text.parse::<u64>().map_err(|e| Error::Parse { what: text.clone(), why: e.to_string() })
        };
        match word.as_str() {
            "--episodes" => asked.episodes = number(value()?)?,
            "--seed" => asked.seed = number(value()?)?,
            "--task" => asked.task = Some(TaskKind::from_name(&value()?)?),
            "--split" => {
                let name = value()?;
                asked.split = Split::ALL.into_iter().find(|s| s.name() == name).unwrap_or_default();
            }
            "--randomise" => asked.randomise = true,
            "--swap" => asked.swap = true,
            "--shake" => asked.shake = true,
            "--trace" => asked.trace = true,
            _ => return Err(Error::Parse { what: word, why: "not an option of this example".into() }),
        }
    }
    Ok(asked)
}

fn play(so101: &Embodiment, asked: &Asked, kind: TaskKind, seed: u64) -> Result<Option<Played>> {
    let mut table = Tabletop::blind(so101, asked.split)?;
    let mut expert = ScriptedExpert::new(so101)?;
    table.reset(&Episode { task: kind.name().into(), seed, randomise: asked.randomise })?;
    if asked.swap {
        let Some(other) = table.task().swapped(table.scene()) else { return Ok(None) };
        table.ask(&other);
    }
    let start = table.state().joint_positions;
    let mut gate = SafetyGate::new(so101, GateConfig::default(), &start)?;
    let mut played = Played { seed, outcome: Outcome::default(), held: 0, trips: 0, ticks: 0 };
    if asked.trace {
        println!("{:?}\n{:#?}", table.task(), table.scene());
    }
    let mut noise = vela_embodiment::stream(seed, "shake");
    let mut drift = vec![0.0; start.len()];
    while !table.outcome().finished {
        let mut action = expert.label(&table)?;
        if asked.shake && played.ticks % 30 >= 20 {
            if played.ticks % 30 == 20 {
                drift = start.iter().map(|_| noise.random_range(-0.012..0.012)).collect();
                drift[5] = 0.0;
            }
            let targets = table.state().joint_targets;
            action.joint_targets = targets.iter().zip(&drift).map(|(q, d)| q + d).collect();
        }
        let now = table.clock().now();
        let verdict = gate.check(Some((&action, now)), now);
        played.held += u64::from(verdict.held);
        played.trips += u64::from(!verdict.trips.is_empty());
        played.ticks += 1;
        if asked.trace {
            let state = table.state();
            let tip = state.base_from_tip.translation.vector;
            let object = &state.objects[table.task().target];
            let at = object.base_from_object.translation.vector;
            println!(
                "{:5.2} tip {:.3} {:.3} {:.3} grip {:.2}>{:.2} object {:.3} {:.3} {:.3} {}{}{} {:?}",
                state.time_secs,
                tip.x,
                tip.y,
                tip.z,
                state.joint_positions[5],
                action.joint_targets[5],
                at.x,
                at.y,
                at.z,
                if object.touched { "T" } else { "-" },
                if object.pinched { "P" } else { "-" },
                if object.on_table { "_" } else { "^" },
                verdict.trips.iter().map(|t| format!("{:?} {}", t.reason, t.detail)).collect::<Vec<_>>(),
            );
        }
        table.apply(verdict.action)?;
    }
    played.outcome = table.outcome();
    Ok(Some(played))
}

fn main() -> Result<()> {
    let asked = asked()?;
    let so101 = Embodiment::so101()?;
    println!(
        "task    episodes  success  rate %  mean s  longest s  ticks tripped %  held  us/tick  failed seeds"
    );
    for kind in TaskKind::ALL.into_iter().filter(|kind| asked.task.is_none_or(|only| only == *kind)) {
        let begun = Instant::now();
        let seeds: Vec<u64> = (asked.seed..asked.seed + asked.episodes).collect();
        let played: Vec<Option<Played>> =
            seeds.par_iter().map(|seed| play(&so101, &asked, kind, *seed)).collect::<Result<_>>()?;
        let elapsed = begun.elapsed().as_secs_f64() * rayon::current_num_threads() as f64;
        let played: Vec<Played> = played.into_iter().flatten().collect();
        let won: Vec<&Played> = played.iter().filter(|p| p.outcome.success).collect();
        let ticks: u64 = played.iter().map(|p| p.ticks).sum();
        let tripped: u64 = played.iter().map(|p| p.trips).sum();
        let held: u64 = played.iter().map(|p| p.held).sum();
        let failed: Vec<u64> = played.iter().filter(|p| !p.outcome.success).map(|p| p.seed).collect();
        println!(
            "{:6} {:9} {:8} {:7.1} {:7.2} {:10.2} {:16.1} {:5} {:8.0}  {failed:?}",
            kind.name(),
            played.len(),
            won.len(),
            100.0 * won.len() as f64 / played.len().max(1) as f64,
            won.iter().map(|p| p.outcome.seconds).sum::<f64>() / won.len().max(1) as f64,
            won.iter().map(|p| p.outcome.seconds).fold(0.0, f64::max),
            100.0 * tripped as f64 / ticks.max(1) as f64,
            held,
            1e6 * elapsed / ticks.max(1) as f64,
        );
    }
    let mut table = Tabletop::blind(&so101, asked.split)?;
    table.reset(&Episode { task: "pick".into(), seed: 0, randomise: false })?;
    let expert = ScriptedExpert::new(&so101)?;
    let begun = Instant::now();
    for _ in 0..50 {
        expert_chunk(&table, &expert, 16)?;
    }
    println!("a chunk label of 16 ticks: {:.2} ms", begun.elapsed().as_secs_f64() * 20.0);
    let (state, begun) = (table.state(), Instant::now());
    for _ in 0..1000 {
        expert.targets(table.scene(), table.task(), &state);
    }
    println!("one expert action: {:.1} us", begun.elapsed().as_secs_f64() * 1000.0);
    Ok(())
}
