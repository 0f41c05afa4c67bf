"""What a token costs by context and by sequences at once: runs `vela bench llm` and draws docs/performance-llm.png.

Usage: python benches/llm/curves.py MODEL [--vela target/release/vela] [--threads 1] [--out docs/performance-llm.png]
Needs matplotlib. Build first: cargo build --release. The table is printed as Markdown.
"""

import argparse
import json
import pathlib
import statistics
import subprocess

here = pathlib.Path(__file__).parent
parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--vela", default=str(here / "../../target/release/vela"))
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--out", default=str(here / "../../docs/performance-llm.png"))
args = parser.parse_args()

CONTEXTS = [128, 256, 512, 1024, 2048, 4096, 8000]
BATCHES = [1, 2, 4, 8, 16]


def run(**sizes):
    words = [word for name, value in sizes.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [args.vela, "bench", "llm", "--model", args.model, "--threads", str(args.threads), "--json", *words]
    rounds = [json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(args.rounds)]
    return {name: statistics.median(r[name] for r in rounds) for name in ("prefill_tok_s", "decode_tok_s", "ttft_ms", "rss_mb")}


by_context = {n: run(prompt_tokens=n, decode_tokens=32) for n in CONTEXTS}
by_batch = {n: run(prompt_tokens=64, decode_tokens=64, batch=n) for n in BATCHES}

for title, rows in (("prompt tokens", by_context), ("sequences at once", by_batch)):
    print(f"| {title} | reads, tokens/s | writes, tokens/s | first token, ms | resident, MB |\n|---|---|---|---|---|")
    for n, r in rows.items():
        print(f"| {n} | {r['prefill_tok_s']:.0f} | {r['decode_tok_s']:.0f} | {r['ttft_ms']:.0f} | {r['rss_mb']:.0f} |")
    print()
print(f"eight at once write {by_batch[8]['decode_tok_s'] / by_batch[1]['decode_tok_s']:.2f} times what one does")

import matplotlib  # noqa: E402  the table does not need it

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
left.plot(CONTEXTS, [1e3 / by_context[n]["prefill_tok_s"] for n in CONTEXTS], "o-", label="read, per token of the prompt")
left.plot(CONTEXTS, [1e3 / by_context[n]["decode_tok_s"] for n in CONTEXTS], "s-", label="write, after such a prompt")
left.set(xscale="log", xlabel="prompt tokens", ylabel="ms per token", ylim=(0, None))
left.set_xticks(CONTEXTS, [str(n) for n in CONTEXTS], minor=False)
left.minorticks_off()
left.legend(frameon=False)
right.plot(BATCHES, [by_batch[n]["decode_tok_s"] for n in BATCHES], "s-", color="tab:orange")
right.set(xlabel="sequences at once", ylabel="tokens written per second, together", ylim=(0, None))
right.set_xticks(BATCHES)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
figure.savefig(args.out, dpi=110)
