"""The parts of a real VLM as one folder: a DINOv2-small encoder out of an ONNX file and SmolLM2-135M-Instruct out of a
GGUF file, as safetensors under the names of the InternVL family. The projector is missing: `vela train vlm` makes it.

    real-vlm-parts.py ENCODER.onnx DECODER.gguf FOLDER

Needs numpy, onnx and gguf (scripts/real-vlm installs them beside itself)."""

import json
import re
import struct
import sys
from pathlib import Path

import numpy as np
import onnx
from gguf import GGUFReader
from gguf.quants import dequantize
from onnx import numpy_helper

PLACEHOLDER = "<IMG_CONTEXT>"
EDGE_PX = 112
SHUFFLE = 2


def encoder(path):
    """DINOv2's tensors under its own names. Matrices of linear layers stand transposed in the ONNX file and have no
    name; which layer they belong to is said by the node that multiplies by them. The positions are in two parts."""
    graph = onnx.load(path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    start = "backbone."
    found = {name[len(start) :]: values for name, values in stored.items() if name.startswith(start)}
    for node in graph.node:
        layer = re.fullmatch(r"/backbone/encoder/layer\.(\d+)/(.*)/MatMul", node.name)
        for name in node.input if node.op_type == "MatMul" and layer else []:
            if name in stored:
                found[f"encoder.layer.{layer[1]}.{layer[2].replace('/', '.')}.weight"] = stored[name].T
    of_node = {node.name: stored.get(node.input[0]) for node in graph.node if node.input}
    parts = [of_node["/backbone/embeddings/Concat_6"], of_node["/backbone/embeddings/Reshape_1"]]
    found["embeddings.position_embeddings"] = np.concatenate(parts, axis=1)
    return {f"model.vision_tower.{name}": values for name, values in found.items()}


def decoder(reader, heads):
    """The text model's tensors under Hugging Face's names, dequantised."""
    names = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    found = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).reshape(tuple(reversed(tensor.shape.tolist())))
        part = tensor.name.split(".")
        if part[0] == "blk":
            name = f"layers.{part[1]}.{names[part[2]]}.weight"
            if part[2] in heads:
                # GGUF lets neighbouring rows of a head turn together, Hugging Face its halves.
                rows, columns = values.shape
                count = heads[part[2]]
                values = values.reshape(count, rows // count // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
        else:
            name = {"token_embd": "embed_tokens", "output_norm": "norm"}[part[0]] + ".weight"
        found[f"model.language_model.{name}"] = values
    return found


def tokenizer(keys):
    """`tokenizer.json` of a GGUF file's byte-level BPE, with the picture's placeholder behind its tokens."""
    tokens = keys("tokenizer.ggml.tokens")
    kinds = keys("tokenizer.ggml.token_type")
    special = [(i, token) for i, (token, kind) in enumerate(zip(tokens, kinds)) if kind == 3]
    special.append((len(tokens), PLACEHOLDER))
    assert keys("tokenizer.ggml.pre") == "smollm", "a pre-tokenizer that this script does not know"
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": token, **flags} for i, token in special],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in keys("tokenizer.ggml.merges")],
        },
    }


# ChatML, without the system prompt that SmolLM2's own template adds; pictures lead a turn.
CHAT_TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message['role'] }}{{ '\\n' }}\
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] %}{% if part['type'] == 'image' %}<IMG_CONTEXT>{% endif %}{% endfor %}\
{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}\
{% endif %}<|im_end|>{{ '\\n' }}{% endfor %}\
{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"""


def save(path, tensors):
    """A safetensors file; matrices in 16 bits, all else in 32."""
    tensors = {k: np.ascontiguousarray(v, np.float16 if v.ndim > 1 else np.float32) for k, v in tensors.items()}
    header, end = {}, 0
    for name, values in sorted(tensors.items()):
        kind = {"float16": "F16", "float32": "F32"}[values.dtype.name]
        header[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [end, end + values.nbytes]}
        end += values.nbytes
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(head)) + head)
        for name in sorted(tensors):
            out.write(tensors[name].tobytes())


def main(onnx_path, gguf_path, folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    reader = GGUFReader(gguf_path)
    keys = lambda key: reader.fields[key].contents()
    of_text = lambda key: keys(f"llama.{key}")
    seen = encoder(onnx_path)
    vocab, end = len(keys("tokenizer.ggml.tokens")), keys("tokenizer.ggml.eos_token_id")
    positions, width = seen["model.vision_tower.embeddings.position_embeddings"].shape[1:]
    layers = 1 + max(int(found[1]) for found in (re.search(r"encoder\.layer\.(\d+)\.", name) for name in seen) if found)
    config = {
        "model_type": "internvl",
        "architectures": ["InternVLForConditionalGeneration"],
        "image_token_id": vocab,
        "downsample_ratio": 1 / SHUFFLE,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "eos_token_id": end,
        "pad_token_id": end,
        "tie_word_embeddings": True,
        "vision_config": {
            "model_type": "dinov2",
            "image_size": 14 * int((positions - 1) ** 0.5),
            "patch_size": 14,
            "hidden_size": width,
            "mlp_ratio": 4,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 64,
            "layer_norm_eps": 1e-6,
            "hidden_act": "gelu",
        },
        "text_config": {
            "model_type": "llama",
            "vocab_size": vocab,
            "hidden_size": of_text("embedding_length"),
            "intermediate_size": of_text("feed_forward_length"),
            "num_hidden_layers": of_text("block_count"),
            "num_attention_heads": of_text("attention.head_count"),
            "num_key_value_heads": of_text("attention.head_count_kv"),
            "rms_norm_eps": round(of_text("attention.layer_norm_rms_epsilon"), 8),
            "rope_theta": of_text("rope.freq_base"),
            "max_position_embeddings": of_text("context_length"),
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "bos_token_id": keys("tokenizer.ggml.bos_token_id"),
            "eos_token_id": end,
        },
    }
    preprocessor = {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": EDGE_PX, "width": EDGE_PX},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    text = decoder(reader, {"attn_q": of_text("attention.head_count"), "attn_k": of_text("attention.head_count_kv")})
    files = {"vision.safetensors": seen, "text.safetensors": text}
    where = {name: file for file, tensors in files.items() for name in tensors}
    for part in ("layer_norm", "linear_1", "linear_2"):
        for kind in ("weight", "bias"):
            where[f"model.multi_modal_projector.{part}.{kind}"] = "projector.safetensors"
    token = keys("tokenizer.ggml.tokens")[end]
    written = {
        "config.json": config,
        "preprocessor_config.json": preprocessor,
        "tokenizer.json": tokenizer(keys),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": token,
            "pad_token": token,
            "clean_up_tokenization_spaces": False,
        },
        "model.safetensors.index.json": {"metadata": {}, "weight_map": dict(sorted(where.items()))},
    }
    for file, value in written.items():
        indent = None if file == "tokenizer.json" else 2
        (folder / file).write_text(json.dumps(value, indent=indent, ensure_ascii=False))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    for file, tensors in files.items():
        save(folder / file, tensors)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
