//! Rotary scalings against figures worked out by the definitions that Hugging Face's `modeling_rope_utils` writes down, in
//! double precision by another program; and positions with three axes.

use vela_nn::*;

/// The turn of each frequency at the last of `positions`, and the scale on it.
fn turns(config: RopeConfig, positions: &Tensor) -> Result<(Vec<f64>, f64)> {
    let angles = Rope::new(config)?.at(positions)?;
    let last = |t: Tensor| -> Result<Vec<f32>> {
        let t = t.flatten_to(1)?;
        Ok(t.get(t.dim(0)? - 1)?.to_vec1()?)
    };
    let (cos, sin) = (last(angles.cos()?)?, last(angles.sin()?)?);
    let scale = f64::from(cos[0].hypot(sin[0]));
    Ok((cos.iter().zip(&sin).map(|(c, s)| f64::from(*s).atan2(f64::from(*c))).collect(), scale))
}

fn scaled(scaling: RopeScaling) -> RopeConfig {
    RopeConfig { scaling, ..RopeConfig::new(16, 10_000.0) }
}

fn close(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() < 1e-6 * (1.0 + want.abs()), "{got} for {want}");
    }
}

#[test]
fn yarn_is_as_defined() -> Result<()> {
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        original_positions: 256,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: None,
        truncate: true,
    };
    let (turns, scale) = turns(scaled(yarn), &Tensor::new(&[1u32], &Device::Cpu)?)?;
    let want = [
        1.0,
        0.2569350598886808,
        0.0625,
        0.01383496476323666,
        0.0025,
        0.0007905694150420947,
        0.00025,
        7.905694150420948e-05,
    ];
    close(&turns, &want);
    close(&[scale], &[1.138629436111989]);
    Ok(())
}

#[test]
fn llama_3_is_as_defined() -> Result<()> {
    let llama = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_positions: 256,
    };
    let (turns, scale) = turns(scaled(llama), &Tensor::new(&[1u32], &Device::Cpu)?)?;
    let want = [
        1.0,
        0.31622776601683794,
        0.1,
        0.0066131063172475526,
        0.00125,
        0.0003952847075210474,
        0.000125,
        3.952847075210474e-05,
    ];
    close(&turns, &want);
    close(&[scale], &[1.0]);
    Ok(())
}

#[test]
fn dynamic_ntk_stretches_only_beyond_the_trained_length() -> Result<()> {
    let config = scaled(RopeScaling::Dynamic { factor: 2.0, original_positions: 64 });
    // At position 99 the base is that of 100 positions; the low frequencies have not gone round there.
    let at_99 = turns(config, &Tensor::new(&[3u32, 99], &Device::Cpu)?)?.0;
    let want = [0.00650036512745782, 0.0018457470786803376, 0.0005240909105346416, 0.0001488130663608649];
    close(&at_99[4..], &want.map(|f| 99.0 * f));
    let at_63 = turns(config, &Tensor::new(&[3u32, 63], &Device::Cpu)?)?.0;
    close(&at_63, &turns(RopeConfig::new(16, 10_000.0), &Tensor::new(&[63u32], &Device::Cpu)?)?.0);
    // Each row by its own last position.
    let rows = Rope::new(config)?.at(&Tensor::new(&[[3u32, 99], [3, 63]], &Device::Cpu)?)?.cos()?;
    let short = Rope::new(config)?.at(&Tensor::new(&[3u32, 63], &Device::Cpu)?)?.cos()?;
    assert_eq!(rows.get(1)?.to_vec2::<f32>()?, short.get(0)?.to_vec2::<f32>()?);
    Ok(())
}

#[test]
fn three_axes_turn_the_frequencies_of_their_sections() -> Result<()> {
    let plain = RopeConfig::new(16, 10_000.0);
    let [time, height, width] = [4u32, 9, 2];
    let one = |p: u32| -> Result<Vec<f64>> { Ok(turns(plain, &Tensor::new(&[p], &Device::Cpu)?)?.0) };
    let by_axis = [one(time)?, one(height)?, one(width)?];
    let positions = Tensor::new(&[[[time]], [[height]], [[width]]], &Device::Cpu)?;
    // Qwen2-VL: one after the other. Qwen3-VL: in turns, what is left over to time.
    for (interleaved, counts, axes) in
        [(false, [2, 3, 3], [0, 0, 1, 1, 1, 2, 2, 2]), (true, [4, 2, 2], [0, 1, 2, 0, 1, 2, 0, 0])]
    {
        let config = RopeConfig { sections: Some(RopeSections { counts, interleaved }), ..plain };
        let want: Vec<f64> = axes.iter().enumerate().map(|(i, axis)| by_axis[*axis][i]).collect();
        close(&turns(config, &positions)?.0, &want);
        // Text: all axes alike.
        close(&turns(config, &Tensor::new(&[height], &Device::Cpu)?)?.0, &by_axis[1]);
    }
    assert!(Rope::new(plain)?.at(&positions).is_err());
    let short = Some(RopeSections { counts: [1, 1, 1], interleaved: false });
    assert!(Rope::new(RopeConfig { sections: short, ..plain }).is_err());
    Ok(())
}
