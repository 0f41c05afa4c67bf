//! From a model folder to a decoder.

use crate::config::{DecoderConfig, Names};
use crate::{Decoder, quantise, trace::config_json};
use std::path::Path;
use vela_nn::{Error, Result, Weights};

/// Reads a Hugging Face folder's decoder (`config.json`, one or more `*.safetensors`; F32, F16 or BF16), or one that
/// [`crate::quantise`] wrote. It is only asked: its matrices have no gradient.
///
/// # Errors
/// What the config's or the weights' readers refuse; every missing, unused or mis-shaped tensor, in one error.
pub fn load(dir: &Path) -> Result<Decoder> {
    let config = DecoderConfig::from_hf(&config_json(dir)?)?;
    if quantise::is_quantised(dir) {
        let (weights, config) = quantise::open(dir, config)?;
        return from_weights(&weights, &config);
    }
    from_weights(&Weights::load_dir(dir)?.packed()?, &config)
}

/// The decoder that a whole checkpoint holds, under the names of its family.
pub fn from_weights(weights: &Weights, config: &DecoderConfig) -> Result<Decoder> {
    config.check()?;
    let names = config.names.table();
    let body = body(weights, &names);
    depth_fits(&body, &names, config)?;
    let decoder = Decoder::new(Some(weights), &body, config)?;
    weights.finish_allowing(|name| is_surplus(config, &names, name))?;
    Ok(decoder)
}

/// Where the body is: checkpoints of the bare model drop the outermost level of its name.
pub(crate) fn body(weights: &Weights, names: &Names) -> Weights {
    let table = |scope: &Weights| scope.contains(&format!("{}.weight", names.embedding));
    let whole = weights.pp(names.body);
    let inner = names.body.split_once('.').map_or("", |(_, inner)| inner);
    let bare = weights.pp(inner);
    if !table(&whole) && table(&bare) { bare } else { whole }
}

/// A config with more layers than the checkpoint has is refused before anything is made for them.
fn depth_fits(body: &Weights, names: &Names, config: &DecoderConfig) -> Result<()> {
    let Some(last) = config.layers.checked_sub(1) else { return Ok(()) };
    let norm = format!("{}.{last}.{}.weight", names.layers, names.norm1);
    if body.contains(&norm) || body.is_fresh() {
        return Ok(());
    }
    let (layers, scope) = (config.layers, body.prefix());
    Err(Error::invalid(format!(
        "the checkpoint does not fit its config.json: {layers} layers, but there is no {scope}.{norm}"
    )))
}

/// What checkpoints carry beside their parameters: constants, and the output projection of a tied model.
pub(crate) fn is_surplus(config: &DecoderConfig, names: &Names, name: &str) -> bool {
    let constants = [".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"];
    let copy = config.tied && name == format!("{}.weight", names.head);
    copy || constants.iter().any(|end| name.ends_with(end))
}
