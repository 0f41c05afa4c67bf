//! Convolutions, pooling, group norm and Mish against Candle's own operations, values and gradients, at odd sizes.
#![allow(clippy::unwrap_used)]

use vela_nn::*;

fn vars(shapes: &[&[usize]]) -> Result<Vec<Var>> {
    let one =
        |(i, shape): (usize, &&[usize])| Ok(Var::from_tensor(&random::normal(1, &format!("{i}"), *shape)?)?);
    shapes.iter().enumerate().map(one).collect()
}

fn close(what: &str, a: &Tensor, b: &Tensor) -> Result<()> {
    assert_eq!(a.dims(), b.dims(), "{what}");
    let (a, b) = (a.flatten_all()?.to_vec1::<f32>()?, b.flatten_all()?.to_vec1::<f32>()?);
    let spread = b.iter().fold(1f32, |m, v| m.max(v.abs()));
    for (i, (a, b)) in a.iter().zip(&b).enumerate() {
        assert!((a - b).abs() <= 2e-5 * spread, "{what} at {i}: {a} for {b}");
    }
    Ok(())
}

/// Values and gradients of `ours` against those of `theirs`; the same bytes on one thread and on two.
fn same(
    what: &str,
    vars: &[Var],
    ours: impl Fn(&[Tensor]) -> Result<Tensor>,
    theirs: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    let args: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let (a, b) = (ours(&args)?, theirs(&args)?);
    close(what, &a, &b)?;
    let weigh =
        |y: &Tensor| -> Result<Tensor> { Ok((y * random::normal(9, "loss", y.shape())?)?.sum_all()?) };
    let (ga, gb) = (weigh(&a)?.backward()?, weigh(&b)?.backward()?);
    for (i, arg) in args.iter().enumerate() {
        close(&format!("{what}: gradient {i}"), ga.get(arg).unwrap(), gb.get(arg).unwrap())?;
    }
    let bytes = |count| {
        threads::with_threads(count, || ours(&args))?.flatten_all()?.to_vec1::<f32>().map_err(Error::from)
    };
    assert_eq!(bytes(1)?, bytes(2)?, "{what}: thread counts");
    Ok(())
}

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
        let vars = vars(&[&[b, c, h, w], &[o, c, k, k], &[o]])?;
        same(
            &format!("convolution {k} by {s}"),
            &vars,
            |a| Conv::from_tensors(a[1].clone(), Some(a[2].clone()), [s; 2], [p; 2])?.forward(&a[0]),
            |a| plus_bias(a[0].conv2d(&a[1], p, s, 1, 1)?, &a[2], 4),
        )?;
        let plain: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().detach()).collect();
        let conv = Conv::from_tensors(plain[1].clone(), Some(plain[2].clone()), [s; 2], [p; 2])?;
        let y = conv.forward(&plain[0])?;
        close("sum and relu", &conv.forward_then(&plain[0], Some(&y), true)?, &(&y + &y)?.relu()?)?;
        close(
            "two factors",
            &conv.scaled(&vec![2.0; o], &vec![1.0; o])?.forward(&plain[0])?,
            &((y * 2.0)? + 1.0)?,
        )?;
    }
    Ok(())
}

#[test]
fn convolution_over_time_and_its_transpose_are_candle_s() -> Result<()> {
    let vars_in = vars(&[&[2, 3, 9], &[4, 3, 3], &[4]])?;
    // Candle's gradient of a strided conv1d is not to be relied on: the sum over the kernel's places, written out.
    let by_place = |a: &[Tensor]| -> Result<Tensor> {
        let padded = a[0].pad_with_zeros(2, 1, 1)?;
        let mut y = Tensor::zeros((2, 4, 5), DType::F32, &Device::Cpu)?;
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
    // Candle's own gradient of the transposed form is not there for all sizes: values, and the adjoint of the sum.
    let x = random::normal(3, "x", (2, 4, 5))?;
    let weights = Weights::fresh(4);
    let conv = Conv::transposed_over_time(&weights, (4, 3), 4, 2, 1)?;
    let y = conv.transposed_forward_over_time(&x)?;
    let kernel = conv.weight().squeeze(2)?;
    close("transposed", &y, &x.conv_transpose1d(&kernel, 1, 0, 2, 1, 1)?)?;
    // <conv(u), x> = <u, transposed(x)>
    let u = random::normal(5, "u", y.shape())?;
    let forward = Conv::from_tensors(conv.weight().clone(), None, [1, 2], [0, 1])?.forward_over_time(&u)?;
    let (left, right) =
        ((forward * &x)?.sum_all()?.to_scalar::<f32>()?, (u * &y)?.sum_all()?.to_scalar::<f32>()?);
    assert!((left - right).abs() < 1e-3, "{left} {right}");
    assert!(conv.transposed_forward_over_time(&random::normal(3, "x", (2, 3, 5))?).is_err());
    Ok(())
}

#[test]
fn group_norm_mish_and_pooling_are_their_composed_forms() -> Result<()> {
    let all = vars(&[&[2, 6, 7], &[6], &[6]])?;
    same(
        "group norm",
        &all,
        |a| GroupNorm::from_tensors(a[1].clone(), a[2].clone(), 3, 1e-5)?.forward(&a[0]),
        |a| {
            let x = a[0].reshape((2, 3, 14))?;
            let x = x.broadcast_sub(&x.mean_keepdim(2)?)?;
            let x = x.broadcast_div(&(x.sqr()?.mean_keepdim(2)? + 1e-5)?.sqrt()?)?.reshape((2, 6, 7))?;
            plus_bias(x.broadcast_mul(&a[1].reshape((1, 6, 1))?)?, &a[2], 3)
        },
    )?;
    let x = vars(&[&[3, 50]])?;
    same("mish", &x, |a| mish(&a[0]), |a| Ok((&a[0] * (a[0].exp()? + 1.0)?.log()?.tanh()?)?))?;
    let wide = Tensor::new(&[-200f32, -20.0, 0.0, 30.0, 300.0], &Device::Cpu)?;
    let y = mish(&wide)?.to_vec1::<f32>()?;
    assert!(y[0] == 0.0 && y[2] == 0.0 && y[3] == 30.0 && y[4] == 300.0, "{y:?}");
    // Windows that tile the picture are an axis of their own.
    let x = vars(&[&[2, 3, 6, 8]])?;
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
