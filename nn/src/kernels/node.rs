//! Joins a fused operation to Candle's graph: any number of arguments, a result that is already worked out, and a backward.
//!
//! Candle's custom operations take at most three arguments. A fourth and later ones are gathered under a one-element
//! "bundle" node that depends on them: the operation leaves their gradients in a shared place, and the bundle, whose turn
//! comes later in the backward pass, hands them on.

use crate::Result;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Shape, Tensor};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The backward of a fused operation.
pub trait Backward: Send + Sync + 'static {
    /// Gradients of the arguments, in order, given the result's gradient. `None` only for an argument that needs none
    /// ([`Tensor::track_op`] is false).
    fn backward(&self, args: &[&Tensor], result: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>>;
}

impl<F> Backward for F
where
    F: Fn(&[&Tensor], &Tensor, &Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
{
    fn backward(&self, args: &[&Tensor], result: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        self(args, result, grad)
    }
}

/// Whether any argument needs a gradient.
pub fn tracked(args: &[&Tensor]) -> bool {
    args.iter().any(|arg| arg.track_op())
}

/// The result `values` of an operation on `args`. Without an argument that needs a gradient it is a plain tensor.
pub fn node(
    name: &'static str,
    args: &[&Tensor],
    values: Vec<f32>,
    shape: impl Into<Shape>,
    backward: impl Backward,
) -> Result<Tensor> {
    let shape = shape.into();
    if !tracked(args) {
        return super::data::tensor(values, shape);
    }
    let rest: Vec<Tensor> = args.iter().skip(2).map(|t| (*t).clone()).collect();
    let stash = Arc::new(Mutex::new(Vec::new()));
    let op = Op {
        name,
        output: Mutex::new(Some((values, shape))),
        kind: Kind::Main(Box::new(backward), rest, stash.clone()),
    };
    Ok(match args {
        [a] => a.apply_op1(op)?,
        [a, b] => a.apply_op2(b, op)?,
        [a, b, c] => a.apply_op3(b, c, op)?,
        [a, b, rest @ ..] => a.apply_op3(b, &bundle(rest, 0, &stash)?, op)?,
        [] => return Err(crate::Error::invalid("a fused operation needs an argument")),
    })
}

type Stash = Arc<Mutex<Vec<Option<Tensor>>>>;

/// One element that depends on all of `args`, whose gradients will be in `stash` from `start` on.
fn bundle(args: &[&Tensor], start: usize, stash: &Stash) -> Result<Tensor> {
    let op = Op {
        name: "bundle",
        output: Mutex::new(Some((vec![0.0], Shape::from(1)))),
        kind: Kind::Bundle(start, args.len(), stash.clone()),
    };
    Ok(match args {
        [a] => a.apply_op1(op)?,
        [a, b] => a.apply_op2(b, op)?,
        [a, b, c] => a.apply_op3(b, c, op)?,
        [a, b, rest @ ..] => a.apply_op3(b, &bundle(rest, start + 2, stash)?, op)?,
        [] => return Err(crate::Error::invalid("an empty bundle")),
    })
}

enum Kind {
    /// The operation itself; arguments from the third on; where their gradients are left if they are more than one.
    Main(Box<dyn Backward>, Vec<Tensor>, Stash),
    /// A bundle: its first place in the stash, and how many arguments it stands for.
    Bundle(usize, usize, Stash),
}

struct Op {
    name: &'static str,
    output: Mutex<Option<(Vec<f32>, Shape)>>,
    kind: Kind,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Op {
    fn output(&self) -> candle_core::Result<(CpuStorage, Shape)> {
        match lock(&self.output).take() {
            Some((values, shape)) => Ok((CpuStorage::F32(values), shape)),
            None => candle_core::bail!("{}: applied twice", self.name),
        }
    }

    /// Gradients of up to three direct arguments; the last may be a bundle.
    fn grads(
        &self,
        direct: &[&Tensor],
        result: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<Vec<Option<Tensor>>> {
        // A bundle's own gradient must be there, whatever it is, for its turn to come.
        let onward = |t: &Tensor| -> candle_core::Result<Option<Tensor>> {
            Ok(if t.track_op() { Some(t.zeros_like()?) } else { None })
        };
        match &self.kind {
            Kind::Main(backward, rest, stash) => {
                let mut args: Vec<&Tensor> = direct.iter().take(2).copied().collect();
                args.extend(rest);
                let mut grads = backward
                    .backward(&args, result, grad)
                    .map_err(|e| candle_core::Error::Msg(format!("{}: {e}", self.name)))?;
                if rest.len() > 1 {
                    *lock(stash) = grads.split_off(2);
                    grads.push(onward(direct[2])?);
                }
                Ok(grads)
            }
            Kind::Bundle(start, count, stash) => {
                let mut stash = lock(stash);
                let mut take = |i: usize| stash.get_mut(start + i).and_then(Option::take);
                if *count <= 3 {
                    return Ok((0..*count).map(take).collect());
                }
                Ok(vec![take(0), take(1), onward(direct[2])?])
            }
        }
    }
}

impl CustomOp1 for Op {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        self.output()
    }

    fn bwd(&self, a: &Tensor, result: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(self.grads(&[a], result, grad)?.pop().flatten())
    }
}

impl CustomOp2 for Op {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.output()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        result: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let mut grads = self.grads(&[a, b], result, grad)?.into_iter();
        let mut next = || grads.next().flatten();
        Ok((next(), next()))
    }
}

impl CustomOp3 for Op {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.output()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        result: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut grads = self.grads(&[a, b, c], result, grad)?.into_iter();
        let mut next = || grads.next().flatten();
        Ok((next(), next(), next()))
    }
}
