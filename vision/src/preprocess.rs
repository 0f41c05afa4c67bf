//! From a picture to what the encoder reads, as `preprocessor_config.json` says: one pipeline for all families.

use crate::planes::Scale;
use crate::resize::Arithmetic;
use crate::tiling::{self, Size};
use crate::{Filter, Picture, Planes};
use candle_core::{Device, Tensor};
use vela_nn::{Error, Result};

/// A pipeline as data. [`Preprocessor::from_json`] reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct Preprocessor {
    /// How pictures are fitted and cut.
    pub layout: Layout,
    /// Filter of every resize.
    pub filter: Filter,
    /// Whose rounding.
    pub arithmetic: Arithmetic,
    /// Bytes to numbers.
    pub scale: Scale,
}

/// How pictures are fitted and cut. Sizes are (width, height) in pixels.
#[derive(Clone, Debug, PartialEq)]
pub enum Layout {
    /// One picture.
    Whole {
        /// How it is resized.
        fit: Fit,
        /// What is cut out of its middle, if anything.
        crop: Option<Size>,
    },
    /// Tiles row by row and the whole picture last, on a canvas of a longest edge (Idefics3, SmolVLM).
    EdgeTiles {
        /// Longest edge of the canvas.
        canvas: usize,
        /// Edge of a tile.
        tile: usize,
        /// Whether to split at all.
        split: bool,
    },
    /// Tiles row by row on the grid nearest in aspect, and the whole picture last (InternVL).
    GridTiles {
        /// Of one tile.
        tile: Size,
        /// Fewest and most tiles.
        tiles: (usize, usize),
        /// Whether to split at all.
        split: bool,
    },
    /// The whole picture first, then tiles row by row of the best of given canvases, padded with black (LLaVA-NeXT).
    CanvasTiles {
        /// Of the whole picture.
        base: Size,
        /// Edge of a tile.
        tile: usize,
        /// The canvases.
        canvases: Vec<Size>,
    },
    /// Patches at the picture's own aspect, at most so many (SigLIP 2).
    MostPatches {
        /// Edge of a patch.
        patch: usize,
        /// Most patches.
        most: usize,
    },
    /// Patches at the picture's own size within a budget, in the order in which they will be merged (Qwen2-VL).
    BudgetPatches {
        /// Edge of a patch.
        patch: usize,
        /// `merge * merge` patches become one token.
        merge: usize,
        /// Frames in one patch.
        frames: usize,
        /// Fewest and most pixels.
        pixels: (usize, usize),
    },
}

/// How one picture is resized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Not at all.
    Keep,
    /// To a size, whatever its aspect.
    Stretch(Size),
    /// Its shorter side to this length, the aspect kept.
    ShortestEdge(usize),
}

/// What a picture may become where nothing is cut off, pixels.
const MOST_PIXELS: usize = 1 << 26;

/// A picture made ready.
#[derive(Clone, Debug, PartialEq)]
pub enum Prepared {
    /// As one or more pictures.
    Tiles(Tiles),
    /// As rows of patches.
    Patches(Patches),
}

/// A picture cut up.
#[derive(Clone, Debug, PartialEq)]
pub struct Tiles {
    /// Width and height of the picture before anything was done to it.
    pub size: Size,
    /// Rows of tiles; 0 when the picture was not split.
    pub rows: usize,
    /// Columns of tiles; 0 when the picture was not split.
    pub columns: usize,
    /// The tiles row by row, and the whole picture before or after them.
    pub pictures: Vec<Planes>,
}

/// A picture, or a few frames, as patches.
#[derive(Clone, Debug, PartialEq)]
pub struct Patches {
    /// Steps of time, rows, columns; their product is the number of patches.
    pub grid: [usize; 3],
    /// Numbers in one patch.
    pub width: usize,
    /// Patch after patch.
    pub data: Vec<f32>,
}

impl Tiles {
    /// `[tiles, 3, height, width]`.
    pub fn tensor(&self) -> Result<Tensor> {
        Planes::stack(&self.pictures, &Device::Cpu)
    }
}

impl Patches {
    /// `[patches, width]`.
    pub fn tensor(&self) -> Result<Tensor> {
        let rows = self.data.len() / self.width.max(1);
        Ok(Tensor::from_slice(&self.data, (rows, self.width), &Device::Cpu)?)
    }
}

impl Preprocessor {
    /// Makes a picture ready.
    ///
    /// # Errors
    /// An aspect that the layout refuses.
    pub fn apply(&self, picture: &Picture) -> Result<Prepared> {
        let size = (picture.width, picture.height);
        let part = |to: Size, from: (usize, usize, usize, usize)| {
            picture.resize_part(to, from, self.filter, self.arithmetic)
        };
        let to = |(width, height): Size| part((width, height), (0, 0, width, height));
        let tiles = |rows, columns, parts: Vec<Picture>| {
            let pictures = parts.iter().map(|part| Planes::scaled(part, &self.scale)).collect();
            Ok(Prepared::Tiles(Tiles { size, rows, columns, pictures }))
        };
        match self.layout {
            Layout::Whole { fit, crop } => {
                let fitted = match fit {
                    Fit::Keep => size,
                    Fit::Stretch(size) => size,
                    Fit::ShortestEdge(edge) => tiling::shortest_edge(size, edge),
                };
                if let Some(crop) = crop {
                    return tiles(0, 0, vec![centre(fitted, crop, part)]);
                }
                // Of a very thin picture the long side grows without bound.
                if fitted.0.saturating_mul(fitted.1) > MOST_PIXELS {
                    let ((w, h), (width, height)) = (size, fitted);
                    return Err(Error::invalid(format!(
                        "picture: {w}x{h} would become {width}x{height}, over {MOST_PIXELS} pixels"
                    )));
                }
                tiles(0, 0, vec![to(fitted)])
            }
            Layout::EdgeTiles { canvas, tile, split } => {
                let mut whole = to(tiling::longest_edge(size, canvas));
                let again = |from: &Picture, (width, height): Size| {
                    from.resize_part((width, height), (0, 0, width, height), self.filter, self.arithmetic)
                };
                let (mut rows, mut columns, mut parts) = (0, 0, Vec::new());
                if split {
                    whole = again(&whole, tiling::multiples((whole.width, whole.height), tile));
                    if whole.width > tile || whole.height > tile {
                        (rows, columns) = (whole.height.div_ceil(tile), whole.width.div_ceil(tile));
                        parts = cut(&whole, (tile, tile));
                    }
                }
                parts.push(again(&whole, (tile, tile)));
                tiles(rows, columns, parts)
            }
            Layout::GridTiles { tile, tiles: (least, most), split } => {
                let (columns, rows) =
                    if split { tiling::nearest_grid(size, tile, least, most) } else { (1, 1) };
                let mut parts = cut(&to((columns * tile.0, rows * tile.1)), tile);
                if parts.len() > 1 {
                    parts.push(to(tile));
                }
                tiles(rows, columns, parts)
            }
            Layout::CanvasTiles { base, tile, ref canvases } => {
                let canvas = tiling::best_canvas(size, canvases)?;
                let (width, height) = tiling::fit_inside(size, canvas);
                let (left, top) = ((canvas.0 - width) / 2, (canvas.1 - height) / 2);
                let padded = to((width, height)).on_canvas(canvas.0, canvas.1, left, top);
                let mut parts = vec![to(base)];
                parts.extend(cut(&padded, (tile, tile)));
                tiles(canvas.1.div_ceil(tile), canvas.0.div_ceil(tile), parts)
            }
            Layout::MostPatches { patch, most } => {
                let planes = Planes::scaled(&to(tiling::most_patches(size, patch, most)), &self.scale);
                Ok(Prepared::Patches(patches_channels_last(&planes, patch)))
            }
            Layout::BudgetPatches { patch, merge, frames, .. } => {
                let planes = self.fit_to_budget(picture)?;
                Ok(Prepared::Patches(patches_to_merge(&vec![planes; frames], patch, merge, frames)?))
            }
        }
    }

    /// Frames of a video (all of one size) as patches over time; the last frame is repeated to fill the last step.
    ///
    /// # Errors
    /// No frame, frames of different sizes, a layout without time.
    pub fn apply_frames(&self, frames: &[Picture]) -> Result<Prepared> {
        match self.layout {
            Layout::BudgetPatches { patch, merge, frames: step, .. } => {
                let mut planes =
                    frames.iter().map(|frame| self.fit_to_budget(frame)).collect::<Result<Vec<_>>>()?;
                if let Some(last) = planes.last().cloned() {
                    planes.resize(planes.len().next_multiple_of(step), last);
                }
                Ok(Prepared::Patches(patches_to_merge(&planes, patch, merge, step)?))
            }
            Layout::EdgeTiles { tile, .. } => self.stretched((tile, tile)).apply_frames(frames),
            Layout::GridTiles { tile, .. } => self.stretched(tile).apply_frames(frames),
            // A frame is seen whole.
            Layout::CanvasTiles { base, .. } => self.stretched(base).apply_frames(frames),
            Layout::Whole { .. } => {
                let mut all: Option<Tiles> = None;
                for frame in frames {
                    if let Prepared::Tiles(tiles) = self.apply(frame)? {
                        match &mut all {
                            Some(all) => all.pictures.extend(tiles.pictures),
                            None => all = Some(tiles),
                        }
                    }
                }
                all.map(Prepared::Tiles).ok_or_else(|| Error::invalid("video: expected frames, got none"))
            }
            Layout::MostPatches { .. } => Err(Error::invalid("this preprocessor takes pictures, not videos")),
        }
    }

    fn stretched(&self, size: Size) -> Self {
        Self { layout: Layout::Whole { fit: Fit::Stretch(size), crop: None }, ..self.clone() }
    }

    fn fit_to_budget(&self, picture: &Picture) -> Result<Planes> {
        let Layout::BudgetPatches { patch, merge, pixels: (least, most), .. } = self.layout else {
            return Err(Error::invalid("this preprocessor has no pixel budget"));
        };
        let size = (picture.width, picture.height);
        let (width, height) = tiling::within_budget(size, patch * merge, least, most)?;
        let whole = (0, 0, width, height);
        let fitted = picture.resize_part((width, height), whole, self.filter, self.arithmetic);
        Ok(Planes::scaled(&fitted, &self.scale))
    }
}

/// The middle of a resized picture, black where it does not reach.
fn centre(fitted: Size, crop: Size, part: impl Fn(Size, (usize, usize, usize, usize)) -> Picture) -> Picture {
    // Where the picture is larger, what it loses on the left is rounded down; where it is smaller, the padding up.
    let axis = |size: usize, crop: usize| {
        if size >= crop { ((size - crop) / 2, crop, 0) } else { (0, size, (crop - size).div_ceil(2)) }
    };
    let (left, width, pad_left) = axis(fitted.0, crop.0);
    let (top, height, pad_top) = axis(fitted.1, crop.1);
    let kept = part(fitted, (left, top, width, height));
    if (width, height) == crop { kept } else { kept.on_canvas(crop.0, crop.1, pad_left, pad_top) }
}

/// Tiles row by row.
fn cut(picture: &Picture, (width, height): Size) -> Vec<Picture> {
    let tops = (0..picture.height).step_by(height.max(1));
    tops.flat_map(|top| (0..picture.width).step_by(width.max(1)).map(move |left| (left, top)))
        .map(|(left, top)| picture.crop(left, top, width, height))
        .collect()
}

/// Patches row by row, each in the order row, column, colour.
fn patches_channels_last(planes: &Planes, patch: usize) -> Patches {
    let (rows, columns, area) = (planes.height / patch, planes.width / patch, planes.height * planes.width);
    let mut data = Vec::with_capacity(3 * area);
    for at in 0..rows * columns {
        for inner in 0..patch * patch {
            let y = at / columns * patch + inner / patch;
            let x = at % columns * patch + inner % patch;
            data.extend((0..3).map(|c| planes.data[c * area + y * planes.width + x]));
        }
    }
    Patches { grid: [1, rows, columns], width: 3 * patch * patch, data }
}

/// Patches in blocks of `merge * merge`, block row by block row, each in the order colour, frame, row, column.
fn patches_to_merge(planes: &[Planes], patch: usize, merge: usize, step: usize) -> Result<Patches> {
    let Some(first) = planes.first() else { return Err(Error::invalid("video: expected frames, got none")) };
    let (height, width) = (first.height, first.width);
    if let Some(odd) = planes.iter().find(|p| (p.height, p.width) != (height, width)) {
        let got = format!("{}x{}", odd.width, odd.height);
        return Err(Error::invalid(format!("frames: expected all {width}x{height}, got one of {got}")));
    }
    let (rows, columns) = (height / patch, width / patch);
    let mut data = Vec::with_capacity(3 * height * width * planes.len());
    for frames in planes.chunks_exact(step) {
        for block in 0..rows / merge * (columns / merge) {
            for inner in 0..merge * merge {
                let row = block / (columns / merge) * merge + inner / merge;
                let column = block % (columns / merge) * merge + inner % merge;
                for c in 0..3 {
                    for frame in frames {
                        for y in 0..patch {
                            let at = (c * height + row * patch + y) * width + column * patch;
                            data.extend_from_slice(&frame.data[at..at + patch]);
                        }
                    }
                }
            }
        }
    }
    Ok(Patches { grid: [planes.len() / step, rows, columns], width: 3 * step * patch * patch, data })
}
