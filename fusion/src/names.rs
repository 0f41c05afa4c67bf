//! What the parts of a VLM are called, whichever version of the reference library wrote the checkpoint: `vision.*`,
//! `projector.*`, `qformer.*`, `query_tokens`, `image_newline`, `text.*` and `lm_head.*` are ours.

use vela_nn::{Result, Weights};

/// How names start, and how ours do. The first that fits counts; each may stand behind `model.`.
const STARTS: &[(&str, &str)] = &[
    ("vision_tower.vision_model.", "vision."),
    ("vision_tower.", "vision."),
    ("vision_model.", "vision."),
    ("visual.merger.ln_q.", "projector.norm."),
    ("visual.merger.mlp.0.", "projector.modality_projection.fc1."),
    ("visual.merger.mlp.2.", "projector.modality_projection.fc2."),
    ("visual.", "vision."),
    ("multi_modal_projector.linear_1.", "projector.modality_projection.fc1."),
    ("multi_modal_projector.linear_2.", "projector.modality_projection.fc2."),
    ("multi_modal_projector.linear.", "projector.modality_projection.proj."),
    ("multi_modal_projector.layer_norm.", "projector.norm."),
    ("language_projection.", "projector.modality_projection.proj."),
    ("connector.", "projector."),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.decoder.", "text."),
    ("language_model.model.", "text."),
    ("language_model.", "text."),
    ("text_model.", "text."),
    ("image_newline", "image_newline"),
    ("qformer.", "qformer."),
    ("query_tokens", "query_tokens"),
    ("lm_head.", "lm_head."),
];

/// Our name of a tensor.
pub fn ours(name: &str) -> String {
    let inner = name.strip_prefix("model.");
    let start = |name: &str| {
        STARTS.iter().find_map(|(from, to)| name.strip_prefix(from).map(|rest| format!("{to}{rest}")))
    };
    match (start(inner.unwrap_or(name)), inner) {
        (Some(ours), _) => ours,
        // Qwen2-VL's first checkpoints have the text model itself under `model`.
        (None, Some(inner)) => format!("text.{inner}"),
        (None, None) => name.to_owned(),
    }
}

/// A checkpoint under our names; what its vision tower of this `model_type` calls its tensors is translated too.
pub fn renamed(weights: &Weights, vision: &str) -> Result<Weights> {
    let weights = weights.renamed(ours)?;
    vela_vision::names::renamed(&weights, "vision.", vela_vision::names::table(vision))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_versions_of_a_name_are_one() {
        let same = |names: &[&str], want: &str| names.iter().for_each(|name| assert_eq!(ours(name), want));
        same(
            &[
                "vision_tower.vision_model.encoder.layers.0.layer_norm1.bias",
                "model.vision_tower.vision_model.encoder.layers.0.layer_norm1.bias",
                "model.vision_tower.encoder.layers.0.layer_norm1.bias",
                "model.vision_model.encoder.layers.0.layer_norm1.bias",
            ],
            "vision.encoder.layers.0.layer_norm1.bias",
        );
        same(
            &[
                "language_model.model.layers.3.mlp.up_proj.weight",
                "model.language_model.layers.3.mlp.up_proj.weight",
                "model.text_model.layers.3.mlp.up_proj.weight",
                "model.layers.3.mlp.up_proj.weight",
                "language_model.model.decoder.layers.3.mlp.up_proj.weight",
            ],
            "text.layers.3.mlp.up_proj.weight",
        );
        same(&["language_model.lm_head.weight", "lm_head.weight"], "lm_head.weight");
        same(
            &["visual.blocks.0.norm1.weight", "model.visual.blocks.0.norm1.weight"],
            "vision.blocks.0.norm1.weight",
        );
        same(&["image_newline", "model.image_newline"], "image_newline");
        same(
            &["multi_modal_projector.linear_1.bias", "model.multi_modal_projector.linear_1.bias"],
            "projector.modality_projection.fc1.bias",
        );
        same(&["language_model.shared.weight"], "text.shared.weight");
    }
}
