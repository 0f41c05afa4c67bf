//! Fused operations held to the same in float64: values and gradients, each relative to the greatest of its kind.
#![allow(clippy::unwrap_used, dead_code)]

use vela_nn::*;

/// How far a value or a gradient may be from the truth, as a share of the greatest value or gradient.
pub const FAR: f64 = 1e-5;

/// Random variables by shape.
pub fn vars(seed: u64, shapes: &[&[usize]]) -> Result<Vec<Var>> {
    let one = |(i, shape): (usize, &&[usize])| {
        Ok(Var::from_tensor(&random::normal(seed, &format!("{i}"), *shape)?)?)
    };
    shapes.iter().enumerate().map(one).collect()
}

/// A copy in float64, which is a variable of its own.
pub fn double(x: &Tensor) -> Result<Tensor> {
    Ok(Var::from_tensor(&x.detach().to_dtype(DType::F64)?)?.into_inner())
}

/// Holds `got` to `want`.
pub fn close(what: &str, got: &Tensor, want: &Tensor, far: f64) -> Result<()> {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let values = |t: &Tensor| t.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>();
    let (got, want) = (values(got)?, values(want)?);
    let spread = want.iter().fold(0f64, |most, v| most.max(v.abs()));
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let apart = (got - want).abs();
        assert!(apart <= far * spread, "{what} at {i}: {got} for {want} (spread {spread})");
    }
    Ok(())
}

/// Every element times a number of its own, so that no gradient is hidden by symmetry. Twice, no gradient is negative.
pub fn weighed(y: &Tensor) -> Result<Tensor> {
    Ok((y * random::normal(99, "loss", y.shape())?.to_dtype(y.dtype())?)?)
}

/// The sum of what is weighed.
pub fn loss(y: &Tensor) -> Result<Tensor> {
    Ok(weighed(y)?.sum_all()?)
}

/// Holds `fused`, which was made of `args`, and its gradients to `composed` of their copies in float64.
pub fn agree(
    what: &str,
    args: &[Tensor],
    fused: &Tensor,
    composed: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    let doubles: Vec<Tensor> = args.iter().map(double).collect::<Result<_>>()?;
    let truth = composed(&doubles)?;
    assert_eq!(truth.dtype(), DType::F64, "{what}");
    close(what, fused, &truth, FAR)?;
    let (got, want) = (loss(fused)?.backward()?, loss(&truth)?.backward()?);
    for (i, (arg, double)) in args.iter().zip(&doubles).enumerate() {
        close(&format!("{what}: gradient {i}"), got.get(arg).unwrap(), want.get(double).unwrap(), FAR)?;
    }
    Ok(())
}

/// The same; without variables the same values and no graph; the same bytes on one thread and on two.
pub fn same(
    what: &str,
    vars: &[Var],
    fused: impl Fn(&[Tensor]) -> Result<Tensor>,
    composed: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    let args: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let y = fused(&args)?;
    agree(what, &args, &y, composed)?;
    let plain: Vec<Tensor> = args.iter().map(Tensor::detach).collect();
    let plain = fused(&plain)?;
    assert!(!plain.track_op(), "{what}");
    close(what, &plain, &y, 1e-6)?;
    let bytes = |count| -> Result<Vec<Vec<f32>>> {
        threads::with_threads(count, || {
            let y = fused(&args)?;
            let grads = loss(&y)?.backward()?;
            let all = std::iter::once(&y).chain(args.iter().map(|arg| grads.get(arg).unwrap()));
            all.map(|t| Ok(t.flatten_all()?.to_vec1::<f32>()?)).collect()
        })
    };
    assert_eq!(bytes(1)?, bytes(2)?, "{what}: thread counts");
    Ok(())
}
