"""One policy of LeRobot on PyTorch, of its published shape with random weights: prints one JSON line per chunk.

Usage: python measure.py smolvla|act|diffusion [--views N] [--steps N] [--threads N] [--chunks N]
Needs lerobot[smolvla,diffusion]==0.6.1 (Python 3.12); no network. The first chunk is for warming up and is not printed.
The shapes are those of `vela bench vla --arch NAME`: what is timed begins with pictures of the network's own size, so that
neither side's resizing counts, and ends with a normalised chunk.
"""

import argparse
import json
import os
import pathlib
import shutil
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"
import torch  # noqa: E402
from lerobot.configs.types import FeatureType, PolicyFeature  # noqa: E402

golden = pathlib.Path(__file__).parent.parent.parent / "tests" / "golden"
parser = argparse.ArgumentParser()
parser.add_argument("arch", choices=["smolvla", "act", "diffusion"])
parser.add_argument("--views", type=int, default=1)
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--chunks", type=int, default=1)
args = parser.parse_args()
torch.set_num_threads(args.threads)
torch.manual_seed(0)


def features(joints, size):
    inputs = {"observation.state": PolicyFeature(FeatureType.STATE, (joints,))}
    inputs |= {f"observation.images.view{i}": PolicyFeature(FeatureType.VISUAL, (3, *size)) for i in range(args.views)}
    return dict(input_features=inputs, output_features={"action": PolicyFeature(FeatureType.ACTION, (joints,))}, device="cpu")


def smolvla():
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    # The golden case's tokenizer and processor with the sizes of SmolVLM2-500M.
    folder = pathlib.Path(tempfile.mkdtemp()) / "vlm"
    shutil.copytree(golden / "smolvla" / "vlm_smolvla", folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= dict(hidden_size=960, intermediate_size=2560, num_hidden_layers=32, num_attention_heads=15,
                                  num_key_value_heads=5, head_dim=64, vocab_size=49_280, max_position_embeddings=8192)
    config["vision_config"] |= dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                                    patch_size=16, image_size=512)
    (folder / "config.json").write_text(json.dumps(config))
    policy = SmolVLAPolicy(SmolVLAConfig(vlm_model_name=str(folder), load_vlm_weights=False, num_steps=args.steps,
                                         **features(32, (512, 512)))).float().eval()
    shutil.rmtree(folder.parent)
    pictures = [torch.rand(1, 3, 512, 512) * 2 - 1 for _ in range(args.views)]
    words, state = torch.randint(5, 300, (1, 48)), torch.randn(1, 32)
    there = [torch.ones(1, dtype=torch.bool)] * args.views
    noise = torch.randn(1, 50, 32)
    return lambda: policy.model.sample_actions(pictures, there, words, torch.ones_like(words, dtype=torch.bool), state, noise=noise)


def act():
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    policy = ACTPolicy(ACTConfig(pretrained_backbone_weights=None, **features(14, (480, 640)))).eval()
    batch = {f"observation.images.view{i}": torch.rand(1, 3, 480, 640) for i in range(args.views)}
    return lambda: policy.predict_action_chunk(batch | {"observation.state": torch.randn(1, 14)})


def diffusion():
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    policy = DiffusionPolicy(DiffusionConfig(pretrained_backbone_weights=None, crop_shape=None,
                                             num_inference_steps=args.steps, **features(2, (96, 96)))).eval()
    batch = {"observation.images": torch.rand(1, 2, args.views, 3, 96, 96), "observation.state": torch.randn(1, 2, 2)}
    return lambda: policy.diffusion.generate_actions(batch)


chunk = {"smolvla": smolvla, "act": act, "diffusion": diffusion}[args.arch]()
with torch.inference_mode():
    chunk()
    for _ in range(args.chunks):
        wall, busy = time.perf_counter(), time.process_time()
        chunk()
        ms = (time.perf_counter() - wall) * 1e3
        print(json.dumps({"chunk_ms": ms, "cpu_ms": (time.process_time() - busy) * 1e3}), flush=True)
