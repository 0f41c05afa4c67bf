//! What the families call their tensors: one table each, from a checkpoint's names to ours.

use vela_nn::{Result, Weights};

/// Whole parts of a name and what replaces them, in order. Replaced by nothing: dropped.
pub type Table = &'static [(&'static str, &'static str)];

/// The table of a vision tower's `model_type`; ours are SigLIP's names.
pub fn table(kind: &str) -> Table {
    match kind {
        "clip_vision_model" => &[("pre_layrnorm", "pre_layernorm")],
        "vit" | "dinov2" | "dinov2_with_registers" | "internvl_vision" => &[
            ("embeddings.cls_token", "embeddings.class_embedding"),
            ("embeddings.mask_token", ""),
            ("embeddings.patch_embeddings.projection", "embeddings.patch_embedding"),
            ("embeddings.position_embeddings", "embeddings.position_embedding.weight"),
            ("encoder.layer", "encoder.layers"),
            ("attention.attention.query", "self_attn.q_proj"),
            ("attention.attention.key", "self_attn.k_proj"),
            ("attention.attention.value", "self_attn.v_proj"),
            ("attention.output.dense", "self_attn.out_proj"),
            ("attention.projection_layer", "self_attn.out_proj"),
            ("attention", "self_attn"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
            ("layernorm_before", "layer_norm1"),
            ("layernorm_after", "layer_norm2"),
            ("norm1", "layer_norm1"),
            ("norm2", "layer_norm2"),
            ("layer_scale1.lambda1", "scale1"),
            ("layer_scale2.lambda1", "scale2"),
            ("lambda_1", "scale1"),
            ("lambda_2", "scale2"),
            ("layernorm", "post_layernorm"),
        ],
        "blip_2_vision_model" | "instructblip_vision_model" => &[
            ("embeddings.position_embedding", "embeddings.position_embedding.weight"),
            ("self_attn.projection", "self_attn.out_proj"),
        ],
        "qwen2_vl" | "qwen2_vl_vision" | "qwen2_5_vl" | "qwen2_5_vl_vision" => &[
            ("patch_embed.proj", "patch_embedding"),
            ("blocks", "encoder.layers"),
            ("norm1", "layer_norm1"),
            ("norm2", "layer_norm2"),
            ("attn.qkv", "self_attn.qkv"),
            ("attn.proj", "self_attn.out_proj"),
        ],
        _ => &[],
    }
}

/// A name after a table.
pub fn rename(name: &str, table: Table) -> String {
    let mut name = format!(".{name}.");
    for (from, to) in table {
        let from = format!(".{from}.");
        if name.contains(&from) {
            if to.is_empty() {
                return String::new();
            }
            name = name.replacen(&from, &format!(".{to}."), 1);
        }
    }
    name.trim_matches('.').to_owned()
}

/// A checkpoint under our names: the tensors whose names start with `prefix` go through `table`.
pub fn renamed(weights: &Weights, prefix: &str, table: Table) -> Result<Weights> {
    weights.renamed(|name| match name.strip_prefix(prefix) {
        Some(rest) => {
            let rest = rename(rest, table);
            if rest.is_empty() { rest } else { format!("{prefix}{rest}") }
        }
        None => name.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_parts_are_replaced_and_nothing_else() {
        let vit = table("vit");
        let cases = [
            ("encoder.layer.0.attention.attention.query.bias", "encoder.layers.0.self_attn.q_proj.bias"),
            ("encoder.layer.1.attention.output.dense.weight", "encoder.layers.1.self_attn.out_proj.weight"),
            ("encoder.layer.1.output.dense.weight", "encoder.layers.1.mlp.fc2.weight"),
            ("encoder.layer.0.attention.q_proj.bias", "encoder.layers.0.self_attn.q_proj.bias"),
            ("encoder.layer.0.layer_scale1.lambda1", "encoder.layers.0.scale1"),
            ("encoder.layer.0.norm1.weight", "encoder.layers.0.layer_norm1.weight"),
            ("embeddings.position_embeddings", "embeddings.position_embedding.weight"),
            ("layernorm.weight", "post_layernorm.weight"),
            ("embeddings.mask_token", ""),
            ("pooler.dense.weight", "pooler.dense.weight"),
        ];
        for (from, to) in cases {
            assert_eq!(rename(from, vit), to);
        }
        let qwen = table("qwen2_vl_vision");
        assert_eq!(rename("blocks.3.attn.proj.weight", qwen), "encoder.layers.3.self_attn.out_proj.weight");
    }
}
