//! The simulated arm in real time: joints on the control loop's thread, pictures on the camera's.

use std::sync::Arc;
use std::time::Duration;
use vela_embodiment::{
    Action, Applied, Camera, Checked, Clock, Embodiment, Environment, Error, Frame, FrameSource,
    JointReading, JointSide, MonotonicClock, Outcome, Result, Robot, Stamp,
};
use vela_robots::Latest;
use vela_sim::drawing::Drawing;
use vela_sim::state::WorldState;
use vela_sim::studio::photograph;
use vela_sim::tabletop::Tabletop;

/// What the arm shows to the other threads after every tick.
#[derive(Clone)]
pub struct Moment {
    /// What the cameras see.
    pub drawing: Drawing,
    /// The physical truth, for viewers and judges.
    pub state: WorldState,
    /// How the episode stands.
    pub outcome: Outcome,
    /// When, on the arm's clock.
    pub stamp: Stamp,
}

/// The arm's joints; each action moves the world by one control period.
pub struct SimArm {
    table: Tabletop,
    clock: Arc<MonotonicClock>,
    moments: Arc<Latest<Moment>>,
}

/// The arm's cameras.
pub struct SimCameras {
    cameras: Vec<Camera>,
    moments: Arc<Latest<Moment>>,
    seen: u64,
}

/// Splits a table without pictures of its own into what the control loop needs, and what happens on it.
pub fn split(table: Tabletop) -> (SimArm, SimCameras, Arc<Latest<Moment>>) {
    let moments = Arc::new(Latest::default());
    let cameras = table.embodiment().cameras.clone();
    let arm = SimArm { table, clock: Arc::new(MonotonicClock::new()), moments: Arc::clone(&moments) };
    arm.show();
    (arm, SimCameras { cameras, moments: Arc::clone(&moments), seen: 0 }, moments)
}

impl SimArm {
    fn show(&self) {
        // A picture that is being copied just now costs this one; the next tick shows the next.
        self.moments.offer(Moment {
            drawing: self.table.drawing(),
            state: self.table.state(),
            outcome: self.table.outcome(),
            stamp: self.clock.now(),
        });
    }
}

impl JointSide for SimArm {
    fn embodiment(&self) -> &Embodiment {
        self.table.embodiment()
    }

    fn joints(&mut self) -> Result<JointReading> {
        Ok(JointReading { positions: self.table.state().joint_positions, stamp: self.clock.now() })
    }

    fn apply(&mut self, action: Checked<Action>) -> Result<Applied> {
        let applied = self.table.apply(action)?;
        self.show();
        Ok(Applied { stamp: self.clock.now(), ..applied })
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock) as Arc<dyn Clock>
    }
}

impl FrameSource for SimCameras {
    fn frames(&mut self) -> Result<Vec<Frame>> {
        let newer = self.moments.wait_newer(self.seen, Duration::from_secs(1));
        let (number, moment) =
            newer.ok_or_else(|| Error::Robot("the simulated world has not moved for a second".into()))?;
        self.seen = number;
        photograph(&self.cameras, &moment.drawing, moment.stamp)
    }
}
