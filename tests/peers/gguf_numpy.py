"""A Llama GGUF file in plain NumPy, exact float32 activations, beside `vela bench greedy` (eight-bit activations).

Usage: python tests/peers/gguf_numpy.py MODEL.gguf PROMPTS.json [VELA]
PROMPTS.json is a list of lists of token ids. Needs `pip install gguf numpy`. For each prompt it prints the difference of the
first logits, the exact margin of the best token over the second, and whether both choose the same one: a choice may differ
only where the margin is within that noise.
"""

import json
import subprocess
import sys

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize


class Llama:
    def __init__(self, path):
        reader = GGUFReader(path)
        value = lambda key: reader.fields[f"llama.{key}"].parts[-1][0]
        self.heads, self.kv_heads = int(value("attention.head_count")), int(value("attention.head_count_kv"))
        self.layers, self.width = int(value("block_count")), int(value("embedding_length"))
        self.eps, self.theta = float(value("attention.layer_norm_rms_epsilon")), float(value("rope.freq_base"))
        self.weights = {}
        for tensor in reader.tensors:
            shape = [int(n) for n in reversed(tensor.shape)]
            self.weights[tensor.name] = dequantize(tensor.data, tensor.tensor_type).reshape(shape).astype(np.float32)

    def norm(self, x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * self.weights[name]

    def turned(self, x):
        """Rotary embedding of neighbouring pairs, as GGUF's llama files have them; x: [tokens, heads, size]."""
        size = x.shape[-1]
        angle = np.arange(len(x))[:, None] * self.theta ** (-np.arange(0, size, 2) / size)
        c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
        out = np.empty_like(x)
        out[..., 0::2] = x[..., 0::2] * c - x[..., 1::2] * s
        out[..., 1::2] = x[..., 0::2] * s + x[..., 1::2] * c
        return out

    def logits(self, ids):
        """Of the last token."""
        x, count, size = self.weights["token_embd.weight"][ids], len(ids), self.width // self.heads
        future = np.triu(np.full((count, count), -1e9), 1)
        for layer in range(self.layers):
            at = lambda part: self.weights[f"blk.{layer}.{part}.weight"]
            h = self.norm(x, f"blk.{layer}.attn_norm.weight")
            q, k, v = ((h @ at(f"attn_{part}").T).reshape(count, -1, size) for part in "qkv")
            q, k = self.turned(q), self.turned(k)
            k, v = (np.repeat(part, self.heads // self.kv_heads, axis=1) for part in (k, v))
            scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(size) + future
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            scores /= scores.sum(-1, keepdims=True)
            x = x + np.einsum("hts,shd->thd", scores, v).reshape(count, -1) @ at("attn_output").T
            h = self.norm(x, f"blk.{layer}.ffn_norm.weight")
            gate = h @ at("ffn_gate").T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ at("ffn_up").T)) @ at("ffn_down").T
        head = self.weights.get("output.weight", self.weights["token_embd.weight"])
        return self.norm(x[-1], "output_norm.weight") @ head.T


def main():
    model, prompts = sys.argv[1:3]
    vela = sys.argv[3] if len(sys.argv) > 3 else "target/release/vela"
    command = [vela, "bench", "greedy", "--model", model, "--prompts", prompts, "--count", "1"]
    ours = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    llama, surprises = Llama(model), 0
    for ids, answer in zip(json.load(open(prompts)), ours):
        exact = llama.logits(ids)
        noise = np.array(answer["first_logits"]) - exact
        second, best = np.sort(exact)[-2:]
        same = int(exact.argmax()) == answer["ids"][0]
        surprises += not same and best - second > 2 * np.abs(noise).max()
        print(f"rms {noise.std():.3f}, largest {np.abs(noise).max():.3f}, spread {exact.std():.2f}, margin {best - second:.3f}: "
              f"{'same token' if same else 'another token'}")
    sys.exit(1 if surprises else 0)


main()
