//! Layers of constant bfloat16 weights and layers with something that learns beside them: values and gradients against the
//! same mathematics on float32 tensors.

mod truth;

use std::collections::HashMap;
use truth::{agree, double};
use vela_nn::*;

type Named = HashMap<String, Tensor>;

fn stored() -> Result<Named> {
    let shapes =
        [("gate_proj.weight", (96, 64)), ("up_proj.weight", (96, 64)), ("down_proj.weight", (40, 96))];
    shapes.into_iter().map(|(name, shape)| Ok((name.to_owned(), random::normal(3, name, shape)?))).collect()
}

fn rounded(stored: &Named) -> Result<Named> {
    let one =
        |(name, t): (&String, &Tensor)| Ok((name.clone(), t.to_dtype(DType::BF16)?.to_dtype(DType::F32)?));
    stored.iter().map(one).collect()
}

/// `[max |a - b|]` over the spread of `b`.
fn apart(a: &Tensor, b: &Tensor) -> Result<f32> {
    let far = (a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
    Ok(far / b.sqr()?.mean_all()?.sqrt()?.to_scalar::<f32>()?)
}

const GATED: MlpConfig =
    MlpConfig { input: 64, hidden: 96, output: 40, activation: Activation::Silu, gated: true, bias: false };

#[test]
fn gradients_pass_through_constants_in_sixteen_bits() -> Result<()> {
    let stored = stored()?;
    let half = Weights::from_tensors(stored.clone()).held(|name| name.ends_with(".weight"))?;
    let plain = Weights::from_tensors(rounded(&stored)?);
    let x = Var::from_tensor(&random::normal(3, "x", (2, 9, 64))?)?;
    let of = |weights: &Weights| -> Result<(Tensor, Tensor)> {
        let mlp = Mlp::new(weights, GATED)?;
        let y = mlp.forward(x.as_tensor())?;
        let grads = y.sqr()?.sum_all()?.backward()?;
        Ok((y.detach(), grads.get(&x).cloned().ok_or_else(|| Error::invalid("no gradient"))?))
    };
    let ((y, dx), (want, want_dx)) = (of(&half)?, of(&plain)?);
    assert!(apart(&y, &want)? < 1e-5 && apart(&dx, &want_dx)? < 1e-5);
    // They are in sixteen bits: the same weights in float32 give other values.
    let exact = Mlp::new(&Weights::from_tensors(stored.clone()), GATED)?.forward(x.as_tensor())?;
    assert!(apart(&exact, &y)? > 1e-4);
    // A layer with a bias that learns, on more rows than are widened at once.
    let wide = random::normal(3, "wide", (300, 64))?;
    let named = Named::from([("weight".into(), wide), ("bias".into(), random::normal(3, "bias", 300)?)]);
    let bias = Var::from_tensor(&named["bias"])?;
    let of = |weights: Weights| -> Result<[Tensor; 3]> {
        let weights = weights.replaced(Named::from([("bias".into(), bias.as_tensor().clone())]))?;
        let y = Linear::new(&weights, 64, 300, true)?.forward(x.as_tensor())?;
        let grads = y.sqr()?.sum_all()?.backward()?;
        let of = |var: &Var| grads.get(var).cloned().ok_or_else(|| Error::invalid("no gradient"));
        Ok([y.detach(), of(&x)?, of(&bias)?])
    };
    let half = of(Weights::from_tensors(named.clone()).held(|name| name == "weight")?)?;
    for (got, want) in half.iter().zip(&of(Weights::from_tensors(rounded(&named)?))?) {
        assert!(apart(got, want)? < 2e-3, "the bias alone was not rounded");
    }
    Ok(())
}

#[test]
fn what_learns_beside_a_matrix_is_the_sum_and_its_names_travel() -> Result<()> {
    let stored = stored()?;
    let low = |name: &str, (output, input): (usize, usize)| -> Result<(Var, Var)> {
        let (a, b) =
            (random::normal(4, &format!("{name} a"), (3, input))?, random::normal(4, name, (output, 3))?);
        Ok((Var::from_tensor(&a)?, Var::from_tensor(&b)?))
    };
    let (up, down) = (low("up", (96, 64))?, low("down", (40, 96))?);
    let scale = 0.5;
    let x = random::normal(3, "x", (5, 64))?;
    let beside = |(a, b): &(Var, Var)| LowRank { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scale };
    let named = HashMap::from([
        ("old.up_proj.weight".to_owned(), beside(&up)),
        ("old.down_proj.weight".to_owned(), beside(&down)),
    ]);
    let old = |(name, t): (&String, &Tensor)| (format!("old.{name}"), t.clone());
    let weights = Weights::from_tensors(stored.iter().map(old).collect());
    assert!(weights.adapted(HashMap::from([("up".to_owned(), beside(&up))])).is_err());
    let adapted = weights.adapted(named)?.renamed(|name| name.replace("old.", ""))?;
    // The sums as matrices.
    let args: Vec<Tensor> = [&up.0, &up.1, &down.0, &down.1].map(|var| var.as_tensor().clone()).into();
    let y = Mlp::new(&adapted, GATED)?.forward(&x)?;
    agree("beside", &args, &y, |a| {
        let x = double(&x)?;
        let of = |name: &str| double(&stored[&format!("{name}.weight")]);
        let sum = |name: &str, a: &Tensor, b: &Tensor| Ok::<_, Error>((of(name)? + (b.matmul(a)? * scale)?)?);
        let gate = oracle::activate(&oracle::linear(&x, &of("gate_proj")?, None)?, GATED.activation)?;
        let inner = (gate * oracle::linear(&x, &sum("up_proj", &a[0], &a[1])?, None)?)?;
        oracle::linear(&inner, &sum("down_proj", &a[2], &a[3])?, None)
    })
}
