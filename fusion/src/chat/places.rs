//! Where a picture's tokens lie in it: what a heat map is drawn by. Pure places, no tensors.

use crate::{Encoded, Packing, VlmConfig};
use vela_vision::tiling::{Size, shortest_edge};
use vela_vision::{Fit, Layout, Prepared, Tiles};

/// A rectangle in a picture, in fractions of its width and height from the upper left corner; below 0 and above 1 where
/// the picture was padded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Area {
    /// Its left side.
    pub left: f32,
    /// Its upper side.
    pub top: f32,
    /// Its right side.
    pub right: f32,
    /// Its lower side.
    pub bottom: f32,
}

impl Area {
    /// All of a picture.
    pub const WHOLE: Self = Self { left: 0.0, top: 0.0, right: 1.0, bottom: 1.0 };
}

/// The cells that a token covers, in rows and columns of a grid: from and to, fractions allowed.
type Cells = [[f32; 2]; 2];

/// Where the tokens of a picture lie.
#[derive(Clone, Debug, PartialEq)]
pub struct Places {
    /// Rows and columns: the finest grid that the model reads the picture by.
    pub grid: [usize; 2],
    /// What of the picture the grid covers.
    pub area: Area,
    /// Of each token; none of those that only end a row.
    tokens: Vec<Option<Cells>>,
}

/// The cells of part `at` of `rows * columns` equal parts of a grid, row by row.
fn part(grid: [usize; 2], [rows, columns]: [usize; 2], at: usize) -> Cells {
    let span = |size: usize, parts: usize, at: usize| {
        let edge = |at: usize| at as f32 * size as f32 / parts as f32;
        [edge(at), edge(at + 1)]
    };
    [span(grid[0], rows, at / columns), span(grid[1], columns, at % columns)]
}

/// All parts of a grid of `of` parts, row by row.
fn parts(grid: [usize; 2], of: [usize; 2]) -> impl Iterator<Item = Option<Cells>> {
    (0..of[0] * of[1]).map(move |at| Some(part(grid, of, at)))
}

impl Places {
    /// Where the tokens of a picture lie that was made ready by `layout` and encoded; `None` where they have no places
    /// (a Q-Former's) or none that are known.
    pub fn of(layout: &Layout, config: &VlmConfig, prepared: &Prepared, encoded: &Encoded) -> Option<Self> {
        let count = encoded.tokens.dims().first().copied()?;
        let area = match (layout, prepared) {
            (Layout::Whole { fit, crop }, Prepared::Tiles(tiles)) => cropped(tiles.size, *fit, *crop),
            _ => Area::WHOLE,
        };
        let (grid, tokens) = match (encoded.span, prepared) {
            (Some(span), _) => {
                let grid = [span.grid[1], span.grid[2]];
                (grid, (0..span.grid[0]).flat_map(|_| parts(grid, grid)).collect())
            }
            (None, Prepared::Tiles(tiles)) if config.qformer.is_none() => match config.packing {
                Packing::Each => part_after_part(tiles, count)?,
                Packing::Canvas { .. } => on_canvas(&config.packing, tiles, count)?,
            },
            _ => return None,
        };
        (tokens.len() == count).then_some(Self { grid, area, tokens })
    }

    /// What the tokens weigh, spread over the cells that each covers: `rows * columns` sums, row by row. What a token
    /// weighs that only ends a row is left out.
    pub fn spread(&self, weights: &[f32]) -> Vec<f32> {
        let [rows, columns] = self.grid;
        let mut cells = vec![0.0; rows * columns];
        for (weight, token) in weights.iter().zip(&self.tokens) {
            let Some([down, across]) = token else { continue };
            let density = weight / ((down[1] - down[0]) * (across[1] - across[0]));
            for (row, height) in overlaps(*down, rows) {
                for (column, width) in overlaps(*across, columns) {
                    cells[row * columns + column] += density * height * width;
                }
            }
        }
        cells
    }
}

/// The cells that a stretch covers, and how much of each.
fn overlaps([from, to]: [f32; 2], count: usize) -> impl Iterator<Item = (usize, f32)> {
    let first = (from.max(0.0) as usize).min(count);
    let last = (to.ceil() as usize).min(count);
    (first..last).map(move |at| (at, to.min((at + 1) as f32) - from.max(at as f32))).filter(|(_, x)| *x > 0.0)
}

/// Part after part, the whole picture last where it was split (Idefics3, InternVL); else one part.
fn part_after_part(tiles: &Tiles, count: usize) -> Option<([usize; 2], Vec<Option<Cells>>)> {
    let pictures = tiles.pictures.len();
    let side = square(count / pictures.max(1))?;
    if pictures == 1 {
        return Some(([side; 2], parts([side; 2], [side; 2]).collect()));
    }
    if pictures != tiles.rows * tiles.columns + 1 {
        return None;
    }
    let grid = [tiles.rows * side, tiles.columns * side];
    let inside = |tile: usize, at: usize| {
        let (row, column) =
            (tile / tiles.columns * side + at / side, tile % tiles.columns * side + at % side);
        Some(part(grid, grid, row * grid[1] + column))
    };
    let of_tiles = (0..pictures - 1).flat_map(|tile| (0..side * side).map(move |at| inside(tile, at)));
    Some((grid, of_tiles.chain(parts(grid, [side; 2])).collect()))
}

/// The whole picture, then the tiles as one, each row with an end of its own (LLaVA-NeXT).
fn on_canvas(packing: &Packing, tiles: &Tiles, count: usize) -> Option<([usize; 2], Vec<Option<Cells>>)> {
    let pictures = tiles.pictures.len();
    // A larger side has more tokens, so that one at most fits.
    let side = (1..=256).find(|side| packing.count(tiles.size, pictures, *side).ok() == Some(count))?;
    if pictures == 1 {
        return Some(([side; 2], parts([side; 2], [side; 2]).chain([None]).collect()));
    }
    let grid = packing.tile_tokens(tiles.size, pictures, side).ok()?;
    let row = |row: usize| {
        (0..grid[1]).map(move |column| Some(part(grid, grid, row * grid[1] + column))).chain([None])
    };
    Some((grid, parts(grid, [side; 2]).chain((0..grid[0]).flat_map(row)).collect()))
}

fn square(count: usize) -> Option<usize> {
    let side = count.isqrt();
    (side > 0 && side * side == count).then_some(side)
}

/// What is left of a picture of this size where its middle is cut out.
fn cropped(size: Size, fit: Fit, crop: Option<Size>) -> Area {
    let Some(crop) = crop else { return Area::WHOLE };
    let fitted = match fit {
        Fit::Keep => size,
        Fit::Stretch(size) => size,
        Fit::ShortestEdge(edge) => shortest_edge(size, edge),
    };
    let axis = |size: usize, crop: usize| {
        let from = match size >= crop {
            true => ((size - crop) / 2) as f32,
            false => -((crop - size).div_ceil(2) as f32),
        };
        (from / size as f32, (from + crop as f32) / size as f32)
    };
    let ((left, right), (top, bottom)) = (axis(fitted.0, crop.0), axis(fitted.1, crop.1));
    Area { left, top, right, bottom }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vela_vision::Planes;

    fn tiles(size: Size, rows: usize, columns: usize, pictures: usize) -> Tiles {
        let empty = Planes { width: 0, height: 0, data: Vec::new() };
        Tiles { size, rows, columns, pictures: vec![empty; pictures] }
    }

    /// The map where only the tokens in `lit` weigh anything, one each.
    fn map(made: ([usize; 2], Vec<Option<Cells>>), lit: &[usize]) -> String {
        let places = Places { grid: made.0, area: Area::WHOLE, tokens: made.1 };
        let weights: Vec<f32> =
            (0..places.tokens.len()).map(|at| f32::from(u8::from(lit.contains(&at)))).collect();
        let rows = places.spread(&weights);
        let word = |x: &f32| format!("{x:.2}").trim_end_matches('0').trim_end_matches('.').to_owned();
        let rows = rows.chunks(places.grid[1]).map(|row| row.iter().map(word).collect::<Vec<_>>().join(" "));
        rows.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn tiles_lie_beside_each_other_and_the_whole_over_all_of_them() -> Result<(), &'static str> {
        let none = "no places";
        // One row of two tiles of 2 x 2, then the whole of 2 x 2.
        let made = || part_after_part(&tiles((20, 10), 1, 2, 3), 12).ok_or(none);
        assert_eq!(map(made()?, &[1, 6]), "0 1 0 0\n0 0 1 0");
        assert_eq!(map(made()?, &[8]), "0.5 0.5 0 0\n0 0 0 0");
        assert_eq!(
            map(part_after_part(&tiles((9, 9), 0, 0, 1), 9).ok_or(none)?, &[5]),
            "0 0 0\n0 0 1\n0 0 0"
        );
        assert!(part_after_part(&tiles((9, 9), 0, 0, 1), 10).is_none(), "ten tokens are no square");
        Ok(())
    }

    #[test]
    fn a_canvas_has_ends_of_rows_that_lie_nowhere() -> Result<(), &'static str> {
        let canvas = Packing::Canvas { canvases: vec![(4, 4), (4, 8)], tile: 4, most: None };
        let tall = || on_canvas(&canvas, &tiles((10, 20), 2, 1, 3), 4 + 4 * 3).ok_or("no places");
        // Tokens 4 and 5 are the tiles' first row, 6 ends it.
        assert_eq!(map(tall()?, &[5, 6]), "0 1\n0 0\n0 0\n0 0");
        assert_eq!(map(tall()?, &[0]), "0.5 0\n0.5 0\n0 0\n0 0");
        // A grid that is no multiple of the other: what is spread is not lost.
        let places = Places { grid: [3, 3], area: Area::WHOLE, tokens: parts([3, 3], [2, 2]).collect() };
        let spread = places.spread(&[1.0, 2.0, 3.0, 4.0]);
        assert!((spread.iter().sum::<f32>() - 10.0).abs() < 1e-5, "{spread:?}");
        assert!((spread[4] - (1.0 + 2.0 + 3.0 + 4.0) / 9.0).abs() < 1e-5, "{spread:?}");
        Ok(())
    }

    #[test]
    fn what_is_cut_off_is_outside() {
        let crop = Some((100, 100));
        assert_eq!(
            cropped((400, 200), Fit::ShortestEdge(100), crop),
            Area { left: 0.25, top: 0.0, right: 0.75, bottom: 1.0 }
        );
        let padded = cropped((50, 100), Fit::Keep, crop);
        assert_eq!(padded, Area { left: -0.5, top: 0.0, right: 1.5, bottom: 1.0 });
        assert_eq!(cropped((7, 9), Fit::Stretch((5, 5)), None), Area::WHOLE);
    }
}
