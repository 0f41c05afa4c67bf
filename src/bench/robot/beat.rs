//! How the control loop keeps time while the policy burns every core, beside a loop that only waits.

use super::{Args, PACE_HZ, Still, robot};
use anyhow::{Context, Result};
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::thread::JoinHandle;
use std::time::Duration;
use vela_embodiment::{
    Action, ActionChunk, Applied, Camera, Checked, Clock, Embodiment, Frame, FrameSource, InferOptions,
    JointReading, JointSide, MonotonicClock, Observation, Policy, PolicySpec, Stamp,
};
use vela_robots::priority::{self, Urgency};
use vela_robots::{ControlOptions, Controller};

/// Pause between two thoughts of the policy that burns, s.
const REST_SECS: f64 = 1.0;

/// How a loop kept time.
#[derive(Serialize)]
pub(super) struct Beat {
    /// Whether the system gave it a real-time priority.
    pub(super) real_time: bool,
    pub(super) ticks: u64,
    pub(super) late: u64,
    pub(super) late_percent: f64,
    pub(super) worst_late_ms: f64,
}

impl Beat {
    fn new(real_time: bool, ticks: u64, late: u64, worst_late_secs: f64) -> Self {
        let late_percent = 100.0 * late as f64 / ticks.max(1) as f64;
        Self { real_time, ticks, late, late_percent, worst_late_ms: worst_late_secs * 1e3 }
    }
}

/// The loops that were measured side by side.
pub(super) struct Beats {
    pub(super) control: Beat,
    pub(super) bare: Beat,
    pub(super) bare_real_time: Beat,
}

/// A loop that only waits.
struct Bare {
    period_secs: f64,
    /// A tick that starts later than this counts, s.
    late_secs: f64,
    end: Stamp,
    clock: Arc<MonotonicClock>,
}

impl Bare {
    fn start(self, real_time: bool) -> std::io::Result<JoinHandle<Beat>> {
        let name = if real_time { "bare-real-time" } else { "bare-timer" };
        std::thread::Builder::new().name(name.into()).spawn(move || {
            let given = real_time && priority::ask(Urgency::Control).is_real_time();
            let (mut ticks, mut late, mut worst, mut due) = (0, 0, 0.0_f64, self.clock.now());
            while self.clock.now() < self.end {
                self.clock.sleep_until(due);
                let now = self.clock.now();
                let by = now.secs_since(due).max(0.0);
                ticks += 1;
                late += u64::from(by > self.late_secs);
                worst = worst.max(by);
                due = if by > self.late_secs { now } else { due }.plus_secs(self.period_secs);
            }
            Beat::new(given, ticks, late, worst)
        })
    }
}

/// An arm that is where it is told to be.
struct Statue {
    robot: Embodiment,
    joints: Vec<f64>,
    clock: Arc<MonotonicClock>,
}

impl JointSide for Statue {
    fn embodiment(&self) -> &Embodiment {
        &self.robot
    }

    fn joints(&mut self) -> vela_embodiment::Result<JointReading> {
        let (positions, stamp) = (self.joints.clone(), self.clock.now());
        Ok(JointReading { positions, stamp, ..JointReading::default() })
    }

    fn apply(&mut self, action: Checked<Action>) -> vela_embodiment::Result<Applied> {
        self.joints = action.into_inner().joint_targets;
        Ok(Applied { joint_targets: self.joints.clone(), stamp: self.clock.now() })
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }
}

/// Pictures at 30 Hz, each a little different.
struct Slides {
    cameras: Vec<Camera>,
    clock: Arc<MonotonicClock>,
    taken: u8,
}

impl FrameSource for Slides {
    fn frames(&mut self) -> vela_embodiment::Result<Vec<Frame>> {
        self.clock.sleep_until(self.clock.now().plus_secs(1.0 / PACE_HZ));
        self.taken = self.taken.wrapping_add(1);
        let stamp = self.clock.now();
        let frame = |c: &Camera| Frame {
            camera: c.name.clone(),
            width: c.width,
            height: c.height,
            rgb: vec![self.taken.max(100); (c.width * c.height * 3) as usize].into(),
            stamp,
        };
        Ok(self.cameras.iter().map(frame).collect())
    }
}

/// Burns every core while it thinks.
struct Burner {
    still: Still,
    secs: f64,
    clock: Arc<MonotonicClock>,
    done: Arc<AtomicBool>,
}

impl Policy for Burner {
    fn spec(&self) -> &PolicySpec {
        self.still.spec()
    }

    fn infer(
        &mut self,
        history: &[Observation],
        options: &InferOptions,
    ) -> vela_embodiment::Result<ActionChunk> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let end = self.clock.now().plus_secs(self.secs);
        let hot = || !self.done.load(Ordering::Relaxed) && self.clock.now() < end;
        std::thread::scope(|scope| {
            for _ in 0..cores {
                scope.spawn(|| {
                    let mut sum = 0_u64;
                    while hot() {
                        sum = std::hint::black_box((0..10_000_u64).fold(sum, |a, b| a.rotate_left(5) ^ b));
                    }
                });
            }
        });
        let rested = self.clock.now().plus_secs(REST_SECS);
        while !self.done.load(Ordering::Relaxed) && self.clock.now() < rested {
            self.clock.sleep_until(self.clock.now().plus_secs(0.02));
        }
        self.still.infer(history, options)
    }
}

/// The control loop of an arm and, on other threads, two loops that only wait, while the policy burns the cores.
pub(super) fn measure(args: &Args) -> Result<Beats> {
    let robot = robot((96, 96), args.hz)?;
    let clock = Arc::new(MonotonicClock::new());
    let done = Arc::new(AtomicBool::new(false));
    let arm = Statue { joints: vec![0.0; robot.joints.len()], robot: robot.clone(), clock: clock.clone() };
    let cameras = Slides { cameras: robot.cameras.clone(), clock: clock.clone(), taken: 0 };
    let policy =
        Burner { still: Still::new(&robot), secs: args.burn_secs, clock: clock.clone(), done: done.clone() };
    let options = ControlOptions {
        max_frame_age_secs: f64::INFINITY,
        stop_after_hold_secs: f64::INFINITY,
        start_within_secs: f64::INFINITY,
        real_time: true,
        ..ControlOptions::default()
    };
    let (period, late_secs) = (robot.period_secs(), options.late_part * robot.period_secs());
    let end = clock.now().plus_secs(args.loop_secs.unwrap_or(args.secs));
    let bare = || Bare { period_secs: period, late_secs, end, clock: clock.clone() };
    let (plain, real_time) = (bare().start(false)?, bare().start(true)?);
    let (controller, events) = Controller::start(arm, cameras, policy, "stand", &options)?;
    while clock.now() < end {
        if let Err(RecvTimeoutError::Disconnected) = events.recv_timeout(Duration::from_millis(100)) {
            break;
        }
    }
    done.store(true, Ordering::Release);
    let report = controller.finish().report;
    let joined = |thread: JoinHandle<Beat>| thread.join().ok().context("the bare timer's thread died");
    let worst = report.worst_late_secs;
    Ok(Beats {
        control: Beat::new(report.real_time, report.ticks, report.late_ticks, worst),
        bare: joined(plain)?,
        bare_real_time: joined(real_time)?,
    })
}
