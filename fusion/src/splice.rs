//! Where image tokens go: each placeholder in the text is replaced by the next image token.

use candle_core::{Device, Tensor};
use vela_nn::{Error, Result};

/// Row numbers into the text rows `0..ids.len()` followed by the image rows: a text token keeps its own row, the
/// `n`-th placeholder takes image row `n`.
///
/// # Errors
/// The number of placeholders is not `image_rows`.
pub fn splice_rows(ids: &[u32], placeholder: u32, image_rows: usize) -> Result<Vec<u32>> {
    let holes = ids.iter().filter(|id| **id == placeholder).count();
    if holes != image_rows {
        return Err(Error::invalid(format!("image tokens: the text has room for {holes}, got {image_rows}")));
    }
    let mut next = ids.len() as u32;
    let mut row = |(i, id): (usize, &u32)| {
        if *id == placeholder {
            next += 1;
            next - 1
        } else {
            i as u32
        }
    };
    Ok(ids.iter().enumerate().map(&mut row).collect())
}

/// `text [b, t, width]` with its placeholders (in `ids [b, t]`, u32) replaced by `images [n, k, width]`, in order.
/// Differentiable in both.
pub fn splice(text: &Tensor, ids: &Tensor, placeholder: u32, images: &Tensor) -> Result<Tensor> {
    let (b, t, width) = text.dims3()?;
    let (n, k, image_width) = images.dims3()?;
    if image_width != width || ids.dims() != [b, t] {
        let expected = format!("ids [{b}, {t}] and images [n, k, {width}]");
        return Err(Error::invalid(format!(
            "splice: expected {expected}, got {:?} and {:?}",
            ids.dims(),
            images.dims()
        )));
    }
    let rows = splice_rows(&ids.flatten_all()?.to_vec1::<u32>()?, placeholder, n * k)?;
    let rows = Tensor::from_vec(rows, b * t, &Device::Cpu)?;
    let all = Tensor::cat(&[text.reshape((b * t, width))?, images.reshape((n * k, width))?], 0)?;
    Ok(all.index_select(&rows, 0)?.reshape((b, t, width))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_take_image_rows_in_order_and_counts_must_agree() -> Result<()> {
        assert_eq!(splice_rows(&[7, 9, 9, 8, 9], 9, 3)?, [0, 5, 6, 3, 7]);
        assert_eq!(splice_rows(&[7, 8], 9, 0)?, [0, 1]);
        assert!(splice_rows(&[7, 9], 9, 2).is_err_and(|e| e.to_string().contains("room for 1, got 2")));
        Ok(())
    }
}
