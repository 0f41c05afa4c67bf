//! What each family calls its tensors.

use serde::{Deserialize, Serialize};

/// Whose names a checkpoint uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Naming {
    #[default]
    Llama,
    /// Llama's, with the norms of a sandwich.
    Gemma2,
    Gpt2,
    /// GPT-2's, with matrices stored `[output, input]` as everybody's.
    Gpt2Rows,
    Mixtral,
    Opt,
    Phi,
    Phi3,
    T5Encoder,
    T5Decoder,
}

/// The names of one family, of layers relative to the layer. An empty name: there is no such tensor.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Names {
    /// Where everything but the output projection is.
    pub body: &'static str,
    pub embedding: &'static str,
    pub positions: &'static str,
    pub layers: &'static str,
    pub final_norm: &'static str,
    pub head: &'static str,
    pub norm1: &'static str,
    pub norm1_after: &'static str,
    pub q: &'static str,
    pub k: &'static str,
    pub v: &'static str,
    /// One projection for all three, one below the other.
    pub qkv: &'static str,
    pub o: &'static str,
    pub q_norm: &'static str,
    pub k_norm: &'static str,
    /// Scores by distance, in layer 0 only.
    pub relative: &'static str,
    pub cross_norm: &'static str,
    /// Cross-attention's q, k, v and o.
    pub cross: [&'static str; 4],
    pub norm2: &'static str,
    pub norm2_after: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    /// One projection for gate and up, one below the other.
    pub gate_up: &'static str,
    pub down: &'static str,
    pub router: &'static str,
    pub experts: &'static str,
    /// Gate, up and down of an expert.
    pub expert: [&'static str; 3],
    pub shared_expert: &'static str,
    pub shared_gate: &'static str,
    /// Whether matrices in layers are stored `[input, output]`.
    pub transposed: bool,
}

const LLAMA: Names = Names {
    body: "model",
    embedding: "embed_tokens",
    positions: "",
    layers: "layers",
    final_norm: "norm",
    head: "lm_head",
    norm1: "input_layernorm",
    norm1_after: "",
    q: "self_attn.q_proj",
    k: "self_attn.k_proj",
    v: "self_attn.v_proj",
    qkv: "",
    o: "self_attn.o_proj",
    q_norm: "self_attn.q_norm",
    k_norm: "self_attn.k_norm",
    relative: "",
    cross_norm: "",
    cross: [""; 4],
    norm2: "post_attention_layernorm",
    norm2_after: "",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    gate_up: "",
    down: "mlp.down_proj",
    router: "mlp.gate",
    experts: "mlp.experts",
    expert: ["gate_proj", "up_proj", "down_proj"],
    shared_expert: "mlp.shared_expert",
    shared_gate: "mlp.shared_expert_gate",
    transposed: false,
};

const GEMMA2: Names = Names {
    norm1_after: "post_attention_layernorm",
    norm2: "pre_feedforward_layernorm",
    norm2_after: "post_feedforward_layernorm",
    ..LLAMA
};

const MIXTRAL: Names = Names {
    router: "block_sparse_moe.gate",
    experts: "block_sparse_moe.experts",
    expert: ["w1", "w3", "w2"],
    ..LLAMA
};

const PHI: Names =
    Names { final_norm: "final_layernorm", o: "self_attn.dense", up: "mlp.fc1", down: "mlp.fc2", ..LLAMA };

const PHI3: Names = Names { qkv: "self_attn.qkv_proj", gate_up: "mlp.gate_up_proj", ..LLAMA };

const OPT: Names = Names {
    body: "model.decoder",
    positions: "embed_positions",
    final_norm: "final_layer_norm",
    norm1: "self_attn_layer_norm",
    o: "self_attn.out_proj",
    norm2: "final_layer_norm",
    up: "fc1",
    down: "fc2",
    ..LLAMA
};

const GPT2: Names = Names {
    body: "transformer",
    embedding: "wte",
    positions: "wpe",
    layers: "h",
    final_norm: "ln_f",
    norm1: "ln_1",
    qkv: "attn.c_attn",
    o: "attn.c_proj",
    norm2: "ln_2",
    up: "mlp.c_fc",
    down: "mlp.c_proj",
    transposed: true,
    ..LLAMA
};

const T5_ENCODER: Names = Names {
    body: "encoder",
    embedding: "embed_tokens",
    layers: "block",
    final_norm: "final_layer_norm",
    norm1: "layer.0.layer_norm",
    q: "layer.0.SelfAttention.q",
    k: "layer.0.SelfAttention.k",
    v: "layer.0.SelfAttention.v",
    o: "layer.0.SelfAttention.o",
    relative: "layer.0.SelfAttention.relative_attention_bias",
    norm2: "layer.1.layer_norm",
    gate: "layer.1.DenseReluDense.wi_0",
    up: "layer.1.DenseReluDense.wi_1",
    down: "layer.1.DenseReluDense.wo",
    ..LLAMA
};

const T5_DECODER: Names = Names {
    body: "decoder",
    cross_norm: "layer.1.layer_norm",
    cross: [
        "layer.1.EncDecAttention.q",
        "layer.1.EncDecAttention.k",
        "layer.1.EncDecAttention.v",
        "layer.1.EncDecAttention.o",
    ],
    norm2: "layer.2.layer_norm",
    gate: "layer.2.DenseReluDense.wi_0",
    up: "layer.2.DenseReluDense.wi_1",
    down: "layer.2.DenseReluDense.wo",
    ..T5_ENCODER
};

impl Naming {
    /// The same names for matrices stored `[output, input]`.
    pub fn by_rows(self) -> Self {
        if self == Self::Gpt2 { Self::Gpt2Rows } else { self }
    }

    /// The names.
    pub fn table(self) -> Names {
        match self {
            Self::Llama => LLAMA,
            Self::Gemma2 => GEMMA2,
            Self::Gpt2 => GPT2,
            Self::Gpt2Rows => Names { transposed: false, ..GPT2 },
            Self::Mixtral => MIXTRAL,
            Self::Opt => OPT,
            Self::Phi => PHI,
            Self::Phi3 => PHI3,
            Self::T5Encoder => T5_ENCODER,
            Self::T5Decoder => T5_DECODER,
        }
    }
}

impl Names {
    /// The name of the first projection of an ungated network: T5 drops the number then.
    pub fn plain_up(&self) -> &'static str {
        self.up.strip_suffix("_1").unwrap_or(self.up)
    }
}
