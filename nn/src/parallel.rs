//! Gradients by data-parallel shards: the same bytes at any thread count.

use crate::{Error, Result, threads};
use candle_core::{Tensor, Var, backprop::GradStore};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Mean loss and its gradient with respect to a list of variables.
#[derive(Debug)]
pub struct Gradients {
    /// Mean over the shards.
    pub loss: f32,
    /// One per variable, in the order that was given; empty if the loss does not depend on it.
    pub values: Vec<Vec<f32>>,
}

/// The gradient of `loss` (a scalar) with respect to `vars`, on this thread.
pub fn gradients(vars: &[(String, Var)], loss: &Tensor) -> Result<Gradients> {
    let mut store = loss.backward()?;
    Ok(Gradients { loss: loss.to_scalar::<f32>()?, values: take(vars, &mut store)? })
}

fn take(vars: &[(String, Var)], store: &mut GradStore) -> Result<Vec<Vec<f32>>> {
    let one = |(_, var): &(String, Var)| match store.remove(var.as_tensor()) {
        Some(grad) => Ok(grad.flatten_all()?.to_vec1::<f32>()?),
        None => Ok(Vec::new()),
    };
    vars.iter().map(one).collect()
}

/// Runs `loss_of(0..shards)`, each forward and backward on one thread with single-threaded kernels, as many at once as
/// [`threads::current`] says, and returns the mean loss and its gradient: of the mean of the shards' losses. Sums are taken
/// in one fixed order (a binary tree over the shard numbers), so the result does not depend on the thread count.
///
/// Small shards (a few hundred tokens) keep activations in cache and are fastest.
pub fn shard_gradients(
    vars: &[(String, Var)],
    shards: usize,
    loss_of: impl Fn(usize) -> Result<Tensor> + Sync,
) -> Result<Gradients> {
    Ok(shard_gradients_with(vars, shards, |shard| Ok((loss_of(shard)?, ())))?.0)
}

/// As [`shard_gradients`]; each shard also returns something of its own (metrics), given back in shard order.
pub fn shard_gradients_with<T: Send>(
    vars: &[(String, Var)],
    shards: usize,
    loss_of: impl Fn(usize) -> Result<(Tensor, T)> + Sync,
) -> Result<(Gradients, Vec<T>)> {
    if shards == 0 {
        return Err(Error::invalid("shard_gradients: expected at least one shard"));
    }
    crate::kernels::memory::keep_freed();
    let shared = Mutex::new(Shared {
        pending: BTreeMap::new(),
        extras: (0..shards).map(|_| None).collect(),
        error: None,
    });
    let next = AtomicUsize::new(0);
    let work = || {
        threads::with_threads(1, || {
            loop {
                let shard = next.fetch_add(1, Ordering::Relaxed);
                if shard >= shards || shared.lock().unwrap_or_else(PoisonError::into_inner).error.is_some() {
                    return;
                }
                let result = loss_of(shard).and_then(|(loss, extra)| Ok((gradients(vars, &loss)?, extra)));
                merge(&shared, shard, shards, result);
            }
        });
    };
    let workers = threads::current().min(shards);
    std::thread::scope(|scope| {
        for _ in 1..workers {
            scope.spawn(work);
        }
        work();
    });
    let mut shared = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, error)) = shared.error {
        return Err(error);
    }
    let (_, mut sum) = shared
        .pending
        .pop_first()
        .ok_or_else(|| Error::invalid("shard_gradients: a shard did not finish"))?;
    let scale = 1.0 / shards as f32;
    sum.loss *= scale;
    if shards > 1 {
        sum.values.iter_mut().for_each(|v| v.iter_mut().for_each(|x| *x *= scale));
    }
    Ok((sum, shared.extras.into_iter().flatten().collect()))
}

struct Shared<T> {
    /// Sums of finished subtrees, by (first shard, one past the last).
    pending: BTreeMap<(usize, usize), Gradients>,
    extras: Vec<Option<T>>,
    error: Option<(usize, Error)>,
}

/// Puts a finished shard into the tree, and joins it with finished neighbours of the same node as far as that goes.
fn merge<T>(shared: &Mutex<Shared<T>>, shard: usize, shards: usize, result: Result<(Gradients, T)>) {
    let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut sum, extra) = match result {
        Ok(done) => done,
        Err(error) => {
            let mut shared = lock();
            // The first shard's error is reported, whichever thread failed first.
            if shared.error.as_ref().is_none_or(|(first, _)| shard < *first) {
                shared.error = Some((shard, error));
            }
            return;
        }
    };
    lock().extras[shard] = Some(extra);
    let (mut start, mut size) = (shard, 1);
    loop {
        let whole = start == 0 && size >= shards;
        let left = start % (2 * size) == 0;
        let sibling = if left { start + size } else { start - size };
        let alone = whole || (left && sibling >= shards);
        if !alone {
            let mut shared = lock();
            match shared.pending.remove(&(sibling, size)) {
                Some(other) => {
                    drop(shared);
                    sum = if left { add(sum, other) } else { add(other, sum) };
                }
                None => {
                    shared.pending.insert((start, size), sum);
                    return;
                }
            }
        }
        if whole {
            lock().pending.insert((0, size), sum);
            return;
        }
        start = start.min(sibling);
        size *= 2;
    }
}

fn add(mut left: Gradients, right: Gradients) -> Gradients {
    left.loss += right.loss;
    for (l, r) in left.values.iter_mut().zip(right.values) {
        if l.is_empty() {
            *l = r;
        } else {
            l.iter_mut().zip(&r).for_each(|(l, r)| *l += r);
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Linear, Weights, random};

    #[test]
    fn the_same_bytes_at_any_thread_count() -> Result<()> {
        let weights = Weights::fresh(3);
        let layer = Linear::new(&weights, 7, 5, true)?;
        let vars = weights.trainable();
        let run = |threads: usize, shards: usize| {
            threads::with_threads(threads, || {
                shard_gradients(&vars, shards, |shard| {
                    let x = random::normal(shard as u64, "x", (4, 7))?;
                    Ok(layer.forward(&x)?.sqr()?.mean_all()?)
                })
            })
        };
        for shards in [1, 2, 3, 5, 8] {
            let one = run(1, shards)?;
            let two = run(2, shards)?;
            let four = run(4, shards)?;
            assert_eq!(one.values, two.values);
            assert_eq!(one.values, four.values);
            assert_eq!(one.loss, four.loss);
        }
        Ok(())
    }

    #[test]
    fn the_first_failing_shard_is_reported() {
        let failed = shard_gradients(&[], 4, |shard| Err(Error::invalid(format!("shard {shard}"))));
        assert!(failed.is_err_and(|e| e.to_string().starts_with("shard ")));
    }
}
