//! Convolutions, pooling, group norm and Mish against Candle's own operations in float64, values and gradients, at odd sizes.
#![allow(clippy::unwrap_used)]

mod truth;

use truth::{FAR, close, same, vars, weighed};
use vela_nn::*;

fn plus_bias(y: Tensor, bias: &Tensor, rank: usize) -> Result<Tensor> {
    let mut shape = vec![1; rank];
    shape[1] = bias.elem_count();
    Ok(y.broadcast_add(&bias.reshape(shape)?)?)
}

#[test]
fn convolution_is_candle_s_at_odd_sizes() -> Result<()> {
    for (b, c, o, h, w, k, s, p) in [
        (1, 3, 5, 9, 7, 3, 1, 1),
        (2, 3, 4, 11, 13, 7, 2, 3),
        (3, 2, 6, 5, 5, 1, 1, 0),
        (1, 4, 3, 8, 6, 1, 2, 0),
        (2, 2, 2, 4, 4, 5, 3, 2),
        (1, 1, 1, 300, 40, 3, 1, 1),
    ] {
        let vars = vars(1, &[&[b, c, h, w], &[o, c, k, k], &[o]])?;
        same(
            &format!("convolution {k} by {s}"),
            &vars,
            |a| Conv::from_tensors(a[1].clone(), Some(a[2].clone()), [s; 2], [p; 2])?.forward(&a[0]),
            |a| plus_bias(a[0].conv2d(&a[1], p, s, 1, 1)?, &a[2], 4),
        )?;
        let plain: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().detach()).collect();
        let conv = Conv::from_tensors(plain[1].clone(), Some(plain[2].clone()), [s; 2], [p; 2])?;
        let y = conv.forward(&plain[0])?;
        close("sum and relu", &conv.forward_then(&plain[0], Some(&y), true)?, &(&y + &y)?.relu()?, FAR)?;
        close(
            "two factors",
            &conv.scaled(&vec![2.0; o], &vec![1.0; o])?.forward(&plain[0])?,
            &((y * 2.0)? + 1.0)?,
            FAR,
        )?;
    }
    // Gradients that are sums over 90,000 places, of numbers that do not cancel.
    let long = |name: &str, shape: &[usize]| -> Result<Var> {
        Ok(Var::from_tensor(&random::uniform(6, name, 0.5, 1.5, shape)?)?)
    };
    same(
        "a large picture",
        &[long("x", &[1, 2, 300, 300])?, long("w", &[3, 2, 3, 3])?, long("b", &[3])?],
        |a| weighed(&Conv::from_tensors(a[1].clone(), Some(a[2].clone()), [1; 2], [1; 2])?.forward(&a[0])?),
        |a| weighed(&plus_bias(a[0].conv2d(&a[1], 1, 1, 1, 1)?, &a[2], 4)?),
    )
}

#[test]
fn convolution_over_time_and_its_transpose_are_candle_s() -> Result<()> {
    let vars_in = vars(1, &[&[2, 3, 9], &[4, 3, 3], &[4]])?;
    // Candle's gradient of a strided conv1d is not to be relied on: the sum over the kernel's places, written out.
    let by_place = |a: &[Tensor]| -> Result<Tensor> {
        let padded = a[0].pad_with_zeros(2, 1, 1)?;
        let mut y = Tensor::zeros((2, 4, 5), DType::F64, &Device::Cpu)?;
        for k in 0..3 {
            let every_other: Vec<u32> = (0..5).map(|i| 2 * i + k).collect();
            let seen = padded.index_select(&Tensor::new(every_other, &Device::Cpu)?, 2)?;
            y = (y + a[1].narrow(2, k as usize, 1)?.squeeze(2)?.broadcast_matmul(&seen)?)?;
        }
        plus_bias(y, &a[2], 3)
    };
    same(
        "over time",
        &vars_in,
        |a| {
            Conv::from_tensors(a[1].unsqueeze(2)?, Some(a[2].clone()), [1, 2], [0, 1])?
                .forward_over_time(&a[0])
        },
        by_place,
    )?;
    // Its transpose: every place of the kernel spreads what was summed from there.
    let transposed = |a: &[Tensor]| {
        let conv = Conv::from_tensors(a[1].unsqueeze(2)?, Some(a[2].clone()), [1, 2], [0, 1])?;
        conv.transposed_forward_over_time(&a[0])
    };
    let spread = |a: &[Tensor]| -> Result<Tensor> {
        let mut y = Tensor::zeros((2, 3, 12), DType::F64, &Device::Cpu)?;
        for k in 0..4 {
            let part = a[1].narrow(2, k, 1)?.squeeze(2)?.t()?.broadcast_matmul(&a[0])?;
            let apart = Tensor::stack(&[&part, &part.zeros_like()?], 3)?.reshape((2, 3, 10))?;
            y = (y + apart.narrow(2, 0, 9)?.pad_with_zeros(2, k, 3 - k)?)?;
        }
        plus_bias(y.narrow(2, 1, 10)?, &a[2], 3)
    };
    same("transposed over time", &vars(3, &[&[2, 4, 5], &[4, 3, 4], &[3]])?, transposed, spread)?;
    let conv = Conv::transposed_over_time(&Weights::fresh(4), (4, 3), 4, 2, 1)?;
    assert!(conv.transposed_forward_over_time(&random::normal(3, "x", (2, 3, 5))?).is_err());
    Ok(())
}

#[test]
fn group_norm_mish_and_pooling_are_their_composed_forms() -> Result<()> {
    let normal = |a: &[Tensor], groups: usize| -> Result<Tensor> {
        let shape = a[0].dims3()?;
        let x = a[0].reshape((shape.0, groups, ()))?;
        let x = x.broadcast_sub(&x.mean_keepdim(2)?)?;
        let x = x.broadcast_div(&(x.sqr()?.mean_keepdim(2)? + 1e-5)?.sqrt()?)?.reshape(shape)?;
        plus_bias(x.broadcast_mul(&a[1].reshape((1, shape.1, 1))?)?, &a[2], 3)
    };
    let all = vars(1, &[&[2, 6, 7], &[6], &[6]])?;
    same(
        "group norm",
        &all,
        |a| GroupNorm::from_tensors(a[1].clone(), a[2].clone(), 3, 1e-5)?.forward(&a[0]),
        |a| normal(a, 3),
    )?;
    let long = vars(7, &[&[1, 6, 9_000], &[6], &[6]])?;
    same(
        "group norm of a long plane",
        &long,
        |a| GroupNorm::from_tensors(a[1].clone(), a[2].clone(), 1, 1e-5)?.forward(&a[0]),
        |a| normal(a, 1),
    )?;
    let x = vars(1, &[&[3, 50]])?;
    same("mish", &x, |a| mish(&a[0]), |a| Ok((&a[0] * (a[0].exp()? + 1.0)?.log()?.tanh()?)?))?;
    let wide = Tensor::new(&[-200f32, -20.0, 0.0, 30.0, 300.0], &Device::Cpu)?;
    let y = mish(&wide)?.to_vec1::<f32>()?;
    assert!(y[0] == 0.0 && y[2] == 0.0 && y[3] == 30.0 && y[4] == 300.0, "{y:?}");
    // Windows that tile the picture are an axis of their own.
    let x = vars(1, &[&[2, 3, 6, 8]])?;
    let tiled = |a: &[Tensor]| -> Result<Tensor> {
        let tiles = a[0].reshape(vec![2, 3, 3, 2, 4, 2])?.permute(vec![0, 1, 2, 4, 3, 5])?;
        Ok(tiles.reshape((2, 3, 3, 4, 4))?.max(4)?)
    };
    same("max pool", &x, |a| max_pool(&a[0], 2, 2, 0), tiled)?;
    let edge = max_pool(&Tensor::new(&[[[[-5f32, -4.0], [-3.0, -2.0]]]], &Device::Cpu)?, 3, 2, 1)?;
    assert_eq!(edge.flatten_all()?.to_vec1::<f32>()?, [-2.0], "beyond the edge there is nothing, not zero");
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    let conv = Conv::new(&Weights::fresh(1), (3, 4), 3, 1, 0, true)?;
    assert!(conv.forward(&random::normal(1, "x", (1, 2, 9, 9))?).is_err());
    assert!(conv.forward(&random::normal(1, "x", (1, 3, 2, 9))?).is_err());
    assert!(
        conv.forward_then(
            &random::normal(1, "x", (1, 3, 9, 9))?,
            Some(&random::normal(1, "y", (1, 4, 9, 9))?),
            true
        )
        .is_err()
    );
    assert!(max_pool(&random::normal(1, "x", (1, 3, 9, 9))?, 3, 0, 1).is_err());
    assert!(GroupNorm::new(&Weights::fresh(1), 6, 4, 1e-5).is_err());
    Ok(())
}
