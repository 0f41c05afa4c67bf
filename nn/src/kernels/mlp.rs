//! A whole feed-forward network as one operation: what is inside is kept for the backward pass, not recorded in the graph.

use super::activation::{apply_and_scale, forward as activate, gated_backward};
use super::data::{Values, tensor};
use super::linear::{backward_input, backward_weight, column_sums};
use super::matmul::{View, matmul_add};
use super::node::{node, tracked};
use super::norm::Inside;
use super::quant::Input;
use crate::activation::Activation;
use crate::{Linear, Result};
use candle_core::Tensor;

/// [`mlp`] of the rows of `x [.., input]`, normalised on their way, where no gradient is wanted.
pub fn normed(
    x: &Tensor,
    norm: &Inside,
    gate: Option<&Linear>,
    up: &Linear,
    down: &Linear,
    kind: Activation,
) -> Result<Tensor> {
    let values = Values::of(x)?;
    let (up, gate) = first(Input { values: &values, norm: Some(norm) }, gate, up)?;
    tensor(last(up, gate, down, kind)?, shape(x, down))
}

/// What the first projection gives, and the gate if there is one.
fn first(x: Input, gate: Option<&Linear>, up: &Linear) -> Result<(Vec<f32>, Option<Vec<f32>>)> {
    // In the order in which they were loaded, so that the one is read behind the other.
    let layers: Vec<&Linear> = gate.into_iter().chain([up]).collect();
    let mut values = Linear::project_all(&layers, x)?;
    let up = values.pop().unwrap_or_default();
    Ok((up, values.pop()))
}

/// The rest, in place.
fn last(up: Vec<f32>, gate: Option<Vec<f32>>, down: &Linear, kind: Activation) -> Result<Vec<f32>> {
    let (mut inside, up) = match gate {
        Some(gate) => (gate, Some(up)),
        None => (up, None),
    };
    activate(&mut inside, up.as_deref(), kind);
    down.project(&inside)
}

/// That of `x`, as wide as `down` gives it.
fn shape(x: &Tensor, down: &Linear) -> Vec<usize> {
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = down.dims().0;
    }
    shape
}

/// `down(act(up(x)))`, or with a gate `down(act(gate(x)) * up(x))`. Shapes were checked by the caller; what is to hand
/// on gradients is plain ([`Linear::is_plain`]).
pub fn mlp(
    x: &Tensor,
    gate: Option<&Linear>,
    up: &Linear,
    down: &Linear,
    kind: Activation,
) -> Result<Tensor> {
    let ((hidden, input), (output, _)) = (up.dims(), down.dims());
    let m = x.elem_count() / input.max(1);
    let shape = shape(x, down);
    // Arguments of the node: x, then weight and (if any) bias of up, down, gate.
    let layers: Vec<&Linear> = [up, down].into_iter().chain(gate).collect();
    let mut args = vec![x];
    for layer in &layers {
        args.extend(layer.weight());
        args.extend(layer.bias());
    }
    let biases: Vec<bool> = layers.iter().map(|layer| layer.bias().is_some()).collect();

    let (up_values, gate_values, values) = {
        let (up_values, gate_values) = first(Input::from(&*Values::of(x)?), gate, up)?;
        if !tracked(&args) {
            return tensor(last(up_values, gate_values, down, kind)?, shape);
        }
        let mut inside = gate_values.as_ref().unwrap_or(&up_values).clone();
        activate(&mut inside, gate_values.is_some().then_some(&up_values[..]), kind);
        let values = down.project(&inside)?;
        (up_values, gate_values, values)
    };

    let backward = move |args: &[&Tensor], _: &Tensor, grad: &Tensor| -> Result<Vec<Option<Tensor>>> {
        let grad = Values::of(grad)?;
        let mut rest = args[1..].iter().copied();
        let mut layers = Vec::with_capacity(3);
        for has_bias in &biases {
            let weight = rest.next().ok_or_else(|| crate::Error::invalid("mlp: a weight is absent"))?;
            layers.push((weight, if *has_bias { rest.next() } else { None }));
        }
        let (up, down) = (layers[0], layers[1]);
        let x = Values::of(args[0])?;

        let mut d_up = backward_input(&grad, &Values::of(down.0)?, (m, output, hidden));
        let mut inside = vec![0.0; d_up.len()];
        let mut d_gate = Vec::new();
        match &gate_values {
            Some(gate) => {
                // The incoming gradient turns into the gate's in place.
                d_gate = std::mem::replace(&mut d_up, vec![0.0; gate.len()]);
                gated_backward(kind, gate, &up_values, &mut d_gate, &mut d_up, &mut inside);
            }
            None => apply_and_scale(kind, &up_values, &mut d_up, &mut inside),
        }
        let parts = [(&d_up[..], &x[..], up), (&grad, &inside, down)];
        let gate_part = layers.get(2).map(|gate| (&d_gate[..], &x[..], *gate));
        let mut grads = vec![None];
        for (grad, x, (weight, bias)) in parts.into_iter().chain(gate_part) {
            let (n, k) = weight.dims2()?;
            grads.push(match weight.track_op() {
                true => Some(tensor(backward_weight(grad, x, (m, n, k)), (n, k))?),
                false => None,
            });
            if let Some(bias) = bias {
                grads.push(if bias.track_op() { Some(tensor(column_sums(grad, n), n)?) } else { None });
            }
        }
        if args[0].track_op() {
            let mut dx = backward_input(&d_up, &Values::of(up.0)?, (m, hidden, input));
            if let Some((weight, _)) = layers.get(2) {
                let (a, weight) = (View::rows(&d_gate, hidden), Values::of(weight)?);
                matmul_add(&mut dx, input, (m, input, hidden), a, View::rows(&weight, input), 1.0);
            }
            grads[0] = Some(tensor(dx, args[0].shape())?);
        }
        Ok(grads)
    };
    node("mlp", &args, values, shape, backward)
}
