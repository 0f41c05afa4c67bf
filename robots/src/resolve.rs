//! From a chunk in any action space to absolute joint targets: the one place where that happens.

use nalgebra::{Point3, UnitQuaternion, Vector3};
use rand::RngCore;
use vela_embodiment::{
    ActionChunk, ActionSpace, Embodiment, Error, IkGoal, IkOptions, InferOptions, Kinematics, Observation,
    Policy, PolicySpec, Result, Stamp,
};

/// A plan in absolute joint targets, ready for the queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// `[horizon][joints]`, rad or m. Target `k` is to be reached at `observation_stamp + (k + 1) * period_secs`.
    pub targets: Vec<Vec<f64>>,
    /// Seconds between two targets.
    pub period_secs: f64,
    /// The observation that it answers; for a command, when it was given.
    pub observation_stamp: Stamp,
    /// A person's or another program's trajectory instead of a policy's answer: it does not go stale while it
    /// plays and no answer replaces it before its end.
    pub command: bool,
}

impl Plan {
    /// When its last target is to be reached.
    pub fn end(&self) -> Stamp {
        self.observation_stamp.plus_secs(self.targets.len() as f64 * self.period_secs)
    }

    /// Targets at `time`, rad or m: linear between two actions, from the first action back to the observation
    /// the first action, and after the end none.
    pub fn at(&self, time: Stamp) -> Option<Vec<f64>> {
        let place = time.secs_since(self.observation_stamp) / self.period_secs - 1.0;
        let last = self.targets.len().checked_sub(1)?;
        // A thousandth of an action absorbs the rounding of stamps.
        if place > last as f64 + 1e-3 {
            return None;
        }
        let place = place.clamp(0.0, last as f64);
        let (before, part) = (place.floor() as usize, place.fract());
        let after = (before + 1).min(last);
        Some(self.targets[before].iter().zip(&self.targets[after]).map(|(a, b)| a + (b - a) * part).collect())
    }
}

/// Turns the chunks of one policy into plans for one robot.
#[derive(Clone, Debug)]
pub struct Resolver {
    joints: usize,
    kinematics: Kinematics,
    gripper: Option<usize>,
}

impl Resolver {
    /// For this robot.
    ///
    /// # Errors
    /// The URDF has no chain to the tip.
    pub fn new(embodiment: &Embodiment) -> Result<Self> {
        let gripper = embodiment.gripper.as_ref().map(|g| embodiment.joint_index(&g.joint)).transpose()?;
        Ok(Self { joints: embodiment.joints.len(), kinematics: embodiment.kinematics()?, gripper })
    }

    /// Numbers per action in this space.
    pub fn dims(&self, space: &ActionSpace) -> usize {
        match space {
            ActionSpace::JointPositions | ActionSpace::JointDeltas => self.joints,
            ActionSpace::EndEffectorDeltas => 6 + usize::from(self.gripper.is_some()),
        }
    }

    /// Absolute joint targets of `chunk`, which answers an observation with these measured joints (rad or m).
    /// End-effector displacements are from the tip's pose at that observation.
    ///
    /// # Errors
    /// The chunk is empty, ragged, not finite or of the wrong width, or a pose is out of reach.
    pub fn resolve(&self, chunk: &ActionChunk, measured: &[f64]) -> Result<Plan> {
        chunk.check(self.dims(&chunk.space))?;
        let targets = match chunk.space {
            ActionSpace::JointPositions => chunk.actions.clone(),
            ActionSpace::JointDeltas => chunk
                .actions
                .iter()
                .map(|action| action.iter().zip(measured).map(|(delta, q)| q + delta).collect())
                .collect(),
            ActionSpace::EndEffectorDeltas => self.reach(&chunk.actions, measured)?,
        };
        Ok(Plan {
            targets,
            period_secs: chunk.period_secs,
            observation_stamp: chunk.observation_stamp,
            command: false,
        })
    }

    fn reach(&self, actions: &[Vec<f64>], measured: &[f64]) -> Result<Vec<Vec<f64>>> {
        let from = self.kinematics.base_from_tip(measured);
        let mut q = measured.to_vec();
        let mut targets = Vec::with_capacity(actions.len());
        for (k, action) in actions.iter().enumerate() {
            let step = Vector3::new(action[0], action[1], action[2]);
            let turn = UnitQuaternion::from_scaled_axis(Vector3::new(action[3], action[4], action[5]));
            let goal = IkGoal {
                position: Point3::from(from.translation.vector + step),
                approach: None,
                rotation: Some(turn * from.rotation),
            };
            q = self.kinematics.solve_ik(&goal, &q, &IkOptions::default()).ok_or_else(|| {
                Error::Policy(format!(
                    "action {k} of the chunk asks for a pose of the tip that is out of reach"
                ))
            })?;
            if let Some(gripper) = self.gripper {
                q[gripper] = action[6];
            }
            targets.push(q.clone());
        }
        Ok(targets)
    }
}

/// A policy of any action space as one of absolute joint targets: for robots that do not resolve chunks themselves.
pub struct Absolute {
    policy: Box<dyn Policy>,
    resolver: Resolver,
    spec: PolicySpec,
}

impl Absolute {
    /// This policy for this robot.
    ///
    /// # Errors
    /// The policy does not fit the robot (every difference named), or its URDF has no chain to the tip.
    pub fn new(policy: Box<dyn Policy>, robot: &Embodiment) -> Result<Self> {
        require_policy_fits(robot, policy.spec())?;
        let spec = PolicySpec { space: ActionSpace::JointPositions, ..policy.spec().clone() };
        Ok(Self { resolver: Resolver::new(robot)?, policy, spec })
    }
}

impl Policy for Absolute {
    fn spec(&self) -> &PolicySpec {
        &self.spec
    }

    fn turn_to(&mut self, robot: &str) {
        self.policy.turn_to(robot);
    }

    fn infer(&mut self, history: &[Observation], options: &InferOptions) -> Result<ActionChunk> {
        let newest = history.last().ok_or_else(|| Error::Policy("there is nothing to look at".into()))?;
        let chunk = self.policy.infer(history, options)?;
        let actions = self.resolver.resolve(&chunk, &newest.joint_positions)?.targets;
        Ok(ActionChunk { space: ActionSpace::JointPositions, actions, ..chunk })
    }
}

/// The seed of the sampling noise of chunk `number` of an episode with this seed.
pub fn chunk_seed(seed: u64, number: u64) -> u64 {
    vela_embodiment::stream(seed, &format!("chunk {number}")).next_u64()
}

/// Refuses a policy that was made for another robot, or whose spec makes no sense; every difference is named.
pub fn require_policy_fits(robot: &Embodiment, spec: &PolicySpec) -> Result<()> {
    robot.require_same(&spec.embodiment)?;
    if spec.horizon == 0 || spec.execute == 0 || spec.execute > spec.horizon || spec.history == 0 {
        return Err(Error::Shape {
            what: "policy spec".into(),
            expected: "0 < execute <= horizon and history > 0".into(),
            got: format!("execute {}, horizon {}, history {}", spec.execute, spec.horizon, spec.history),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(space: ActionSpace, actions: Vec<Vec<f64>>) -> ActionChunk {
        ActionChunk {
            space,
            actions,
            period_secs: 0.1,
            observation_stamp: Stamp::from_secs(1.0),
            seed: 0,
            checkpoint: String::new(),
        }
    }

    #[test]
    fn deltas_are_added_to_the_joints_of_their_observation() -> Result<()> {
        let resolver = Resolver::new(&Embodiment::so101()?)?;
        let plan = resolver
            .resolve(&chunk(ActionSpace::JointDeltas, vec![vec![0.1; 6], vec![0.2; 6]]), &[1.0; 6])?;
        assert!((plan.targets[1][3] - 1.2).abs() < 1e-12);
        assert!(resolver.resolve(&chunk(ActionSpace::JointDeltas, vec![vec![0.1; 7]]), &[1.0; 6]).is_err());
        let nan = chunk(ActionSpace::JointPositions, vec![vec![f64::NAN; 6]]);
        assert!(resolver.resolve(&nan, &[1.0; 6]).is_err_and(|e| e.to_string().contains("not finite")));
        Ok(())
    }

    #[test]
    fn a_tip_displacement_moves_the_tip_by_that_much() -> Result<()> {
        let embodiment = Embodiment::so101()?;
        let (resolver, kinematics) = (Resolver::new(&embodiment)?, embodiment.kinematics()?);
        let measured = [0.0, 0.2, 0.2, 0.8, 0.0, 0.5];
        let actions = vec![vec![0.0, 0.0, 0.01, 0.0, 0.0, 0.0, 0.3]];
        let plan = resolver.resolve(&chunk(ActionSpace::EndEffectorDeltas, actions), &measured)?;
        let moved = kinematics.base_from_tip(&plan.targets[0]).translation.vector
            - kinematics.base_from_tip(&measured).translation.vector;
        assert!((moved - Vector3::new(0.0, 0.0, 0.01)).norm() < 1e-3, "{moved}");
        assert_eq!(plan.targets[0][5], 0.3);
        let far = vec![vec![2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]];
        assert!(resolver.resolve(&chunk(ActionSpace::EndEffectorDeltas, far), &measured).is_err());
        Ok(())
    }

    /// Says the same deltas whatever it sees.
    struct Stubborn(PolicySpec);

    impl Policy for Stubborn {
        fn spec(&self) -> &PolicySpec {
            &self.0
        }

        fn infer(&mut self, _: &[Observation], _: &InferOptions) -> Result<ActionChunk> {
            Ok(chunk(self.0.space.clone(), vec![vec![0.1; 6]; 2]))
        }
    }

    #[test]
    fn a_policy_of_deltas_answers_in_absolute_targets() -> Result<()> {
        let spec = PolicySpec {
            embodiment: Embodiment::so101()?,
            space: ActionSpace::JointDeltas,
            horizon: 2,
            execute: 1,
            history: 1,
            checkpoint: String::new(),
        };
        let mut absolute = Absolute::new(Box::new(Stubborn(spec)), &Embodiment::so101()?)?;
        assert_eq!(absolute.spec().space, ActionSpace::JointPositions);
        let seen = Observation {
            frames: vec![],
            joint_positions: vec![0.5; 6],
            instruction: String::new(),
            stamp: Stamp(0),
        };
        let answer = absolute.infer(&[seen], &InferOptions::default())?;
        assert_eq!((answer.space, answer.actions), (ActionSpace::JointPositions, vec![vec![0.6; 6]; 2]));
        assert!(absolute.infer(&[], &InferOptions::default()).is_err());
        Ok(())
    }

    #[test]
    fn a_policy_for_another_robot_is_refused_with_the_difference() -> Result<()> {
        let robot = Embodiment::so101()?;
        let mut spec = PolicySpec {
            embodiment: robot.clone(),
            space: ActionSpace::JointPositions,
            horizon: 8,
            execute: 4,
            history: 1,
            checkpoint: String::new(),
        };
        require_policy_fits(&robot, &spec)?;
        spec.execute = 9;
        assert!(require_policy_fits(&robot, &spec).is_err());
        spec.embodiment.cameras[0].width = 64;
        let text = require_policy_fits(&robot, &spec).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(text.contains("camera 'front' is 96x96 against 64x96"), "{text}");
        Ok(())
    }
}
