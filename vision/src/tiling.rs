//! Idefics3's and SmolVLM's way with large pictures: tiles of the encoder's size, row by row, and the whole
//! picture as the last tile.

use crate::{Filter, Picture, Planes};
use serde::{Deserialize, Serialize};
use vela_nn::{Error, Result};

/// The fields of `preprocessor_config.json` that matter here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TilingConfig {
    /// Longest edge of the whole canvas, pixels.
    pub size: LongestEdge,
    /// Edge of a tile, pixels.
    pub max_image_size: LongestEdge,
    /// Whether to split at all.
    pub do_image_splitting: bool,
    /// Filter of every resize.
    pub resample: Filter,
    /// Mean per channel, of values from 0 to 1.
    pub image_mean: [f32; 3],
    /// Standard deviation per channel.
    pub image_std: [f32; 3],
}

/// A length in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LongestEdge {
    /// Pixels.
    pub longest_edge: usize,
}

/// A picture cut up.
#[derive(Clone, Debug, PartialEq)]
pub struct Tiles {
    /// Rows of tiles; 0 when the picture was not split.
    pub rows: usize,
    /// Columns of tiles; 0 when the picture was not split.
    pub columns: usize,
    /// `rows * columns` tiles and then the whole picture; or the whole picture alone.
    pub pictures: Vec<Planes>,
}

impl TilingConfig {
    /// Reads a `preprocessor_config.json`.
    pub fn from_json(text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|e| Error::invalid(format!("preprocessor_config.json: {e}")))
    }

    /// Cuts a picture into normalised tiles of `max_image_size`.
    pub fn apply(&self, picture: &Picture) -> Result<Tiles> {
        let tile = self.max_image_size.longest_edge;
        if tile == 0 || self.size.longest_edge == 0 {
            return Err(Error::invalid("preprocessor_config.json: sizes must be positive"));
        }
        let (width, height) = longest_edge(picture.width, picture.height, self.size.longest_edge);
        let mut whole = picture.resize(width, height, self.resample);
        let (mut rows, mut columns, mut parts) = (0, 0, Vec::new());
        if self.do_image_splitting {
            let (width, height) = multiples(whole.width, whole.height, tile);
            whole = whole.resize(width, height, self.resample);
            if width > tile || height > tile {
                (rows, columns) = (height.div_ceil(tile), width.div_ceil(tile));
                for at in 0..rows * columns {
                    parts.push(whole.crop(at % columns * tile, at / columns * tile, tile, tile));
                }
            }
        }
        parts.push(whole.resize(tile, tile, self.resample));
        let pictures = parts
            .iter()
            .map(|part| {
                let mut planes = Planes::from_rgb(&part.rgb, part.width, part.height)?;
                planes.normalise(self.image_mean, self.image_std);
                Ok(planes)
            })
            .collect::<Result<_>>()?;
        Ok(Tiles { rows, columns, pictures })
    }
}

/// The longer side becomes `edge`, the other one keeps the aspect and is made even.
fn longest_edge(width: usize, height: usize, edge: usize) -> (usize, usize) {
    let aspect = width as f64 / height as f64;
    let even = |x: f64| ((x as usize).div_ceil(2) * 2).max(1);
    if width >= height { (edge, even(edge as f64 / aspect)) } else { (even(edge as f64 * aspect), edge) }
}

/// Both sides become multiples of `tile`, rounded up.
fn multiples(width: usize, height: usize, tile: usize) -> (usize, usize) {
    let aspect = width as f64 / height as f64;
    let up = |x: usize| x.div_ceil(tile).max(1) * tile;
    if width >= height {
        let width = up(width);
        (width, up((width as f64 / aspect) as usize))
    } else {
        let height = up(height);
        (up((height as f64 * aspect) as usize), height)
    }
}
