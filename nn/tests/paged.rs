//! Paged attention against plain attention: any block order, several sequences side by side, windows, caps, prefixes.

use vela_nn::attention::attention_packed_soft_capped;
use vela_nn::paged::{BLOCK, PagedKind, PagedRule, PagedShape, PagedStore, Span};
use vela_nn::{Heads, Mask, Result, Tensor, random};

/// Lengths of what is held, of what is new, and of the prefix that sees itself.
const SEQUENCES: [(usize, usize, usize); 5] = [(37, 1, 0), (0, 70, 0), (16, 5, 0), (0, 25, 10), (100, 66, 0)];

struct Case {
    heads: Heads,
    d: usize,
    window: Option<usize>,
    soft_cap: Option<f32>,
}

/// The greatest error over all sequences, relative to the spread of the plain result.
fn error(case: &Case, kind: PagedKind) -> Result<f32> {
    let Case { heads, d, window, soft_cap } = *case;
    let shape = PagedShape { layers: 2, heads, head_dim: d, kind };
    let mut store = PagedStore::new(shape, 40)?;
    let (scale, layer) = (1.0 / (d as f32).sqrt(), 1);
    // Blocks in no order: 7 and 40 share no factor.
    let mut next = (0..40u32).map(|i| i * 7 % 40);
    let made = |name: &str, at: usize, rows: usize, heads: usize| {
        random::normal(at as u64, name, (1, rows, heads * d))
    };
    let (mut tables, mut plain, mut new) = (Vec::new(), Vec::new(), [Vec::new(), Vec::new(), Vec::new()]);
    for (at, (held, rows, whole)) in SEQUENCES.into_iter().enumerate() {
        let all = held + rows;
        let table: Vec<u32> = next.by_ref().take(all.div_ceil(BLOCK)).collect();
        let (q, k, v) = (
            made("q", at, rows, heads.query)?,
            made("k", at, all, heads.key)?,
            made("v", at, all, heads.key)?,
        );
        let block = |i: usize| if i < whole { whole as u32 - 1 } else { i as u32 };
        let mask = Mask::blocks((held..all).map(block).collect(), (0..all).map(block).collect(), Vec::new());
        let mask = window.map_or(mask.clone(), |size| mask.windowed(size));
        plain.push(attention_packed_soft_capped(&q, &k, &v, heads, &mask, scale, soft_cap)?);
        let old = [Span { blocks: &table, start: 0, rows: held, whole }];
        if held > 0 {
            store.write(layer, &k.narrow(1, 0, held)?, &v.narrow(1, 0, held)?, &old)?;
        }
        new[0].push(q);
        new[1].push(k.narrow(1, held, rows)?);
        new[2].push(v.narrow(1, held, rows)?);
        tables.push(table);
    }
    let spans: Vec<Span> = SEQUENCES
        .iter()
        .zip(&tables)
        .map(|((start, rows, whole), blocks)| Span { blocks, start: *start, rows: *rows, whole: *whole })
        .collect();
    let [q, k, v] = new.map(|parts| Tensor::cat(&parts, 1));
    store.write(layer, &k?, &v?, &spans)?;
    let got = store.attend(layer, &q?, &spans, PagedRule { scale, soft_cap, window })?;
    let plain = Tensor::cat(&plain, 1)?;
    let spread = plain.abs()?.max_all()?.to_scalar::<f32>()?;
    Ok((got - plain)?.abs()?.max_all()?.to_scalar::<f32>()? / spread)
}

fn cases() -> Vec<Case> {
    let heads = |query, key| Heads { query, key };
    vec![
        Case { heads: heads(9, 3), d: 64, window: None, soft_cap: None },
        Case { heads: heads(5, 1), d: 24, window: None, soft_cap: Some(2.0) },
        Case { heads: heads(4, 4), d: 7, window: Some(20), soft_cap: None },
        Case { heads: heads(2, 1), d: 33, window: Some(1), soft_cap: None },
    ]
}

#[test]
fn equals_plain_attention() -> Result<()> {
    for case in cases() {
        let error = error(&case, PagedKind::F32)?;
        assert!(error < 3e-6, "{:?} of {}: {error}", case.heads, case.d);
    }
    Ok(())
}

#[test]
fn half_and_int8_keep_close() -> Result<()> {
    for case in cases() {
        let (half, int8) = (error(&case, PagedKind::F16)?, error(&case, PagedKind::Int8)?);
        assert!(half < 2e-3 && int8 < 2e-2, "{:?} of {}: {half} {int8}", case.heads, case.d);
    }
    Ok(())
}

#[test]
fn a_copied_block_holds_the_same_and_leavings_do_no_harm() -> Result<()> {
    let shape = |kind| PagedShape { layers: 1, heads: Heads { query: 2, key: 1 }, head_dim: 8, kind };
    for kind in [PagedKind::F32, PagedKind::F16, PagedKind::Int8] {
        let mut store = PagedStore::new(shape(kind), 3)?;
        let bad = Tensor::full(f32::NAN, (1, BLOCK, 8), &vela_nn::Device::Cpu)?;
        store.write(0, &bad, &bad, &[Span { blocks: &[2], start: 0, rows: BLOCK, whole: 0 }])?;
        let (k, v, q) = (
            random::normal(1, "k", (1, 5, 8))?,
            random::normal(1, "v", (1, 5, 8))?,
            random::normal(1, "q", (1, 5, 16))?,
        );
        store.write(0, &k, &v, &[Span { blocks: &[0], start: 0, rows: 5, whole: 0 }])?;
        store.copy(0, 2, 5)?;
        let rule = PagedRule { scale: 0.3, soft_cap: None, window: None };
        let look = |block: u32| -> Result<Vec<f32>> {
            let span = Span { blocks: &[block], start: 0, rows: 5, whole: 0 };
            Ok(store.attend(0, &q, &[span], rule)?.flatten_all()?.to_vec1()?)
        };
        assert_eq!(look(0)?, look(2)?);
        assert!(look(2)?.iter().all(|x| x.is_finite()));
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_an_error() -> Result<()> {
    let shape =
        PagedShape { layers: 1, heads: Heads { query: 2, key: 1 }, head_dim: 8, kind: PagedKind::F32 };
    let mut store = PagedStore::new(shape, 2)?;
    let rows = |n: usize, width: usize| random::normal(0, "x", (1, n, width));
    let span = |blocks: &'static [u32], start, rows| [Span { blocks, start, rows, whole: 0 }];
    assert!(store.write(0, &rows(3, 8)?, &rows(3, 8)?, &span(&[2], 0, 3)).is_err());
    assert!(store.write(0, &rows(3, 8)?, &rows(3, 8)?, &span(&[1], 14, 3)).is_err());
    assert!(store.write(1, &rows(3, 8)?, &rows(3, 8)?, &span(&[1], 0, 3)).is_err());
    assert!(store.write(0, &rows(3, 8)?, &rows(4, 8)?, &span(&[1], 0, 3)).is_err());
    assert!(store.copy(0, 5, 1).is_err());
    let rule = PagedRule { scale: 1.0, soft_cap: None, window: None };
    assert!(store.attend(0, &rows(2, 8)?, &span(&[1], 0, 2), rule).is_err());
    assert!(PagedStore::new(PagedShape { heads: Heads { query: 3, key: 2 }, ..shape }, 2).is_err());
    assert!(PagedStore::new(shape, usize::MAX / 1024).is_err());
    Ok(())
}
