"""OpenVLA-OFT's mechanism in NumPy, independent of vela's Rust: two pictures, the robot's state as a token, empty actions that
everything sees, a residual network on what becomes of them. On the llama and the image tokens of tests/golden/openvla; the
head and the projector of the state are made up here and written as PyTorch writes them. Writes openvla_oft.json and two
.pt files beside itself: `python3 openvla_oft.py`."""

import collections
import io
import json
import math
import pathlib
import pickle
import struct
import sys
import types
import zipfile

import numpy as np

HERE = pathlib.Path(__file__).parent
CASE = HERE / "../../../tests/golden/openvla"
WIDTH, DIMS, CHUNK, PROPRIO, STOP, STEP = 48, 7, 8, 8, 2, 5000


def read(path):
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, body = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    kinds, out = {"F32": "<f4", "I64": "<i8"}, {}
    for name, what in header.items():
        if name != "__metadata__":
            start, end = what["data_offsets"]
            out[name] = np.frombuffer(body[start:end], kinds[what["dtype"]]).reshape(what["shape"])
    return out


def write_pt(path, tensors):
    """A zip of one pickle and the bytes, with stand-ins for the two names of PyTorch's that it uses."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch.FloatStorage = type("FloatStorage", (), {"__module__": "torch"})
    exec("def _rebuild_tensor_v2(*parts): pass", utils.__dict__)
    utils._rebuild_tensor_v2.__module__ = "torch._utils"
    sys.modules["torch"], sys.modules["torch._utils"] = torch, utils

    class Storage:
        def __init__(self, key, count):
            self.id = ("storage", torch.FloatStorage, key, "cpu", count)

    class Stored:
        def __init__(self, key, array):
            self.key, self.array = key, array

        def __reduce__(self):
            strides = tuple(s // 4 for s in self.array.strides)
            parts = (Storage(self.key, self.array.size), 0, self.array.shape, strides, False)
            return utils._rebuild_tensor_v2, (*parts, collections.OrderedDict())

    class Writer(pickle.Pickler):
        def persistent_id(self, item):
            return item.id if isinstance(item, Storage) else None

    buffer = io.BytesIO()
    numbered = list(enumerate(tensors.items()))
    state = collections.OrderedDict((name, Stored(str(i), array)) for i, (name, array) in numbered)
    Writer(buffer, protocol=2).dump(state)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), buffer.getvalue())
        archive.writestr(zipfile.ZipInfo("archive/byteorder"), b"little")
        for i, (_, array) in numbered:
            archive.writestr(zipfile.ZipInfo(f"archive/data/{i}"), array.tobytes())


W = {name: x.astype(np.float64) for name, x in read(CASE / "model.safetensors").items()}
GOLDEN = read(CASE / "golden.safetensors")
TEXT = json.loads((CASE / "config.json").read_text())["text_config"]
rng = np.random.default_rng(7)


def made(*shape):
    return (rng.standard_normal(shape) / math.sqrt(shape[-1])).astype(np.float32)


def norm_of(width):
    return (1 + 0.1 * rng.standard_normal(width)).astype(np.float32)


head = {
    "module.model.layer_norm1.weight": norm_of(WIDTH * DIMS),
    "module.model.layer_norm1.bias": made(WIDTH * DIMS),
    "module.model.fc1.weight": made(WIDTH, WIDTH * DIMS),
    "module.model.fc1.bias": made(WIDTH),
}
for i in range(2):
    head[f"module.model.mlp_resnet_blocks.{i}.ffn.0.weight"] = norm_of(WIDTH)
    head[f"module.model.mlp_resnet_blocks.{i}.ffn.0.bias"] = made(WIDTH)
    head[f"module.model.mlp_resnet_blocks.{i}.ffn.1.weight"] = made(WIDTH, WIDTH)
    head[f"module.model.mlp_resnet_blocks.{i}.ffn.1.bias"] = made(WIDTH)
head |= {
    "module.model.layer_norm2.weight": norm_of(WIDTH),
    "module.model.layer_norm2.bias": made(WIDTH),
    "module.model.fc2.weight": made(DIMS, WIDTH),
    "module.model.fc2.bias": made(DIMS),
}
projector = {
    "fc1.weight": made(WIDTH, PROPRIO),
    "fc1.bias": made(WIDTH),
    "fc2.weight": made(WIDTH, WIDTH),
    "fc2.bias": made(WIDTH),
}
write_pt(HERE / f"action_head--{STEP}_checkpoint.pt", head)
write_pt(HERE / f"proprio_projector--{STEP}_checkpoint.pt", projector)
erf = np.vectorize(math.erf)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rms_norm(x, name):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + TEXT["rms_norm_eps"]) * W[name + ".weight"]


def layer_norm(x, tensors, name):
    d = x - x.mean(-1, keepdims=True)
    y = d / np.sqrt((d**2).mean(-1, keepdims=True) + 1e-5)
    return y * tensors[name + ".weight"] + tensors[name + ".bias"]


def affine(x, tensors, name):
    return x @ tensors[name + ".weight"].astype(np.float64).T + tensors[name + ".bias"]


def turn(x):
    half = x.shape[2] // 2
    angle = np.arange(x.shape[1])[:, None] / 10_000 ** (np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate(
        [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)], -1
    )


def llama(x):
    """Every token sees every token."""
    n, heads = len(x), TEXT["num_attention_heads"]
    split = lambda y: y.reshape(n, heads, -1).transpose(1, 0, 2)
    for i in range(TEXT["num_hidden_layers"]):
        at = f"language_model.model.layers.{i}."
        y = rms_norm(x, at + "input_layernorm")
        q, k, v = (split(y @ W[f"{at}self_attn.{part}_proj.weight"].T) for part in "qkv")
        q, k = turn(q), turn(k)
        y = softmax(q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[2])) @ v
        x = x + y.transpose(1, 0, 2).reshape(n, -1) @ W[at + "self_attn.o_proj.weight"].T
        y = rms_norm(x, at + "post_attention_layernorm")
        gate = y @ W[at + "mlp.gate_proj.weight"].T
        up = y @ W[at + "mlp.up_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ W[at + "mlp.down_proj.weight"].T
    return rms_norm(x, "language_model.model.norm")


table = W["language_model.model.embed_tokens.weight"]
image = GOLDEN["out.image_features"][0].astype(np.float64)
prompt = GOLDEN["in.input_ids"][0].tolist()
state = [0.5, -1.0, 0.25, 0.0, 1.0, -0.75, 0.1, 0.9]
token = affine(np.array(state), projector, "fc1")
token = affine(0.5 * token * (1 + erf(token / math.sqrt(2))), projector, "fc2")
words = table[prompt]
empty = np.zeros((DIMS * CHUNK, WIDTH))
x = np.concatenate([words[:1], image, image, token[None], words[1:], empty, table[[STOP]]])
# The slots are read where the token before each of them stands.
start = 2 * len(image) + 1 + len(prompt) - 1
slots = llama(x)[start : start + DIMS * CHUNK].reshape(CHUNK, DIMS * WIDTH)
at = "module.model."
y = np.maximum(affine(layer_norm(slots, head, at + "layer_norm1"), head, at + "fc1"), 0)
for i in range(2):
    block = f"{at}mlp_resnet_blocks.{i}.ffn."
    y = y + np.maximum(affine(layer_norm(y, head, block + "0"), head, block + "1"), 0)
actions = affine(layer_norm(y, head, at + "layer_norm2"), head, at + "fc2")
(HERE / "openvla_oft.json").write_text(
    json.dumps({"state": state, "actions": [[round(float(v), 6) for v in row] for row in actions]}) + "\n"
)
