//! How the parts of one picture become one row of tokens: pure places first, tensors after.

use candle_core::{Device, Tensor};
use serde_json::Value;
use vela_nn::{Error, Result};
use vela_vision::interpolate::{Interpolation, resize_grid};
use vela_vision::tiling::{self, Size};

/// How the parts of one picture become one row of tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum Packing {
    /// Part after part.
    Each,
    /// LLaVA-NeXT: the whole picture, then the tiles put together, without their padding, a learned token after each row.
    Canvas {
        /// The canvases, (width, height) in pixels.
        canvases: Vec<Size>,
        /// Edge of a tile, pixels.
        tile: usize,
        /// The tiles are shrunk to about so many tiles' tokens (LLaVA-OneVision's `anyres_max_9`).
        most: Option<usize>,
    },
}

/// A token of a packed picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// Of this part, at this place row by row.
    Part(usize, usize),
    /// The learned end of a row.
    Newline,
}

/// The part of a canvas that a picture fills, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Filled {
    top: usize,
    left: usize,
    rows: usize,
    columns: usize,
}

/// Without padding: what is left of `rows * columns` tokens of a canvas for a picture of this size. Rounded as the
/// reference rounds.
fn filled((width, height): Size, rows: usize, columns: usize) -> Filled {
    let near = |x: f64| ((x * 1e7).round_ties_even() / 1e7) as usize;
    if width as f64 / height as f64 > columns as f64 / rows as f64 {
        let real = near(height as f64 * (columns as f64 / width as f64));
        let top = (rows - real.min(rows)) / 2;
        Filled { top, left: 0, rows: rows - 2 * top, columns }
    } else {
        let real = near(width as f64 * (rows as f64 / height as f64));
        let left = (columns - real.min(columns)) / 2;
        Filled { top: 0, left, rows, columns: columns - 2 * left }
    }
}

impl Packing {
    /// Reads `image_grid_pinpoints`, the tower's `image_size` and `vision_aspect_ratio` of a `config.json`.
    pub fn canvases(config: &Value) -> Result<Self> {
        let wrong = |field: &str| Error::invalid(format!("config.json: {field}: missing or not understood"));
        let pair = |pair: &Value| match pair.as_array().map(Vec::as_slice) {
            Some([height, width]) => Some((width.as_u64()? as usize, height.as_u64()? as usize)),
            _ => None,
        };
        let list = config.get("image_grid_pinpoints").and_then(Value::as_array);
        let canvases = list.and_then(|list| list.iter().map(pair).collect::<Option<Vec<Size>>>());
        let tile = config.pointer("/vision_config/image_size").and_then(Value::as_u64).filter(|x| *x > 0);
        let most = match config.get("vision_aspect_ratio").and_then(Value::as_str) {
            None => None,
            Some(text) => {
                let most = text.strip_prefix("anyres_max_").and_then(|most| most.parse().ok());
                Some(most.ok_or_else(|| wrong("vision_aspect_ratio"))?)
            }
        };
        Ok(Self::Canvas {
            canvases: canvases.filter(|c| !c.is_empty()).ok_or_else(|| wrong("image_grid_pinpoints"))?,
            tile: tile.ok_or_else(|| wrong("vision_config.image_size"))? as usize,
            most,
        })
    }

    /// Which tokens come, in order, of a picture of `size` (width, height) whose parts have `side * side` tokens each;
    /// where the tiles are shrunk, as if they were not.
    ///
    /// # Errors
    /// Another number of parts than the layout has.
    pub fn places(&self, size: Size, parts: usize, side: usize) -> Result<Vec<Token>> {
        let whole = |part: usize| (0..side * side).map(move |at| Token::Part(part, at));
        let Self::Canvas { .. } = self else { return Ok((0..parts).flat_map(whole).collect()) };
        let mut tokens: Vec<Token> = whole(0).collect();
        if parts == 1 {
            tokens.push(Token::Newline);
            return Ok(tokens);
        }
        let (_, columns, kept) = self.canvas(size, parts, side)?;
        for row in kept.top..kept.top + kept.rows {
            for column in kept.left..kept.left + kept.columns {
                let tile = row / side * columns + column / side;
                tokens.push(Token::Part(1 + tile, row % side * side + column % side));
            }
            tokens.push(Token::Newline);
        }
        Ok(tokens)
    }

    /// Rows and columns of tiles, and what the picture fills of their tokens.
    fn canvas(&self, size: Size, parts: usize, side: usize) -> Result<(usize, usize, Filled)> {
        let Self::Canvas { canvases, tile, .. } = self else {
            return Err(Error::invalid("this packing has no canvas"));
        };
        let (width, height) = tiling::best_canvas(size, canvases)?;
        let (rows, columns) = (height / tile, width / tile);
        if rows * columns + 1 != parts || size.0 * size.1 == 0 {
            let (w, h) = size;
            return Err(Error::invalid(format!(
                "a picture of {w}x{h}: expected {rows} x {columns} tiles and the whole, got {parts} parts"
            )));
        }
        Ok((rows, columns, filled(size, rows * side, columns * side)))
    }

    /// Rows and columns to which the tokens of the tiles shrink, if they do.
    fn shrunk(&self, kept: Filled, side: usize) -> Option<(usize, usize)> {
        let Self::Canvas { most: Some(most), .. } = self else { return None };
        let ratio = ((kept.rows * kept.columns) as f64 / (most * side * side) as f64).sqrt();
        let to = |length: usize| ((length as f64 / ratio).floor() as usize).max(1);
        (ratio > 1.1).then(|| (to(kept.rows), to(kept.columns)))
    }

    /// How many tokens a picture takes.
    pub fn count(&self, size: Size, parts: usize, side: usize) -> Result<usize> {
        if matches!(self, Self::Canvas { .. }) && parts > 1 {
            let [rows, columns] = self.tile_tokens(size, parts, side)?;
            return Ok(side * side + rows * (columns + 1));
        }
        Ok(self.places(size, parts, side)?.len())
    }

    /// Rows and columns of tokens that the tiles on a canvas become, without padding and the ends of rows.
    ///
    /// # Errors
    /// A packing without a canvas; another number of parts than the layout has.
    pub fn tile_tokens(&self, size: Size, parts: usize, side: usize) -> Result<[usize; 2]> {
        let (_, _, kept) = self.canvas(size, parts, side)?;
        Ok(self.shrunk(kept, side).map_or([kept.rows, kept.columns], |(rows, columns)| [rows, columns]))
    }

    /// `features [parts, n, width]` of a picture of `size` as one row of tokens `[k, width]`; `newline [width]`, if the model
    /// has one. Differentiable.
    pub fn pack(&self, features: &Tensor, newline: Option<&Tensor>, size: Size) -> Result<Tensor> {
        let (parts, n, width) = features.dims3()?;
        let flat = features.reshape((parts * n, width))?;
        let Self::Canvas { .. } = self else { return Ok(flat) };
        let side = n.isqrt();
        if side * side != n {
            return Err(Error::shape("features to be packed", "[parts, a square, width]", features.dims()));
        }
        let newline = newline.ok_or_else(|| Error::invalid("this packing needs a learned end of rows"))?;
        let mut rows = Vec::new();
        for token in self.places(size, parts, side)? {
            match token {
                Token::Part(part, at) => rows.push((part * n + at) as u32),
                Token::Newline => rows.push((parts * n) as u32),
            }
        }
        let all = Tensor::cat(&[flat, newline.reshape((1, width))?], 0)?;
        let pick = |rows: Vec<u32>| -> Result<Tensor> {
            let count = rows.len();
            Ok(all.index_select(&Tensor::from_vec(rows, count, &Device::Cpu)?, 0)?)
        };
        let shrunk = match parts {
            1 => None,
            _ => {
                let (_, _, kept) = self.canvas(size, parts, side)?;
                self.shrunk(kept, side).map(|to| (kept, to))
            }
        };
        let Some((kept, to)) = shrunk else { return pick(rows) };
        let end = (parts * n) as u32;
        let tiles: Vec<u32> = rows.split_off(n).into_iter().filter(|row| *row != end).collect();
        let tiles = resize_grid(&pick(tiles)?, (kept.rows, kept.columns), to, Interpolation::Bilinear)?;
        let tiles = tiles.reshape((to.0, to.1, width))?;
        let ends = newline.reshape((1, 1, width))?.broadcast_as((to.0, 1, width))?.contiguous()?;
        let tiles = Tensor::cat(&[tiles, ends], 1)?.reshape((to.0 * (to.1 + 1), width))?;
        Ok(Tensor::cat(&[pick(rows)?, tiles], 0)?)
    }
}

/// LLaVA-OneVision's video: each frame `[frames, side * side, width]` pooled to half its side, rounded up, frame after frame, and
/// one learned end: `[k, width]`.
pub fn pack_frames(frames: &Tensor, newline: Option<&Tensor>) -> Result<Tensor> {
    let (count, n, width) = frames.dims3()?;
    let side = n.isqrt();
    if side * side != n {
        return Err(Error::shape("frames to be packed", "[frames, a square, width]", frames.dims()));
    }
    let half = side.div_ceil(2);
    let mut parts = Vec::with_capacity(count + 1);
    for frame in 0..count {
        parts.push(resize_grid(&frames.get(frame)?, (side, side), (half, half), Interpolation::Bilinear)?);
    }
    if let Some(newline) = newline {
        parts.push(newline.reshape((1, width))?);
    }
    Ok(Tensor::cat(&parts, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(packing: &Packing, size: Size, parts: usize, side: usize) -> Result<String> {
        let letter = |token: Token| match token {
            Token::Part(part, at) => format!("{}{}", (b'a' + part as u8) as char, at),
            Token::Newline => "/\n".into(),
        };
        Ok(packing.places(size, parts, side)?.into_iter().map(letter).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn a_canvas_is_read_row_by_row_without_its_padding() -> Result<()> {
        let canvas = Packing::Canvas { canvases: vec![(4, 4), (4, 8)], tile: 4, most: None };
        // A square picture has one tile; a tall one two, one above the other.
        let square = "a0 a1 a2 a3 b0 b1 /\n b2 b3 /\n";
        assert_eq!(drawn(&canvas, (10, 10), 2, 2)?, square);
        let tall = "a0 a1 a2 a3 b0 b1 /\n b2 b3 /\n c0 c1 /\n c2 c3 /\n";
        assert_eq!(drawn(&canvas, (10, 20), 3, 2)?, tall);
        // Of one that is wider than its canvas the rows of padding go.
        let one = Packing::Canvas { canvases: vec![(4, 4)], tile: 4, most: None };
        let wide = "a0 a1 a2 a3 a4 a5 a6 a7 a8 a9 a10 a11 a12 a13 a14 a15 b4 b5 b6 b7 /\n b8 b9 b10 b11 /\n";
        assert_eq!(drawn(&one, (20, 10), 2, 4)?, wide);
        assert!(canvas.places((10, 10), 3, 2).is_err_and(|e| e.to_string().contains("got 3 parts")));
        assert_eq!(drawn(&canvas, (10, 10), 1, 1)?, "a0 /\n");
        assert_eq!(drawn(&Packing::Each, (1, 1), 2, 1)?, "a0 b0");
        Ok(())
    }

    #[test]
    fn counts_are_what_packing_gives_and_large_pictures_shrink() -> Result<()> {
        let canvas = Packing::Canvas { canvases: vec![(12, 12)], tile: 4, most: Some(4) };
        let features = Tensor::arange(0f32, 10.0 * 4.0, &Device::Cpu)?.reshape((10, 4, 1))?;
        let newline = Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu)?;
        let packed = canvas.pack(&features, Some(&newline), (9, 9))?;
        // Six by six tokens become four by four.
        assert_eq!(packed.dim(0)?, 4 + 4 * 5);
        assert_eq!(canvas.count((9, 9), 10, 2)?, 24);
        assert!(canvas.pack(&features, None, (9, 9)).is_err());
        Ok(())
    }
}
