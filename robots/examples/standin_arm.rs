//! An arm in a hundred lines that needs no simulator: its joints are at once where they are sent. For trying a policy,
//! the link and ROS 2 clients, and for seeing what a driver has to implement.
//!
//! `cargo run --release -p vela-robots --example standin_arm -- 20` and, each in its own shell, `vela act` (or the
//! example `waving_policy`) and `python examples/ros2/listen.py`.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use vela_embodiment::{
    Action, Applied, Checked, Clock, Embodiment, Frame, FrameSource, JointReading, JointSide, MonotonicClock,
    Result,
};
use vela_robots::{ControlEvent, ControlOptions, Controller, RemotePolicy, Side, open_session, ros2};

struct Arm {
    embodiment: Embodiment,
    joints: Vec<f64>,
    clock: Arc<MonotonicClock>,
}

impl JointSide for Arm {
    fn embodiment(&self) -> &Embodiment {
        &self.embodiment
    }

    fn joints(&mut self) -> Result<JointReading> {
        Ok(JointReading {
            positions: self.joints.clone(),
            stamp: self.clock.now(),
            ..JointReading::default()
        })
    }

    fn apply(&mut self, action: Checked<Action>) -> Result<Applied> {
        self.joints = action.into_inner().joint_targets;
        Ok(Applied { joint_targets: self.joints.clone(), stamp: self.clock.now() })
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }
}

struct GreyCameras {
    embodiment: Embodiment,
    clock: Arc<MonotonicClock>,
}

impl FrameSource for GreyCameras {
    fn frames(&mut self) -> Result<Vec<Frame>> {
        std::thread::sleep(Duration::from_millis(33));
        let stamp = self.clock.now();
        let frame = |c: &vela_embodiment::Camera| Frame {
            camera: c.name.clone(),
            width: c.width,
            height: c.height,
            rgb: vec![128; (c.width * c.height * 3) as usize].into(),
            stamp,
        };
        Ok(self.embodiment.cameras.iter().map(frame).collect())
    }
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let secs: f64 = std::env::args().nth(1).map_or(Ok(20.0), |text| text.parse())?;
    let embodiment = Embodiment::so101()?;
    let clock = Arc::new(MonotonicClock::new());
    let arm = Arm { embodiment: embodiment.clone(), joints: vec![0.0; 6], clock: clock.clone() };
    let cameras = GreyCameras { embodiment: embodiment.clone(), clock: clock.clone() };

    let session = open_session(Side::Robot, None)?;
    let policy = RemotePolicy::new(&session, "vela/arm", &embodiment, 1.0)?;
    // Wait for a policy for ever, standing still: it may come and go.
    let options = ControlOptions {
        start_within_secs: f64::INFINITY,
        stop_after_hold_secs: f64::INFINITY,
        ..ControlOptions::default()
    };
    let (controller, events) = Controller::start(arm, cameras, policy, "wave", &options)?;
    let handle = controller.handle();
    let mut node = ros2::Node::start(&session, &embodiment, &handle)?;
    while clock.now().secs() < secs {
        let Ok(event) = events.recv_timeout(Duration::from_millis(100)) else { continue };
        node.publish(&event)?;
        match &event {
            ControlEvent::State { state, stamp } => println!("{:7.3} s  {state:?}", stamp.secs()),
            ControlEvent::Failed { why, stamp } => println!("{:7.3} s  {why}", stamp.secs()),
            _ => {}
        }
    }
    let instruction = handle.instruction();
    let mut report = controller.finish().report;
    report.infer_secs.sort_by(f64::total_cmp);
    let median = report.infer_secs.get(report.infer_secs.len() / 2).copied().unwrap_or_default();
    println!(
        "{} ticks, {} late (worst {:.1} ms), {} chunks, link and policy {:.2} ms median, instruction '{instruction}'",
        report.ticks,
        report.late_ticks,
        report.worst_late_secs * 1e3,
        report.chunks,
        median * 1e3
    );
    println!("{} commands refused", node.refusals().0);
    Ok(())
}
