//! Fewer tokens: those that are alike become one (token merging, Bolya et al. 2022,
//! <https://arxiv.org/abs/2210.09461>). An option: it costs accuracy.

use candle_core::{D, Device, Tensor};
use vela_nn::{Error, Result};

/// Tokens after merging.
#[derive(Clone, Debug)]
pub struct Merged {
    /// `[kept, width]`, each the mean of those that it stands for, in the order of the first of them.
    pub tokens: Tensor,
    /// Which tokens each one stands for.
    pub sources: Vec<Vec<usize>>,
}

/// `tokens [n, width]` merged until `keep` are left. In each round every other token looks for the one most like it, by cosine,
/// among the rest, and the best pairs become one; a token that stands for more weighs more. Differentiable in the tokens.
///
/// # Errors
/// Nothing to keep, or more than there is.
pub fn merge_alike(tokens: &Tensor, keep: usize) -> Result<Merged> {
    let (n, _) = tokens.dims2()?;
    if !(1..=n).contains(&keep) {
        return Err(Error::invalid(format!(
            "token merging: expected 1 to {n} tokens to be kept, got {keep}"
        )));
    }
    let mut sources: Vec<Vec<usize>> = (0..n).map(|i| vec![i]).collect();
    while sources.len() > keep {
        let left = sources.len();
        let rows = mean_of(tokens, &sources)?.detach();
        let length = (rows.sqr()?.sum_keepdim(D::Minus1)? + 1e-12)?.sqrt()?;
        let unit = rows.broadcast_div(&length)?;
        let parts = |first: usize| -> Result<(Vec<u32>, Tensor)> {
            let picked: Vec<u32> = (first..left).step_by(2).map(|i| i as u32).collect();
            let count = picked.len();
            let chosen = unit.index_select(&Tensor::from_slice(&picked, count, &Device::Cpu)?, 0)?;
            Ok((picked, chosen))
        };
        let ((seekers, a), (others, b)) = (parts(0)?, parts(1)?);
        let alike = a.matmul(&b.t()?.contiguous()?)?.to_vec2::<f32>()?;
        let mut pairs: Vec<(f32, u32, u32)> = Vec::with_capacity(seekers.len());
        for (seeker, row) in seekers.iter().zip(&alike) {
            let best =
                row.iter().zip(&others).fold(None, |best: Option<(f32, u32)>, (x, other)| match best {
                    Some((most, _)) if *x <= most => best,
                    _ => Some((*x, *other)),
                });
            pairs.extend(best.map(|(x, other)| (x, *seeker, other)));
        }
        // Of equal ones the first: the same tokens at any thread count.
        pairs.sort_by(|x, y| y.0.total_cmp(&x.0).then(x.1.cmp(&y.1)));
        pairs.truncate(left - keep);
        for (_, seeker, other) in pairs {
            let moved = std::mem::take(&mut sources[seeker as usize]);
            sources[other as usize].extend(moved);
        }
        sources.retain(|group| !group.is_empty());
        sources.iter_mut().for_each(|group| group.sort_unstable());
        sources.sort_by_key(|group| group[0]);
    }
    let tokens = if keep == n { tokens.clone() } else { mean_of(tokens, &sources)? };
    Ok(Merged { tokens, sources })
}

fn mean_of(tokens: &Tensor, groups: &[Vec<usize>]) -> Result<Tensor> {
    let n = tokens.dim(0)?;
    let mut weights = vec![0.0f32; groups.len() * n];
    for (row, group) in weights.chunks_exact_mut(n.max(1)).zip(groups) {
        group.iter().for_each(|i| row[*i] = 1.0 / group.len() as f32);
    }
    Ok(Tensor::from_vec(weights, (groups.len(), n), &Device::Cpu)?.matmul(tokens)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alike_tokens_become_their_mean_and_the_odd_one_stays() -> Result<()> {
        let rows: [[f32; 2]; 5] = [[1.0, 0.0], [1.1, 0.0], [0.0, 1.0], [0.0, 3.0], [-1.0, 0.1]];
        let tokens = Tensor::new(&rows, &Device::Cpu)?;
        let merged = merge_alike(&tokens, 3)?;
        assert_eq!(merged.sources, [vec![0, 1], vec![2, 3], vec![4]]);
        let got = merged.tokens.to_vec2::<f32>()?;
        assert!((got[0][0] - 1.05).abs() < 1e-6 && (got[1][1] - 2.0).abs() < 1e-6 && got[2] == [-1.0, 0.1]);
        Ok(())
    }

    #[test]
    fn any_number_of_them_can_be_kept_and_all_are_stood_for() -> Result<()> {
        let tokens = vela_nn::random::normal(3, "tokens", (31, 4))?;
        for keep in [1, 2, 7, 30, 31] {
            let merged = merge_alike(&tokens, keep)?;
            assert_eq!(merged.tokens.dims(), [keep, 4]);
            let mut all = merged.sources.concat();
            all.sort_unstable();
            assert_eq!(all, (0..31).collect::<Vec<_>>());
        }
        assert_eq!(merge_alike(&tokens, 31)?.tokens.to_vec2::<f32>()?, tokens.to_vec2::<f32>()?);
        for keep in [0, 32, 99] {
            let said = merge_alike(&tokens, keep).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(said.contains(&format!("expected 1 to 31 tokens to be kept, got {keep}")), "{said}");
        }
        Ok(())
    }
}
