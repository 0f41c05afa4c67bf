"""vela beside PyTorch, ONNX Runtime and OpenVINO on vision encoders, and beside transformers and OpenVINO on a VLM's first
token: in turns, medians.

Usage: python benches/vision/run.py SHAPES --python PYTHON [--llama PYTHON] [--vela target/release/vela] [--rounds 3] [--threads 1] [--json]
SHAPES: what shapes.py wrote. PYTHON: of an environment with torch, transformers, onnxruntime and openvino.
"""

import argparse
import json
import pathlib
import statistics
import subprocess

here = pathlib.Path(__file__).parent
parser = argparse.ArgumentParser()
parser.add_argument("shapes", type=pathlib.Path)
parser.add_argument("--python", required=True)
parser.add_argument("--llama", help="a Python with llama-cpp-python, gguf and safetensors: llama.cpp's first token too")
parser.add_argument("--vela", default=str(here / "../../target/release/vela"))
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--json", action="store_true")
args = parser.parse_args()


def run(*command):
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    return json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])


def peer(engine, folder):
    return lambda: run(args.python, here / "peers.py", engine, folder, "--threads", args.threads)


def tower(folder, dtype):
    golden = folder / "golden.safetensors"
    return lambda: run(args.vela, "bench", "tower", "--model", folder, "--golden", golden, "--dtype", dtype, "--runs", 3,
                       "--threads", args.threads, "--json")


def said(name, values):
    row = {"what": name, "threads": args.threads} | values
    words = ", ".join(f"{k} {v:.4g}" for k, v in values.items())
    print(json.dumps(row) if args.json else f"{name}, {args.threads} thread(s): {words}", flush=True)


for size in (224, 512):
    folder = args.shapes / f"siglip-{size}"
    sides = {"vela": tower(folder, "f32"), "vela_int8": tower(folder, "int8")}
    sides |= {engine: peer(engine, folder) for engine in ("torch", "onnxruntime", "openvino")}
    found = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, side in sides.items():
            found[name].append(side())
    ms = {name: statistics.median(t for one in rounds for t in one["tower_ms"]) for name, rounds in found.items()}
    cpu = {f"{name}_cpu": statistics.median(one["cpu_ms"] for one in rounds) for name, rounds in found.items()}
    fastest = min(ms[name] for name in ("torch", "onnxruntime", "openvino"))
    said(f"SigLIP-B/16 at {size}", {f"{k}_ms": v for k, v in (ms | cpu).items()} | {
        "peak_share": statistics.median(one["peak_share"] for one in found["vela"]), "ratio_to_fastest": fastest / ms["vela"],
        "int8_ratio": ms["vela"] / ms["vela_int8"], "int8_cosine": found["vela_int8"][0]["cosine"]})

folder = args.shapes / "smolvlm-256m"
ours, theirs, llama = [], {"torch": [], "openvino": []}, []
for _ in range(args.rounds):
    ours.append(run(args.vela, "bench", "vlm", "--model", folder, "--side", 512, "--pictures", 3, "--decode-tokens", 2,
                    "--threads", args.threads, "--json"))
    for engine, found in theirs.items():
        found.append(peer(engine, folder)())
    if args.llama:
        llama.append(run(args.llama, here / "measure_llama_cpp.py", folder, "--threads", args.threads))
first = statistics.median(o["ttft_ms"] for o in ours)
other, graph = (statistics.median(t for o in found for t in o["ttft_ms"]) for found in theirs.values())
beside = {}
if llama:
    beside["llama_cpp_ms"] = statistics.median(t for o in llama for t in o["ttft_ms"])
    beside["ratio_to_llama_cpp"] = beside["llama_cpp_ms"] / first
second = statistics.median(o["second_question_ttft_ms"] for o in ours)
said("SmolVLM-256M, first token", {"vela_ms": first, "transformers_ms": other, "ratio": other / first, "openvino_ms": graph,
                                   "ratio_to_openvino": graph / first, **beside, "second_question_ms": second,
                                   "image_tokens": ours[0]["image_tokens"]})
