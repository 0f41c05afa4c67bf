//! A kinematic arm that goes where it is told, its cameras, and policies with switches.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;
use vela_embodiment::{
    Action, ActionChunk, ActionSpace, Applied, Checked, Clock, Embodiment, Environment, Episode, Error,
    Frame, FrameSource, InferOptions, JointReading, JointSide, MonotonicClock, Observation, Outcome, Policy,
    PolicySpec, Result, Robot, Stamp, VirtualClock,
};

/// Waits until `done`, at most ten seconds; false when it never was.
pub fn eventually(mut done: impl FnMut() -> bool) -> bool {
    for _ in 0..2000 {
        if done() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

pub fn frames(embodiment: &Embodiment, stamp: Stamp) -> Vec<Frame> {
    let frame = |c: &vela_embodiment::Camera| Frame {
        camera: c.name.clone(),
        width: c.width,
        height: c.height,
        rgb: vec![100; (c.width * c.height * 3) as usize].into(),
        stamp,
    };
    embodiment.cameras.iter().map(frame).collect()
}

/// Joints that are at once where they are sent. Succeeds when the first joint has passed `goal`.
pub struct FakeArm {
    pub embodiment: Embodiment,
    pub joints: Vec<f64>,
    pub goal: f64,
    pub fastest: f64,
    pub efforts: Vec<f64>,
    /// Joint readings are this old.
    pub late_ms: Arc<AtomicU64>,
    ticks: u64,
    clock: Arc<dyn Clock>,
    virtual_clock: Option<Arc<VirtualClock>>,
}

impl FakeArm {
    pub fn lockstep() -> Result<Self> {
        let clock = Arc::new(VirtualClock::new());
        Self::new(clock.clone(), Some(clock))
    }

    pub fn real_time() -> Result<Self> {
        Self::new(Arc::new(MonotonicClock::new()), None)
    }

    /// On a clock of the caller's.
    pub fn on(clock: Arc<dyn Clock>) -> Result<Self> {
        Self::new(clock, None)
    }

    fn new(clock: Arc<dyn Clock>, virtual_clock: Option<Arc<VirtualClock>>) -> Result<Self> {
        let embodiment = Embodiment::so101()?;
        let joints = vec![0.0; embodiment.joints.len()];
        Ok(Self {
            embodiment,
            joints,
            goal: 0.499,
            fastest: 0.0,
            efforts: Vec::new(),
            late_ms: Arc::default(),
            ticks: 0,
            clock,
            virtual_clock,
        })
    }
}

impl Robot for FakeArm {
    fn embodiment(&self) -> &Embodiment {
        &self.embodiment
    }

    fn observe(&mut self) -> Result<Observation> {
        Ok(Observation {
            frames: frames(&self.embodiment, self.clock.now()),
            joint_positions: self.joints.clone(),
            instruction: "go on".into(),
            stamp: self.clock.now(),
        })
    }

    fn apply(&mut self, action: Checked<Action>) -> Result<Applied> {
        let targets = action.into_inner().joint_targets;
        let moved = targets.iter().zip(&self.joints).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        self.fastest = self.fastest.max(moved);
        self.joints.clone_from(&targets);
        self.ticks += 1;
        if let Some(clock) = &self.virtual_clock {
            clock.advance_secs(self.embodiment.period_secs());
        }
        Ok(Applied { joint_targets: targets, stamp: self.clock.now() })
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }
}

impl Environment for FakeArm {
    fn reset(&mut self, _: &Episode) -> Result<()> {
        self.joints.fill(0.0);
        self.ticks = 0;
        Ok(())
    }

    fn outcome(&self) -> Outcome {
        let success = self.joints[0] >= self.goal;
        let seconds = self.ticks as f64 * self.embodiment.period_secs();
        Outcome { success, finished: success || seconds > 5.0, seconds }
    }
}

impl JointSide for FakeArm {
    fn embodiment(&self) -> &Embodiment {
        &self.embodiment
    }

    fn joints(&mut self) -> Result<JointReading> {
        Ok(JointReading {
            positions: self.joints.clone(),
            efforts: self.efforts.clone(),
            stamp: self.clock.now().plus_secs(-1e-3 * self.late_ms.load(Ordering::SeqCst) as f64),
        })
    }

    fn apply(&mut self, action: Checked<Action>) -> Result<Applied> {
        Robot::apply(self, action)
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }
}

/// A clock that leaps, as after a suspended machine wakes.
#[derive(Default)]
pub struct LeapingClock {
    steady: MonotonicClock,
    leapt_ms: AtomicI64,
}

impl LeapingClock {
    pub fn leap_ms(&self, by: i64) {
        self.leapt_ms.fetch_add(by, Ordering::SeqCst);
    }

    fn secs(&self) -> f64 {
        self.leapt_ms.load(Ordering::SeqCst) as f64 * 1e-3
    }
}

impl Clock for LeapingClock {
    fn now(&self) -> Stamp {
        self.steady.now().plus_secs(self.secs())
    }

    fn sleep_until(&self, stamp: Stamp) {
        self.steady.sleep_until(stamp.plus_secs(-self.secs()));
    }
}

/// Grey pictures at about 50 Hz, each a little different, until `dark`, `black` or `frozen`.
pub struct FakeCameras {
    pub embodiment: Embodiment,
    pub clock: Arc<dyn Clock>,
    pub dark: Arc<AtomicBool>,
    pub black: Arc<AtomicBool>,
    pub frozen: Arc<AtomicBool>,
    taken: u8,
}

impl FakeCameras {
    pub fn of(arm: &FakeArm) -> Self {
        Self {
            embodiment: arm.embodiment.clone(),
            clock: arm.clock.clone(),
            dark: Arc::default(),
            black: Arc::default(),
            frozen: Arc::default(),
            taken: 0,
        }
    }
}

impl FrameSource for FakeCameras {
    fn frames(&mut self) -> Result<Vec<Frame>> {
        std::thread::sleep(Duration::from_millis(20));
        if self.dark.load(Ordering::SeqCst) {
            return Err(Error::Robot("the cable is out".into()));
        }
        if !self.frozen.load(Ordering::SeqCst) {
            self.taken = self.taken.wrapping_add(1);
        }
        let mut frames = frames(&self.embodiment, self.clock.now());
        for frame in &mut frames {
            let mut rgb = frame.rgb.to_vec();
            match self.black.load(Ordering::SeqCst) {
                true => rgb.fill(2),
                false => rgb[0] = self.taken,
            }
            frame.rgb = rgb.into();
        }
        Ok(frames)
    }
}

/// What a policy does wrong.
#[derive(Clone, Default)]
pub struct Switches {
    pub failing: Arc<AtomicBool>,
    pub nan: Arc<AtomicBool>,
    /// It thinks until this is false.
    pub held: Arc<AtomicBool>,
    /// Milliseconds of thought.
    pub slow_ms: Arc<AtomicU64>,
    pub calls: Arc<AtomicU64>,
}

/// Moves the first joint on by `step` rad per tick, as deltas from the measured joints.
pub struct FakePolicy {
    pub spec: PolicySpec,
    pub step: f64,
    pub switches: Switches,
}

impl FakePolicy {
    pub fn new() -> Result<Self> {
        let spec = PolicySpec {
            embodiment: Embodiment::so101()?,
            space: ActionSpace::JointDeltas,
            horizon: 16,
            execute: 8,
            history: 1,
            checkpoint: "fake".into(),
        };
        Ok(Self { spec, step: 0.005, switches: Switches::default() })
    }
}

impl Policy for FakePolicy {
    fn spec(&self) -> &PolicySpec {
        &self.spec
    }

    fn infer(&mut self, history: &[Observation], options: &InferOptions) -> Result<ActionChunk> {
        self.switches.calls.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(self.switches.slow_ms.load(Ordering::SeqCst)));
        while self.switches.held.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(2));
        }
        if self.switches.failing.load(Ordering::SeqCst) {
            return Err(Error::Policy("it has a headache".into()));
        }
        let newest = history.last().ok_or_else(|| Error::Policy("nothing to look at".into()))?;
        let mut actions: Vec<Vec<f64>> = (1..=self.spec.horizon)
            .map(|k| {
                let mut action = vec![0.0; self.spec.embodiment.joints.len()];
                action[0] = k as f64 * self.step;
                action
            })
            .collect();
        if self.switches.nan.load(Ordering::SeqCst) {
            actions[3][0] = f64::NAN;
        }
        Ok(ActionChunk {
            space: self.spec.space.clone(),
            actions,
            period_secs: self.spec.embodiment.period_secs(),
            observation_stamp: newest.stamp,
            seed: options.seed,
            checkpoint: self.spec.checkpoint.clone(),
        })
    }
}
