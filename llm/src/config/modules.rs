//! The matrices of a decoder's layers by name: what adapters are put beside and what is quantised.

use super::{DecoderConfig, FeedForward};

/// A matrix of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its layer.
    pub layer: usize,
    /// Its name in the checkpoint, relative to the layer.
    pub name: String,
    /// What it reads.
    pub input: usize,
    /// What it gives.
    pub output: usize,
}

impl DecoderConfig {
    /// Every matrix of every layer, in the order in which a pass comes to them.
    pub fn modules(&self) -> Vec<Module> {
        (0..self.layers).flat_map(|layer| self.modules_of(layer)).collect()
    }

    /// A module's name in the whole checkpoint, where the body has its full name.
    pub fn full_name(&self, module: &Module) -> String {
        let names = self.names.table();
        format!("{}.{}.{}.{}", names.body, names.layers, module.layer, module.name)
    }

    /// The matrices of one layer.
    pub fn modules_of(&self, layer: usize) -> Vec<Module> {
        let names = self.names.table();
        let (width, queries, keys) = (self.width, self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut all = Vec::new();
        let mut put = |name: String, input: usize, output: usize| {
            all.push(Module { layer, name, input, output });
        };
        match names.qkv {
            "" => {
                put(names.q.into(), width, queries);
                put(names.k.into(), width, keys);
                put(names.v.into(), width, keys);
            }
            name => put(name.into(), width, queries + 2 * keys),
        }
        put(names.o.into(), queries, width);
        if let Some(memory) = self.memory_width {
            let [q, k, v, o] = names.cross;
            put(q.into(), width, queries);
            put(k.into(), memory, keys);
            put(v.into(), memory, keys);
            put(o.into(), queries, width);
        }
        let mut network = |scope: &str, [gate, up, down]: [&str; 3], inner: usize| {
            let named = |name: &str| if scope.is_empty() { name.into() } else { format!("{scope}.{name}") };
            if !gate.is_empty() {
                put(named(gate), width, inner);
            }
            put(named(up), width, inner);
            put(named(down), inner, width);
        };
        match &self.feed_forward {
            FeedForward::Experts(experts) if !experts.dense_layers.contains(&layer) => {
                for e in 0..experts.count {
                    network(&format!("{}.{e}", names.experts), names.expert, experts.inner_width);
                }
                if let Some(inner) = experts.shared {
                    network(names.shared_expert, names.expert, inner);
                    put(names.shared_gate.into(), width, 1);
                }
                put(names.router.into(), width, experts.count);
            }
            FeedForward::Plain => network("", ["", names.plain_up(), names.down], self.inner_width),
            _ if names.gate_up.is_empty() => {
                network("", [names.gate, names.up, names.down], self.inner_width);
            }
            _ => {
                put(names.gate_up.into(), width, 2 * self.inner_width);
                put(names.down.into(), self.inner_width, width);
            }
        }
        all
    }
}
