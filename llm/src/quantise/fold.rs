//! Which matrices of a layer read the same numbers, and where factors on these numbers can be put without changing
//! what the layer computes.

use crate::config::{Block, DecoderConfig, FeedForward};
use vela_nn::Activation;

/// Matrices that read the same numbers. Names are relative to the layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// Quantised ones; calibration listens at the first.
    pub readers: Vec<String>,
    /// Ones that stay in float32 (routers).
    pub exact: Vec<String>,
    /// What makes the numbers.
    pub source: Source,
}

/// Where the inverse of the factors goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Into a norm's scale and bias.
    Norm(&'static str),
    /// Into rows of another matrix: the channel `c` comes from row `rows[c]`. Channels of one row share a factor.
    Rows(String, Vec<usize>),
    /// Nowhere: it is kept beside the matrix.
    Kept,
}

/// The groups of a layer.
pub(super) fn groups(config: &DecoderConfig, layer: usize) -> Vec<Group> {
    let names = config.names.table();
    let d = config.head_dim;
    let each = config.heads / config.kv_heads.max(1);
    // Every key-value head is read through `each` query heads.
    let value_rows = |first: usize| -> Vec<usize> {
        (0..config.heads * d).map(|c| first + c / d / each.max(1) * d + c % d).collect()
    };
    let (attention, values) = match names.qkv {
        "" => (vec![names.q, names.k, names.v], Source::Rows(names.v.into(), value_rows(0))),
        all => {
            let first = (config.heads + config.kv_heads) * d;
            (vec![all], Source::Rows(all.into(), value_rows(first)))
        }
    };
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let mut first = Group { readers: owned(&attention), exact: vec![], source: Source::Norm(names.norm1) };
    let mut fed = Group { readers: vec![], exact: vec![], source: Source::Norm(names.norm2) };
    let mut groups = vec![Group { readers: owned(&[names.o]), exact: vec![], source: values }];
    // `down` reads `act(gate) * up`: linear in `up`. Without a gate that holds of ReLU only.
    let mut network = |gate: Option<String>, up: String, down: String, inner: usize, first: usize| {
        let linear = gate.is_some() || first > 0 || config.activation == Activation::Relu;
        let rows = Source::Rows(up.clone(), (first..first + inner).collect());
        fed.readers.extend(gate);
        fed.readers.push(up);
        let source = if linear { rows } else { Source::Kept };
        groups.push(Group { readers: vec![down], exact: vec![], source });
    };
    match &config.feed_forward {
        FeedForward::Experts(experts) if !experts.dense_layers.contains(&layer) => {
            let [gate, up, down] = names.expert;
            let mut scopes: Vec<(String, usize)> =
                (0..experts.count).map(|e| (format!("{}.{e}", names.experts), experts.inner_width)).collect();
            scopes.extend(experts.shared.map(|inner| (names.shared_expert.to_owned(), inner)));
            for (scope, inner) in scopes {
                let named = |name: &str| format!("{scope}.{name}");
                network(Some(named(gate)), named(up), named(down), inner, 0);
            }
            fed.exact.push(names.router.to_owned());
            if experts.shared.is_some() {
                fed.exact.push(names.shared_gate.to_owned());
            }
        }
        FeedForward::Plain => {
            network(None, names.plain_up().into(), names.down.into(), config.inner_width, 0);
        }
        _ if names.gate_up.is_empty() => {
            let gate = Some(names.gate.to_owned());
            network(gate, names.up.into(), names.down.into(), config.inner_width, 0);
        }
        _ => {
            let inner = config.inner_width;
            network(None, names.gate_up.into(), names.down.into(), inner, inner);
        }
    }
    if config.block == Block::Parallel {
        first.readers.append(&mut fed.readers);
        first.exact.append(&mut fed.exact);
    } else {
        groups.insert(0, fed);
    }
    groups.insert(0, first);
    groups
}

/// The name at which calibration sees what a group reads: of experts, where all tokens pass.
pub(super) fn listening(group: &Group) -> &str {
    group.exact.first().or(group.readers.first()).map_or("", String::as_str)
}
