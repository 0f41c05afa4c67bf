//! Preprocessing against the reference runs in `tests/golden/preproc_*`: bit for bit.

use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;
use std::path::PathBuf;
use vela_nn::parity::judge;
use vela_nn::{Error, Result};
use vela_vision::trace::{input, picture, prepared, preprocessing};
use vela_vision::{Fit, Layout, Picture, Prepared, Preprocessor};

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

fn golden(name: &str) -> Result<HashMap<String, Tensor>> {
    Ok(candle_core::safetensors::load(case(name).join("golden.safetensors"), &Device::Cpu)?)
}

fn largest_difference(a: &Tensor, b: &Tensor) -> Result<f64> {
    Ok((a.to_dtype(DType::F64)? - b.to_dtype(DType::F64)?)?.abs()?.flatten_all()?.max(0)?.to_scalar()?)
}

/// All outputs agree; those of Pillow's processors to the bit, those of torchvision's to the last bits of a float.
fn agrees(name: &str, outputs: usize) -> Result<()> {
    let golden = golden(name)?;
    let made = preprocessing(&case(name), &golden)?;
    let verdict = judge(&golden, &made)?;
    for (output, got) in &made {
        let difference = largest_difference(got, &golden[output])?;
        println!("{name} {output}: {difference:.1e}");
        let bound = if output.ends_with("torchvision") { 2e-6 } else { 0.0 };
        assert!(difference <= bound, "{name} {output}: {difference:.1e}");
    }
    assert!(verdict.pass && verdict.present == outputs, "{verdict:?}");
    Ok(())
}

macro_rules! cases {
    ($($case:ident: $outputs:literal,)*) => {
        $(#[test] fn $case() -> Result<()> { agrees(stringify!($case), $outputs) })*
    };
}

cases! {
    preproc_vit: 1,
    preproc_clip: 4,
    preproc_siglip: 4,
    preproc_siglip_up: 3,
    preproc_dinov2: 2,
    preproc_blip: 2,
    preproc_paligemma: 1,
    preproc_siglip2: 6,
    preproc_smolvlm: 8,
    preproc_smolvlm_nosplit: 4,
    preproc_idefics3: 8,
    preproc_internvl: 4,
    preproc_llava_next: 4,
    preproc_llava_onevision: 2,
    preproc_qwen2_vl: 4,
}

fn preprocessor(name: &str) -> Result<Preprocessor> {
    Preprocessor::load(&case(name))
}

#[test]
fn pictures_one_pixel_wide_are_prepared_or_refused() -> Result<()> {
    let names = ["vit", "clip", "dinov2", "siglip2", "smolvlm", "internvl", "llava_next", "llava_onevision"];
    for (width, height) in [(1, 1), (1, 10_000), (10_000, 1)] {
        let thin = Picture::new(width, height, vec![9; width * height * 3])?;
        for name in names {
            match preprocessor(&format!("preproc_{name}"))?.apply(&thin)? {
                Prepared::Tiles(tiles) => assert!(tiles.tensor()?.elem_count() > 0),
                Prepared::Patches(patches) => assert!(patches.tensor()?.dim(0)? <= 36),
            }
        }
        let mut uncut = preprocessor("preproc_clip")?;
        uncut.layout = Layout::Whole { fit: Fit::ShortestEdge(336), crop: None };
        assert_eq!(uncut.apply(&thin).is_err(), width != height, "too many pixels");
        let qwen = preprocessor("preproc_qwen2_vl")?.apply(&thin);
        assert_eq!(qwen.is_err(), width != height, "sides of over 200 to 1");
    }
    Ok(())
}

#[test]
fn old_spellings_mean_the_same() -> Result<()> {
    let text = |fields: &str| {
        format!(
            r#"{{"image_mean":[0.5,0.5,0.5],"image_std":[0.5,0.5,0.5],"rescale_factor":0.00392156862745098,{fields}}}"#
        )
    };
    let old = text(
        r#""feature_extractor_type":"CLIPFeatureExtractor","size":56,"crop_size":56,"do_center_crop":true"#,
    );
    let new = text(
        r#""image_processor_type":"CLIPImageProcessor","size":{"shortest_edge":56},
           "crop_size":{"height":56,"width":56},"do_center_crop":true"#,
    );
    assert_eq!(Preprocessor::from_json(&old)?, Preprocessor::from_json(&new)?);
    let pixels =
        text(r#""image_processor_type":"Qwen2VLImageProcessor","min_pixels":3136,"max_pixels":12845056"#);
    let layout = Preprocessor::from_json(&pixels)?.layout;
    assert!(
        matches!(layout, Layout::BudgetPatches { pixels: (3136, 12_845_056), patch: 14, .. }),
        "{layout:?}"
    );
    Ok(())
}

#[test]
fn what_cannot_work_is_refused_with_the_field() {
    let refused = |text: &str, field: &str| {
        let error = Preprocessor::from_json(text).err().map(|e: Error| e.to_string()).unwrap_or_default();
        assert!(error.contains(field), "{field}: {error}");
    };
    refused("{", "preprocessor_config.json");
    refused("{}", "image_processor_type");
    refused(r#"{"image_processor_type":"TeapotImageProcessor"}"#, "Teapot");
    let with = |fields: &str| {
        format!(
            r#"{{"image_processor_type":"ViTImageProcessor","image_mean":[0,0,0],"image_std":[1,1,1],{fields}}}"#
        )
    };
    refused(&with(r#""size":"large""#), "size");
    refused(&with(r#""size":0"#), "sizes from 1");
    refused(&with(r#""size":100000"#), "sizes from 1");
    refused(&with(r#""size":8,"resample":9"#), "resample");
    refused(&with(r#""size":8,"image_std":[0,1,1]"#), "image_std");
    let pinpoints = with(r#""size":8,"crop_size":8,"image_grid_pinpoints":[]"#).replace("ViT", "LlavaNext");
    refused(&pinpoints, "image_grid_pinpoints");
}

/// Frames of a video become steps of time; an odd one is filled up.
#[test]
fn frames_become_steps_of_time() -> Result<()> {
    let all = golden("preproc_images")?;
    let frame = picture(input(&all, "in.97x131.image")?)?;
    let qwen = preprocessor("preproc_qwen2_vl")?;
    let still = prepared(&qwen, &frame)?;
    let Prepared::Patches(video) = qwen.apply_frames(&[frame.clone(), frame.clone(), frame.clone()])? else {
        return Err(Error::invalid("expected patches"));
    };
    assert_eq!(video.grid, [2, 6, 8]);
    let rows = video.tensor()?;
    assert_eq!(largest_difference(&rows.narrow(0, 0, 48)?, &still["pixel_values"])?, 0.0);
    assert_eq!(largest_difference(&rows.narrow(0, 48, 48)?, &still["pixel_values"])?, 0.0);
    assert!(qwen.apply_frames(&[]).is_err());
    let other = Picture::new(9, 9, vec![0; 243])?;
    assert!(qwen.apply_frames(&[frame, other]).is_err_and(|e| e.to_string().contains("frames")));
    Ok(())
}
