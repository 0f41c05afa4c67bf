//! Matrices that are packed as they are read give the same bits as those that are packed at their first use, and lie in memory
//! once.

use std::collections::{BTreeMap, HashMap};
use vela_nn::quant::{Format, Precision};
use vela_nn::*;

fn bits(x: &Tensor) -> Result<Vec<u32>> {
    Ok(x.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
}

/// Bytes of memory that this process has now.
#[cfg(target_os = "linux")]
fn resident() -> Result<usize> {
    give_back();
    let status = std::fs::read_to_string("/proc/self/status").map_err(Error::invalid)?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|kib| kib.trim().parse().ok());
    kib.map(|kib: usize| kib << 10).ok_or_else(|| Error::invalid("/proc/self/status: VmRSS is not there"))
}

#[test]
#[cfg(target_os = "linux")]
fn float32_weights_of_a_file_lie_in_memory_once() -> Result<()> {
    const COUNT: usize = 24;
    const WIDTH: usize = 1024;
    let dir = std::env::temp_dir().join(format!("vela-nn-packed-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(Error::invalid)?;
    {
        let matrix = |i: usize| {
            let name = format!("{i}.weight");
            Ok((name.clone(), random::normal(1, &name, (WIDTH, WIDTH))?))
        };
        save(&dir.join("model.safetensors"), &(0..COUNT).map(matrix).collect::<Result<Vec<_>>>()?)?;
    }
    let x = random::normal(1, "x", (5, WIDTH))?;
    // Whatever is made once is made before memory is looked at.
    Linear::from_tensors(random::normal(1, "first", (WIDTH, WIDTH))?, None)?.forward(&x)?;
    let made = |weights: Weights| -> Result<(Vec<Linear>, Vec<Vec<u32>>)> {
        let layers = (0..COUNT).map(|i| Linear::new(&weights.pp(i), WIDTH, WIDTH, false));
        let layers = layers.collect::<Result<Vec<_>>>()?;
        weights.finish()?;
        let outs = layers.iter().map(|layer| bits(&layer.forward(&x)?)).collect::<Result<_>>()?;
        Ok((layers, outs))
    };
    let (before, size) = (resident()?, COUNT * WIDTH * WIDTH * size_of::<f32>());
    let (once, got) = made(Weights::load_dir(&dir)?.packed()?)?;
    let grown = resident()?.saturating_sub(before);
    assert!(grown < size * 5 / 4, "{grown} bytes for weights of {size}");
    // As they came and packed: that the measure tells the two apart.
    let before = resident()?;
    let (_twice, want) = made(Weights::load_dir(&dir)?)?;
    let grown = resident()?.saturating_sub(before);
    assert!(grown > size * 7 / 4, "{grown} bytes for weights of {size}");
    assert!(got == want, "other numbers");
    assert!(once.iter().all(|layer| layer.weight().is_none()));
    std::fs::remove_dir_all(&dir).map_err(Error::invalid)
}

#[test]
fn only_matrices_that_are_packed_anyway_are_packed_as_they_are_read() -> Result<()> {
    let wide = (1 << 10, (1 << 12) + 1);
    let tensors = HashMap::from([
        ("small.weight".to_owned(), random::normal(1, "small", (48, 64))?),
        ("wide.weight".to_owned(), random::normal(1, "wide", wide)?),
    ]);
    let weights = Weights::from_tensors(tensors).packed()?;
    assert!(Linear::new(&weights.pp("small"), 64, 48, false)?.weight().is_none());
    assert!(Linear::new(&weights.pp("wide"), wide.1, wide.0, false)?.weight().is_some());
    assert!(Weights::fresh(1).packed().is_err(), "variables");
    Ok(())
}

#[test]
fn a_tied_table_reads_its_rows_from_the_packed_projection() -> Result<()> {
    for format in [Format::F32, Format::F16, Format::Bf16, Format::Q8_0] {
        let table = HashMap::from([("weight".to_owned(), random::normal(1, "table", (50, 96))?)]);
        let weights = Weights::from_tensors(table).kept(move |_| Some(format))?;
        let mut embedding = Embedding::new(&weights, 50, 96)?;
        let ids = Tensor::new(&[[0u32, 49, 17], [16, 15, 49]], &Device::Cpu)?;
        let (rows, all) = (embedding.forward(&ids)?, embedding.table()?);
        let plain = Linear::new(&weights, 96, 50, false)?;
        let projection = embedding.projection()?;
        assert!(format!("{embedding:?} {projection:?}").contains(format.name()));
        assert_eq!(embedding.forward(&ids)?.dims(), [2, 3, 96]);
        assert!(bits(&embedding.forward(&ids)?)? == bits(&rows)?, "{}", format.name());
        assert!(bits(&embedding.table()?)? == bits(&all)?, "{}", format.name());
        for projection in [projection, embedding.projection()?] {
            assert!(bits(&projection.forward(&rows)?)? == bits(&plain.forward(&rows)?)?, "{}", format.name());
        }
        let beyond = embedding.forward(&Tensor::new(&[50u32], &Device::Cpu)?);
        assert!(beyond.is_err_and(|e| e.to_string().contains("expected ids below 50, got 50")));
    }
    // In exact products there is nothing packed to read from.
    let blocks = quant::Blocks::new(Format::F32, &[2, 3], vec![0; 24])?;
    let weights = Weights::from_blocks(BTreeMap::from([("weight".to_owned(), blocks)]), Precision::Exact);
    let mut embedding = Embedding::new(&weights, 2, 3)?;
    assert_eq!(embedding.projection()?.dims(), (2, 3));
    Ok(())
}
