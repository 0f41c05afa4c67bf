//! Attention never holds a number for each pair of query and key, forward or backward, whatever the mask: the process grows
//! by less than a small part of one such matrix.
#![cfg(target_os = "linux")]

use vela_nn::*;

/// The most memory that this process has had, in bytes.
fn most() -> Result<usize> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(|e| Error::invalid(e.to_string()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|kib| kib.trim().parse().ok());
    kib.map(|kib: usize| kib << 10).ok_or_else(|| Error::invalid("/proc/self/status: VmHWM is not there"))
}

/// One attention and its gradients on a sequence of `t`.
fn run(t: usize, mask: &Mask, biased: bool) -> Result<()> {
    let heads = Heads { query: 2, key: 1 };
    let var =
        |name: &str, shape: &[usize]| Ok::<_, Error>(Var::from_tensor(&random::normal(1, name, shape)?)?);
    let (q, k, v) = (var("q", &[1, t, 8])?, var("k", &[1, t, 4])?, var("v", &[1, t, 4])?);
    let bias = var("bias", &[2, 2 * t - 1])?;
    let y = match biased {
        true => attention::attention_packed_biased(&q, &k, &v, heads, mask, 0.5, &bias)?,
        false => attention_packed(&q, &k, &v, heads, mask, 0.5)?,
    };
    let gradients = y.sqr()?.sum_all()?.backward()?;
    assert!(gradients.get(&q).is_some() && gradients.get(&bias).is_some() == biased);
    Ok(())
}

#[test]
fn no_matrix_of_scores_is_ever_held() -> Result<()> {
    let masks = |t: usize| {
        // A prompt that sees itself wholly, then a text.
        let blocks: Vec<u32> = (0..t).map(|i| i.saturating_sub(t / 2) as u32).collect();
        let blocks = Mask::blocks(blocks.clone(), blocks, Vec::new());
        [Mask::None, Mask::Causal, Mask::Window { size: t / 3 }, blocks.windowed(t / 2), blocks]
    };
    let t = 8192;
    let matrix = t * t * size_of::<f32>();
    threads::with_threads(2, || {
        masks(64).iter().try_for_each(|mask| run(64, mask, true))?;
        let before = most()?;
        for mask in masks(t) {
            for biased in [false, true] {
                run(t, &mask, biased)?;
                let grown = most()? - before;
                assert!(
                    grown < matrix / 8,
                    "{mask:?}, biased: {biased}: {grown} bytes, a matrix is {matrix}"
                );
            }
        }
        Ok(())
    })
}
