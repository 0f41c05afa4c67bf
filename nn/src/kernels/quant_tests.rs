//! The quantised products: every instruction set against plain sums over the numbers that weights and activations stand for.
#![allow(clippy::unwrap_used)]

use super::quant::{Activations, exact, has_pairs, levels, products, products_at};
use super::quant_input::most;
use super::quant_pack::Packed;
use crate::quant::{Blocks, Format};
use crate::{random, threads};
use rand::Rng;

const PACKED: [Format; 8] = [
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q5_1,
    Format::Q8_0,
    Format::Q4K,
    Format::Q5K,
    Format::Q6K,
];

/// Random blocks with scales near 1/16 (and any numbers).
fn blocks(format: Format, rows: usize, columns: usize) -> Blocks {
    let mut rng = random::stream(5, format.name());
    blocks_of(format, rows, columns, || rng.random())
}

/// Blocks of such bytes, with scales near 1/16.
fn blocks_of(format: Format, rows: usize, columns: usize, byte: impl FnMut() -> u8) -> Blocks {
    let mut bytes: Vec<u8> = std::iter::repeat_with(byte).take(rows * format.row_bytes(columns)).collect();
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        let places: &[usize] = match format {
            Format::Q6K => &[208],
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
            Format::F32 | Format::Bf16 => &[],
            _ => &[0],
        };
        places.iter().for_each(|at| block[at + 1] = 0x2c | (block[at + 1] & 0x80));
    }
    Blocks::new(format, &[rows, columns], bytes).unwrap()
}

fn activations(rows: usize, columns: usize) -> Vec<f32> {
    let mut rng = random::stream(6, "x");
    (0..rows * columns).map(|i| rng.random_range(-1.0..1.0) * (1 + i % 7) as f32).collect()
}

/// Eight bits per block of 32, and back.
fn rounded(x: &[f32]) -> Vec<f32> {
    rounded_to(127.0, x)
}

/// The same with numbers of at most `most`.
fn rounded_to(most: f32, x: &[f32]) -> Vec<f32> {
    let block = |x: &[f32]| {
        let scale = x.iter().fold(0f32, |m, v| m.max(v.abs())) / most;
        x.iter().map(|v| (v / scale).round_ties_even() * scale).collect::<Vec<_>>()
    };
    x.chunks_exact(32).flat_map(block).collect()
}

/// The product in float64.
fn product(x: &[f32], weight: &Blocks) -> Vec<f64> {
    let (_, columns) = weight.rows();
    let values = weight.tensor().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    x.chunks_exact(columns).flat_map(|x| values.chunks_exact(columns).map(move |w| dot(x, w))).collect()
}

fn difference(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let spread = (want.iter().map(|w| w * w).sum::<f64>() / want.len() as f64).sqrt();
    got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max) / spread
}

#[test]
fn every_format_and_instruction_set_gives_the_product() {
    for format in PACKED {
        // An odd number of blocks, of which two may lie together.
        let odd = 3 * format.block_len();
        for (m, rows, columns) in [
            (1, 16, 256),
            (2, 1, 512),
            (5, 37, 256),
            (29, 48, 768),
            (13, 7, 512),
            (7, 16, 256),
            (9, 16, 256),
            (1, 37, odd),
            (5, 37, odd),
        ] {
            let weight = blocks(format, rows, columns);
            let packed = Packed::new(&weight);
            let x = activations(m, columns);
            let want = product(&rounded(&x), &weight);
            for level in levels() {
                let got =
                    products_at(&Activations::at(*level, &x[..], &[&packed]), &[(&packed, None)], *level);
                let error = difference(&got[0], &want);
                assert!(error < 2e-5, "{} {level:?} {m} x {rows} x {columns}: {error:e}", format.name());
            }
        }
    }
}

#[test]
fn the_largest_numbers_overflow_nowhere() {
    for format in PACKED {
        for byte in [0xff, 0x7f, 0x80, 0] {
            let weight = blocks_of(format, 16, 256, || byte);
            let packed = Packed::new(&weight);
            for x in [vec![1.0; 5 * 256], vec![-1.0; 5 * 256]] {
                let want = product(&x, &weight);
                for level in levels() {
                    let got =
                        products_at(&Activations::at(*level, &x[..], &[&packed]), &[(&packed, None)], *level);
                    let error = difference(&got[0], &want);
                    // All weights zero: nothing to relate the error to.
                    assert!(
                        error < 1e-5 || want == [0.0; 80],
                        "{} {level:?} {byte}: {error:e}",
                        format.name()
                    );
                }
            }
        }
    }
}

/// Numbers within 63 of zero take a shorter way, with the same result; one that is not takes it from all.
#[test]
fn numbers_of_seven_bits_give_the_product() {
    let raw =
        |numbers: &mut dyn FnMut() -> i8| blocks_of(Format::Q8_0, 37, 256, || numbers().cast_unsigned());
    let mut rng = random::stream(7, "seven bits");
    let scaled = |numbers: &mut dyn FnMut() -> i8| {
        let bytes = raw(numbers);
        let factor = half::f16::from_f32(0.07).to_le_bytes();
        let mut bytes = bytes.row(0, 37).to_vec();
        bytes.chunks_exact_mut(34).for_each(|block| block[..2].copy_from_slice(&factor));
        Blocks::new(Format::Q8_0, &[37, 256], bytes).unwrap()
    };
    let mut number = || rng.random_range(-63..=63);
    for (weight, narrow) in [
        (scaled(&mut number), true),
        (scaled(&mut || 63), true),
        (scaled(&mut || -63), true),
        (scaled(&mut || 64), false),
        (scaled(&mut || -64), false),
        (scaled(&mut || -128), false),
    ] {
        let packed = Packed::new(&weight);
        assert_eq!(packed.is_narrow(), narrow);
        for x in [activations(6, 256), vec![1.0; 6 * 256], vec![-1.0; 6 * 256]] {
            for level in levels() {
                let want = product(&rounded_to(most(*level, &[&packed]), &x), &weight);
                let got =
                    products_at(&Activations::at(*level, &x[..], &[&packed]), &[(&packed, None)], *level);
                let error = difference(&got[0], &want);
                assert!(error < 2e-5, "{level:?}: {error:e}");
            }
        }
    }
}

#[test]
fn floating_point_weights_give_the_product_alike_for_any_number_of_rows() {
    for format in [Format::F32, Format::F16, Format::Bf16] {
        for (rows, columns) in [(16, 64), (37, 33), (1, 1), (48, 575)] {
            let mut rng = random::stream(9, format.name());
            let number = |x: f32| match format {
                Format::F32 => x.to_le_bytes().to_vec(),
                Format::F16 => half::f16::from_f32(x).to_le_bytes().to_vec(),
                _ => half::bf16::from_f32(x).to_le_bytes().to_vec(),
            };
            let bytes = (0..rows * columns).flat_map(|_| number(rng.random_range(-1.0..1.0))).collect();
            let weight = Blocks::new(format, &[rows, columns], bytes).unwrap();
            let packed = Packed::new(&weight);
            let x = activations(29, columns);
            for level in levels() {
                // In float32; where the processor multiplies pairs of bfloat16, in those if the weight is.
                let half = |v: &f32| half::bf16::from_f32(*v).to_f32();
                let seen = match format {
                    Format::Bf16 if has_pairs(*level) => x.iter().map(half).collect(),
                    _ => x.clone(),
                };
                let got =
                    products_at(&Activations::at(*level, &x[..], &[&packed]), &[(&packed, None)], *level);
                assert!(difference(&got[0], &product(&seen, &weight)) < 2e-5, "{level:?} {rows} x {columns}");
                let one = products_at(
                    &Activations::at(*level, &x[..columns], &[&packed]),
                    &[(&packed, None)],
                    *level,
                );
                assert_eq!(one[0], got[0][..rows]);
            }
        }
    }
}

#[test]
fn rounding_the_activations_costs_little() {
    for format in PACKED {
        let weight = blocks(format, 64, 512);
        let x = activations(4, 512);
        let packed = Packed::new(&weight);
        let got = products(&Activations::of(&x[..], &[&packed]), &[(&packed, None)]);
        let error = difference(&got[0], &product(&x, &weight));
        assert!(error < 0.03, "{}: {error}", format.name());
    }
}

#[test]
fn what_stands_out_is_set_apart_and_alike_in_any_batch() {
    for format in PACKED {
        let weight = blocks(format, 37, 512);
        let packed = Packed::new(&weight);
        let mut x = activations(13, 512);
        for (i, v) in x.iter_mut().enumerate().filter(|(i, _)| i % 97 == 5) {
            *v = if i % 2 == 0 { 300.0 } else { -500.0 };
        }
        let want = product(&x, &weight);
        let rough: Vec<f32> = product(&rounded(&x), &weight).into_iter().map(|v| v as f32).collect();
        let rough = difference(&rough, &want);
        for level in levels() {
            let got = products_at(&Activations::at(*level, &x[..], &[&packed]), &[(&packed, None)], *level);
            let error = difference(&got[0], &want);
            assert!(
                error < rough / 8.0,
                "{} {level:?}: {error:e}, rounded with the rest {rough:e}",
                format.name()
            );
            for (row, x) in x.chunks_exact(512).enumerate() {
                let one = products_at(&Activations::at(*level, x, &[&packed]), &[(&packed, None)], *level);
                assert_eq!(one[0], got[0][row * 37..(row + 1) * 37], "{} {level:?}", format.name());
            }
        }
    }
}

#[test]
fn a_bias_is_added_to_every_row() {
    // The last group is whole or not, the groups are even or odd in number.
    for (m, rows) in [(1, 16), (1, 37), (5, 48), (13, 7), (26, 37)] {
        let quantised = [Format::Q4_1, Format::Q8_0, Format::Q6K].map(|f| Packed::new(&blocks(f, rows, 256)));
        let dense = Packed::dense(&activations(rows, 256), rows, 256);
        let (x, bias) = (activations(m, 256), activations(1, rows));
        for packed in quantised.iter().chain([&dense]) {
            for level in levels() {
                let x = Activations::at(*level, &x[..], &[packed]);
                let mut want = products_at(&x, &[(packed, None)], *level).remove(0);
                want.iter_mut().zip(bias.iter().cycle()).for_each(|(y, b)| *y += b);
                let got = products_at(&x, &[(packed, Some(&bias))], *level).remove(0);
                assert_eq!(got, want, "{} {level:?} {m} x {rows}", packed.format().name());
            }
        }
    }
}

#[test]
fn several_weights_and_threads_give_the_same_bytes() {
    let formats = [Format::Q4_1, Format::Q6K, Format::Q8_0, Format::F16];
    let packed: Vec<Packed> = formats.map(|f| Packed::new(&blocks(f, 200, 768))).into();
    let weights: Vec<&Packed> = packed.iter().collect();
    for m in [1, 70] {
        let x = activations(m, 768);
        let run = |threads: usize, weights: &[&Packed]| {
            let plain: Vec<_> = weights.iter().map(|weight| (*weight, None)).collect();
            threads::with_threads(threads, || products(&Activations::of(&x[..], weights), &plain))
        };
        let together = run(2, &weights);
        assert_eq!(together, run(1, &weights));
        for (weight, out) in weights.iter().zip(&together) {
            assert_eq!(&run(1, &[weight])[0], out);
        }
    }
}

#[test]
fn what_is_not_a_number_comes_out_as_such() {
    let packed = Packed::new(&blocks(Format::Q4_0, 16, 256));
    let small = half::bf16::from_f32(0.5).to_le_bytes().repeat(16 * 256);
    let half = Packed::new(&Blocks::new(Format::Bf16, &[16, 256], small).unwrap());
    for bad in [f32::NAN, f32::INFINITY, f32::from_bits(u32::MAX)] {
        let mut x = activations(2, 256);
        x[100] = bad;
        for packed in [&packed, &half] {
            let got = products(&Activations::of(&x[..], &[packed]), &[(packed, None)]);
            assert!(
                got[0][..16].iter().all(|v| !v.is_finite()) && got[0][16..].iter().all(|v| v.is_finite())
            );
        }
    }
    let zeros = products(&Activations::of(&[0.0; 256][..], &[&packed]), &[(&packed, None)]);
    assert!(zeros[0].iter().all(|v| *v == 0.0));
}

#[test]
fn exact_products_need_no_rounding() {
    for format in Format::ALL.into_iter().filter(|f| !matches!(f, Format::F32 | Format::Bf16 | Format::F16)) {
        let weight = blocks(format, 70, 512);
        for m in [1, 9] {
            let x = activations(m, 512);
            let error = difference(&exact(&x, &weight), &product(&x, &weight));
            assert!(error < 1e-5, "{}: {error:e}", format.name());
        }
    }
}
