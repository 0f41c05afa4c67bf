//! A question with two pictures to a policy in another session that does not think, and its answer.

use super::{Args, PACE_HZ, SIZE, Spread, Still, WARM_UP, robot, sessions};
use anyhow::Result;
use std::sync::atomic::{AtomicBool, Ordering};
use vela_embodiment::{Clock, Frame, InferOptions, MonotonicClock, Observation, Policy, Stamp};
use vela_robots::{RemotePolicy, serve_policy};

/// Questions with both pictures over the native link, one after another.
pub(super) fn measure(args: &Args, pictures: &[Vec<u8>]) -> Result<Spread> {
    let (near, far) = sessions(true)?;
    let robot = robot(SIZE, PACE_HZ)?;
    let clock = MonotonicClock::new();
    let frames = robot.cameras.iter().zip(pictures).map(|(camera, rgb)| Frame {
        camera: camera.name.clone(),
        width: camera.width,
        height: camera.height,
        rgb: rgb.clone().into(),
        stamp: Stamp(1),
    });
    let history = [Observation {
        frames: frames.collect(),
        joint_positions: vec![0.0; robot.joints.len()],
        instruction: "stand".into(),
        stamp: Stamp(1),
    }];
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let server =
            scope.spawn(|| serve_policy(&far, "vela/bench", &mut Still::new(&robot), &done, &mut |_| {}));
        let asked = (|| -> Result<Vec<f64>> {
            let mut remote = RemotePolicy::new(&near, "vela/bench", &robot, 1.0)?;
            remote.wait_ready(10.0)?;
            let mut took = Vec::new();
            let mut due = clock.now();
            for round in 0..(args.secs * PACE_HZ).ceil() as usize + WARM_UP {
                due = due.plus_secs(1.0 / PACE_HZ).max(clock.now());
                clock.sleep_until(due);
                let start = clock.now();
                remote.infer(&history, &InferOptions::default())?;
                if round >= WARM_UP {
                    took.push(clock.now().secs_since(start));
                }
            }
            Ok(took)
        })();
        done.store(true, Ordering::Release);
        server.join().map_err(|_| anyhow::anyhow!("the policy's thread died"))??;
        Ok(Spread::of(&asked?))
    })
}
