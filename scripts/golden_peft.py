"""Adapters as PEFT itself writes them, with what `transformers` and PEFT answer: tests/golden/peft.

Usage: python scripts/golden_peft.py            (needs torch, transformers and peft; made with the versions that it prints)
The base models are the golden cases next door; every number of an adapter is random, B too, so that a forgotten term shows.
"""

import json
import pathlib

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

golden = pathlib.Path(__file__).parent.parent / "tests" / "golden"
CASES = {
    "llama_qv": ("llama", dict(r=4, lora_alpha=10, target_modules=["q_proj", "v_proj"])),
    "llama_patterns": (
        "llama",
        dict(r=4, lora_alpha=6, use_rslora=True, target_modules="all-linear", exclude_modules=["k_proj"],
             rank_pattern={"down_proj": 2, r"layers\.1\.self_attn\.q_proj": 6}, alpha_pattern={"o_proj": 3}),
    ),
    "llama_layer": ("llama", dict(r=3, lora_alpha=3, target_modules=["up_proj", "o_proj"], layers_to_transform=[1])),
    "gpt2_conv1d": ("gpt2", dict(r=4, lora_alpha=8, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "phi3_fused": ("phi3", dict(r=4, lora_alpha=8, target_modules=["qkv_proj", "gate_up_proj"])),
    # Of models that see: tower, projector and decoder; the decoder alone, under names that the checkpoint's file does not have.
    "smolvlm_all": ("smolvlm", dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj", "fc1", "proj"])),
    "llava_text": ("llava", dict(r=4, lora_alpha=8, target_modules=r".*language_model.*\.(q_proj|up_proj)")),
}
SEEN = ["input_ids", "pixel_values", "pixel_attention_mask"]

torch.manual_seed(0)
for name, (base, options) in CASES.items():
    given = load_file(golden / base / "golden.safetensors")
    sees = "in.pixel_values" in given
    inputs = {part: given[f"in.{part}"] for part in (SEEN if sees else SEEN[:1]) if f"in.{part}" in given}
    kind = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(golden / base, dtype=torch.float32).eval()
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.05, **options)).eval()
    with torch.no_grad():
        for part, weight in model.named_parameters():
            if "lora_" in part:
                weight.normal_(0, 0.15)
        logits = model(**inputs).logits
        made = model.generate(**inputs, max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0)
    folder = golden / "peft" / name
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    # A path of this machine is nobody's business.
    config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    outputs = {"out.logits": logits.contiguous(), "out.generated": made[:, given["in.input_ids"].shape[1]:].contiguous()}
    save_file(outputs, folder / "golden.safetensors")
print(f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
