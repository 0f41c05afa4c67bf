//! The simulated arm in real time: joints on the control loop's thread, pictures on the camera's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// What the arm shows to the other threads at every tick.
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
    restart: Arc<AtomicBool>,
}

/// The arm's cameras.
pub struct SimCameras {
    cameras: Vec<Camera>,
    moments: Arc<Latest<Moment>>,
    seen: u64,
}

/// A table in the parts that the control loop needs, and what the others watch.
pub struct Stage {
    /// For the loop.
    pub arm: SimArm,
    /// For the camera thread.
    pub cameras: SimCameras,
    /// What happens.
    pub moments: Arc<Latest<Moment>>,
    /// When set, the judge begins anew at the next tick.
    pub restart: Arc<AtomicBool>,
}

/// Takes apart a table without pictures of its own.
pub fn split(table: Tabletop) -> Stage {
    let moments = Arc::new(Latest::default());
    let restart = Arc::new(AtomicBool::new(false));
    let cameras =
        SimCameras { cameras: table.embodiment().cameras.clone(), moments: Arc::clone(&moments), seen: 0 };
    let arm = SimArm {
        table,
        clock: Arc::new(MonotonicClock::new()),
        moments: Arc::clone(&moments),
        restart: Arc::clone(&restart),
    };
    arm.show(arm.clock.now());
    Stage { arm, cameras, moments, restart }
}

impl SimArm {
    fn show(&self, stamp: Stamp) {
        // A picture that is being copied just now costs this one; the next tick shows the next.
        self.moments.offer(Moment {
            drawing: self.table.drawing(),
            state: self.table.state(),
            outcome: self.table.outcome(),
            stamp,
        });
    }
}

impl JointSide for SimArm {
    fn embodiment(&self) -> &Embodiment {
        self.table.embodiment()
    }

    fn joints(&mut self) -> Result<JointReading> {
        // Pictures and joints of one moment carry one stamp.
        let stamp = self.clock.now();
        self.show(stamp);
        Ok(JointReading { positions: self.table.state().joint_positions, stamp, ..JointReading::default() })
    }

    fn apply(&mut self, action: Checked<Action>) -> Result<Applied> {
        let restart = self.restart.load(Ordering::Acquire);
        if restart {
            let task = self.table.task().clone();
            self.table.ask(&task);
        }
        let applied = self.table.apply(action)?;
        if restart {
            // Shown before the flag falls, so that nobody takes the old judge's word for the new one's.
            self.show(self.clock.now());
            self.restart.store(false, Ordering::Release);
        }
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
