"""Rotary scalings as `transformers` works them out, in double precision: tests/golden/rope.

Usage: python scripts/golden_rope.py            (needs torch and transformers; made with the versions that it prints)
The frequencies come from the functions of `modeling_rope_utils` themselves. These ask for `torch.float` and `torch.float32`;
here both names mean float64 to them, so that cosine and sine are exact at far positions too.
"""

import json
import pathlib
import types

import torch
import transformers
from transformers import LlamaConfig, modeling_rope_utils

double = types.ModuleType("torch in double precision")
double.__getattr__ = lambda name: torch.float64 if name in ("float", "float32") else getattr(torch, name)
modeling_rope_utils.torch = double
torch.set_default_dtype(torch.float64)

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
# Name: (width of a head, base, greatest position, parameters, lengths).
CASES = {
    "linear": (32, 10000.0, 2048, {"rope_type": "linear", "factor": 2.5}, [2048]),
    "llama3": (
        64, 500000.0, 131072,
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 8192},
        [4096, 20000],
    ),
    "dynamic": (32, 10000.0, 64, {"rope_type": "dynamic", "factor": 2.0}, [10, 64, 65, 100, 1000]),
    "dynamic_8": (64, 1000000.0, 512, {"rope_type": "dynamic", "factor": 8.0}, [511, 513, 5000]),
    "yarn": (16, 10000.0, 1024, YARN, [1024]),
    "yarn_wide": (
        128, 1000000.0, 131072, {**YARN, "original_max_position_embeddings": 32768}, [32768, 131072],
    ),
    "yarn_betas": (64, 10000.0, 1024, {**YARN, "beta_fast": 16.0, "beta_slow": 2.0}, [1024]),
    "yarn_mscale": (64, 10000.0, 10240, {**YARN, "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.5}, [4096]),
    "yarn_mscale_alike": (64, 10000.0, 10240, {**YARN, "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 0.707}, [4096]),
    "yarn_mscale_alone": (64, 10000.0, 10240, {**YARN, "factor": 40.0, "mscale": 0.707}, [4096]),
    "yarn_attention_factor": (64, 10000.0, 1024, {**YARN, "attention_factor": 0.75}, [1024]),
    "yarn_not_truncated": (
        64, 150000.0, 131072,
        {**YARN, "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}, [4096, 131072],
    ),
    "yarn_partial": (64, 10000.0, 1024, {**YARN, "partial_rotary_factor": 0.5}, [1024]),
    "yarn_steep": (64, 10000.0, 1024, {**YARN, "beta_fast": 1.0, "beta_slow": 1.0, "truncate": False}, [1024]),
}

made = []
for name, (head_dim, theta, longest, parameters, lengths) in CASES.items():
    config = {
        "model_type": "llama", "vocab_size": 32, "hidden_size": 2 * head_dim, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": longest,
        "rope_parameters": {"rope_theta": theta, **parameters},
    }
    runs = []
    for length in lengths:
        read = LlamaConfig(**json.loads(json.dumps(config)))
        inverse, factor = modeling_rope_utils.ROPE_INIT_FUNCTIONS[parameters["rope_type"]](read, "cpu", seq_len=length)
        assert inverse.dtype == torch.float64
        positions = sorted({0, 1, 7, length // 2, length - 1})
        turns = torch.tensor(positions, dtype=torch.float64)[:, None] * inverse[None]
        runs.append({
            "positions": positions,
            "inverse_frequencies": inverse.tolist(),
            "attention_factor": float(factor),
            "cos": (turns.cos() * factor).tolist(),
            "sin": (turns.sin() * factor).tolist(),
        })
    made.append({"name": name, "config": config, "runs": runs})

out = pathlib.Path(__file__).parent.parent / "tests" / "golden" / "rope"
out.mkdir(exist_ok=True)
out.joinpath("golden.json").write_text(json.dumps(made) + "\n")
out.joinpath("README.txt").write_text(
    f"rope: scalings of the rotary embedding. Made by scripts/golden_rope.py from transformers.modeling_rope_utils in float64 "
    f"(torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}).\n"
    "cos and sin are [position, frequency], times attention_factor; of the dynamic kind each run is a row of that length.\n"
)
print(torch.__version__, transformers.__version__, {case["name"]: len(case["runs"]) for case in made})
