"""Draws docs/latency.png from what `vela bench robot --json` printed.

Usage: vela bench robot --json > out/robot.json && python benches/robot/picture.py out/robot.json [--docs docs]
Needs matplotlib.
"""

import argparse
import json
import pathlib

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

here = pathlib.Path(__file__).parent
parser = argparse.ArgumentParser()
parser.add_argument("json")
parser.add_argument("--docs", default=str(here / "../../docs"))
args = parser.parse_args()
report = json.loads(pathlib.Path(args.json).read_text())

figure, (curve, stages, ticks) = pyplot.subplots(1, 3, figsize=(13, 4), width_ratios=[1.5, 1.3, 1])
paths = {
    "jpeg_to_command": "two JPEGs",
    "raw_to_command": "two raw pictures, shared memory",
    "raw_over_tcp": "the same over TCP",
}
for key, name in paths.items():
    total = report[key]["total"]
    curve.plot(total["percentiles_ms"], range(1, 101), label=f"{name}: p99 {total['p99_ms']:.2f} ms")
curve.axvline(2, color="0.6", linestyle="--")
curve.axhline(99, color="0.85")
curve.set(xlabel="ms from camera and joints to the arm's command", ylabel="% of observations took no longer", xlim=(0, None))
curve.legend(loc="lower right", fontsize=8)

parts = {"seen": "to the robot,\nunpacked", "decided": "plan, gate,\nmessage", "carried": "back to\nthe arm"}
for i, (key, name) in enumerate(paths.items()):
    at = [j + 0.27 * (i - 1) for j in range(len(parts))]
    spreads = [report[key][part] for part in parts]
    stages.bar(at, [s["p50_ms"] for s in spreads], 0.25, label=name)
    stages.vlines(at, [s["p50_ms"] for s in spreads], [s["p99_ms"] for s in spreads], color="0.3")
stages.set(xticks=range(len(parts)), xticklabels=parts.values(), ylabel="ms: median, line to p99")
stages.legend(fontsize=8)

loops = {"control": "control loop", "bare": "bare timer", "bare_real_time": "bare timer of\nits priority"}
late = [100 * report[key]["late"] / report[key]["ticks"] for key in loops]
bars = ticks.bar(loops.values(), late, color="0.5")
ticks.bar_label(bars, [f"{v:.2f}" for v in late])
ticks.set(ylabel=f"% of {report['control']['ticks']:,} ticks late at {report['hz']:.0f} Hz")
ticks.tick_params(axis="x", labelsize=8)
figure.tight_layout()
figure.savefig(pathlib.Path(args.docs) / "latency.png", dpi=110)
