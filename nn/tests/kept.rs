//! Weights kept in another format than they are stored in, and weights that are made up.

use std::collections::HashMap;
use vela_nn::quant::Format;
use vela_nn::*;

fn stored() -> Result<HashMap<String, Tensor>> {
    let weight = random::normal(1, "weight", (48, 64))?;
    Ok([("a.weight".to_owned(), weight), ("a.bias".to_owned(), random::normal(1, "bias", 48)?)].into())
}

#[test]
fn a_layer_keeps_its_matrix_in_the_format_that_was_asked_for() -> Result<()> {
    let x = random::normal(1, "x", (7, 64))?;
    let exact = Linear::new(&Weights::from_tensors(stored()?).pp("a"), 64, 48, true)?.forward(&x)?;
    let spread = exact.sqr()?.mean_all()?.sqrt()?.to_scalar::<f32>()?;
    for (format, bound) in
        [(Format::F32, 1e-6), (Format::F16, 1e-3), (Format::Bf16, 1e-2), (Format::Q8_0, 2.5e-2)]
    {
        let weights = Weights::from_tensors(stored()?).kept(move |name| {
            assert_eq!(name, "a.weight");
            Some(format)
        })?;
        let layer = Linear::new(&weights.pp("a"), 64, 48, true)?;
        weights.finish()?;
        assert!(format!("{layer:?}").contains(format.name()), "{layer:?}");
        let far = (layer.forward(&x)? - &exact)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        assert!(far <= bound * spread, "{} {far}", format.name());
    }
    // Rows that are no multiple of a block: 50 of 64 inputs.
    let narrow = HashMap::from([("weight".to_owned(), random::normal(1, "narrow", (48, 50))?)]);
    let x = random::normal(1, "x", (7, 50))?;
    let exact = Linear::new(&Weights::from_tensors(narrow.clone()), 50, 48, false)?.forward(&x)?;
    let weights = Weights::from_tensors(narrow.clone()).kept(|_| Some(Format::Q8_0))?;
    let layer = Linear::new(&weights, 50, 48, false)?;
    assert_eq!((format!("{layer:?}").contains("Q8_0 [48, 50]"), layer.dims()), (true, (48, 50)));
    let far = (layer.forward(&x)? - &exact)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
    assert!(far <= 2.5e-2 * spread, "{far}");
    let table = Weights::from_tensors(narrow).kept(|_| Some(Format::Q8_0))?;
    assert!(Embedding::new(&table, 48, 50).is_err_and(|e| e.to_string().contains("multiple of 32")));
    // What is not named stays as it is.
    let weights = Weights::from_tensors(stored()?).kept(|_| None::<Format>)?;
    assert!(Linear::new(&weights.pp("a"), 64, 48, true)?.weight().is_some());
    assert!(weights.kept(|_| None::<Format>).is_err(), "a layer has asked");
    assert!(Weights::fresh(1).kept(|_| None::<Format>).is_err(), "variables");
    Ok(())
}

#[test]
fn a_file_s_own_format_is_brought_to_another_and_names_that_change_keep_it() -> Result<()> {
    let dir = std::env::temp_dir().join(format!("vela-nn-kept-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(Error::invalid)?;
    let path = dir.join("model.safetensors");
    let tensors: Vec<(String, Tensor)> = stored()?.into_iter().collect();
    save(&path, &tensors)?;
    let weights = Weights::load_dir(&dir)?.kept(|_| Some(Format::Q8_0))?;
    let weights = weights.renamed(|name| name.replace("a.", "b."))?;
    let layer = Linear::new(&weights.pp("b"), 64, 48, true)?;
    weights.finish()?;
    assert!(format!("{layer:?}").contains("Q8_0"), "{layer:?}");
    let missing = Weights::load_dir(&dir)?.kept(|_| Some(Format::Q8_0))?;
    Linear::new(&missing.pp("c"), 64, 48, false)?;
    assert!(missing.finish().is_err_and(|e| e.to_string().contains("c.weight")));
    Ok(())
}

#[test]
fn made_up_weights_depend_on_seed_and_name_and_are_spread_as_fresh_ones() -> Result<()> {
    let draw = |seed: u64, name: &str, shape: (usize, usize)| -> Result<Vec<f32>> {
        Ok(Weights::noise(seed).get_init(shape, name, Init::Normal(0.5))?.flatten_all()?.to_vec1()?)
    };
    let values = draw(1, "a", (300, 400))?;
    assert_eq!(values, draw(1, "a", (300, 400))?);
    assert!(values != draw(2, "a", (300, 400))? && values != draw(1, "b", (300, 400))?);
    let spread = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
    assert!((spread - 0.5).abs() < 0.01, "{spread}");
    // In another format they are the same numbers.
    let kept = |weights: Weights| Linear::new(&weights.kept(|_| Some(Format::F32))?, 64, 48, false);
    let dense = Linear::new(&Weights::noise(3), 64, 48, false)?;
    let x = random::normal(1, "x", (2, 64))?;
    let far = (kept(Weights::noise(3))?.forward(&x)? - dense.forward(&x)?)?.abs()?.flatten_all()?.max(0)?;
    assert!(far.to_scalar::<f32>()? < 1e-5);
    let ones = Weights::noise(1).get_init(3, "norm", Init::Ones)?.to_vec1::<f32>()?;
    assert_eq!(ones, [1.0; 3]);
    Ok(())
}
