//! Every fused operation against its composed form in float64, values and gradients, at odd sizes; and against finite
//! differences.
#![allow(clippy::unwrap_used)]

mod truth;

use truth::{agree, close, double, loss, same, vars, weighed};
use vela_nn::*;

#[test]
fn linear_is_its_composed_form() -> Result<()> {
    for (shape, n) in [(vec![3, 5, 7], 9), (vec![1, 1], 1), (vec![33, 17], 65), (vec![2, 100, 192], 192)] {
        let k = *shape.last().unwrap();
        let all = vars(1, &[&shape, &[n, k], &[n]])?;
        same(
            "linear",
            &all,
            |a| linear(&a[0], &a[1], Some(&a[2])),
            |a| oracle::linear(&a[0], &a[1], Some(&a[2])),
        )?;
        same("no bias", &all[..2], |a| linear(&a[0], &a[1], None), |a| oracle::linear(&a[0], &a[1], None))?;
    }
    Ok(())
}

#[test]
fn constant_layers_are_their_composed_forms() -> Result<()> {
    let (weight, bias) = (random::normal(1, "w", (37, 11))?, random::normal(1, "b", 37)?);
    for bias in [None, Some(bias)] {
        let layer = Linear::from_tensors(weight.clone(), bias.clone())?;
        let (weight, bias) = (double(&weight)?, bias.as_ref().map(double).transpose()?);
        for rows in [1, 2, 7, 130] {
            let x = vars(1, &[&[rows, 11]])?;
            // The input's gradient flows through constants.
            same(
                "constant linear",
                &x,
                |a| layer.forward(&a[0]),
                |a| oracle::linear(&a[0], &weight, bias.as_ref()),
            )?;
        }
    }
    Ok(())
}

#[test]
fn norms_are_their_composed_forms() -> Result<()> {
    for width in [1, 7, 16, 33, 192] {
        let all = vars(2, &[&[3, 5, width], &[width], &[width]])?;
        for config in [
            NormConfig::LayerNorm { eps: 1e-3, bias: true },
            NormConfig::LayerNorm { eps: 1e-3, bias: false },
            NormConfig::RmsNorm { eps: 1e-3, one_plus: false },
            NormConfig::RmsNorm { eps: 1e-3, one_plus: true },
        ] {
            let bias = matches!(config, NormConfig::LayerNorm { bias: true, .. });
            let used = if bias { 3 } else { 2 };
            let named = |a: &[Tensor]| {
                let names = ["x", "weight", "bias"];
                let tensors =
                    a.iter().zip(names).skip(1).map(|(t, name)| (name.to_string(), t.clone())).collect();
                Norm::from_tensors(config, tensors)?.forward(&a[0])
            };
            same("norm", &all[..used], named, |a| oracle::norm(&a[0], config, a.get(1), a.get(2)))?;
            let plain = |a: &[Tensor]| Norm::plain(config).forward(&a[0]);
            same("plain norm", &all[..1], plain, |a| oracle::norm(&a[0], config, None, None))?;
        }
    }
    Ok(())
}

const KINDS: [Activation; 5] =
    [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu, Activation::QuickGelu];

#[test]
fn activations_are_their_composed_forms() -> Result<()> {
    let all = vars(3, &[&[3, 37], &[3, 37]])?;
    for kind in KINDS {
        same(
            "activation",
            &all[..1],
            |a| kind.forward(&(&a[0] * 3.0)?),
            |a| oracle::activate(&(&a[0] * 3.0)?, kind),
        )?;
        same("gated", &all, |a| kind.gated(&a[0], &a[1]), |a| Ok((oracle::activate(&a[0], kind)? * &a[1])?))?;
    }
    let wide = random::normal(3, "wide", 50_001)?;
    let run = |n| {
        threads::with_threads(n, || Activation::Silu.forward(&wide))?.to_vec1::<f32>().map_err(Error::from)
    };
    assert_eq!(run(1)?, run(3)?);
    Ok(())
}

#[test]
fn feed_forward_is_its_composed_form() -> Result<()> {
    for (gated, bias) in [(false, true), (false, false), (true, false), (true, true)] {
        let weights = Weights::fresh(4);
        let config =
            MlpConfig { input: 13, hidden: 37, output: 11, activation: Activation::GeluTanh, gated, bias };
        let mlp = Mlp::new(&weights, config)?;
        let x = Var::from_tensor(&random::normal(4, "x", (2, 5, 13))?)?;
        let mut all = weights.trainable();
        all.push(("x".to_string(), x.clone()));
        let (names, args): (Vec<String>, Vec<Tensor>) =
            all.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).unzip();
        let composed = |a: &[Tensor]| {
            let t = |name: &str| names.iter().position(|n| n == name).map(|i| &a[i]);
            let part = |name: &str, x: &Tensor| {
                let [weight, bias] = ["weight", "bias"].map(|part| t(&format!("{name}.{part}")));
                oracle::linear(x, weight.unwrap(), bias)
            };
            let x = t("x").unwrap();
            if gated {
                let gate = oracle::activate(&part("gate_proj", x)?, Activation::GeluTanh)?;
                part("down_proj", &(gate * part("up_proj", x)?)?)
            } else {
                part("fc2", &oracle::activate(&part("fc1", x)?, Activation::GeluTanh)?)
            }
        };
        let fused = mlp.forward(&x)?;
        agree("mlp", &args, &fused, composed)?;
        let constants =
            weights.trainable().into_iter().map(|(name, v)| (name, v.as_tensor().detach())).collect();
        let constant = Mlp::new(&Weights::from_tensors(constants), config)?;
        close("constant mlp", &constant.forward(&x.detach())?, &fused, 3e-6)?;
    }
    Ok(())
}

#[test]
fn rope_is_its_composed_form() -> Result<()> {
    for style in [RopeStyle::HalfSplit, RopeStyle::Interleaved] {
        let rope = Rope::new(RopeConfig { style, ..RopeConfig::new(6, 100.0) })?;
        for positions in [
            Tensor::new(&[0u32, 3, 9], &Device::Cpu)?,
            Tensor::new(&[[1u32, 2, 3], [7, 0, 2]], &Device::Cpu)?,
        ] {
            let angles = rope.at(&positions)?;
            let all = vars(5, &[&[2, 4, 3, 10]])?;
            same("rope", &all, |a| angles.apply(&a[0]), |a| oracle::rope(&a[0], &angles))?;
            let all = vars(5, &[&[2, 3, 40]])?;
            let composed = |a: &[Tensor]| {
                let heads = a[0].reshape((2, 3, 4, 10))?.transpose(1, 2)?;
                Ok(oracle::rope(&heads, &angles)?.transpose(1, 2)?.reshape((2, 3, 40))?)
            };
            same("packed rope", &all, |a| angles.apply_packed(&a[0], 4), composed)?;
        }
    }
    Ok(())
}

#[test]
fn attention_is_its_composed_form() -> Result<()> {
    let (b, d, dv) = (2, 5, 8);
    for (h, hk, t, s) in [(4, 2, 3, 7), (3, 3, 70, 70), (2, 1, 1, 9), (6, 2, 65, 130), (2, 1, 20, 300)] {
        let dense = random::uniform(6, "mask", 0.0, 1.4, (b, t, s))?.to_dtype(DType::U8)?;
        // The first query of the dense mask may see nothing.
        let dense = dense.slice_scatter0(&Tensor::zeros((1, t, s), DType::U8, &Device::Cpu)?, 0)?;
        let masks = [
            Mask::None,
            Mask::Causal,
            Mask::Window { size: 3 },
            Mask::blocks(
                (0..t as u32).map(|i| i / 2).collect(),
                (0..s as u32).map(|i| i / 3).collect(),
                (0..b * s).map(|i| i % 5 != 1).collect(),
            ),
            Mask::blocks(vec![0; b * t], vec![1; s], vec![]),
            Mask::Dense(dense),
        ];
        let all = vars(6, &[&[b, h, t, d], &[b, hk, s, d], &[b, hk, s, dv]])?;
        let packed = vars(7, &[&[b, t, h * d], &[b, s, hk * d], &[b, s, hk * dv], &[h, t + s - 1]])?;
        for mask in &masks {
            for cap in [None, Some(1.5)] {
                same(
                    "attention",
                    &all,
                    |a| attention::attention_soft_capped(&a[0], &a[1], &a[2], mask, 0.4, cap),
                    |a| oracle::attention(&a[0], &a[1], &a[2], mask, 0.4, cap),
                )?;
            }
            let heads = Heads { query: h, key: hk };
            let composed = |a: &[Tensor], bias: Option<&Tensor>| {
                let (q, k, v) = (apart(&a[0], h)?, apart(&a[1], hk)?, apart(&a[2], hk)?);
                let y = oracle::attention_biased(&q, &k, &v, mask, 0.4, None, bias)?;
                Ok(y.transpose(1, 2)?.reshape((b, t, h * dv))?)
            };
            let plain = |a: &[Tensor]| composed(a, None);
            let whole = |a: &[Tensor]| attention_packed(&a[0], &a[1], &a[2], heads, mask, 0.4);
            same("packed attention", &packed[..3], whole, plain)?;
            let biased = |a: &[Tensor]| {
                attention::attention_packed_biased(&a[0], &a[1], &a[2], heads, mask, 0.4, &a[3])
            };
            same("attention with a bias", &packed, biased, |a| composed(a, Some(&a[3])))?;
            // Views of packed projections, as a model with a cache passes them.
            let views = |a: &[Tensor]| {
                let (q, k, v) = (apart(&a[0], h)?, apart(&a[1], hk)?, apart(&a[2], hk)?);
                merge_heads(&attention(&q, &k, &v, mask, 0.4)?)
            };
            same("attention over views", &packed[..3], views, plain)?;
            let copies = |a: &[Tensor]| {
                let (q, k, v) = (split_heads(&a[0], h)?, split_heads(&a[1], hk)?, split_heads(&a[2], hk)?);
                merge_heads(&attention(&q, &k, &v, mask, 0.4)?.contiguous()?)
            };
            same("attention over copies", &packed[..3], copies, plain)?;
        }
    }
    Ok(())
}

/// `[b, t, heads * d]` to a view `[b, heads, t, d]`.
fn apart(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (b, t, width) = x.dims3()?;
    Ok(x.reshape((b, t, heads, width / heads))?.transpose(1, 2)?)
}

#[test]
fn a_bias_is_by_distance_and_learns_alone() -> Result<()> {
    let (t, s) = (5, 9);
    let all = vars(11, &[&[2, t, 6], &[2, s, 6], &[2, s, 6], &[3, t + s - 1]])?;
    let heads = Heads { query: 3, key: 3 };
    let [q, k, v] = [0, 1, 2].map(|i| all[i].as_tensor().detach());
    let run = |bias: &Tensor| attention::attention_packed_biased(&q, &k, &v, heads, &Mask::Causal, 1.0, bias);
    agree("the bias alone", &[all[3].as_tensor().clone()], &run(&all[3])?, |a| {
        let (q, k, v) = (apart(&double(&q)?, 3)?, apart(&double(&k)?, 3)?, apart(&double(&v)?, 3)?);
        let y = oracle::attention_biased(&q, &k, &v, &Mask::Causal, 1.0, None, Some(&a[0]))?;
        Ok(y.transpose(1, 2)?.reshape((2, t, 6))?)
    })?;
    // A key that is far above the others in one distance is the only one that is seen.
    let mut bias = vec![0f32; 3 * (t + s - 1)];
    let before = 2;
    for head in 0..3 {
        bias[head * (t + s - 1) + t - 1 + before] = 1e4;
    }
    let y = run(&Tensor::from_vec(bias, (3, t + s - 1), &Device::Cpu)?)?;
    close("two before", &y, &v.narrow(1, s - t - before, t)?, 1e-6)?;
    for wrong in [(3, t + s), (2, t + s - 1)] {
        let refused = run(&Tensor::zeros(wrong, DType::F32, &Device::Cpu)?);
        assert!(refused.is_err_and(|e| e.to_string().contains("bias of attention")), "{wrong:?}");
    }
    Ok(())
}

#[test]
fn embedding_and_cross_entropy_are_their_composed_forms() -> Result<()> {
    let all = vars(8, &[&[11, 7]])?;
    let ids = Tensor::new(&[[1u32, 10, 1], [0, 3, 1]], &Device::Cpu)?;
    let table = |a: &[Tensor]| Embedding::from_tensor(a[0].clone())?.forward(&ids);
    same("embedding", &all, table, |a| oracle::embedding(&a[0], &ids))?;
    assert!(
        Embedding::from_tensor(all[0].as_tensor().clone())?
            .forward(&Tensor::new(&[11u32], &Device::Cpu)?)
            .is_err()
    );

    let all = vars(9, &[&[2, 3, 35]])?;
    let targets = Tensor::new(&[[1u32, 34, 999], [0, 3, 999]], &Device::Cpu)?;
    let fused = |a: &[Tensor]| cross_entropy(&(&a[0] * 4.0)?, &targets, Some(999));
    same("cross-entropy", &all, fused, |a| oracle::cross_entropy(&(&a[0] * 4.0)?, &targets, Some(999)))?;
    let nothing = cross_entropy(all[0].as_tensor(), &Tensor::full(5u32, (2, 3), &Device::Cpu)?, Some(5))?;
    assert_eq!(nothing.to_scalar::<f32>()?, 0.0);
    assert!(cross_entropy(all[0].as_tensor(), &targets, None).is_err());
    Ok(())
}

/// Gradients that are sums over thousands of rows, of numbers that do not cancel.
#[test]
fn long_sums_are_as_close() -> Result<()> {
    let rows = 20_000;
    let positive = |name: &str, shape: &[usize]| -> Result<Var> {
        Ok(Var::from_tensor(&random::uniform(12, name, 0.5, 1.5, shape)?)?)
    };
    let all = [positive("x", &[rows, 33])?, positive("w", &[17, 33])?, positive("b", &[17])?];
    same(
        "linear",
        &all,
        |a| weighed(&linear(&a[0], &a[1], Some(&a[2]))?),
        |a| weighed(&oracle::linear(&a[0], &a[1], Some(&a[2]))?),
    )?;
    let all = [positive("x", &[rows, 33])?, positive("w", &[33])?, positive("b", &[33])?];
    for config in
        [NormConfig::LayerNorm { eps: 1e-5, bias: true }, NormConfig::RmsNorm { eps: 1e-5, one_plus: false }]
    {
        let used = if let NormConfig::LayerNorm { .. } = config { 3 } else { 2 };
        let named = |a: &[Tensor]| {
            let tensors = a.iter().zip(["x", "weight", "bias"]).skip(1);
            let tensors = tensors.map(|(t, name)| (name.to_string(), t.clone())).collect();
            weighed(&Norm::from_tensors(config, tensors)?.forward(&a[0])?)
        };
        let composed = |a: &[Tensor]| weighed(&oracle::norm(&a[0], config, a.get(1), a.get(2))?);
        same("norm", &all[..used], named, composed)?;
    }
    let table = [positive("table", &[3, 7])?];
    let ids = Tensor::new((0..5_000u32).map(|i| u32::from(i % 50 == 0)).collect::<Vec<_>>(), &Device::Cpu)?;
    same(
        "embedding",
        &table,
        |a| weighed(&Embedding::from_tensor(a[0].clone())?.forward(&ids)?),
        |a| weighed(&oracle::embedding(&a[0], &ids)?),
    )?;
    let logits = [positive("logits", &[3, 5_000])?];
    let targets = Tensor::new(&[1u32, 4_999, 7], &Device::Cpu)?;
    same(
        "cross-entropy of many classes",
        &logits,
        |a| cross_entropy(&a[0], &targets, None),
        |a| oracle::cross_entropy(&a[0], &targets, None),
    )?;
    // Many queries, each of which adds to the gradient of a key and of a distance.
    let t = 700;
    let all = vars(12, &[&[1, t, 8], &[1, t, 4], &[1, t, 4], &[2, 2 * t - 1]])?;
    let heads = Heads { query: 2, key: 1 };
    same(
        "attention of a long text",
        &all,
        |a| attention::attention_packed_biased(&a[0], &a[1], &a[2], heads, &Mask::Causal, 0.5, &a[3]),
        |a| {
            let (q, k, v) = (apart(&a[0], 2)?, apart(&a[1], 1)?, apart(&a[2], 1)?);
            let y = oracle::attention_biased(&q, &k, &v, &Mask::Causal, 0.5, None, Some(&a[3]))?;
            Ok(y.transpose(1, 2)?.reshape((1, t, 8))?)
        },
    )
}

#[test]
fn gradients_agree_with_finite_differences() -> Result<()> {
    let weights = Weights::fresh(10);
    let config =
        MlpConfig { input: 8, hidden: 12, output: 8, activation: Activation::Silu, gated: true, bias: true };
    let mlp = Mlp::new(&weights.pp("mlp"), config)?;
    let norm = Norm::new(&weights.pp("norm"), 8, NormConfig::RmsNorm { eps: 1e-5, one_plus: false })?;
    let q = Linear::new(&weights.pp("q"), 8, 8, true)?;
    let kv = Linear::new(&weights.pp("kv"), 8, 4, false)?;
    let angles = Rope::new(RopeConfig::new(4, 10.0))?.at(&Tensor::new(&[0u32, 1, 2], &Device::Cpu)?)?;
    let x = random::normal(10, "x", (2, 3, 8))?;
    let run = || -> Result<Tensor> {
        let y = norm.forward(&x)?;
        let (q, kv) = (angles.apply_packed(&q.forward(&y)?, 2)?, kv.forward(&y)?);
        let heads = Heads { query: 2, key: 1 };
        let y = (&x + attention_packed(&q, &angles.apply_packed(&kv, 1)?, &kv, heads, &Mask::Causal, 0.5)?)?;
        loss(&(&y + mlp.forward(&y)?)?)
    };
    let grads = run()?.backward()?;
    for (name, var) in weights.trainable() {
        let analytic = grads.get(&var).unwrap().flatten_all()?.to_vec1::<f32>()?;
        let start = var.flatten_all()?.to_vec1::<f32>()?;
        for i in [0, start.len() / 2, start.len() - 1] {
            let at = |delta: f32| -> Result<f32> {
                let mut moved = start.clone();
                moved[i] += delta;
                var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu)?)?;
                Ok(run()?.to_scalar()?)
            };
            let numeric = (at(1e-2)? - at(-1e-2)?) / 2e-2;
            let error = (numeric - analytic[i]).abs();
            assert!(error <= 5e-3 * (1.0 + numeric.abs()), "{name}[{i}]: {} for {numeric}", analytic[i]);
        }
        var.set(&Tensor::from_vec(start, var.shape(), &Device::Cpu)?)?;
    }
    Ok(())
}
