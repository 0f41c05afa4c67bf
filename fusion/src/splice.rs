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

/// `text [1, t, width]` with the placeholders in `ids` replaced by the rows of `images`, `[k, width]` each, in order.
/// Differentiable in both.
pub fn splice(text: &Tensor, ids: &[u32], placeholder: u32, images: &[&Tensor]) -> Result<Tensor> {
    let (b, t, width) = text.dims3()?;
    let mut count = 0;
    for image in images {
        let (k, image_width) = image.dims2()?;
        if image_width != width {
            return Err(Error::shape("image tokens", format!("[k, {width}]"), image.dims()));
        }
        count += k;
    }
    if b != 1 || ids.len() != t {
        return Err(Error::shape("text to be spliced", format!("[1, {}, width]", ids.len()), text.dims()));
    }
    let rows = splice_rows(ids, placeholder, count)?;
    if images.is_empty() {
        return Ok(text.clone());
    }
    let text = text.reshape((t, width))?;
    let all = Tensor::cat(&[&[&text], images].concat(), 0)?;
    Ok(all.index_select(&Tensor::from_vec(rows, t, &Device::Cpu)?, 0)?.reshape((1, t, width))?)
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

    #[test]
    fn several_pictures_of_unequal_length_go_in_one_after_the_other() -> Result<()> {
        let rows = |from: f32, n: usize| -> Result<Tensor> {
            Ok(Tensor::arange(from, from + n as f32, &Device::Cpu)?.reshape((n, 1))?)
        };
        let text = rows(0.0, 5)?.unsqueeze(0)?;
        let (first, second) = (rows(10.0, 1)?, rows(20.0, 2)?);
        let got = splice(&text, &[1, 9, 2, 9, 9], 9, &[&first, &second])?;
        assert_eq!(got.flatten_all()?.to_vec1::<f32>()?, [0.0, 10.0, 2.0, 20.0, 21.0]);
        assert!(splice(&text, &[1, 9, 2, 9, 9], 9, &[&first]).is_err());
        Ok(())
    }
}
