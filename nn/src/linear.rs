//! The affine map.

use crate::kernels::data::{Values, tensor};
use crate::kernels::quant::{Activations, Input, products};
use crate::kernels::quant_pack::{MOST, Packed};
use crate::quant::{Blocks, Precision};
use crate::weights::Matrix;
use crate::{Error, Init, Norm, Result, Weights, kernels};
use candle_core::Tensor;
use std::sync::{Arc, OnceLock};

/// `y = x · weightᵀ + bias`. The weight may be quantised: that is a property of this layer, and of nothing above it.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
    /// Factors on the columns of `x`, `[input]`, that a quantised weight was divided by (AWQ; Lin et al., 2023).
    input_scale: Option<Arc<[f32]>>,
    beside: Option<Box<LowRank>>,
}

/// What learns beside a matrix that stays: `scale · x · aᵀ · bᵀ` is added to what the matrix gives (LoRA; Hu et al.,
/// arXiv:2106.09685).
#[derive(Clone, Debug)]
pub struct LowRank {
    /// `[rank, input]`.
    pub a: Tensor,
    /// `[output, rank]`.
    pub b: Tensor,
    /// `alpha / rank`.
    pub scale: f64,
}

impl LowRank {
    /// `x [.., input]` to `[.., output]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(&(linear(x, &self.a, None)? * self.scale)?, &self.b, None)
    }
}

#[derive(Clone)]
enum Weight {
    Dense {
        weight: Tensor,
        /// A constant weight packed at its first use, which nears the processor's peak. A variable has none, since it changes.
        packed: Arc<OnceLock<Packed>>,
    },
    /// In the file's blocks, dequantised on the way.
    Blocks(Blocks),
    /// Packed for integer products; its rows may end in zeros behind as many columns as the layer has inputs.
    Packed(Arc<Packed>, usize),
}

impl std::fmt::Debug for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dense { weight, .. } => weight.fmt(f),
            Self::Blocks(blocks) => blocks.fmt(f),
            Self::Packed(packed, input) => {
                write!(f, "{} [{}, {input}]", packed.format().name(), packed.rows())
            }
        }
    }
}

impl From<Tensor> for Weight {
    fn from(weight: Tensor) -> Self {
        Self::Dense { weight, packed: Arc::default() }
    }
}

impl Linear {
    /// Reads `weight [output, input]` and, if `bias`, `bias [output]`. Fresh ones start Xavier-uniform and zero. Beside a
    /// quantised weight there may be `input_scale [input]`, which `x` is multiplied by first.
    pub fn new(weights: &Weights, input: usize, output: usize, bias: bool) -> Result<Self> {
        Self::with_init(weights, input, output, bias, Init::XavierUniform)
    }

    /// As [`Linear::new`] with a fresh weight started by `init`.
    pub fn with_init(weights: &Weights, input: usize, output: usize, bias: bool, init: Init) -> Result<Self> {
        let weight = match weights.matrix((output, input), "weight", init)? {
            Matrix::Dense(weight) => weight.into(),
            Matrix::Blocks(blocks, precision) => Self::quantised(blocks, precision, input),
        };
        let bias = if bias { Some(weights.get_init(output, "bias", Init::Zeros)?) } else { None };
        let input_scale = match weight {
            Weight::Dense { .. } => None,
            _ if weights.contains("input_scale") => {
                Some(weights.get(input, "input_scale")?.to_vec1::<f32>()?.into())
            }
            _ => None,
        };
        Ok(Self { weight, bias, input_scale, beside: weights.beside("weight").map(Box::new) })
    }

    /// From tensors: `weight [output, input]` (may be tied to an embedding), `bias [output]`.
    pub fn from_tensors(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let (output, _) = weight.dims2()?;
        check_bias(output, bias.as_ref())?;
        Ok(Self { weight: weight.into(), bias, input_scale: None, beside: None })
    }

    /// From a stored matrix `[output, input]`, multiplied as `precision` says, and `bias [output]`.
    pub fn from_blocks(weight: Blocks, precision: Precision, bias: Option<Tensor>) -> Result<Self> {
        let [output, input] = *weight.shape() else {
            return Err(Error::shape("weight of a linear layer", "[output, input]", weight.shape()));
        };
        check_bias(output, bias.as_ref())?;
        Ok(Self { weight: Self::quantised(weight, precision, input), bias, input_scale: None, beside: None })
    }

    /// From a packed weight, without bias.
    pub(crate) fn from_packed(weight: Arc<Packed>) -> Self {
        let input = weight.columns();
        Self { weight: Weight::Packed(weight, input), bias: None, input_scale: None, beside: None }
    }

    fn quantised(blocks: Blocks, precision: Precision, input: usize) -> Weight {
        if precision == Precision::Exact {
            return Weight::Blocks(blocks);
        }
        let packed = Packed::new(&blocks);
        // The file's own copy is not needed any more.
        blocks.forget();
        Weight::Packed(Arc::new(packed), input)
    }

    /// `(output, input)`.
    pub fn dims(&self) -> (usize, usize) {
        match &self.weight {
            Weight::Dense { weight, .. } => match *weight.dims() {
                [output, input] => (output, input),
                _ => (0, 0),
            },
            Weight::Blocks(blocks) => blocks.rows(),
            Weight::Packed(packed, input) => (packed.rows(), *input),
        }
    }

    /// The weight `[output, input]`, unless it is quantised.
    pub fn weight(&self) -> Option<&Tensor> {
        if let Weight::Dense { weight, .. } = &self.weight { Some(weight) } else { None }
    }

    /// `[output]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// `x [.., input]` to `[.., output]`.
    ///
    /// # Errors
    /// Another width; a packed weight asked to hand on gradients.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if let Some(low) = &self.beside {
            let own = Self { beside: None, ..self.clone() };
            return Ok((own.forward(x)? + low.forward(x)?)?);
        }
        if x.track_op() || self.is_trained() {
            return match &self.weight {
                Weight::Dense { weight, .. } => linear(x, weight, self.bias.as_ref()),
                Weight::Blocks(blocks) if self.input_scale.is_none() => {
                    check(x, blocks.rows().1)?;
                    kernels::linear::linear_on_blocks(x, blocks, self.bias.as_ref())
                }
                weight => Err(Error::invalid(format!("a packed layer ({weight:?}) has no gradient"))),
            };
        }
        match Self::forward_all(&[self], x)?.pop() {
            Some(y) => Ok(y),
            None => Err(Error::invalid("linear: no layer")),
        }
    }

    /// Several layers on one `x [.., input]`: each one's `[.., output]`. Quantised layers share one quantisation of `x` and
    /// one sweep over the threads.
    pub fn forward_all(layers: &[&Self], x: &Tensor) -> Result<Vec<Tensor>> {
        if x.track_op() || layers.iter().any(|layer| layer.is_trained() || layer.beside.is_some()) {
            return layers.iter().map(|layer| layer.forward(x)).collect();
        }
        for layer in layers {
            check(x, layer.dims().1)?;
        }
        Self::shaped(layers, x, Self::project_all(layers, Input::from(&*Values::of(x)?))?)
    }

    /// The same on `norm` of `x`: where no gradient is wanted, rows are normalised as they are laid out for the products, and no
    /// normalised tensor is stored.
    pub fn forward_normed(layers: &[&Self], norm: &Norm, x: &Tensor) -> Result<Vec<Tensor>> {
        if x.track_op() || norm.is_trained() || !layers.iter().all(|layer| layer.takes_rows()) {
            return Self::forward_all(layers, &norm.forward(x)?);
        }
        for layer in layers {
            check(x, layer.dims().1)?;
        }
        let inside = norm.inside(x)?;
        let rows = Input { values: &Values::of(x)?, norm: Some(&inside) };
        Self::shaped(layers, x, Self::project_all(layers, rows)?)
    }

    /// What layers made of `x [.., input]`, as tensors.
    fn shaped(layers: &[&Self], x: &Tensor, values: Vec<Vec<f32>>) -> Result<Vec<Tensor>> {
        let shaped = |(layer, values): (&&Self, Vec<f32>)| {
            let mut shape = x.dims().to_vec();
            if let Some(last) = shape.last_mut() {
                *last = layer.dims().0;
            }
            tensor(values, shape)
        };
        layers.iter().zip(values).map(shaped).collect()
    }

    /// Whether a gradient is wanted for the weight or the bias.
    pub(crate) fn is_trained(&self) -> bool {
        self.weight().is_some_and(Tensor::track_op) || self.bias.as_ref().is_some_and(Tensor::track_op)
    }

    /// Whether the layer is its weight and its bias, and these are float32: what a fused operation may hand gradients to.
    pub(crate) fn is_plain(&self) -> bool {
        self.weight().is_some() && self.beside.is_none()
    }

    /// Whether it is a constant packed weight and nothing else happens to its rows: it may read them through a norm.
    pub(crate) fn takes_rows(&self) -> bool {
        !self.is_trained() && self.beside.is_none() && self.input_scale.is_none() && self.is_packed()
    }

    /// Whether something learns beside its weight.
    pub(crate) fn is_adapted(&self) -> bool {
        self.beside.is_some()
    }

    /// Rows of `input` values to rows of `output` values.
    pub(crate) fn project(&self, x: &[f32]) -> Result<Vec<f32>> {
        Ok(Self::project_all(&[self], Input::from(x))?.pop().unwrap_or_default())
    }

    /// The same for several layers of equal input.
    pub(crate) fn project_all(layers: &[&Self], x: Input) -> Result<Vec<Vec<f32>>> {
        if layers.iter().any(|layer| layer.input_scale.is_some()) {
            let x = x.all();
            return layers.iter().map(|layer| layer.project_scaled(&x)).collect();
        }
        let biases: Vec<Option<Values>> = layers
            .iter()
            .map(|layer| layer.bias.as_ref().map(Values::of).transpose())
            .collect::<Result<_>>()?;
        // Those of one width share a quantisation of the activations; rows that end in zeros are wider.
        let mut packed = Vec::with_capacity(layers.len());
        for (i, layer) in layers.iter().enumerate() {
            packed.extend(layer.packed()?.map(|packed| (i, packed)));
        }
        packed.sort_by_key(|(_, packed)| packed.columns());
        let mut fast: Vec<Option<Vec<f32>>> = layers.iter().map(|_| None).collect();
        for alike in packed.chunk_by(|a, b| a.1.columns() == b.1.columns()) {
            let weights: Vec<&Packed> = alike.iter().map(|(_, packed)| *packed).collect();
            let (columns, input) = (weights[0].columns(), layers[alike[0].0].dims().1);
            let padded = if columns > input { widened(&x.all(), input, columns) } else { Vec::new() };
            let x = if columns > input { Input::from(&padded[..]) } else { x };
            let with_bias: Vec<_> =
                alike.iter().map(|(i, packed)| (*packed, biases[*i].as_deref())).collect();
            for ((i, _), out) in alike.iter().zip(products(&Activations::of(x, &weights), &with_bias)) {
                fast[*i] = Some(out);
            }
        }
        let one = |(layer, fast): (&&Self, Option<Vec<f32>>)| -> Result<Vec<f32>> {
            match (&layer.weight, fast) {
                (Weight::Blocks(blocks), _) => {
                    let mut out = kernels::quant::exact(&x.all(), blocks);
                    layer.add_bias(&mut out)?;
                    Ok(out)
                }
                (_, Some(out)) => Ok(out),
                _ => layer.project_dense(&x.all()),
            }
        };
        layers.iter().zip(fast).map(one).collect()
    }

    /// As [`Linear::project`], the columns of `x` multiplied first if the layer asks for it.
    fn project_scaled(&self, x: &[f32]) -> Result<Vec<f32>> {
        let Some(scale) = &self.input_scale else { return self.project(x) };
        let scaled: Vec<f32> = x.iter().zip(scale.iter().cycle()).map(|(x, s)| x * s).collect();
        Self { input_scale: None, ..self.clone() }.project(&scaled)
    }

    /// Whether its products are worked out on a packed weight.
    fn is_packed(&self) -> bool {
        match &self.weight {
            Weight::Dense { weight, .. } => weight.elem_count() <= MOST && !weight.track_op(),
            Weight::Blocks(_) => false,
            Weight::Packed(..) => true,
        }
    }

    fn packed(&self) -> Result<Option<&Packed>> {
        Ok(match &self.weight {
            Weight::Packed(packed, _) => Some(packed),
            Weight::Dense { weight, packed } if self.is_packed() => {
                let (output, input) = weight.dims2()?;
                let values = Values::of(weight)?;
                Some(packed.get_or_init(|| Packed::dense(&values, output, input)))
            }
            _ => None,
        })
    }

    /// On a weight that is not packed.
    fn project_dense(&self, x: &[f32]) -> Result<Vec<f32>> {
        let Weight::Dense { weight, .. } = &self.weight else { return Ok(Vec::new()) };
        let (output, input) = weight.dims2()?;
        let bias = self.bias.as_ref().map(Values::of).transpose()?;
        let m = x.len() / input.max(1);
        Ok(kernels::linear::forward(x, &Values::of(weight)?, bias.as_deref(), (m, output, input)))
    }

    fn add_bias(&self, rows: &mut [f32]) -> Result<()> {
        let Some(bias) = &self.bias else { return Ok(()) };
        let bias = Values::of(bias)?;
        for row in rows.chunks_exact_mut(bias.len().max(1)) {
            row.iter_mut().zip(bias.iter()).for_each(|(o, b)| *o += b);
        }
        Ok(())
    }
}

/// Rows of `from` numbers as rows of `to`, with zeros behind.
fn widened(x: &[f32], from: usize, to: usize) -> Vec<f32> {
    let mut out = vec![0.0; x.len() / from.max(1) * to];
    for (row, values) in out.chunks_exact_mut(to.max(1)).zip(x.chunks_exact(from.max(1))) {
        row[..from].copy_from_slice(values);
    }
    out
}

fn check_bias(output: usize, bias: Option<&Tensor>) -> Result<()> {
    match bias {
        Some(bias) if bias.dims() != [output] => {
            Err(Error::shape("bias of a linear layer", format!("[{output}]"), bias.dims()))
        }
        _ => Ok(()),
    }
}

/// `x [.., input] · weightᵀ + bias` with `weight [output, input]`, `bias [output]`: `[.., output]`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (_, input) = weight.dims2()?;
    check(x, input)?;
    kernels::linear::linear(x, weight, bias)
}

fn check(x: &Tensor, input: usize) -> Result<()> {
    if x.rank() < 2 || x.dims().last() != Some(&input) {
        return Err(Error::shape("input of a linear layer", format!("[.., {input}]"), x.dims()));
    }
    Ok(())
}
