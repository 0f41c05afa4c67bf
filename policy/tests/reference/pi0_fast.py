"""pi0-FAST's mechanism in NumPy, independent of vela's Rust: what follows is worked out from the whole sequence anew, without
a cache, over the PaliGemma of tests/golden/pi0. Writes pi0_fast.json beside itself: `python3 pi0_fast.py`."""

import json
import math
import pathlib
import struct

import numpy as np

HERE = pathlib.Path(__file__).parent
CASE = HERE / "../../../tests/golden/pi0"
BEGIN = 1


def read(path):
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, body = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    out = {}
    for name, what in header.items():
        if name != "__metadata__":
            start, end = what["data_offsets"]
            out[name] = np.frombuffer(body[start:end], "<f4").reshape(what["shape"]).astype(np.float64)
    return out


W = read(CASE / "model.safetensors")
SIZES = json.loads((CASE / "tiny_dims.json").read_text())
PALI = "model.paligemma_with_expert.paligemma.model."
VISION, TEXT = PALI + "vision_tower.vision_model.", PALI + "language_model."


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def affine(x, name):
    return x @ W[name + ".weight"].T + W.get(name + ".bias", 0)


def layer_norm(x, name):
    d = x - x.mean(-1, keepdims=True)
    return d / np.sqrt((d**2).mean(-1, keepdims=True) + 1e-6) * W[name + ".weight"] + W[name + ".bias"]


def rms_norm(x, name):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * (1 + W[name + ".weight"])


def split(x, heads):
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


def look(picture):
    sizes = SIZES["vision"]
    p, grid = sizes["patch_size"], sizes["image_size"] // sizes["patch_size"]
    cut = picture.reshape(3, grid, p, grid, p).transpose(1, 3, 0, 2, 4).reshape(grid * grid, -1)
    kernel = W[VISION + "embeddings.patch_embedding.weight"]
    x = cut @ kernel.reshape(len(kernel), -1).T + W[VISION + "embeddings.patch_embedding.bias"]
    x = x + W[VISION + "embeddings.position_embedding.weight"]
    heads = sizes["num_attention_heads"]
    for i in range(sizes["num_hidden_layers"]):
        at = f"{VISION}encoder.layers.{i}."
        y = layer_norm(x, at + "layer_norm1")
        q, k, v = (split(affine(y, f"{at}self_attn.{part}_proj"), heads) for part in "qkv")
        y = softmax(q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[2])) @ v
        x = x + affine(y.transpose(1, 0, 2).reshape(len(x), -1), at + "self_attn.out_proj")
        x = x + affine(gelu(affine(layer_norm(x, at + "layer_norm2"), at + "mlp.fc1")), at + "mlp.fc2")
    return affine(layer_norm(x, VISION + "post_layernorm"), PALI + "multi_modal_projector.linear")


def turn(x):
    """Rotary positions, halves."""
    half = x.shape[2] // 2
    angle = np.arange(x.shape[1])[:, None] / 10_000 ** (np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate(
        [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)], -1
    )


def words(ids):
    table = W[TEXT + "embed_tokens.weight"]
    return table[ids] * math.sqrt(table.shape[1])


def logits(x, prefix):
    """Of the last position. The first `prefix` positions see each other, later ones what went before."""
    n = len(x)
    seen = np.tril(np.ones((n, n), bool))
    seen[:prefix, :prefix] = True
    heads = SIZES["vlm"]["num_heads"]
    for i in range(SIZES["vlm"]["depth"]):
        at = f"{TEXT}layers.{i}."
        y = rms_norm(x, at + "input_layernorm")
        q = turn(split(affine(y, at + "self_attn.q_proj"), heads))
        k, v = turn(split(affine(y, at + "self_attn.k_proj"), 1)), split(affine(y, at + "self_attn.v_proj"), 1)
        scores = np.where(seen, q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[2]), -np.inf)
        x = x + affine((softmax(scores) @ v).transpose(1, 0, 2).reshape(n, -1), at + "self_attn.o_proj")
        y = rms_norm(x, at + "post_attention_layernorm")
        x = x + affine(gelu(affine(y, at + "mlp.gate_proj")) * affine(y, at + "mlp.up_proj"), at + "mlp.down_proj")
    return rms_norm(x[-1:], TEXT + "norm")[0] @ W[TEXT + "embed_tokens.weight"].T


def inverse_dct(c):
    """Orthonormal, over the rows, by the definition."""
    n = len(c)
    t, k = np.arange(n)[:, None], np.arange(n)[None, :]
    basis = np.cos(math.pi / n * (t + 0.5) * k) * np.where(k == 0, math.sqrt(1 / n), math.sqrt(2 / n))
    return basis @ c


size = SIZES["vision"]["image_size"]
place = np.arange(2 * 3 * size * size).reshape(2, 3, size, size)
pictures = np.sin(place * 0.37).astype(np.float32).astype(np.float64)
prompt = [40, 77, 120, 5, 300, 211, 18]
prefix = np.concatenate([*(look(picture) for picture in pictures), words(prompt + [BEGIN])])
# What is likeliest first, and how likely everything is behind three words that are given.
first = logits(prefix, len(prefix))
given = [246, 17, 330]
followed = [logits(np.concatenate([prefix, words(given[:n])]), len(prefix)) for n in range(len(given) + 1)]

# Coefficients 3, -2, 0, ... of 10 ticks of 6 numbers, from 7 tokens: what is missing is zero.
scale, lowest = 10, -20
coefficients = [3, -2, 0, 5, -7, 1, 2]
full = np.zeros(60)
full[: len(coefficients)] = coefficients
(HERE / "pi0_fast.json").write_text(
    json.dumps(
        {
            "prompt": prompt,
            "said": int(first.argmax()),
            "given": given,
            "logits": [[round(float(x), 5) for x in row] for row in followed],
            "coefficients": coefficients,
            "scale": scale,
            "lowest": lowest,
            "actions": [round(float(x), 7) for x in inverse_dct(full.reshape(10, 6) / scale).ravel()],
        }
    )
    + "\n"
)
