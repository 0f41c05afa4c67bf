"""Replaying a dataset through a policy: `vela replay` beside LeRobot's own dataset reader with the same policy folder, in turns.

Usage: PYTHON_WITH_LEROBOT benches/lerobot/replay.py [--vela target/release/vela] [--episodes 4] [--rounds 3] [--threads 2]
Records with `vela record`, makes an ACT of its published sizes with random weights for those features, and infers at every
frame on both sides: decode, preprocess, policy, physical units (vela's side includes starting the program and loading the policy). Prints frames
per second, medians, and how far each side's first actions are from the recorded ones in the mean, which must be equal.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"
import torch  # noqa: E402
from lerobot.configs.types import FeatureType, PolicyFeature  # noqa: E402
from lerobot.datasets.lerobot_dataset import LeRobotDataset  # noqa: E402
from lerobot.policies.act.configuration_act import ACTConfig  # noqa: E402
from lerobot.policies.act.modeling_act import ACTPolicy  # noqa: E402
from lerobot.policies.factory import make_pre_post_processors  # noqa: E402

here = pathlib.Path(__file__).parent
parser = argparse.ArgumentParser()
parser.add_argument("--vela", default=str(here / "../../target/release/vela"))
parser.add_argument("--episodes", type=int, default=4)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--threads", type=int, default=2)
args = parser.parse_args()
torch.set_num_threads(args.threads)
torch.manual_seed(0)


def vela(*words):
    done = subprocess.run([args.vela, *map(str, words)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


with tempfile.TemporaryDirectory() as folder:
    data, policy_dir = pathlib.Path(folder) / "data", pathlib.Path(folder) / "act"
    vela("record", "--out", data, "--episodes", args.episodes, "--task", "reach", "--json")
    dataset = LeRobotDataset("local/x", root=data)
    cameras = dataset.meta.camera_keys
    inputs = {key: PolicyFeature(FeatureType.VISUAL, (3, 96, 96)) for key in cameras}
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (6,))
    config = ACTConfig(input_features=inputs, output_features={"action": PolicyFeature(FeatureType.ACTION, (6,))},
                       pretrained_backbone_weights=None, device="cpu")
    policy = ACTPolicy(config).eval()
    before, after = make_pre_post_processors(config, dataset_stats=dataset.meta.stats)
    policy.save_pretrained(policy_dir)
    before.save_pretrained(policy_dir)
    after.save_pretrained(policy_dir)

    def lerobot():
        start, chunks = time.perf_counter(), []
        with torch.inference_mode():
            for i in range(len(dataset)):
                frame = dataset[i]
                batch = before({key: frame[key] for key in (*cameras, "observation.state")} | {"task": frame["task"]})
                chunks.append(after(policy.predict_action_chunk(batch)))
        return len(dataset) / (time.perf_counter() - start), chunks

    ours, theirs = [], []
    for _ in range(args.rounds):
        start = time.perf_counter()
        report = vela("replay", data, "--policy", policy_dir, "--json")
        ours.append(len(dataset) / (time.perf_counter() - start))
        rate, chunks = lerobot()
        theirs.append(rate)
    recorded = torch.stack([dataset[i]["action"] for i in range(len(dataset))])
    off = float(torch.stack([(chunk[0, 0] - want).abs() for chunk, want in zip(chunks, recorded)]).mean())
    print(json.dumps({"frames": len(dataset), "vela_fps": statistics.median(ours), "lerobot_fps": statistics.median(theirs),
                      "ratio": statistics.median(ours) / statistics.median(theirs), "lerobot_first_action_off_rad": off,
                      "vela_first_action_off_rad": report["mae_by_step_rad"][0]}))
