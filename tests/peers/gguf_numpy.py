"""A Llama or Gemma 3 GGUF file in plain NumPy: the file's weights dequantised, activations in float32.

Usage: python tests/peers/gguf_numpy.py MODEL.gguf PROMPTS.json [VELA]        beside `vela bench greedy`
PROMPTS.json is a list of lists of token ids. Needs `pip install gguf numpy`. For each prompt it prints the difference of the
first logits, the exact margin of the best token over the second, and whether both choose the same one: a choice may differ
only where the margin is within that noise. `llama_cpp_greedy.py` takes its reference from here.
"""

import json
import subprocess
import sys

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize


class Decoder:
    def __init__(self, path):
        reader = GGUFReader(path)
        family = reader.fields["general.architecture"].contents()
        if family not in ("llama", "gemma3"):
            sys.exit(f"{path}: expected a file of llama or gemma3, got {family}")

        def value(key, default=None):
            field = reader.fields.get(f"{family}.{key}")
            return default if field is None else field.contents()

        self.gemma = family == "gemma3"
        self.heads, self.kv_heads = value("attention.head_count"), value("attention.head_count_kv")
        self.layers, self.width = value("block_count"), value("embedding_length")
        self.size = value("attention.key_length", self.width // self.heads)
        self.eps, self.theta = value("attention.layer_norm_rms_epsilon"), value("rope.freq_base", 10000.0)
        self.window = value("attention.sliding_window")
        self.weights = {}
        for tensor in reader.tensors:
            shape = [int(n) for n in reversed(tensor.shape)]
            self.weights[tensor.name] = dequantize(tensor.data, tensor.tensor_type).reshape(shape).astype(np.float32)

    def norm(self, x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * self.weights[f"{name}.weight"]

    def turned(self, x, theta):
        """Rotary embedding; x: [tokens, heads, size]. Llama's files have the pairs beside each other, Gemma's half a head apart."""
        size = x.shape[-1]
        first, second = np.s_[..., : size // 2], np.s_[..., size // 2 :]
        if not self.gemma:
            first, second = np.s_[..., 0::2], np.s_[..., 1::2]
        angle = np.arange(len(x))[:, None] * theta ** (-np.arange(0, size, 2) / size)
        c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
        out = np.empty_like(x)
        out[first] = x[first] * c - x[second] * s
        out[second] = x[first] * s + x[second] * c
        return out

    def attention(self, x, block, theta):
        count = len(x)
        q, k, v = ((x @ self.weights[f"{block}.attn_{part}.weight"].T).reshape(count, -1, self.size) for part in "qkv")
        if self.gemma:
            q, k = self.norm(q, f"{block}.attn_q_norm"), self.norm(k, f"{block}.attn_k_norm")
        q, k = self.turned(q, theta), self.turned(k, theta)
        k, v = (np.repeat(part, self.heads // self.kv_heads, axis=1) for part in (k, v))
        scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(self.size) + np.triu(np.full((count, count), -1e9), 1)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores = (scores / scores.sum(-1, keepdims=True)).astype(np.float32)
        return np.einsum("hts,shd->thd", scores, v).reshape(count, -1) @ self.weights[f"{block}.attn_output.weight"].T

    def feed(self, x, block):
        gate = x @ self.weights[f"{block}.ffn_gate.weight"].T
        if self.gemma:
            gate = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        else:
            gate = gate / (1 + np.exp(-gate))
        return (gate * (x @ self.weights[f"{block}.ffn_up.weight"].T)) @ self.weights[f"{block}.ffn_down.weight"].T

    def logits(self, ids, start=-1):
        """Of the tokens from `start` on: [tokens, vocabulary]."""
        if self.window and len(ids) > self.window:
            sys.exit(f"expected at most {self.window} tokens (a window is not computed here), got {len(ids)}")
        x = self.weights["token_embd.weight"][ids]
        if self.gemma:
            x = x * np.float32(np.sqrt(self.width))
        for layer in range(self.layers):
            block = f"blk.{layer}"
            # Gemma 3 sees everything in every sixth layer; the others have a base of their own and a window.
            theta = 10000.0 if self.gemma and (layer + 1) % 6 else self.theta
            more = self.attention(self.norm(x, f"{block}.attn_norm"), block, theta)
            x = x + (self.norm(more, f"{block}.post_attention_norm") if self.gemma else more)
            more = self.feed(self.norm(x, f"{block}.ffn_norm"), block)
            x = x + (self.norm(more, f"{block}.post_ffw_norm") if self.gemma else more)
        head = self.weights.get("output.weight", self.weights["token_embd.weight"])
        return self.norm(x[start:], "output_norm") @ head.T


def main():
    model, prompts = sys.argv[1:3]
    vela = sys.argv[3] if len(sys.argv) > 3 else "target/release/vela"
    command = [vela, "bench", "greedy", "--model", model, "--prompts", prompts, "--count", "1"]
    ours = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    reference, surprises = Decoder(model), 0
    for ids, answer in zip(json.load(open(prompts)), ours):
        exact = reference.logits(ids)[0]
        noise = np.array(answer["first_logits"]) - exact
        second, best = np.sort(exact)[-2:]
        same = int(exact.argmax()) == answer["ids"][0]
        surprises += not same and best - second > 2 * np.abs(noise).max()
        print(f"rms {noise.std():.3f}, largest {np.abs(noise).max():.3f}, spread {exact.std():.2f}, margin {best - second:.3f}: "
              f"{'same token' if same else 'another token'}")
    sys.exit(1 if surprises else 0)


if __name__ == "__main__":
    main()
