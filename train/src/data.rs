//! Examples to batches: which moments a step sees, and the labels of the auxiliary losses.

use crate::lesson::{Example, Lesson};
use rand::Rng;

/// All lessons so far, in a fixed order.
#[derive(Default)]
pub struct Library {
    lessons: Vec<Lesson>,
    /// Lesson and example of every moment.
    index: Vec<(usize, usize)>,
    /// How many of these the expert drove; the learner's come after them.
    driven_by_expert: usize,
}

impl Library {
    /// Adds a lesson that the expert drove. These come first.
    pub fn add_expert(&mut self, lesson: Lesson) {
        self.add_student(lesson);
        self.driven_by_expert = self.index.len();
    }

    /// Adds a lesson that the learner drove.
    pub fn add_student(&mut self, lesson: Lesson) {
        let k = self.lessons.len();
        self.index.extend((0..lesson.examples.len()).map(|example| (k, example)));
        self.lessons.push(lesson);
    }

    /// Moments in all lessons.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is nothing to learn from.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Every lesson.
    pub fn lessons(&self) -> &[Lesson] {
        &self.lessons
    }

    /// The moments of a step, with their sentences; the same for the same seed, step and lessons.
    pub fn draw(&self, seed: u64, step: usize, count: usize, shares: Shares) -> Vec<(&str, &Example)> {
        let mut rng =
            vela_embodiment::stream(seed ^ (step as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15), "batch");
        (0..count)
            .filter(|_| !self.index.is_empty())
            .map(|_| {
                let (expert, all) = (self.driven_by_expert, self.index.len());
                let from = match (expert, all - expert) {
                    (0, _) | (_, 0) => 0..all,
                    _ if rng.random_bool(shares.student) => expert..all,
                    _ => 0..expert,
                };
                let (mut lesson, mut example) = self.index[rng.random_range(from.clone())];
                if rng.random_bool(shares.early) {
                    let lessons = self.index[from.start].0..self.index[from.end - 1].0 + 1;
                    lesson = rng.random_range(lessons);
                    let early = self.lessons[lesson].examples.len().min(EARLY);
                    // A lesson without a moment gives up its place to the one drawn before.
                    match early {
                        0 => (lesson, example) = self.index[rng.random_range(from)],
                        _ => example = rng.random_range(0..early),
                    }
                }
                (self.lessons[lesson].instruction.as_str(), &self.lessons[lesson].examples[example])
            })
            .collect()
    }
}

/// Moments at the beginning of a lesson that count as early.
const EARLY: usize = 3;

/// From where a batch is drawn; shares from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shares {
    /// From the learner's own lessons, once there are any; the others from the expert's.
    pub student: f64,
    /// From the first moments of a lesson, every lesson alike: there the sentence decides, and later mostly what the
    /// gripper is at already. The others from all moments alike.
    pub early: f64,
}

/// What each patch mostly shows: `[cameras * patches]` classes from per-pixel labels `[cameras, size, size]`.
/// A class other than the background (0) wins when it covers a tenth of the patch.
pub fn patch_classes(labels: &[u8], size: usize, patch: usize) -> Vec<u32> {
    cells(labels, size, patch, |cell| {
        let mut counts = [0u32; 32];
        for label in cell {
            counts[usize::from(label & 31)] += 1;
        }
        let area = (patch * patch) as u32;
        let best = (1..32).max_by_key(|&class| counts[class]).unwrap_or(0);
        if counts[best] * 10 >= area { best as u32 } else { 0 }
    })
}

/// From each patch's centre to the middle of what it shows, in patches, `[cameras * patches]` pairs (column, row), and
/// 1 where that means something: the patch shows a thing or a zone, not the table or the arm.
pub fn patch_offsets(labels: &[u8], size: usize, patch: usize) -> Vec<([f32; 2], f32)> {
    let mut out = Vec::with_capacity(labels.len() / (patch * patch));
    for picture in labels.chunks_exact(size * size) {
        let mut sums = [[0f32; 3]; 32];
        for (k, label) in picture.iter().enumerate() {
            let sum = &mut sums[usize::from(label & 31)];
            *sum = [sum[0] + (k % size) as f32 + 0.5, sum[1] + (k / size) as f32 + 0.5, sum[2] + 1.0];
        }
        let grid = size / patch;
        for (k, class) in patch_classes(picture, size, patch).into_iter().enumerate() {
            let [x, y, count] = sums[class as usize];
            if class < 2 || count == 0.0 {
                out.push(([0.0; 2], 0.0));
                continue;
            }
            let centre = |index: usize| (index as f32 + 0.5) * patch as f32;
            let offset = |sum: f32, centre: f32| ((sum / count - centre) / patch as f32).clamp(-3.0, 3.0);
            out.push(([offset(x, centre(k % grid)), offset(y, centre(k / grid))], 1.0));
        }
    }
    out
}

/// Which cells show the thing named first and which its destination: two `[cameras * cells]` rows of 0 or 1.
pub fn grounding(labels: &[u8], size: usize, cell: usize) -> [Vec<f32>; 2] {
    let role = |role: u8| {
        cells(labels, size, cell, |pixels| {
            let shown = pixels.filter(|label| label >> 5 == role).count();
            if shown >= 6 { 1.0 } else { 0.0 }
        })
    };
    [role(1), role(2)]
}

/// Applies `f` to the labels of each `cell x cell` square, camera by camera, row by row.
fn cells<T>(
    labels: &[u8],
    size: usize,
    cell: usize,
    f: impl Fn(&mut dyn Iterator<Item = u8>) -> T,
) -> Vec<T> {
    let grid = size / cell;
    let mut out = Vec::with_capacity(labels.len() / (cell * cell));
    for picture in labels.chunks_exact(size * size) {
        for (row, column) in (0..grid * grid).map(|k| (k / grid, k % grid)) {
            let mut pixels =
                (0..cell * cell).map(|k| picture[(row * cell + k / cell) * size + column * cell + k % cell]);
            out.push(f(&mut pixels));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_become_patches_and_cells() {
        let mut labels = vec![0u8; 64];
        for k in [0, 1, 8, 9, 2, 10] {
            labels[k] = 5 | (1 << 5);
        }
        assert_eq!(patch_classes(&labels, 8, 4), [5, 0, 0, 0]);
        // Six pixels: rows 0 and 1, columns 0 to 2; their middle is (1.5, 1), the first patch's centre (2, 2).
        let offsets = patch_offsets(&labels, 8, 4);
        assert_eq!((offsets[0], offsets[1].1), (([-0.125, -0.25], 1.0), 0.0));
        let [first, second] = grounding(&labels, 8, 4);
        assert_eq!(first, [1.0, 0.0, 0.0, 0.0]);
        assert_eq!(second, [0.0; 4]);
    }

    #[test]
    fn draws_repeat() {
        let mut library = Library::default();
        for k in 0..5 {
            let example = Example {
                frames: vec![],
                state: vec![k as f32],
                actions: vec![],
                labels: vec![],
                truth: [0.0; 7],
            };
            library.add_expert(Lesson {
                instruction: k.to_string(),
                examples: vec![example; 3],
                success: true,
            });
        }
        let states = |step| {
            library
                .draw(1, step, 8, Shares { student: 0.5, early: 0.5 })
                .iter()
                .map(|(_, e)| e.state[0])
                .collect::<Vec<_>>()
        };
        assert_eq!(states(3), states(3));
        assert_ne!(states(3), states(4));
    }
}
