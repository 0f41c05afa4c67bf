#!/bin/sh
# Training steps in vela and in PyTorch, in turns on the same machine: first the step of the policy that ships (the same weights,
# moments and noise; that losses, gradients and updates agree is checked before anything is timed), then one of a plain
# transformer. Prints medians and ratios.
# Usage: benches/train_step/run.sh PYTHON [ROUNDS]   (PYTHON has torch and safetensors; build first:
# cargo build --release --workspace --bin vela --example policy_step --example train_step)
set -eu
python=${1:?which Python has torch and safetensors?}
rounds=${2:-5}
here=$(dirname "$0")
root="$here/../.."
made="$root/target/release"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# The run that made the policy, with few lessons: what a step costs does not depend on how many there are.
sed 's/^expert_lessons.*/expert_lessons = 40/; s/^glances.*/glances = 40/' "$root/configs/train/tabletop.toml" >"$out/run.toml"
"$made/vela" train --config "$out/run.toml" --out "$out" --lessons-only
"$python" "$here/torch_policy.py" "$made/examples/policy_step" "$out/run.toml" "$root/models/tabletop" "$out/lessons" \
    --rounds "$rounds"

for _ in $(seq "$rounds"); do
    "$made/examples/train_step" fused 5 >>"$out/vela"
    "$python" "$here/torch_step.py" 5 >>"$out/torch"
done
"$python" - "$out" <<'PY'
import json, pathlib, statistics, sys
ms = {n: statistics.median(json.loads(l)["step_ms"] for l in (pathlib.Path(sys.argv[1]) / n).open()) for n in ("vela", "torch")}
print(f"plain transformer: vela {ms['vela']:.0f} ms, PyTorch {ms['torch']:.0f} ms: {ms['torch'] / ms['vela']:.2f} times PyTorch's speed")
PY
