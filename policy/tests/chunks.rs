//! What is made of chunks and of the numbers in a folder, against reference runs that are no checkpoints.

use candle_core::{Device, Tensor};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use vela_nn::parity::judge;
use vela_nn::{Error, Result};
use vela_policy::{Normaliser, Scaling, Statistics, TemporalEnsemble};

fn golden(name: &str) -> Result<HashMap<String, Tensor>> {
    let case = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
    Ok(candle_core::safetensors::load(case.join("golden.safetensors"), &Device::Cpu)?)
}

fn passes(golden: &HashMap<String, Tensor>, made: &BTreeMap<String, Tensor>) -> Result<()> {
    let verdict = judge(golden, made)?;
    for stage in &verdict.stages {
        println!("{}: {:.1e}", stage.name, stage.max_abs_over_spread);
    }
    assert!(verdict.pass, "{verdict:?}");
    Ok(())
}

#[test]
fn temporal_ensembling_agrees_tick_by_tick() -> Result<()> {
    let golden = golden("act_temporal_ensemble")?;
    let decay = golden["in.coeff"].to_scalar::<f32>()?;
    let mut ensemble = TemporalEnsemble::new(f64::from(decay));
    let chunks = &golden["in.chunks"];
    let actions: Vec<Tensor> =
        (0..chunks.dim(0)?).map(|step| ensemble.update(&chunks.get(step)?)).collect::<Result<_>>()?;
    passes(&golden, &BTreeMap::from([("out.actions".to_owned(), Tensor::stack(&actions, 0)?)]))
}

#[test]
fn every_scaling_agrees_both_ways_by_the_judge() -> Result<()> {
    let golden = golden("normalisation")?;
    let mut numbers = HashMap::new();
    for (name, values) in &golden {
        if let Some(name) = name.strip_prefix("in.stats.") {
            numbers.insert(format!("x.{name}"), values.to_vec1::<f32>()?);
        }
    }
    let statistics = Statistics::from_map(numbers);
    let mut made = BTreeMap::new();
    for (name, scaling) in [
        ("MEAN_STD", Scaling::MeanStd),
        ("MIN_MAX", Scaling::MinMax),
        ("QUANTILES", Scaling::Quantiles),
        ("QUANTILE10", Scaling::Quantile10),
    ] {
        let normaliser = statistics.normaliser("x", scaling, Normaliser::EPS)?;
        // Dimension 2 has no width: a folder with it is refused, the arithmetic is the reference's.
        assert_eq!(normaliser.check_widths("x").is_err(), scaling != Scaling::MeanStd);
        let apply = |rows: &Tensor, back: bool| -> Result<Tensor> {
            let one =
                |row: &Vec<f32>| if back { normaliser.unnormalise(row) } else { normaliser.normalise(row) };
            let made: Vec<Vec<f32>> = rows.to_vec2::<f32>()?.iter().map(one).collect::<Result<_>>()?;
            Ok(Tensor::new(made, &Device::Cpu)?)
        };
        let normalised = apply(&golden["in.x"], false)?;
        made.insert(format!("out.{name}.back"), apply(&normalised, true)?);
        made.insert(format!("out.{name}.normalised"), normalised);
        made.insert(format!("out.{name}.unnormalised_z"), apply(&golden["in.z"], true)?);
    }
    passes(&golden, &made)?;
    let identity = statistics.normaliser("x", Scaling::Identity, Normaliser::EPS)?;
    assert_eq!(identity.normalise(&[3.0, -1.0])?, [3.0, -1.0]);
    assert!(
        statistics
            .normaliser("y", Scaling::MinMax, 1e-8)
            .is_err_and(|e: Error| e.to_string().contains("y.min"))
    );
    Ok(())
}
