"""vela and llama.cpp in turns on the same file; prints medians and ratios (above 1: vela is better).

Usage: python benches/llm/run.py MODEL [--vela target/release/vela] [--rounds 5] [--threads 1 2] [--prompt 512] [--decode 128]
       [--burn]      with another process burning one core meanwhile
Run it with the Python that has llama-cpp-python; build first: cargo build --release.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

here = pathlib.Path(__file__).parent
parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--vela", default=str(here / "../../target/release/vela"))
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
parser.add_argument("--prompt", type=int, default=512)
parser.add_argument("--decode", type=int, default=128)
parser.add_argument("--burn", action="store_true")
args = parser.parse_args()

# Above 1 in the ratio is better for vela: speeds are vela / llama.cpp, costs llama.cpp / vela.
SPEEDS = ["prefill_tok_s", "decode_tok_s"]
COSTS = ["ttft_ms", "prefill_cpu_ms_per_token", "decode_cpu_ms_per_token", "rss_mb", "load_ms"]


def run(command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


burner = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if args.burn else None
try:
    for threads in args.threads:
        vela, llama = [], []
        for _ in range(args.rounds):
            sizes = ["--prompt-tokens", args.prompt, "--decode-tokens", args.decode]
            vela.append(run([args.vela, "bench", "llm", "--model", args.model, "--threads", threads, "--json", *sizes]))
            llama.append(run([sys.executable, here / "measure_llama_cpp.py", args.model, threads, args.prompt, args.decode]))
        print(f"{threads} thread(s), medians of {args.rounds}: vela, llama.cpp, ratio")
        for name in SPEEDS + COSTS:
            ours, theirs = (statistics.median(m[name] for m in measured) for measured in (vela, llama))
            ratio = ours / theirs if name in SPEEDS else theirs / max(ours, 1e-9)
            print(f"  {name:<26} {ours:10.2f} {theirs:10.2f} {ratio:7.2f}")
finally:
    if burner:
        burner.kill()
