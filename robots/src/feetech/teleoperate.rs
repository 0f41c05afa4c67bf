//! One arm follows another: a person's hand moves the leader, the follower goes where it is, through the control loop.
//!
//! The leader is read at the follower's own rate, and every pose is a command like any other that comes from outside:
//! the gate checks it, and whoever records or looks at the arm sees what it always sees. The follower comes to the
//! leader's pose slowly, at the start and after every hold; only then it follows freely. A command stands for a moment,
//! so that a lost reading is nothing; when none comes any more (the leader is unplugged), the follower brakes and holds.

use super::LeaderArm;
use crate::control::{ControlHandle, State};
use crate::resolve::Plan;
use std::sync::{Arc, Mutex, PoisonError};
use vela_embodiment::{
    ActionChunk, ActionSpace, Embodiment, Error, InferOptions, Limits, Observation, Policy, PolicySpec,
    Result,
};

/// How fast the follower comes to the leader's pose, rad/s or m/s.
const APPROACH_SPEED: f64 = 0.6;
/// From here on it follows freely, rad or m.
const REACHED: f64 = 0.02;
/// A command stands for this long, s.
const STANDS_SECS: f64 = 0.15;
/// A leader that is silent for this long is looked for anew, s.
const REOPEN_SECS: f64 = 1.0;

/// What happens meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TeleoperationEvent {
    /// The follower is coming to the leader's pose.
    Approaching,
    /// The follower is where the leader is and follows it.
    Following,
    /// The leader does not answer: the follower holds.
    Lost(String),
}

/// Decides what the follower is told at each tick.
#[derive(Clone, Debug)]
pub struct Teleoperation {
    limits: Vec<Limits>,
    period_secs: f64,
    /// What was told last; `None` before the first command and after a hold.
    told: Option<Vec<f64>>,
    following: bool,
}

impl Teleoperation {
    /// Of this follower.
    pub fn new(follower: &Embodiment) -> Self {
        Self {
            limits: follower.joints.iter().map(|joint| joint.limits).collect(),
            period_secs: follower.period_secs(),
            told: None,
            following: false,
        }
    }

    /// The follower has held: it comes slowly again.
    pub fn restart(&mut self) {
        (self.told, self.following) = (None, false);
    }

    /// Whether the follower has come to the leader's pose.
    pub fn following(&self) -> bool {
        self.following
    }

    /// The follower's targets at this tick; `leader` and `follower` are measured joints, all rad or m.
    pub fn step(&mut self, leader: &[f64], follower: &[f64]) -> Vec<f64> {
        let mut told = self.told.take().unwrap_or_else(|| follower.to_vec());
        let step = if self.following { f64::INFINITY } else { APPROACH_SPEED * self.period_secs };
        let mut far = 0.0_f64;
        for ((told, leader), limits) in told.iter_mut().zip(leader).zip(&self.limits) {
            let goal = leader.clamp(limits.lower, limits.upper);
            *told += (goal - *told).clamp(-step, step);
            far = far.max((goal - *told).abs());
        }
        self.following |= far <= REACHED;
        self.told = Some(told.clone());
        told
    }
}

/// Why nothing moves when the leader says nothing: the planner's only answer, so that no policy takes over from a hand.
#[derive(Clone, Debug)]
pub struct HandGuided {
    spec: PolicySpec,
    why: Arc<Mutex<String>>,
}

impl HandGuided {
    /// For this follower.
    pub fn new(follower: &Embodiment) -> Self {
        let spec = PolicySpec {
            embodiment: follower.clone(),
            space: ActionSpace::JointPositions,
            horizon: 1,
            execute: 1,
            history: 1,
            checkpoint: "a person's hand".into(),
        };
        Self { spec, why: Arc::new(Mutex::new("the leader has not been read yet".into())) }
    }

    fn say(&self, why: &str) {
        why.clone_into(&mut self.why.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Policy for HandGuided {
    fn spec(&self) -> &PolicySpec {
        &self.spec
    }

    fn infer(&mut self, _: &[Observation], _: &InferOptions) -> Result<ActionChunk> {
        Err(Error::Robot(self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()))
    }
}

/// Makes the arm of `handle` follow the leader that `open` opens, until that arm's loop has ended. A leader that went
/// away is opened again. `guided` is (a clone of) the policy that the loop was started with.
///
/// # Errors
/// The leader cannot be opened at the start.
pub fn teleoperate(
    mut open: impl FnMut() -> Result<LeaderArm>,
    follower: &Embodiment,
    handle: &ControlHandle,
    guided: &HandGuided,
    listener: &mut dyn FnMut(TeleoperationEvent),
) -> Result<()> {
    let (clock, stop) = (handle.clock(), handle.emergency_stop());
    let mut leader = Some(open()?);
    let mut teleoperation = Teleoperation::new(follower);
    let stands = (STANDS_SECS * follower.control_hz).ceil().max(1.0) as usize;
    let mut last: Option<TeleoperationEvent> = None;
    let mut tell = |event: TeleoperationEvent| {
        // A leader that stays lost for another reason is no news.
        let same = last.as_ref().is_some_and(|l| std::mem::discriminant(l) == std::mem::discriminant(&event));
        if !same {
            last = Some(event.clone());
            listener(event);
        }
    };
    let mut due = clock.now();
    let mut heard = due;
    while !handle.ended() {
        clock.sleep_until(due);
        let now = clock.now();
        due = due.plus_secs(follower.period_secs());
        if due < now {
            due = now;
        }
        let read = match &mut leader {
            Some(arm) => arm.pose(),
            None => open().and_then(|arm| leader.insert(arm).pose()),
        };
        let pose = match read {
            Ok(pose) => pose,
            Err(error) => {
                let silent_secs = now.secs_since(heard);
                if silent_secs > STANDS_SECS {
                    let why = format!("the leader: {error}");
                    guided.say(&why);
                    teleoperation.restart();
                    tell(TeleoperationEvent::Lost(why));
                }
                if silent_secs > REOPEN_SECS {
                    leader = None;
                    due = clock.now().plus_secs(REOPEN_SECS);
                }
                continue;
            }
        };
        heard = clock.now();
        let Some(here) = handle.joints() else { continue };
        if stop.pressed() || matches!(handle.state(), State::Holding { .. }) {
            teleoperation.restart();
        }
        let told = teleoperation.step(&pose, &here.positions);
        let plan = Plan {
            targets: vec![told; stands],
            period_secs: follower.period_secs(),
            observation_stamp: now,
            command: true,
        };
        // A loop that is busy takes the next one.
        let _ = handle.follow(plan);
        tell(match teleoperation.following() {
            true => TeleoperationEvent::Following,
            false => TeleoperationEvent::Approaching,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_follower_comes_slowly_and_then_follows_freely() -> Result<()> {
        let robot = Embodiment::so101()?;
        let mut teleoperation = Teleoperation::new(&robot);
        let leader = [0.6, -0.3, 0.0, 0.0, 0.0, 0.5];
        let mut before = vec![0.0; 6];
        let mut ticks = 0;
        while !teleoperation.following() {
            let told = teleoperation.step(&leader, &before);
            let fastest = told.iter().zip(&before).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(fastest <= 0.6 / 30.0 + 1e-12, "{fastest}");
            before = told;
            ticks += 1;
        }
        // 0.6 rad at 0.6 rad/s, less what counts as reached.
        assert_eq!(ticks, 29);
        let moved = [0.9, -0.3, 0.0, 0.0, 0.0, 0.0];
        assert_eq!(teleoperation.step(&moved, &before), moved, "freely: the gate keeps the speed");
        let far = [9.0, -9.0, 0.0, 0.0, 0.0, 0.0];
        let told = teleoperation.step(&far, &before);
        assert_eq!((told[0], told[1]), (robot.joints[0].limits.upper, robot.joints[1].limits.lower));
        teleoperation.restart();
        let told = teleoperation.step(&moved, &[0.0; 6]);
        assert!(!teleoperation.following() && told[0] <= 0.02 + 1e-12, "after a hold it comes slowly again");
        Ok(())
    }

    #[test]
    fn no_policy_takes_over_from_a_hand() -> Result<()> {
        let mut guided = HandGuided::new(&Embodiment::so101()?);
        guided.clone().say("the leader: gone");
        let said = guided.infer(&[], &InferOptions::default());
        assert!(said.is_err_and(|e| e.to_string() == "robot: the leader: gone"));
        Ok(())
    }
}
