//! Diffusion Policy folders of LeRobot (Chi et al. 2023, <https://arxiv.org/abs/2303.04137>): pictures to key points,
//! key points and joints of the last moments to the conditioning of a U-Net over the chunk.

use crate::diffusion::{Betas, DenoiseTap, DiffusionConfig, Prediction, Sampler, StepNoise};
use crate::head::draw_normal;
use crate::lerobot::{CameraFeature, Folder, is_bookkeeping};
use crate::moment::{Moment, Network};
use crate::storage::Storage;
use crate::unet::{Unet, UnetConfig};
use candle_core::{D, Device, Tensor};
use serde::Deserialize;
use std::path::Path;
use vela_nn::{Conv, Error, Linear, Result, Weights, random};
use vela_vision::{ResNet, ResNetNames, ResNetNorm};

/// The fields of a Diffusion Policy `config.json` that change what is computed.
#[derive(Clone, Debug, Deserialize)]
struct File {
    n_obs_steps: usize,
    horizon: usize,
    n_action_steps: usize,
    vision_backbone: String,
    resize_shape: Option<[usize; 2]>,
    #[serde(default = "one")]
    crop_ratio: f64,
    crop_shape: Option<[usize; 2]>,
    use_group_norm: bool,
    spatial_softmax_num_keypoints: usize,
    #[serde(default)]
    use_separate_rgb_encoder_per_camera: bool,
    down_dims: Vec<usize>,
    kernel_size: usize,
    n_groups: usize,
    diffusion_step_embed_dim: usize,
    use_film_scale_modulation: bool,
    noise_scheduler_type: String,
    num_train_timesteps: usize,
    beta_schedule: String,
    beta_start: f64,
    beta_end: f64,
    prediction_type: String,
    clip_sample: bool,
    clip_sample_range: f32,
    num_inference_steps: Option<usize>,
}

fn one() -> f64 {
    1.0
}

/// Pictures to key points.
#[derive(Clone, Debug)]
struct Eye {
    backbone: ResNet,
    points: Conv,
    out: Linear,
    count: usize,
}

impl Eye {
    fn new(weights: &Weights, file: &File) -> Result<Self> {
        let norm = if file.use_group_norm { ResNetNorm::Group(16) } else { ResNetNorm::FixedBatch };
        let backbone = ResNet::new(&weights.pp("backbone"), ResNetNames::Numbered, norm)?;
        let (count, pool) = (file.spatial_softmax_num_keypoints, weights.pp("pool"));
        // The grid is stored too; it is no parameter, and is worked out here.
        if let Some(shape) = pool.shape_of("pos_grid") {
            pool.get(shape, "pos_grid")?;
        }
        Ok(Self {
            points: Conv::new(&pool.pp("nets"), (backbone.width(), count), 1, 1, 0, true)?,
            out: Linear::new(&weights.pp("out"), 2 * count, 2 * count, true)?,
            backbone,
            count,
        })
    }

    /// `pixels [n, 3, h, w]` to `[n, 2 * points]`.
    fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let maps = self.points.forward(&self.backbone.forward(pixels)?)?;
        let n = maps.dim(0)?;
        let places = spatial_softmax(&maps)?.reshape((n, 2 * self.count))?;
        Ok(self.out.forward(&places)?.relu()?)
    }
}

/// Where each map `[n, k, h, w]` is bright: the mean place under a softmax, `[n, k, 2]` as (x, y), from -1 to 1 with the
/// corners included (Finn et al. 2015, <https://arxiv.org/abs/1509.06113>).
pub fn spatial_softmax(maps: &Tensor) -> Result<Tensor> {
    let (n, k, height, width) = maps.dims4()?;
    let flat = maps.reshape((n * k, height * width))?;
    let weights = flat.broadcast_sub(&flat.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    let even =
        |i: usize, count: usize| if count < 2 { -1.0 } else { 2.0 * i as f32 / (count - 1) as f32 - 1.0 };
    let grid: Vec<f32> =
        (0..height * width).flat_map(|i| [even(i % width, width), even(i / width, height)]).collect();
    let grid = Tensor::from_vec(grid, (height * width, 2), &Device::Cpu)?;
    Ok(weights.matmul(&grid)?.reshape((n, k, 2))?)
}

/// A Diffusion Policy network.
#[derive(Clone, Debug)]
pub struct DiffusionPolicy {
    eyes: Vec<Eye>,
    cameras: Vec<CameraFeature>,
    crop: Option<[usize; 2]>,
    unet: Unet,
    config: DiffusionConfig,
    history: usize,
    /// Ticks of the U-Net's chunk, which begins at the oldest moment.
    ticks: usize,
    execute: usize,
}

impl DiffusionPolicy {
    /// Reads a LeRobot folder's network.
    ///
    /// # Errors
    /// A setting that is not supported; a tensor that is missing, unused or mis-shaped (all of them named).
    pub fn load(folder: &Folder, weights: &Weights) -> Result<Self> {
        let file: File = folder.fields()?;
        folder.refuse(
            "diffusion",
            &[
                (!["resnet18", "resnet34"].contains(&file.vision_backbone.as_str()), "this vision_backbone"),
                (file.resize_shape.is_some(), "resize_shape"),
                (file.crop_ratio != 1.0, "crop_ratio"),
                (file.n_obs_steps == 0, "no observations"),
                (
                    file.n_obs_steps + file.n_action_steps > file.horizon + 1,
                    "more actions than its horizon has",
                ),
                (file.spatial_softmax_num_keypoints == 0, "no key points"),
                (folder.inputs.of_kind("ENV").next().is_some(), "an environment state"),
            ],
        )?;
        let cameras = folder.cameras()?;
        let root = weights.pp("diffusion");
        let encoder = root.pp("rgb_encoder");
        let eyes: Vec<Eye> = match (cameras.len(), file.use_separate_rgb_encoder_per_camera) {
            (0, _) => Vec::new(),
            (count, true) => (0..count).map(|i| Eye::new(&encoder.pp(i), &file)).collect::<Result<_>>()?,
            (_, false) => vec![Eye::new(&encoder, &file)?],
        };
        let state = folder.inputs.width("STATE")?;
        let seen = cameras.len() * 2 * file.spatial_softmax_num_keypoints;
        let unet = UnetConfig {
            action_dims: folder.outputs.width("ACTION")?,
            conditioning: file.n_obs_steps * (state + seen),
            widths: file.down_dims.clone(),
            kernel: file.kernel_size,
            groups: file.n_groups,
            time_dims: file.diffusion_step_embed_dim,
            film_scale: file.use_film_scale_modulation,
        };
        let made = Self {
            unet: Unet::new(&root.pp("unet"), &unet)?,
            config: file.diffusion()?,
            crop: file.crop_shape,
            history: file.n_obs_steps,
            ticks: file.horizon,
            execute: file.n_action_steps,
            eyes,
            cameras,
        };
        made.config.kept()?;
        weights.finish_allowing(is_bookkeeping)?;
        Ok(made)
    }

    /// A folder from disk.
    ///
    /// # Errors
    /// Those of [`Self::load`]; storage in fewer bits, since its weights are those of convolutions.
    pub fn open(dir: &Path, storage: Storage) -> Result<(Folder, Weights, Self)> {
        if matches!(storage, Storage::Bf16 | Storage::Int8) {
            let name = storage.name();
            return Err(Error::invalid(format!("diffusion policy: convolutions are float32, not {name}")));
        }
        let folder = Folder::read(dir, &[])?;
        let weights = storage.load(dir)?;
        let network = Self::load(&folder, &weights)?;
        Ok((folder, weights, network))
    }

    /// The schedule and the sampler.
    pub fn diffusion(&self) -> &DiffusionConfig {
        &self.config
    }

    /// Denoises in `steps` steps, 1 to those of training, from now on.
    pub fn set_steps(&mut self, steps: usize) {
        self.config.steps = steps;
    }

    /// The U-Net.
    pub fn unet(&self) -> &UnetConfig {
        self.unet.config()
    }

    /// Moments that it wants, and numbers in each one's state.
    pub fn state_shape(&self) -> [usize; 2] {
        let seen: usize = self.cameras.len() * self.eyes.first().map_or(0, |eye| 2 * eye.count);
        [self.history, (self.unet.config().conditioning / self.history).saturating_sub(seen)]
    }

    /// Pictures as its encoder takes them, `(height, width)`, of one of `size`.
    pub fn cropped(&self, size: (usize, usize)) -> (usize, usize) {
        self.crop.map_or(size, |[height, width]| (height, width))
    }

    /// Numbers per chunk: `[horizon, dims]`.
    pub fn chunk_shape(&self) -> [usize; 2] {
        [self.ticks, self.unet.config().action_dims]
    }

    /// What conditions the U-Net: `pictures` one `[b, history, 3, h, w]` per camera, `state [b, history, dims]` to
    /// `[b, history * (dims + features)]`.
    pub fn condition(&self, pictures: &[Tensor], state: &Tensor) -> Result<Tensor> {
        let (b, history, _) = state.dims3()?;
        if history != self.history || pictures.len() != self.cameras.len() {
            let expected = format!("{} moments of {} cameras", self.history, self.cameras.len());
            let got = format!("{history} of {}", pictures.len());
            return Err(Error::invalid(format!("diffusion policy: expected {expected}, got {got}")));
        }
        let mut parts = vec![state.clone()];
        for (i, picture) in pictures.iter().enumerate() {
            let (_, _, channels, height, width) = picture.dims5()?;
            let mut pixels = picture.reshape((b * history, channels, height, width))?;
            if let Some(crop) = self.crop {
                pixels = centre_crop(&pixels, crop)?;
            }
            let eye = self.eyes.get(i).or(self.eyes.first());
            let eye = eye.ok_or_else(|| Error::invalid("diffusion policy: no encoder for pictures"))?;
            let features = eye.forward(&pixels)?;
            parts.push(features.reshape((b, history, features.dim(1)?))?);
        }
        Ok(Tensor::cat(&parts, 2)?.flatten_from(1)?)
    }

    /// From noise `[b, horizon, dims]` to normalised actions of the same shape.
    pub fn sample(
        &self,
        conditioning: &Tensor,
        noise: &Tensor,
        step_noise: &mut StepNoise,
        tap: &mut DenoiseTap,
    ) -> Result<Tensor> {
        let mut field = |x: &Tensor, t: &Tensor| self.unet.forward(x, t, conditioning);
        self.config.sample(&mut field, noise, step_noise, tap)
    }

    /// Mean squared error over `noise` at training steps `times [b]` for `actions [b, horizon, dims]`, normalised.
    pub fn loss(
        &self,
        conditioning: &Tensor,
        actions: &Tensor,
        noise: &Tensor,
        times: &[usize],
    ) -> Result<Tensor> {
        let mut field = |x: &Tensor, t: &Tensor| self.unet.forward(x, t, conditioning);
        Ok(self.config.squared_errors(&mut field, actions, noise, times)?.mean_all()?)
    }

    /// The actions from now on, out of a chunk that begins at the oldest moment: `[b, execute, dims]`.
    pub fn from_now(&self, chunk: &Tensor) -> Result<Tensor> {
        Ok(chunk.narrow(1, self.history - 1, self.execute)?.contiguous()?)
    }
}

impl Network for DiffusionPolicy {
    fn horizon(&self) -> usize {
        self.execute
    }

    fn execute(&self) -> usize {
        self.execute
    }

    fn history(&self) -> usize {
        self.history
    }

    fn act(&self, moments: &[Moment], seed: u64) -> Result<Tensor> {
        let stacked = |i: usize| -> Result<Tensor> {
            let all: Vec<&Tensor> = moments.iter().filter_map(|m| m.pictures.get(i)).collect();
            Ok(Tensor::stack(&all, 0)?.unsqueeze(0)?)
        };
        let pictures: Vec<Tensor> = (0..self.cameras.len()).map(stacked).collect::<Result<_>>()?;
        let states: Vec<f32> = moments.iter().flat_map(|m| m.state.iter().copied()).collect();
        let dims = states.len() / moments.len().max(1);
        let state = Tensor::from_vec(states, (1, moments.len(), dims), &Device::Cpu)?;
        let conditioning = self.condition(&pictures, &state)?;
        let mut rng = random::stream(seed, "diffusion noise");
        let [horizon, dims] = self.chunk_shape();
        let noise = draw_normal(&mut rng, &[1, horizon, dims])?;
        let mut more = |_: usize| draw_normal(&mut rng, &[1, horizon, dims]);
        let chunk = self.sample(&conditioning, &noise, &mut more, &mut |_, _, _| {})?;
        Ok(self.from_now(&chunk)?.squeeze(0)?)
    }
}

/// The middle of `pixels [n, c, h, w]`; half a spare pixel is rounded to even, as torchvision does.
fn centre_crop(pixels: &Tensor, [height, width]: [usize; 2]) -> Result<Tensor> {
    let (_, _, from_height, from_width) = pixels.dims4()?;
    if height > from_height || width > from_width {
        return Err(Error::shape("picture to crop", format!("at least {height} x {width}"), pixels.dims()));
    }
    let start = |spare: usize| (spare as f64 / 2.0).round_ties_even() as usize;
    let rows = pixels.narrow(2, start(from_height - height), height)?;
    Ok(rows.narrow(3, start(from_width - width), width)?.contiguous()?)
}

impl File {
    fn diffusion(&self) -> Result<DiffusionConfig> {
        let unknown = |field: &str, value: &str, known: &str| {
            Error::invalid(format!("config.json: {field}: expected one of {known}, got '{value}'"))
        };
        Ok(DiffusionConfig {
            train_steps: self.num_train_timesteps,
            betas: match self.beta_schedule.as_str() {
                "squaredcos_cap_v2" => Betas::SquaredCosine,
                "linear" => Betas::Linear(self.beta_start, self.beta_end),
                "scaled_linear" => Betas::ScaledLinear(self.beta_start, self.beta_end),
                other => {
                    return Err(unknown("beta_schedule", other, "squaredcos_cap_v2, linear, scaled_linear"));
                }
            },
            prediction: match self.prediction_type.as_str() {
                "epsilon" => Prediction::Epsilon,
                "sample" => Prediction::Sample,
                "v_prediction" => Prediction::VPrediction,
                other => return Err(unknown("prediction_type", other, "epsilon, sample, v_prediction")),
            },
            clip: self.clip_sample.then_some(self.clip_sample_range),
            sampler: match self.noise_scheduler_type.as_str() {
                "DDPM" => Sampler::Ddpm,
                "DDIM" => Sampler::Ddim,
                other => return Err(unknown("noise_scheduler_type", other, "DDPM, DDIM")),
            },
            steps: self.num_inference_steps.unwrap_or(self.num_train_timesteps),
        })
    }
}
