//! A policy in fifty lines that needs no model: it waves. For trying a robot and its link.
//!
//! `vela sim` in one shell, `cargo run --release -p vela-robots --example waving_policy -- vela/arm 20` in another.

use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use vela_embodiment::{
    ActionChunk, ActionSpace, Embodiment, InferOptions, Observation, Policy, PolicySpec, Result,
};
use vela_robots::{ServeEvent, Side, open_session, serve_policy};

struct Waving(PolicySpec);

impl Policy for Waving {
    fn spec(&self) -> &PolicySpec {
        &self.0
    }

    fn infer(&mut self, history: &[Observation], options: &InferOptions) -> Result<ActionChunk> {
        let newest = &history[history.len() - 1];
        let period_secs = self.0.embodiment.period_secs();
        let pan = |k: usize| 0.4 * (newest.stamp.secs() + (k + 1) as f64 * period_secs).sin();
        let actions =
            (0..self.0.horizon).map(|k| [&[pan(k)], &newest.joint_positions[1..]].concat()).collect();
        Ok(ActionChunk {
            space: ActionSpace::JointPositions,
            actions,
            period_secs,
            observation_stamp: newest.stamp,
            seed: options.seed,
            checkpoint: self.0.checkpoint.clone(),
        })
    }
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let key = arguments.next().unwrap_or_else(|| "vela/arm".into());
    let secs: u64 = arguments.next().map_or(Ok(20), |text| text.parse())?;
    let mut policy = Waving(PolicySpec {
        embodiment: Embodiment::so101()?,
        space: ActionSpace::JointPositions,
        horizon: 24,
        execute: 8,
        history: 1,
        checkpoint: "waving".into(),
    });
    let session = open_session(Side::Policy, None)?;
    let shutdown = AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_secs(secs));
            shutdown.store(true, Ordering::Release);
        });
        serve_policy(&session, &key, &mut policy, &shutdown, &mut |event| {
            if let ServeEvent::Refused(why) = event {
                eprintln!("refused: {why}");
            }
        })
    })?;
    println!("{} chunks sent, {} refused", report.answered, report.refused);
    Ok(())
}
