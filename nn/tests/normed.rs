//! A norm inside the products that read it gives the same bits as the norm and then the products.

use std::collections::HashMap;
use vela_nn::quant::Format;
use vela_nn::*;

const WIDTH: usize = 96;
const HIDDEN: usize = 160;

fn bits(x: &Tensor) -> Result<Vec<u32>> {
    Ok(x.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
}

fn norms() -> Result<Vec<Norm>> {
    let weight = random::normal(2, "norm.weight", WIDTH)?;
    let bias = random::normal(2, "norm.bias", WIDTH)?;
    let made = |config: NormConfig, bias: Option<&Tensor>| {
        let named = [("weight", Some(&weight)), ("bias", bias)];
        let tensors = named.into_iter().filter_map(|(name, t)| Some((name.to_owned(), t?.clone())));
        Norm::from_tensors(config, tensors.collect())
    };
    Ok(vec![
        made(NormConfig::RmsNorm { eps: 1e-5, one_plus: false }, None)?,
        made(NormConfig::RmsNorm { eps: 1e-6, one_plus: true }, None)?,
        made(NormConfig::LayerNorm { eps: 1e-5, bias: true }, Some(&bias))?,
    ])
}

#[test]
fn rows_normalised_on_their_way_give_the_same_bits() -> Result<()> {
    for format in [None, Some(Format::F32), Some(Format::Bf16), Some(Format::Q8_0)] {
        let matrix = |name: &str, shape: (usize, usize)| {
            Ok((format!("{name}.weight"), random::normal(1, name, shape)?))
        };
        let tensors = [("gate", (HIDDEN, WIDTH)), ("up", (HIDDEN, WIDTH)), ("down", (WIDTH, HIDDEN))];
        let tensors: HashMap<_, _> =
            tensors.into_iter().map(|(name, shape)| matrix(name, shape)).collect::<Result<_>>()?;
        let weights = Weights::from_tensors(tensors);
        let weights = if let Some(format) = format { weights.kept(move |_| Some(format))? } else { weights };
        let layer = |name: &str, input, output| Linear::new(&weights.pp(name), input, output, false);
        let (gate, up) = (layer("gate", WIDTH, HIDDEN)?, layer("up", WIDTH, HIDDEN)?);
        let down = layer("down", HIDDEN, WIDTH)?;
        let gated = Mlp::from_layers(Some(gate.clone()), up.clone(), down.clone(), Activation::Silu);
        let plain = Mlp::from_layers(None, up.clone(), down, Activation::Silu);
        for norm in norms()? {
            for rows in [1, 5, 29] {
                let x = random::normal(3, "x", (1, rows, WIDTH))?;
                let y = norm.forward(&x)?;
                let inside = Linear::forward_normed(&[&gate, &up], &norm, &x)?;
                let apart = Linear::forward_all(&[&gate, &up], &y)?;
                for (inside, apart) in inside.iter().zip(&apart) {
                    assert_eq!(inside.dims(), apart.dims());
                    assert!(bits(inside)? == bits(apart)?, "{format:?} {:?} {rows} rows", norm.config());
                }
                for mlp in [&gated, &plain] {
                    let (inside, apart) = (mlp.forward_normed(&norm, &x)?, mlp.forward(&y)?);
                    assert!(bits(&inside)? == bits(&apart)?, "{format:?} {:?} {rows} rows", norm.config());
                }
            }
            let narrow = random::normal(3, "x", (1, 2, WIDTH - 1))?;
            assert!(Linear::forward_normed(&[&gate], &norm, &narrow).is_err());
            assert!(gated.forward_normed(&norm, &narrow).is_err());
        }
    }
    Ok(())
}

#[test]
fn gradients_go_through_a_norm_before_products() -> Result<()> {
    let x = Var::from_tensor(&random::normal(3, "x", (1, 4, WIDTH))?)?;
    let layer = Linear::from_tensors(random::normal(1, "w", (HIDDEN, WIDTH))?, None)?;
    for norm in norms()? {
        let inside = Linear::forward_normed(&[&layer], &norm, &x)?.remove(0).sqr()?.sum_all()?.backward()?;
        let apart = layer.forward(&norm.forward(&x)?)?.sqr()?.sum_all()?.backward()?;
        let of = |grads: &candle_core::backprop::GradStore| {
            bits(grads.get(&x).ok_or_else(|| Error::invalid("no gradient"))?)
        };
        assert!(of(&inside)? == of(&apart)?, "{:?}", norm.config());
    }
    Ok(())
}
