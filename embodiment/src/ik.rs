//! Inverse kinematics by damped least squares with limits (Wampler 1986; Nakamura and Hanafusa 1986).

use crate::Kinematics;
use nalgebra::{DMatrix, DVector, Point3, UnitQuaternion, Vector3};

/// What the tip should reach, in the base frame.
#[derive(Clone, Debug, PartialEq)]
pub struct IkGoal {
    /// Where, m.
    pub position: Point3<f64>,
    /// Which way the tip's x axis should point (a gripper's approach direction), if it matters.
    pub approach: Option<Vector3<f64>>,
    /// The whole orientation, if it matters; stronger than `approach`.
    pub rotation: Option<UnitQuaternion<f64>>,
}

/// When to stop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IkOptions {
    /// Steps at most.
    pub iterations: usize,
    /// Position error that is good enough, m.
    pub tolerance_m: f64,
    /// Direction error that is good enough, rad.
    pub tolerance_rad: f64,
}

impl Default for IkOptions {
    fn default() -> Self {
        Self { iterations: 200, tolerance_m: 5e-4, tolerance_rad: 0.02 }
    }
}

impl Kinematics {
    /// Joint positions that reach the goal within the limits, starting from `seed`; joints off the tip's path
    /// keep their seed. `None` when it is not reached.
    pub fn solve_ik(&self, goal: &IkGoal, seed: &[f64], options: &IkOptions) -> Option<Vec<f64>> {
        let mut q: Vec<f64> = (0..self.dofs())
            .map(|k| {
                let (lower, upper) = self.limits(k);
                seed.get(k).copied().unwrap_or(0.0).clamp(lower, upper)
            })
            .collect();
        // Radians of direction weigh like this many metres of position.
        let rad_as_m = 0.1;
        for _ in 0..options.iterations {
            let tip = self.base_from_tip(&q);
            let position_error = goal.position.coords - tip.translation.vector;
            let turn = match (goal.rotation, goal.approach) {
                (Some(rotation), _) => (rotation * tip.rotation.inverse()).scaled_axis(),
                (None, Some(approach)) => turn_between(&(tip.rotation * Vector3::x()), &approach),
                (None, None) => Vector3::zeros(),
            };
            if position_error.norm() < options.tolerance_m && turn.norm() < options.tolerance_rad {
                return Some(q);
            }
            let oriented = goal.rotation.is_some() || goal.approach.is_some();
            let jacobian = self.jacobian(&q);
            let rows = if oriented { 6 } else { 3 };
            let mut a = DMatrix::zeros(rows, self.dofs());
            let mut b = DVector::zeros(rows);
            a.view_mut((0, 0), (3, self.dofs())).copy_from(&jacobian.rows(0, 3));
            b.rows_mut(0, 3).copy_from(&(position_error * (0.05 / position_error.norm().max(0.05))));
            if oriented {
                let mut angular = jacobian.fixed_rows::<3>(3).clone_owned();
                if let (None, Some(approach)) = (goal.rotation, goal.approach) {
                    // Turning about the approach direction is free.
                    let along = approach.normalize();
                    for mut column in angular.column_iter_mut() {
                        let c = Vector3::new(column[0], column[1], column[2]);
                        column.copy_from(&(c - along * along.dot(&c)));
                    }
                }
                a.view_mut((3, 0), (3, self.dofs())).copy_from(&(angular * rad_as_m));
                b.rows_mut(3, 3).copy_from(&(turn * (rad_as_m * 0.3 / turn.norm().max(0.3))));
            }
            let damping = 1e-4 + 0.02 * b.norm_squared();
            let square = &a * a.transpose() + DMatrix::identity(rows, rows) * damping;
            let step = a.transpose() * square.lu().solve(&b)?;
            for (k, value) in q.iter_mut().enumerate() {
                let (lower, upper) = self.limits(k);
                *value = (*value + step[k].clamp(-0.3, 0.3)).clamp(lower, upper);
            }
        }
        None
    }
}

/// Rotation vector that turns `from` onto `to`, rad.
fn turn_between(from: &Vector3<f64>, to: &Vector3<f64>) -> Vector3<f64> {
    UnitQuaternion::rotation_between(from, to).map_or_else(
        || {
            let side = if from.x.abs() < 0.9 { Vector3::x() } else { Vector3::y() };
            from.cross(&side).normalize() * std::f64::consts::PI
        },
        |rotation| rotation.scaled_axis(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Embodiment, Result};

    #[test]
    fn the_so101_reaches_down_all_over_its_table() -> Result<()> {
        let kinematics = Embodiment::so101()?.kinematics()?;
        let seed = [0.0, 0.0, 0.0, 1.0, 0.0, 0.5];
        for x in [0.18, 0.20, 0.22, 0.24] {
            for y in [-0.10, -0.05, 0.0, 0.05, 0.10] {
                for z in [0.02, 0.08] {
                    let goal = IkGoal {
                        position: Point3::new(x, y, z),
                        approach: Some(-Vector3::z()),
                        rotation: None,
                    };
                    let q = kinematics.solve_ik(&goal, &seed, &IkOptions::default());
                    assert!(q.is_some(), "no answer at {x} {y} {z}");
                    let tip = kinematics.base_from_tip(&q.unwrap_or_default());
                    assert!((tip.translation.vector - goal.position.coords).norm() < 1e-3);
                    assert!((tip.rotation * Vector3::x()).z < -0.99);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn a_goal_out_of_reach_has_no_answer() -> Result<()> {
        let kinematics = Embodiment::so101()?.kinematics()?;
        let goal = IkGoal { position: Point3::new(2.0, 0.0, 0.0), approach: None, rotation: None };
        assert_eq!(kinematics.solve_ik(&goal, &[0.0; 6], &IkOptions::default()), None);
        Ok(())
    }
}
