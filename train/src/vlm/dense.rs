//! What each patch of a picture shows: a loss on the image tokens. Its layer exists in training only.
//!
//! Answers ask a few words of a whole picture. This asks of every patch which colour and shape it shows, whether that is held,
//! and where its middle is, of the tokens as the decoder reads them.

use crate::error::Result;
use vela_nn::{D, Device, Linear, Tensor, Weights, cross_entropy};

/// Something that a picture shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Spot {
    /// Its colour, below [`CLASSES`].
    pub colour: u32,
    /// Its shape, below [`CLASSES`].
    pub shape: u32,
    /// Whether it is held.
    pub held: bool,
    /// Its middle, `[x, y]` from the top left corner, pixels.
    pub at_px: [f32; 2],
    /// Pixels that it covers.
    pub pixels: usize,
}

impl Spot {
    /// Where it is in a picture moved by `[x, y]` pixels.
    pub(super) fn moved(self, by: [isize; 2]) -> Self {
        let [x, y] = self.at_px;
        Self { at_px: [x + by[0] as f32, y + by[1] as f32], ..self }
    }
}

/// Colours, and shapes, that can be told apart.
pub const CLASSES: u32 = 7;
/// Logits of colour and of shape (the last of each: nothing), two of whether it is held, two numbers of where it is.
const PARTS: [usize; 4] = [CLASSES as usize + 1, CLASSES as usize + 1, 2, 2];
/// A patch whose middle is this far outside of a disc of the thing's size still shows some of it, pixels.
const RIM_PX: f32 = 3.0;
/// Not counted.
const IGNORED: u32 = u32::MAX;
/// Nearer than this a middle is well found, patches.
const NEAR: f32 = 0.2;

/// How a picture is cut.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Patches along an edge.
    pub edge: usize,
    /// Edge of a patch, pixels.
    pub patch_px: usize,
    /// `shuffle * shuffle` patches are one token.
    pub shuffle: usize,
}

/// The layer.
pub struct Dense {
    head: Linear,
    grid: Grid,
}

/// What patches are asked, in the order of the tokens and of the patches in each.
struct Labels {
    colours: Vec<u32>,
    shapes: Vec<u32>,
    held: Vec<u32>,
    /// Middles, in patches from the picture's middle.
    places: Vec<[f32; 2]>,
    /// Whether the patch holds the middle itself.
    middles: Vec<bool>,
}

impl Dense {
    /// On image tokens of `width`.
    pub fn new(weights: &Weights, width: usize, grid: Grid) -> Result<Self> {
        let each: usize = PARTS.iter().sum();
        let head = Linear::new(&weights.pp("head"), width, grid.shuffle * grid.shuffle * each, true)?;
        Ok(Self { head, grid })
    }

    /// Mean loss of one picture's tokens, `[tokens, width]`, and by name what was right at the things' middles.
    pub fn loss(&self, tokens: &Tensor, spots: &[Spot]) -> Result<(Tensor, Vec<(&'static str, bool)>)> {
        let labels = Labels::of(spots, self.grid);
        let count = labels.colours.len();
        let said = self.head.forward(tokens)?.reshape((count, PARTS.iter().sum::<usize>()))?;
        let mut start = 0;
        let mut part = |size: usize| {
            start += size;
            said.narrow(D::Minus1, start - size, size)?.contiguous()
        };
        let [colours, shapes, held, places] =
            [part(PARTS[0])?, part(PARTS[1])?, part(PARTS[2])?, part(PARTS[3])?];
        let (mut loss, mut right) = (labels.placed(&places)?, Vec::new());
        for (name, logits, truth) in
            [("seen colour", &colours, &labels.colours), ("seen shape", &shapes, &labels.shapes)]
        {
            // Most patches show nothing: the middles count once more on their own.
            let only: Vec<u32> = truth
                .iter()
                .zip(&labels.middles)
                .map(|(t, middle)| if *middle { *t } else { IGNORED })
                .collect();
            loss = (loss + named(logits, truth)?)?;
            loss = (loss + named(logits, &only)?)?;
            let likeliest = logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
            let asked = only.iter().zip(&likeliest).filter(|(truth, _)| **truth != IGNORED);
            right.extend(asked.map(|(truth, said)| (name, truth == said)));
        }
        let found = places.to_vec2::<f32>()?;
        for ((said, place), _) in found.iter().zip(&labels.places).zip(&labels.middles).filter(|(_, m)| **m) {
            let near = said.iter().zip(place).all(|(a, b)| (a - b).abs() < NEAR);
            right.push(("seen place", near));
        }
        Ok(((loss + named(&held, &labels.held)?)?, right))
    }
}

fn named(logits: &Tensor, truth: &[u32]) -> Result<Tensor> {
    Ok(cross_entropy(logits, &Tensor::from_slice(truth, truth.len(), &Device::Cpu)?, Some(IGNORED))?)
}

impl Labels {
    fn of(spots: &[Spot], grid: Grid) -> Self {
        let count = grid.edge * grid.edge;
        let mut labels = Self {
            colours: vec![CLASSES; count],
            shapes: vec![CLASSES; count],
            held: vec![IGNORED; count],
            places: vec![[0.0; 2]; count],
            middles: vec![false; count],
        };
        let (size, half) = (grid.patch_px as f32, grid.edge as f32 / 2.0);
        for row in 0..grid.edge {
            for column in 0..grid.edge {
                let at = grid.index(row, column);
                let cell = |spot: &Spot| spot.at_px.map(|x| ((x / size) as usize).min(grid.edge - 1));
                let middle = |spot: &Spot| cell(spot) == [column, row];
                // How far the patch's middle is from the thing's; that in which this lies is its own in any case.
                let far = |spot: &Spot| {
                    let [dx, dy] = [column, row].map(|k| (k as f32 + 0.5) * size);
                    let far = (dx - spot.at_px[0]).hypot(dy - spot.at_px[1]);
                    let reach = (spot.pixels as f32 / std::f32::consts::PI).sqrt() + RIM_PX;
                    if middle(spot) { Some(far - 2.0 * size) } else { (far < reach).then_some(far) }
                };
                let shown = spots.iter().filter_map(|spot| Some((far(spot)?, spot)));
                let Some((_, spot)) = shown.min_by(|a, b| a.0.total_cmp(&b.0)) else { continue };
                labels.colours[at] = spot.colour;
                labels.shapes[at] = spot.shape;
                labels.held[at] = u32::from(spot.held);
                labels.places[at] = spot.at_px.map(|x| x / size - half);
                labels.middles[at] = middle(spot);
            }
        }
        labels
    }

    /// Half the squared error of the middles, over the patches that show something; `places [patches, 2]`.
    fn placed(&self, places: &Tensor) -> Result<Tensor> {
        let counts: Vec<f32> = self.held.iter().map(|held| f32::from(u8::from(*held != IGNORED))).collect();
        let count = counts.iter().sum::<f32>().max(1.0);
        let counts = Tensor::from_vec(counts, (self.held.len(), 1), &Device::Cpu)?;
        let truth = Tensor::from_slice(self.places.as_flattened(), places.shape(), &Device::Cpu)?;
        let error = (places - truth)?.sqr()?.broadcast_mul(&counts)?.sum_all()?;
        Ok((error * f64::from(0.5 / count))?)
    }
}

impl Grid {
    /// Where a patch stands in the order of the tokens and of the patches in each.
    fn index(&self, row: usize, column: usize) -> usize {
        let s = self.shuffle;
        let token = (row / s) * (self.edge / s) + column / s;
        token * s * s + (row % s) * s + column % s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_show_the_nearest_thing_and_know_its_middle() {
        let spot = |colour, at_px, pixels| Spot { colour, shape: 1, held: false, at_px, pixels };
        let grid = Grid { edge: 4, patch_px: 8, shuffle: 2 };
        let labels = Labels::of(&[spot(0, [5.0, 5.0], 60), spot(3, [17.0, 4.0], 60)], grid);
        // Row 0: both things' own patches; between them the nearer one (at 12: 7 and 5 away).
        let row: Vec<u32> = (0..4).map(|column| labels.colours[grid.index(0, column)]).collect();
        assert_eq!(row, [0, 3, 3, CLASSES]);
        assert_eq!(labels.middles.iter().filter(|middle| **middle).count(), 2);
        assert!(labels.middles[grid.index(0, 0)] && labels.middles[grid.index(0, 2)]);
        assert_eq!(labels.places[grid.index(0, 0)], [5.0 / 8.0 - 2.0; 2]);
        assert_eq!(labels.colours[grid.index(3, 3)], CLASSES);
        assert_eq!(
            (0..16).filter(|at| labels.held[*at] == IGNORED).count(),
            16 - labels.places.iter().filter(|p| **p != [0.0; 2]).count()
        );
        // Tokens first, then the patches in them.
        assert_eq!([(0, 0), (0, 1), (1, 0), (0, 2), (2, 0)].map(|(r, c)| grid.index(r, c)), [0, 1, 2, 4, 8]);
    }

    #[test]
    fn what_is_shown_is_learnt() -> Result<()> {
        let weights = Weights::fresh(1);
        let grid = Grid { edge: 4, patch_px: 8, shuffle: 2 };
        let dense = Dense::new(&weights, 6, grid)?;
        let tokens = vela_nn::Tensor::randn(0f32, 1.0, (4, 6), &Device::Cpu)?;
        let spots = [Spot { colour: 2, shape: 0, held: true, at_px: [20.0, 12.0], pixels: 50 }];
        let vars = weights.trainable();
        let mut optimizer = vela_nn::AdamW::new(vars.clone(), vela_nn::AdamWConfig::default());
        let first = dense.loss(&tokens, &spots)?.0.to_scalar::<f32>()?;
        for _ in 0..200 {
            let gradients = vela_nn::shard_gradients_with(&vars, 1, |_| {
                Ok((dense.loss(&tokens, &spots).map_err(vela_nn::Error::invalid)?.0, ()))
            })?;
            optimizer.step(&gradients.0, 0.03)?;
        }
        let (last, right) = dense.loss(&tokens, &spots)?;
        let last = last.to_scalar::<f32>()?;
        assert!(last < 0.1 * first, "from {first} to {last}");
        assert!(right.len() == 3 && right.iter().all(|(_, right)| *right), "{right:?}");
        Ok(())
    }
}
