#!/bin/sh
# The same training step in vela and in PyTorch, in turns on the same machine; prints medians and the ratio.
# Usage: benches/train_step/run.sh PYTHON [ROUNDS]   (PYTHON has torch; build first: cargo build --release -p vela-nn --examples)
set -eu
python=${1:?which Python has torch?}
rounds=${2:-5}
here=$(dirname "$0")
step="$here/../../target/release/examples/train_step"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
for _ in $(seq "$rounds"); do
    "$step" fused 5 >>"$out/vela"
    "$python" "$here/torch_step.py" 5 >>"$out/torch"
done
"$python" - "$out" <<'PY'
import json, pathlib, statistics, sys
ms = {n: statistics.median(json.loads(l)["step_ms"] for l in (pathlib.Path(sys.argv[1]) / n).open()) for n in ("vela", "torch")}
print(f"vela {ms['vela']:.0f} ms, PyTorch {ms['torch']:.0f} ms: {ms['torch'] / ms['vela']:.2f} times PyTorch's speed")
PY
