//! Fields of a `config.json`, in their old and their new spelling.

use serde_json::Value;
use vela_nn::rope::RopeSections;
use vela_nn::{Activation, Error, Result, RopeConfig, RopeScaling, RopeStyle};

/// A `config.json`. A field that is null is absent.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a>(pub &'a Value);

fn wrong(field: &str, expected: &str, got: &Value) -> Error {
    Error::invalid(format!("config.json: {field}: expected {expected}, got {got}"))
}

impl<'a> Fields<'a> {
    /// A field, if it is there.
    pub fn get(&self, field: &str) -> Option<&'a Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    fn need<T>(&self, field: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| Error::invalid(format!("config.json: {field} is missing")))
    }

    /// A whole number that must be there.
    pub fn count(&self, field: &str) -> Result<usize> {
        self.need(field, self.optional_count(field)?)
    }

    /// A whole number.
    pub fn optional_count(&self, field: &str) -> Result<Option<usize>> {
        let read = |value: &Value| value.as_u64().map(|x| x as usize).ok_or(wrong(field, "a count", value));
        self.get(field).map(read).transpose()
    }

    /// A number that must be there.
    pub fn number(&self, field: &str) -> Result<f64> {
        self.need(field, self.optional_number(field)?)
    }

    /// A number.
    pub fn optional_number(&self, field: &str) -> Result<Option<f64>> {
        let read = |value: &Value| value.as_f64().ok_or(wrong(field, "a number", value));
        self.get(field).map(read).transpose()
    }

    /// True or false.
    pub fn flag(&self, field: &str, default: bool) -> Result<bool> {
        let read = |value: &Value| value.as_bool().ok_or(wrong(field, "true or false", value));
        self.get(field).map_or(Ok(default), read)
    }

    /// A name.
    pub fn text(&self, field: &str) -> Result<Option<&'a str>> {
        let read = |value: &'a Value| value.as_str().ok_or(wrong(field, "a name", value));
        self.get(field).map(read).transpose()
    }

    /// A list, each element read by `read`.
    pub fn list<T>(&self, field: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<Vec<T>>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let items = value.as_array().ok_or(wrong(field, "a list", value))?;
        let read = |item| read(item).ok_or(wrong(field, "a list of the right kind", value));
        items.iter().map(read).collect::<Result<_>>().map(Some)
    }

    /// Refuses a field that has any value but `only`: we do not know what it would change.
    pub fn only(&self, field: &str, only: bool) -> Result<()> {
        if self.flag(field, only)? == only {
            return Ok(());
        }
        Err(Error::invalid(format!("config.json: {field}: only {only} is supported")))
    }

    /// An activation, from the first of `fields` that is there.
    pub fn activation(&self, fields: &[&str], default: Activation) -> Result<Activation> {
        for field in fields {
            if let Some(name) = self.text(field)? {
                return Activation::from_name(name);
            }
        }
        Ok(default)
    }

    /// Which layers see everything: of `layer_types`, or as `default` says.
    pub fn full_layers(&self, layers: usize, default: impl Fn(usize) -> bool) -> Result<Vec<usize>> {
        let Some(types) = self.list("layer_types", Value::as_str)? else {
            return Ok((0..layers.min(1 << 12)).filter(|layer| default(*layer)).collect());
        };
        if types.len() != layers {
            let got = types.len();
            return Err(Error::invalid(format!("config.json: {got} layer_types for {layers} layers")));
        }
        let known = ["full_attention", "sliding_attention"];
        if let Some(other) = types.iter().find(|kind| !known.contains(*kind)) {
            let known = known.join(", ");
            return Err(Error::invalid(format!(
                "config.json: layer type '{other}' is not known; known: {known}"
            )));
        }
        Ok((0..layers).filter(|layer| types[*layer] == known[0]).collect())
    }

    /// The rotary embedding. Old spelling: `rope_theta` and `rope_scaling` at the top; new spelling: both inside
    /// `rope_parameters`, there perhaps one for each `kind` of layer.
    pub fn rope(&self, head_dim: usize, kind: &str, default_theta: f64) -> Result<RopeConfig> {
        let nothing = Value::Null;
        let inner = |field: &str| self.get(field).filter(|value| value.is_object());
        let found = inner("rope_parameters").or(inner("rope_scaling")).unwrap_or(&nothing);
        let parameters = Fields(found.get(kind).unwrap_or(found));
        let either = |field: &str, default: f64| -> Result<f64> {
            Ok(match parameters.optional_number(field)? {
                Some(value) => value,
                None => self.optional_number(field)?.unwrap_or(default),
            })
        };
        let rotary_dim = (head_dim as f64 * either("partial_rotary_factor", 1.0)?) as usize;
        Ok(RopeConfig {
            rotary_dim,
            theta: either("rope_theta", default_theta)? as f32,
            style: RopeStyle::HalfSplit,
            scaling: parameters.rope_scaling(self)?,
            sections: parameters.rope_sections()?,
        })
    }

    fn rope_sections(&self) -> Result<Option<RopeSections>> {
        let counts = self.list("mrope_section", |n| n.as_u64().map(|n| n as usize))?;
        let Some(counts) = counts else { return Ok(None) };
        let counts: [usize; 3] = counts.try_into().map_err(|counts: Vec<usize>| {
            Error::invalid(format!("config.json: mrope_section: expected three counts, got {counts:?}"))
        })?;
        Ok(Some(RopeSections { counts, interleaved: self.flag("mrope_interleaved", false)? }))
    }

    fn rope_scaling(&self, whole: &Fields) -> Result<RopeScaling> {
        let factor = || self.number("factor").map(|x| x as f32);
        let original_positions = || -> Result<usize> {
            let field = "original_max_position_embeddings";
            let own = self.optional_count(field)?.or(whole.optional_count(field)?);
            own.map_or_else(|| whole.count("max_position_embeddings"), Ok)
        };
        let kind = match self.text("rope_type")? {
            Some(kind) => Some(kind),
            None => self.text("type")?,
        };
        Ok(match kind {
            None | Some("default" | "mrope") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear { factor: factor()? },
            Some("dynamic") => RopeScaling::Dynamic {
                factor: factor()?,
                original_positions: whole.count("max_position_embeddings")?,
            },
            Some("yarn") => RopeScaling::Yarn {
                factor: factor()?,
                original_positions: original_positions()?,
                beta_fast: self.optional_number("beta_fast")?.unwrap_or(32.0) as f32,
                beta_slow: self.optional_number("beta_slow")?.unwrap_or(1.0) as f32,
                attention_factor: self.yarn_magnitude()?,
                truncate: self.flag("truncate", true)?,
            },
            Some("llama3") => RopeScaling::Llama3 {
                factor: factor()?,
                low_freq_factor: self.number("low_freq_factor")? as f32,
                high_freq_factor: self.number("high_freq_factor")? as f32,
                original_positions: original_positions()?,
            },
            Some(other) => {
                let known = "default, linear, dynamic, yarn, llama3, mrope";
                return Err(Error::invalid(format!(
                    "config.json: rope type '{other}' is not known; known: {known}"
                )));
            }
        })
    }

    /// YaRN's scale, where the config says more than the factor (DeepSeek's two `mscale`).
    fn yarn_magnitude(&self) -> Result<Option<f32>> {
        if let Some(given) = self.optional_number("attention_factor")? {
            return Ok(Some(given as f32));
        }
        let factor = self.number("factor")?.max(1.0);
        let of = |scale: f64| 0.1 * scale * factor.ln() + 1.0;
        let both = (self.optional_number("mscale")?, self.optional_number("mscale_all_dim")?);
        let (Some(one), Some(all)) = both else { return Ok(None) };
        // Zero means: not given.
        Ok(if one == 0.0 || all == 0.0 { None } else { Some((of(one) / of(all)) as f32) })
    }
}
