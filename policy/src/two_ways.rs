//! A task with two equally good ways: a point goes from the near edge of a table to the far edge around a round obstacle
//! that stands in the middle of its way. Demonstrations go left as often as right; what averages them goes through.

use candle_core::{Device, Tensor};
use rand::{Rng, RngCore};
use serde::Serialize;
use vela_nn::{Error, Result};

/// Places on a way.
pub const HORIZON: usize = 16;
/// Numbers of a place: to the right, and away.
pub const DIMS: usize = 2;
/// Numbers that say what a scene is.
pub const FEATURES: usize = 5;
/// Of the obstacle.
const RADIUS: f32 = 0.3;
/// How far to the side a demonstration goes at most.
const SIDE: f32 = 0.55;
/// How far from the goal a way may end.
const REACHED: f32 = 0.15;

/// Where the point starts (at the near edge, -1), where it is to go (at the far edge, 1), and the obstacle between them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scene {
    start: f32,
    goal: f32,
    obstacle: [f32; 2],
}

/// What became of a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Past the obstacle on the left, to the goal.
    Left,
    /// The same on the right.
    Right,
    /// Into the obstacle, or not to the goal.
    Failed,
}

impl Scene {
    /// A scene from a stream; the obstacle stands on the straight way.
    pub fn draw(rng: &mut dyn RngCore) -> Self {
        let mut even = |most: f32| most * (2.0 * rng.random::<f32>() - 1.0);
        let (start, goal, away) = (even(0.3), even(0.3), even(0.2));
        Self { start, goal, obstacle: [start + (goal - start) * (away + 1.0) / 2.0, away] }
    }

    /// The scene in the middle: straight ahead, and the obstacle half way.
    pub fn middle() -> Self {
        Self { start: 0.0, goal: 0.0, obstacle: [0.0; 2] }
    }

    /// What a head is told of it.
    pub fn features(&self) -> [f32; FEATURES] {
        [1.0, self.start, self.goal, self.obstacle[0], self.obstacle[1]]
    }

    /// A demonstration, [`HORIZON`] places.
    pub fn demonstration(&self, left: bool) -> Vec<[f32; DIMS]> {
        let side = if left { -SIDE } else { SIDE };
        let at = |k: usize| {
            let s = (k + 1) as f32 / HORIZON as f32;
            let aside = side * (std::f32::consts::PI * s).sin().powi(2);
            [self.start + (self.goal - self.start) * s + aside, 2.0 * s - 1.0]
        };
        (0..HORIZON).map(at).collect()
    }

    /// Follows a way from the start, in straight lines from place to place.
    pub fn judge(&self, way: &[[f32; DIMS]]) -> Way {
        let Some(last) = way.last() else { return Way::Failed };
        let far = |a: [f32; DIMS], b: [f32; DIMS]| (a[0] - b[0]).hypot(a[1] - b[1]);
        let mut from = [self.start, -1.0];
        let mut side = Way::Failed;
        for &to in way {
            let length = far(from, to);
            let along = |s: f32| [from[0] + (to[0] - from[0]) * s, from[1] + (to[1] - from[1]) * s];
            let steps = (length / 0.01).ceil().clamp(1.0, 1000.0) as usize;
            let hits = (0..=steps).any(|i| far(along(i as f32 / steps as f32), self.obstacle) < RADIUS);
            if hits || !length.is_finite() {
                return Way::Failed;
            }
            // Where it passes the obstacle.
            if from[1] < self.obstacle[1] && to[1] >= self.obstacle[1] {
                let x = along((self.obstacle[1] - from[1]) / (to[1] - from[1]))[0];
                side = if x < self.obstacle[0] { Way::Left } else { Way::Right };
            }
            from = to;
        }
        if far(*last, [self.goal, 1.0]) <= REACHED { side } else { Way::Failed }
    }
}

/// Conditioning `[2 * scenes, 1, FEATURES]` and actions `[2 * scenes, HORIZON, DIMS]`: both ways of each scene.
pub fn lesson(scenes: usize, rng: &mut dyn RngCore) -> Result<(Tensor, Tensor)> {
    let (mut told, mut shown) = (Vec::new(), Vec::new());
    for _ in 0..scenes {
        let scene = Scene::draw(rng);
        for left in [true, false] {
            told.extend(scene.features());
            shown.extend(scene.demonstration(left).concat());
        }
    }
    Ok((
        Tensor::from_vec(told, (2 * scenes, 1, FEATURES), &Device::Cpu)?,
        Tensor::from_vec(shown, (2 * scenes, HORIZON, DIMS), &Device::Cpu)?,
    ))
}

/// How often a head got there, and on which side.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Tally {
    /// Share of ways that reach the goal past the obstacle.
    pub rate: f64,
    /// Ways past it on the left.
    pub left: usize,
    /// Ways past it on the right.
    pub right: usize,
    /// Mean length of the third difference of places, over that of the demonstrations: 1 is as smooth.
    pub jerk: f64,
}

fn jerk(way: &[[f32; DIMS]]) -> f64 {
    let third = |w: &[[f32; DIMS]], d: usize| f64::from(w[3][d] - 3.0 * w[2][d] + 3.0 * w[1][d] - w[0][d]);
    let of = |w: &[[f32; DIMS]]| third(w, 0).hypot(third(w, 1));
    way.windows(4).map(of).sum::<f64>() / way.len().saturating_sub(3).max(1) as f64
}

/// `count` ways that `sample` makes of the scene in the middle, each [`HORIZON`] places: for pictures.
///
/// # Errors
/// Whatever `sample` refuses.
pub fn ways(count: usize, sample: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Vec<Vec<Vec<f32>>>> {
    let told = Scene::middle().features().repeat(count);
    Ok(sample(&Tensor::from_vec(told, (count, 1, FEATURES), &Device::Cpu)?)?.to_vec3()?)
}

/// Judges what `sample` makes of the conditioning `[scenes, 1, FEATURES]` of new scenes: `[scenes, HORIZON, DIMS]`.
///
/// # Errors
/// Whatever `sample` refuses; an answer of another shape.
pub fn tally(
    scenes: usize,
    rng: &mut dyn RngCore,
    sample: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
) -> Result<Tally> {
    let all: Vec<Scene> = (0..scenes).map(|_| Scene::draw(rng)).collect();
    let told: Vec<f32> = all.iter().flat_map(Scene::features).collect();
    let made = sample(&Tensor::from_vec(told, (scenes, 1, FEATURES), &Device::Cpu)?)?;
    if made.dims() != [scenes, HORIZON, DIMS] {
        return Err(Error::shape("ways", format!("[{scenes}, {HORIZON}, {DIMS}]"), made.dims()));
    }
    let numbers = made.flatten_all()?.to_vec1::<f32>()?;
    let (mut left, mut right, mut rough, mut smooth) = (0, 0, 0.0, 0.0);
    for (scene, way) in all.iter().zip(numbers.as_chunks::<DIMS>().0.chunks_exact(HORIZON)) {
        match scene.judge(way) {
            Way::Left => left += 1,
            Way::Right => right += 1,
            Way::Failed => {}
        }
        rough += jerk(way);
        smooth += jerk(&scene.demonstration(true));
    }
    Ok(Tally { rate: (left + right) as f64 / scenes.max(1) as f64, left, right, jerk: rough / smooth })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vela_nn::random;

    #[test]
    fn demonstrations_arrive_on_their_side_and_their_mean_does_not() -> Result<()> {
        let mut rng = random::stream(1, "scenes");
        for _ in 0..500 {
            let scene = Scene::draw(&mut rng);
            let (left, right) = (scene.demonstration(true), scene.demonstration(false));
            assert_eq!((scene.judge(&left), scene.judge(&right)), (Way::Left, Way::Right));
            let mean: Vec<[f32; DIMS]> =
                left.iter().zip(&right).map(|(l, r)| [(l[0] + r[0]) / 2.0, (l[1] + r[1]) / 2.0]).collect();
            assert_eq!(scene.judge(&mean), Way::Failed);
            assert_eq!(scene.judge(&left[..HORIZON - 2]), Way::Failed);
            assert_eq!(scene.judge(&[[f32::NAN; DIMS]; HORIZON]), Way::Failed);
        }
        let mut rng = random::stream(2, "scenes");
        let again = tally(10, &mut rng, &mut |told| {
            Ok(Tensor::zeros((told.dim(0)?, HORIZON, DIMS), told.dtype(), &Device::Cpu)?)
        })?;
        assert_eq!((again.rate, again.left, again.right), (0.0, 0, 0));
        Ok(())
    }
}
