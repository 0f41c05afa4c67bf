"""Folders of the published shapes with random weights, as the `transformers` library saves them, and what it makes of them.

Usage: python shapes.py OUT --tokenizer SMOLLM2_FOLDER      (torch, transformers, onnx)
Writes OUT/siglip-224 and OUT/siglip-512 (SigLIP-B/16 vision towers, with golden.safetensors and tower.onnx) and OUT/smolvlm-256m
(SmolVLM-256M: its sizes, its prompt form, one tile of 512 pixels a picture,
and in first_token.safetensors the tokens of one picture). The tokenizer is SmolLM2's (scripts/fetch-models.sh),
with SmolVLM's special tokens added.
"""

import argparse
import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file
from transformers import SiglipVisionConfig, SiglipVisionModel, SmolVLMConfig, SmolVLMForConditionalGeneration

parser = argparse.ArgumentParser()
parser.add_argument("out", type=pathlib.Path)
parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
args = parser.parse_args()
torch.manual_seed(0)


class Tower(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels):
        return self.model(pixels).last_hidden_state


B16 = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, patch_size=16)
for size in (224, 512):
    folder = args.out / f"siglip-{size}"
    model = SiglipVisionModel(SiglipVisionConfig(**B16, image_size=size, vision_use_head=False)).eval()
    model.save_pretrained(folder)
    pixels = torch.rand(1, 3, size, size) * 2 - 1
    with torch.inference_mode():
        hidden = model(pixels).last_hidden_state
    save_file({"in.pixel_values": pixels, "out.last_hidden_state": hidden.contiguous()}, folder / "golden.safetensors")

    torch.onnx.export(Tower(model).eval(), (pixels,), folder / "tower.onnx", input_names=["pixels"], output_names=["hidden"], dynamo=False)

folder = args.out / "smolvlm-256m"
special = ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>"]
text = dict(model_type="llama", hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
            head_dim=64, vocab_size=49_280, max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=1e5, tie_word_embeddings=False,
            bos_token_id=1, eos_token_id=2, pad_token_id=2)
config = SmolVLMConfig(text_config=text, vision_config=dict(**B16, image_size=512), scale_factor=4, image_token_id=49_153, pad_token_id=2)
model = SmolVLMForConditionalGeneration(config).eval()
model.save_pretrained(folder)
picture = torch.randint(0, 256, (512, 512, 3), dtype=torch.uint8)
with torch.inference_mode():
    pixels = (picture.permute(2, 0, 1) / 127.5 - 1)[None, None]
    save_file({"in.picture": picture, "out.picture_tokens": model.get_image_features(pixels).pooler_output.contiguous()}, folder / "first_token.safetensors")
tokenizer = json.loads((args.tokenizer / "tokenizer.json").read_text())
first = max(max(tokenizer["model"]["vocab"].values()), max(t["id"] for t in tokenizer["added_tokens"])) + 1
assert first == 49_152, first
tokenizer["added_tokens"] += [dict(id=first + i, content=word, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
                              for i, word in enumerate(special)]
(folder / "tokenizer.json").write_text(json.dumps(tokenizer))
template = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}{% if message['content'][0]['type'] == 'image' %}:"
    "{% else %}: {% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}<image>{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
(folder / "chat_template.jinja").write_text(template)
(folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end_of_utterance>", "bos_token": "<|im_start|>"}))
(folder / "preprocessor_config.json").write_text(json.dumps(dict(
    image_processor_type="SmolVLMImageProcessor", do_convert_rgb=True, do_image_splitting=False, do_normalize=True, do_pad=True, do_rescale=True,
    do_resize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3, max_image_size={"longest_edge": 512}, resample=1,
    rescale_factor=1 / 255, size={"longest_edge": 512})))
(folder / "processor_config.json").write_text(json.dumps(dict(processor_class="SmolVLMProcessor", image_seq_len=64)))
