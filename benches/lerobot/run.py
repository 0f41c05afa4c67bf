"""vela beside LeRobot on PyTorch: one chunk of each published shape, in turns, medians, and their ratio.

Usage: python benches/lerobot/run.py --python PYTHON_WITH_LEROBOT [--vela target/release/vela] [--rounds 3] [--threads 2] [--json]
PYTHON_WITH_LEROBOT: of an environment with lerobot[smolvla,diffusion]==0.6.1. Build first: cargo build --release.
"""

import argparse
import json
import pathlib
import statistics
import subprocess

here = pathlib.Path(__file__).parent
parser = argparse.ArgumentParser()
parser.add_argument("--python", required=True)
parser.add_argument("--vela", default=str(here / "../../target/release/vela"))
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--only", help="one of the shapes")
parser.add_argument("--json", action="store_true")
args = parser.parse_args()

# Shape, views, denoising steps.
SHAPES = [("act", 2, None), ("diffusion", 1, 10), ("smolvla", 1, 10)]


def lines(*command):
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


for arch, views, steps in SHAPES:
    if args.only not in (None, arch):
        continue
    sizes = ["--views", views, "--threads", args.threads, "--chunks", 1] + (["--steps", steps] if steps else [])
    ours, theirs = [], []
    for _ in range(args.rounds):
        [one] = lines(args.vela, "bench", "vla", "--arch", arch, "--json", *sizes)
        ours.append((one["chunk_ms"]["p50"], one["chunk_cpu_ms"]))
        [other] = lines(args.python, here / "measure.py", arch, *sizes)
        theirs.append((other["chunk_ms"], other["cpu_ms"]))
    vela, lerobot = ([statistics.median(part) for part in zip(*side)] for side in (ours, theirs))
    row = {"arch": arch, "views": views, "steps": steps, "threads": args.threads, "rounds": args.rounds, "vela_ms": vela[0],
           "vela_cpu_ms": vela[1], "lerobot_ms": lerobot[0], "lerobot_cpu_ms": lerobot[1], "ratio": lerobot[0] / vela[0],
           "ratio_cpu": lerobot[1] / vela[1], "vela_all_ms": [a for a, _ in ours], "lerobot_all_ms": [a for a, _ in theirs]}
    if args.json:
        print(json.dumps(row), flush=True)
    else:
        print(f"{arch}, {views} view(s), {args.threads} thread(s): vela {vela[0]:.0f} ms, LeRobot {lerobot[0]:.0f} ms, "
              f"{row['ratio']:.2f} times (processor time {row['ratio_cpu']:.2f})", flush=True)
