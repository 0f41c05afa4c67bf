//! How large pictures are fitted and cut: pure sizes, no pixels. Each rule is one family's, stated as the reference's.

use vela_nn::{Error, Result};

/// Width and height, pixels.
pub type Size = (usize, usize);

/// The shorter side becomes `edge`, the other one keeps the aspect, rounded down.
pub fn shortest_edge((width, height): Size, edge: usize) -> Size {
    let other = |long: usize, short: usize| ((edge as f64 * long as f64 / short as f64) as usize).max(1);
    if width <= height { (edge, other(height, width)) } else { (other(width, height), edge) }
}

/// Idefics3: the longer side becomes `edge`, the other one keeps the aspect and is made even.
pub fn longest_edge((width, height): Size, edge: usize) -> Size {
    let aspect = width as f64 / height as f64;
    let even = |x: f64| ((x as usize).div_ceil(2) * 2).max(1);
    if width >= height { (edge, even(edge as f64 / aspect)) } else { (even(edge as f64 * aspect), edge) }
}

/// Idefics3: both sides become multiples of `tile`, rounded up, the longer one first.
pub fn multiples((width, height): Size, tile: usize) -> Size {
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

/// InternVL: columns and rows of tiles, between `least` and `most` in all, whose aspect is nearest to the picture's; of
/// equal ones the larger grid, while the picture fills over half of it.
pub fn nearest_grid((width, height): Size, tile: Size, least: usize, most: usize) -> (usize, usize) {
    let mut grids: Vec<(usize, usize)> = (1..=most)
        .flat_map(|columns| (1..=most).map(move |rows| (columns, rows)))
        .filter(|(columns, rows)| (least..=most).contains(&(columns * rows)))
        .collect();
    grids.sort_by_key(|(columns, rows)| columns * rows);
    let aspect = width as f64 / height as f64;
    let (mut best, mut smallest) = ((1, 1), f64::INFINITY);
    for (columns, rows) in grids {
        let difference = (aspect - columns as f64 / rows as f64).abs();
        let covered = (tile.0 * tile.1 * columns * rows) as f64;
        let filled = (width * height) as f64 > 0.5 * covered;
        if difference < smallest || (difference == smallest && filled) {
            (smallest, best) = (difference, (columns, rows));
        }
    }
    best
}

/// LLaVA-NeXT: of the allowed canvases the one that keeps most of the picture's pixels, and wastes least of its own.
///
/// # Errors
/// No canvas.
pub fn best_canvas((width, height): Size, canvases: &[Size]) -> Result<Size> {
    let mut best: Option<(Size, usize, usize)> = None;
    for &canvas in canvases {
        let scale = (canvas.0 as f64 / width as f64).min(canvas.1 as f64 / height as f64);
        let shrunk = (width as f64 * scale) as usize * (height as f64 * scale) as usize;
        let kept = shrunk.min(width * height);
        let wasted = (canvas.0 * canvas.1).saturating_sub(kept);
        if best.is_none_or(|(_, most, least)| kept > most || (kept == most && wasted < least)) {
            best = Some((canvas, kept, wasted));
        }
    }
    let none = || Error::invalid("image_grid_pinpoints: expected at least one size, got none");
    best.map(|(canvas, ..)| canvas).ok_or_else(none)
}

/// LLaVA-NeXT: the largest size of the picture's aspect inside a canvas, rounded up.
pub fn fit_inside((width, height): Size, canvas: Size) -> Size {
    let (across, down) = (canvas.0 as f64 / width as f64, canvas.1 as f64 / height as f64);
    if across < down {
        (canvas.0, ((height as f64 * across).ceil() as usize).clamp(1, canvas.1))
    } else {
        (((width as f64 * down).ceil() as usize).clamp(1, canvas.0), canvas.1)
    }
}

/// Qwen2-VL: both sides multiples of `factor`, the area within `least..=most` pixels, the aspect kept as well as can be.
///
/// # Errors
/// One side is over 200 times the other.
pub fn within_budget((width, height): Size, factor: usize, least: usize, most: usize) -> Result<Size> {
    if width.max(height) > 200 * width.min(height) {
        return Err(Error::invalid(format!(
            "picture: expected sides of at most 200 to 1, got {width}x{height}"
        )));
    }
    let step = factor as f64;
    let snap = |x: f64| ((x as usize) * factor).max(factor);
    let nearest = |side: usize| (side as f64 / step).round_ties_even() as usize * factor;
    let area = (width * height) as f64;
    let (across, down) = (nearest(width), nearest(height));
    Ok(if across * down > most {
        let shrink = (area / most as f64).sqrt();
        let fit = |side: usize| snap((side as f64 / shrink / step).floor());
        (fit(width), fit(height))
    } else if across * down < least {
        let grow = (least as f64 / area).sqrt();
        let fit = |side: usize| snap((side as f64 * grow / step).ceil());
        (fit(width), fit(height))
    } else {
        (across.max(factor), down.max(factor))
    })
}

/// SigLIP 2: the largest size of the picture's aspect, in multiples of `patch`, with at most `most` patches.
pub fn most_patches((width, height): Size, patch: usize, most: usize) -> Size {
    let at = |scale: f64| {
        let side = |x: usize| ((x as f64 * scale / patch as f64).ceil() as usize).max(1) * patch;
        (side(width), side(height))
    };
    let (mut low, mut high) = (1e-6, 100.0);
    while high - low >= 1e-5 {
        let middle = (low + high) / 2.0;
        let (width, height) = at(middle);
        if (width / patch).saturating_mul(height / patch) <= most { low = middle } else { high = middle }
    }
    at(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_rounded_as_each_family_does() -> Result<()> {
        assert_eq!(shortest_edge((131, 97), 56), (75, 56));
        assert_eq!(longest_edge((131, 97), 80), (80, 60));
        assert_eq!(multiples((80, 60), 40), (80, 80));
        assert_eq!(most_patches((131, 97), 8, 36), (56, 40));
        assert_eq!(within_budget((131, 97), 16, 1024, 4096)?, (64, 48));
        // Half to even: 40 / 16 = 2.5 becomes 2.
        assert_eq!(within_budget((40, 40), 16, 1, 1 << 20)?, (32, 32));
        Ok(())
    }

    #[test]
    fn extreme_pictures_have_a_size_or_an_error() -> Result<()> {
        assert_eq!(longest_edge((1, 10_000), 2048), (1, 2048));
        assert_eq!(multiples((1, 2048), 512), (512, 2048));
        assert_eq!(fit_inside((1, 10_000), (336, 336)), (1, 336));
        assert_eq!(most_patches((1, 10_000), 16, 256), (16, 4096));
        assert_eq!(within_budget((1, 1), 28, 3136, 1 << 20)?, (56, 56));
        let refused = within_budget((1, 10_000), 28, 3136, 1 << 20);
        assert!(refused.is_err_and(|e| e.to_string().contains("got 1x10000")));
        assert_eq!(nearest_grid((1, 10_000), (448, 448), 1, 12), (1, 12));
        assert!(best_canvas((10, 10), &[]).is_err());
        Ok(())
    }
}
