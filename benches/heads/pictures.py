"""Draws docs/heads.png and docs/two-ways.png from what `vela eval heads --json` printed.

Usage: vela eval heads --json > out/heads.json && python benches/heads/pictures.py out/heads.json [--docs docs]
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
docs = pathlib.Path(args.docs)

ways = report["two_ways"]
if ways:
    figure, axes = pyplot.subplots(1, len(ways), figsize=(2.1 * len(ways), 3.4), sharey=True)
    for axis, row in zip(axes, ways):
        axis.add_patch(pyplot.Circle((0, 0), 0.3, color="0.75"))
        for way in row["ways"]:
            x, y = zip([0.0, -1.0], *way)
            axis.plot(x, y, color="tab:blue", alpha=0.35, linewidth=1)
        axis.plot(0, -1, "ko", markersize=4)
        axis.plot(0, 1, "k*", markersize=8)
        axis.set(xlim=(-1, 1), ylim=(-1.15, 1.15), aspect="equal", xticks=[], yticks=[])
        axis.set_title(f"{row['head'].replace('_', ' ')}\n{100 * row['rate']:.0f} % arrive", fontsize=9)
    figure.tight_layout()
    figure.savefig(docs / "two-ways.png", dpi=110)

heads = report["heads"] + report.get("projectors", [])
if heads:
    names = [f"{row['head']}, {row.get('projector', 'chunk' if row['chunked'] else 'step')}" for row in heads]
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 0.6 + 0.3 * len(heads)), sharey=True)
    at = range(len(heads))
    colours = ["tab:blue" if row["chunked"] else "tab:orange" for row in heads]
    spans = [[100 * abs(row["rate"] - edge) for edge in row["ci95"]] for row in heads]
    axes[0].barh(at, [100 * row["rate"] for row in heads], xerr=list(zip(*spans)), color=colours)
    axes[0].set_xlabel("successes, %, with 95 % intervals")
    axes[1].barh(at, [row["chunk_ms"] for row in heads], color=colours)
    axes[1].set_xlabel("ms per chunk, trunk and head")
    axes[2].barh(at, [row["jerk"] for row in heads], color=colours)
    axes[2].set_xlabel("jerk, mrad per tick cubed")
    axes[0].set_yticks(at, names)
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(docs / "heads.png", dpi=110)
