//! A model folder with its weights in few bits: rounding in groups, with factors on the inputs that calibration finds
//! (AWQ; Lin et al., arXiv:2306.00978), and the loss before and after.
//!
//! What is written is a folder with the same `config.json` and tokenizer, and [`FILE`] in place of the safetensors; see
//! `docs/decisions/0010-quantised-folders.md`. Embedding and output projection are kept in eight bits; norms, biases,
//! routers and matrices whose rows do not divide into blocks in float32.

mod awq;
mod calibrate;
mod fold;
mod layers;
mod loss;
mod partial;
mod round;

pub use loss::Sample;
pub use partial::Partial;
pub use round::Bits;

use crate::config::DecoderConfig;
use crate::load::{body, is_surplus};
use crate::trace::config_json;
use layers::{Layer, outside};
use loss::{Windows, mean_nll};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use vela_nn::gguf::{self, Value};
use vela_nn::quant::{Blocks, Precision};
use vela_nn::{Error, Result, Weights};

/// The weights of a quantised folder: a GGUF container of tensors under the names of the family.
pub const FILE: &str = "quantised.gguf";

/// What `general.architecture` says there, and the version of the layout.
pub(crate) const ARCHITECTURE: &str = "vela-quantised";
const LAYOUT: u64 = 1;

/// Tokens that calibration reads and that the loss is measured on, at most.
const MOST: [usize; 2] = [8192, 8192];
/// Positions read at once.
const WINDOW: usize = 256;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Of the layers' matrices.
    pub bits: Bits,
    /// Numbers of a row that share their levels: a multiple of 32.
    pub group: usize,
    /// By how much the mean negative log-likelihood may grow, in nats per token.
    pub max_loss_increase: f64,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Of a weight of the layers' matrices.
    pub bits: u8,
    /// Numbers that share their levels.
    pub group: usize,
    /// Matrices quantised, and numbers in them.
    pub matrices: usize,
    /// Numbers in these matrices.
    pub numbers: usize,
    /// Bytes of the weights before and after.
    pub bytes: [u64; 2],
    /// Groups of matrices whose inputs got factors: put into what makes them, and kept beside a matrix.
    pub factors: [usize; 2],
    /// The squared error of what the matrices give on the calibration text, over that of plain rounding.
    pub error_over_plain: f64,
    /// Tokens that calibration read.
    pub calibration_tokens: usize,
    /// Tokens that the loss was measured on.
    pub evaluation_tokens: usize,
    /// Mean negative log-likelihood before and after, in nats per token.
    pub nll: [f64; 2],
    /// The same as perplexity.
    pub perplexity: [f64; 2],
}

/// Hears what is being done, how much of it is done, and of how much.
pub type Progress<'a> = dyn FnMut(&str, usize, usize) + 'a;

/// Quantises the safetensors folder `model` into the new folder `out`. The last quarter of the text measures the
/// loss; the rest calibrates. Nothing is left behind when something goes wrong.
///
/// # Errors
/// A folder that is no text model in safetensors; a text that is too short; a loss that grows by more than is
/// allowed; `out` exists.
pub fn quantise(
    model: &Path,
    out: &Path,
    sample: &Sample,
    settings: &Settings,
    progress: &mut Progress,
) -> Result<Report> {
    if settings.group == 0 || !settings.group.is_multiple_of(round::BLOCK) {
        let (block, got) = (round::BLOCK, settings.group);
        return Err(Error::invalid(format!("group: expected a multiple of {block}, got {got}")));
    }
    if out.exists() {
        return Err(Error::parse(out.display(), "expected a folder that does not exist yet"));
    }
    expect_text_decoder(model)?;
    let partial = Partial::new(out)?;
    let report = into(model, partial.path(), sample, settings, progress)?;
    let grown = report.nll[1] - report.nll[0];
    if grown.is_nan() || grown > settings.max_loss_increase {
        let ([before, after], most) = (report.nll, settings.max_loss_increase);
        return Err(Error::invalid(format!(
            "the loss grew by {grown:.4} nats per token (from {before:.4} to {after:.4}), {most} is allowed: \
             nothing was written"
        )));
    }
    let text = serde_json::to_string_pretty(&report).map_err(|e| Error::parse("the report", e))?;
    let path = partial.path().join("quantised.json");
    std::fs::write(&path, text).map_err(|source| Error::Io { path, source })?;
    std::fs::rename(partial.path(), out).map_err(|source| Error::Io { path: out.to_path_buf(), source })?;
    Ok(report)
}

/// Refuses what is no folder of a text decoder in safetensors, before anything else of it is read.
///
/// # Errors
/// A folder without a `config.json` or with weights in few bits already; an encoder-decoder; a model that sees; a text
/// model that is not known.
pub fn expect_text_decoder(model: &Path) -> Result<()> {
    let refused = |reason: String| Err(Error::parse(model.display(), reason));
    if is_quantised(model) || !model.join("config.json").is_file() {
        return refused("expected a model folder with config.json and safetensors".to_owned());
    }
    let config = config_json(model)?;
    let kind = config["model_type"].as_str().unwrap_or("absent");
    if config.get("vision_config").is_some() {
        return refused(format!("expected a text decoder, got a model that sees ('{kind}')"));
    }
    if config["is_encoder_decoder"] == true || kind == "t5" {
        return refused(format!("expected a text decoder, got an encoder-decoder ('{kind}')"));
    }
    DecoderConfig::from_hf(&config).map(drop)
}

/// Whether a folder holds quantised weights.
pub(crate) fn is_quantised(dir: &Path) -> bool {
    dir.join(FILE).is_file()
}

/// The weights and the config of a quantised folder.
///
/// # Errors
/// The file is not sound, or of another layout.
pub(crate) fn open(dir: &Path, config: DecoderConfig) -> Result<(Weights, DecoderConfig)> {
    let path = dir.join(FILE);
    let file = gguf::Gguf::open(&path)?;
    let layout = file.value("vela.layout")?.as_count();
    if file.text("general.architecture")? != ARCHITECTURE || layout != Some(LAYOUT) {
        let reason = format!("expected {ARCHITECTURE} of layout {LAYOUT}, got layout {layout:?}");
        return Err(Error::parse(path.display(), reason));
    }
    let names = config.names.by_rows();
    Ok((Weights::from_gguf(&file, Precision::Fast), DecoderConfig { names, ..config }))
}

fn into(
    model: &Path,
    out: &Path,
    sample: &Sample,
    settings: &Settings,
    progress: &mut Progress,
) -> Result<Report> {
    let json = config_json(model)?;
    let config = DecoderConfig::from_hf(&json)?;
    let window = WINDOW.min(crate::model::context_of(&json));
    let decoder = {
        let weights = Weights::load_dir(model)?.with_precision(Precision::Fast)?;
        crate::load::from_weights(&weights, &config)?
    };
    let (learnt, held_out) = sample.ids.split_at(sample.ids.len() / 4 * 3);
    let cut = |ids: &[u32], most: usize| Windows::new(&sample.start, &ids[..ids.len().min(most)], window);
    let (learnt, held_out) = (cut(learnt, MOST[0]), cut(held_out, MOST[1]));
    if learnt.all.is_empty() || held_out.all.is_empty() {
        let got = sample.ids.len();
        return Err(Error::invalid(format!(
            "the text is too short to calibrate and to measure: {got} tokens"
        )));
    }
    let before = mean_nll(&decoder, &held_out, &mut |done, all| progress("measuring", done, all))?;

    let groups: Vec<Vec<fold::Group>> = (0..config.layers).map(|i| fold::groups(&config, i)).collect();
    let names = |groups: &Vec<fold::Group>| groups.iter().map(|g| fold::listening(g).to_owned()).collect();
    let wanted: Vec<BTreeSet<String>> = groups.iter().map(names).collect();
    let record =
        calibrate::listen(&decoder, &learnt, &wanted, &mut |done, all| progress("calibrating", done, all))?;
    drop(decoder);

    let mut made = Made::default();
    for (i, groups) in groups.iter().enumerate() {
        progress("quantising", i, config.layers);
        // Opened for each layer anew: weights remember what they have handed out.
        let mut layer = Layer::read(&Weights::load_dir(model)?, &config, i)?;
        for group in groups {
            if let Some(seen) = record.get(&(i, fold::listening(group).to_owned())) {
                made.count(&layer.fold(group, seen, (settings.bits, settings.group))?);
            }
        }
        layer.write(settings.bits, settings.group, &mut made)?;
    }
    outside(&Weights::load_dir(model)?, &config, &mut made)?;
    let metadata = BTreeMap::from([
        ("general.architecture".to_owned(), Value::Text(ARCHITECTURE.to_owned())),
        ("vela.layout".to_owned(), Value::Unsigned(LAYOUT)),
    ]);
    let file = out.join(FILE);
    gguf::write(&file, &metadata, &made.tensors)?;
    made.tensors.clear();
    copy_beside(model, out)?;

    let decoder = crate::load::load(out)?;
    let after = mean_nll(&decoder, &held_out, &mut |done, all| progress("measuring again", done, all))?;
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |data| data.len());
    let was: u64 =
        files(model)?.iter().filter(|path| has_ending(path, "safetensors")).map(|path| size(path)).sum();
    Ok(Report {
        bits: settings.bits.count(),
        group: settings.group,
        matrices: made.matrices,
        numbers: made.numbers,
        bytes: [was, size(&file)],
        factors: made.factors,
        error_over_plain: if made.errors[0] > 0.0 { made.errors[1] / made.errors[0] } else { 1.0 },
        calibration_tokens: learnt.tokens(),
        evaluation_tokens: held_out.tokens(),
        nll: [before, after],
        perplexity: [before.exp(), after.exp()],
    })
}

/// What has been made so far.
#[derive(Debug, Default)]
struct Made {
    tensors: BTreeMap<String, Blocks>,
    matrices: usize,
    numbers: usize,
    factors: [usize; 2],
    errors: [f64; 2],
}

impl Made {
    fn count(&mut self, found: &layers::Folded) {
        self.factors[0] += usize::from(found.power > 0.0 && !found.kept);
        self.factors[1] += usize::from(found.power > 0.0 && found.kept);
        self.errors[0] += found.errors[0];
        self.errors[1] += found.errors[1];
    }
}

fn has_ending(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|e| e == ending)
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let failed = |source| Error::Io { path: dir.to_path_buf(), source };
    let entries = std::fs::read_dir(dir).map_err(failed)?;
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.map(|e| e.path())).collect::<std::io::Result<_>>().map_err(failed)?;
    files.retain(|path| path.is_file());
    files.sort();
    Ok(files)
}

/// Config, tokenizer, template and their like.
fn copy_beside(from: &Path, to: &Path) -> Result<()> {
    let wanted = |path: &&PathBuf| {
        let index = path.to_string_lossy().ends_with(".index.json");
        !index && ["json", "jinja", "txt", "model"].iter().any(|ending| has_ending(path, ending))
    };
    for path in files(from)?.iter().filter(wanted) {
        let target = to.join(path.file_name().unwrap_or_default());
        std::fs::copy(path, &target).map_err(|source| Error::Io { path: target.clone(), source })?;
    }
    Ok(())
}

/// A tensor's name where the body has its full name, and its full name in this checkpoint.
fn names_of(weights: &Weights, config: &DecoderConfig) -> Vec<(String, String)> {
    let names = config.names.table();
    let bare = body(weights, &names).prefix().to_owned();
    let lost = names.body.strip_suffix(bare.as_str()).unwrap_or_default();
    let inner = |name: &str| bare.is_empty() || name.starts_with(&format!("{bare}."));
    let head = format!("{}.", names.head);
    weights
        .names()
        .into_iter()
        .filter(|name| !is_surplus(config, &names, name))
        .map(|name| match inner(&name) && !name.starts_with(&head) && !lost.is_empty() {
            true => (format!("{}.{name}", lost.trim_end_matches('.')), name),
            false => (name.clone(), name),
        })
        .collect()
}
