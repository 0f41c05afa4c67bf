//! GGUF headers, sound and hostile, and block formats against the reference run and against formulas written element by element.
#![allow(clippy::unwrap_used)]

use rand::Rng;
use std::path::{Path, PathBuf};
use vela_nn::gguf::{Gguf, Value};
use vela_nn::quant::{Blocks, Format};
use vela_nn::{Result, random};

fn text(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

/// A file with one value of every kind and two tensors.
fn sound() -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend(2u64.to_le_bytes());
    let mut values: Vec<(&str, u32, Vec<u8>)> = vec![
        ("a.u8", 0, vec![200]),
        ("a.i8", 1, vec![200]),
        ("a.u16", 2, 65_000u16.to_le_bytes().to_vec()),
        ("a.i16", 3, (-3i16).to_le_bytes().to_vec()),
        ("a.u32", 4, 4_000_000_000u32.to_le_bytes().to_vec()),
        ("a.i32", 5, (-4i32).to_le_bytes().to_vec()),
        ("a.f32", 6, 1.5f32.to_le_bytes().to_vec()),
        ("a.bool", 7, vec![1]),
        ("a.u64", 10, (1u64 << 63).to_le_bytes().to_vec()),
        ("a.i64", 11, (-5i64).to_le_bytes().to_vec()),
        ("a.f64", 12, (-2.25f64).to_le_bytes().to_vec()),
        ("general.alignment", 4, 64u32.to_le_bytes().to_vec()),
    ];
    let mut word = Vec::new();
    text(&mut word, "grüße");
    values.push(("a.text", 8, word.clone()));
    let list =
        |kind: u32, count: u64, body: &[u8]| [&kind.to_le_bytes()[..], &count.to_le_bytes(), body].concat();
    values.push(("a.texts", 9, list(8, 2, &[word.clone(), word].concat())));
    values.push(("a.ints", 9, list(5, 2, &[0xff, 0xff, 0xff, 0xff, 7, 0, 0, 0])));
    values.push(("a.lists", 9, list(9, 1, &list(7, 2, &[0, 1]))));
    out.extend((values.len() as u64).to_le_bytes());
    for (key, kind, body) in values {
        text(&mut out, key);
        out.extend(kind.to_le_bytes());
        out.extend(body);
    }
    for (name, dims, kind, offset) in [("one", vec![3u64, 2], 0u32, 0u64), ("two", vec![32], 8, 64)] {
        text(&mut out, name);
        out.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
        out.extend(kind.to_le_bytes());
        out.extend(offset.to_le_bytes());
    }
    out.resize(out.len().next_multiple_of(64), 0);
    (0..6).for_each(|i| out.extend((i as f32).to_le_bytes()));
    out.resize(out.len() + 40, 0);
    out.extend(half::f16::from_f32(0.5).to_le_bytes());
    out.extend((0..32u8).map(|i| i.wrapping_sub(16)));
    out
}

fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("vela-gguf-{}-{name}", std::process::id()))
}

fn open(path: &Path, bytes: &[u8]) -> Result<Gguf> {
    std::fs::write(path, bytes).unwrap();
    let opened = Gguf::open(path);
    std::fs::remove_file(path).unwrap();
    opened
}

fn floats(blocks: &Blocks) -> Vec<f32> {
    blocks.tensor().unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_kind_of_value_is_read() -> Result<()> {
    let file = open(&scratch("sound"), &sound())?;
    let value = |key: &str| file.value(&format!("a.{key}")).cloned();
    assert_eq!(file.version(), 3);
    assert_eq!(value("u8")?, Value::Unsigned(200));
    assert_eq!(value("i8")?, Value::Signed(-56));
    assert_eq!(value("u16")?.as_count(), Some(65_000));
    assert_eq!(value("i16")?.as_number(), Some(-3.0));
    assert_eq!(value("u32")?.as_count(), Some(4_000_000_000));
    assert_eq!(value("i32")?.as_count(), None);
    assert_eq!(value("f32")?, Value::Float(1.5));
    assert_eq!(value("bool")?.as_bool(), Some(true));
    assert_eq!(value("u64")?, Value::Unsigned(1 << 63));
    assert_eq!(value("i64")?, Value::Signed(-5));
    assert_eq!(value("f64")?, Value::Float(-2.25));
    assert_eq!(file.text("a.text")?, "grüße");
    assert_eq!(value("texts")?.as_texts().unwrap().len(), 2);
    assert_eq!(value("ints")?.as_numbers(), Some(vec![-1.0, 7.0]));
    assert_eq!(value("lists")?, Value::Lists(vec![Value::BoolList(vec![false, true])]));
    assert!(file.value("b").is_err() && file.tensor("three").is_err());
    assert_eq!(file.names(), ["one", "two"]);
    assert_eq!(file.tensor("one")?.shape(), [2, 3]);
    assert_eq!(floats(file.tensor("one")?), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(floats(file.tensor("two")?)[..3], [-8.0, -7.5, -7.0]);
    Ok(())
}

#[test]
fn truncated_and_mutated_files_are_refused_or_read_but_never_panic() {
    let (sound, path) = (sound(), scratch("mutated"));
    for len in 0..sound.len() {
        // The last 34 bytes are data: without any of them a tensor does not fit.
        assert!(open(&path, &sound[..len]).is_err(), "{len} bytes");
    }
    let mut rng = random::stream(7, "mutations");
    let mut refused = 0;
    for _ in 0..20_000 {
        let mut bytes = sound.clone();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..3) {
                0 => bytes[at] = rng.random(),
                1 => bytes[at] ^= 1 << rng.random_range(0..8),
                // A whole field of ones or zeros: the counts that overflow.
                _ => bytes.iter_mut().skip(at).take(8).for_each(|b| *b = 0xff),
            }
        }
        match open(&path, &bytes) {
            Ok(file) => file.tensors().values().for_each(|t| drop(floats(t))),
            Err(e) => {
                refused += 1;
                assert!(e.to_string().lines().count() == 1, "{e}");
            }
        }
    }
    assert!(refused > 5_000, "only {refused} refused");
}

#[test]
fn what_is_wrong_is_said() {
    let path = scratch("wrong");
    let find = |bytes: &[u8], needle: &[u8]| bytes.windows(needle.len()).position(|w| w == needle).unwrap();
    let said = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = sound();
        change(&mut bytes);
        open(&path, &bytes).unwrap_err().to_string()
    };
    let two = find(&sound(), b"two") + 3;
    assert!(said(&|b| b[0] = b'H').contains("begin with"));
    assert!(said(&|b| b[4] = 9).contains("version 2 or 3, got 9"));
    assert!(said(&|b| b[15] = 0x7f).contains("number of tensors"));
    assert!(said(&|b| b[two] = 0).contains("1 to 4 dimensions"));
    assert!(said(&|b| b[two + 4] = 31).contains("multiple of 32"));
    assert!(said(&|b| b[two + 12] = 99).contains("type number 99 is not known"));
    assert!(said(&|b| b[two + 16] = 0).contains("overlap"));
    assert!(said(&|b| b[two + 16] = 65).contains("do not fit"));
    assert!(said(&|b| b[two + 22] = 1).contains("do not fit"));
    assert!(said(&|b| b[two - 3..two].copy_from_slice(b"one")).contains("there twice"));
    assert!(Blocks::new(Format::Q4_0, &[1, 32], vec![0; 17]).is_err());
    assert!(Blocks::new(Format::Q4K, &[1, 32], vec![0; 18]).is_err());
    assert!(Blocks::new(Format::F32, &[usize::MAX, 2], vec![]).is_err());
    assert!(Blocks::new(Format::F32, &[], vec![]).is_err());
}

#[test]
fn blocks_mean_what_the_reference_run_says() -> Result<()> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/gguf_llama");
    let file = Gguf::open(&dir.join("model.gguf"))?;
    let golden = candle_core::safetensors::load(dir.join("golden.safetensors"), &vela_nn::Device::Cpu)?;
    let cases = [
        ("F16", "token_embd"),
        ("Q4_K", "blk.0.attn_q"),
        ("Q8_0", "blk.0.attn_k"),
        ("Q6_K", "blk.0.attn_v"),
        ("Q4_0", "blk.0.attn_output"),
        ("Q4_1", "blk.0.ffn_gate"),
        ("Q5_0", "blk.1.ffn_up"),
    ];
    for (format, name) in cases {
        let blocks = file.tensor(&format!("{name}.weight"))?;
        assert_eq!(blocks.format().name(), format);
        let want = golden[&format!("out.dequant.{format}")].flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(floats(blocks)[..want.len()], want[..], "{format}");
    }
    Ok(())
}

/// Element `i` of a block, straight from the definition.
fn element(format: Format, b: &[u8], i: usize) -> f32 {
    let f16 = |at: usize| half::f16::from_bits(u16::from(b[at]) + 256 * u16::from(b[at + 1])).to_f32();
    let nibble =
        |from: usize, i: usize| f32::from(if i < 16 { b[from + i] % 16 } else { b[from + i - 16] / 16 });
    let bit = |from: usize, i: usize| f32::from(b[from + i / 8] >> (i % 8) & 1);
    // Six-bit numbers of K blocks: j-th scale and j-th minimum.
    let scale = |j: usize| if j < 4 { b[4 + j] % 64 } else { b[8 + j] % 16 + b[j] / 64 * 16 };
    let least = |j: usize| if j < 4 { b[8 + j] % 64 } else { b[8 + j] / 16 + b[4 + j] / 64 * 16 };
    let k_nibble = |from: usize| f32::from(b[from + i / 64 * 32 + i % 32] >> (4 * (i / 32 % 2)) & 15);
    let k = |q: f32| {
        let j = i / 32;
        f16(0) * f32::from(scale(j)) * q - f16(2) * f32::from(least(j))
    };
    match format {
        Format::F32 => f32::from_bits(
            u32::from(b[0]) | u32::from(b[1]) << 8 | u32::from(b[2]) << 16 | u32::from(b[3]) << 24,
        ),
        Format::F16 => f16(0),
        Format::Bf16 => f32::from_bits(u32::from(b[0]) << 16 | u32::from(b[1]) << 24),
        Format::Q4_0 => f16(0) * (nibble(2, i) - 8.0),
        Format::Q4_1 => f16(0) * nibble(4, i) + f16(2),
        Format::Q5_0 => f16(0) * (nibble(6, i) + 16.0 * bit(2, i) - 16.0),
        Format::Q5_1 => f16(0) * (nibble(8, i) + 16.0 * bit(4, i)) + f16(2),
        Format::Q8_0 => f16(0) * f32::from(b[2 + i] as i8),
        Format::Q4K => k(k_nibble(16)),
        Format::Q5K => k(k_nibble(48) + 16.0 * f32::from(b[16 + i % 32] >> (i / 32) & 1)),
        Format::Q6K => {
            let (half, j, at) = (i / 128, i / 32 % 4, i % 32);
            let low = b[64 * half + 32 * (j % 2) + at] >> (4 * (j / 2)) & 15;
            let high = b[128 + 32 * half + at] >> (2 * j) & 3;
            f16(208) * f32::from(b[192 + i / 16] as i8) * (f32::from(low) + 16.0 * f32::from(high) - 32.0)
        }
    }
}

#[test]
fn blocks_mean_what_the_formulas_say() -> Result<()> {
    for format in Format::ALL {
        let mut rng = random::stream(3, format.name());
        let columns = 2 * format.block_len();
        let mut bytes: Vec<u8> = (0..3 * format.row_bytes(columns)).map(|_| rng.random()).collect();
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            // Scales that are finite numbers: sign and exponent bits of each f16 come from a small range.
            let places: &[usize] = match format {
                Format::Q6K => &[208],
                Format::Q4_0 | Format::Q5_0 | Format::Q8_0 | Format::F16 => &[0],
                Format::F32 | Format::Bf16 => &[],
                _ => &[0, 2],
            };
            places.iter().for_each(|at| block[at + 1] = 0x2c);
        }
        let blocks = Blocks::new(format, &[3, columns], bytes.clone())?;
        let len = format.block_len();
        let got = floats(&blocks);
        for (i, got) in got.iter().enumerate() {
            let block = &bytes[i / len * format.block_bytes()..][..format.block_bytes()];
            let want = element(format, block, i % len);
            assert!(*got == want || got.is_nan() && want.is_nan(), "{} {i}: {got} for {want}", format.name());
        }
    }
    Ok(())
}
