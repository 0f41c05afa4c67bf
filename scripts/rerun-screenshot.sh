#!/usr/bin/env bash
# Renders one moment of a recording to a picture, without a screen:
#   scripts/rerun-screenshot.sh run.rrd out.png [SECONDS, the end if left out] [WIDTHxHEIGHT]
# Needs the viewer of the same version with its Python module (`pip install rerun-sdk==0.36.3`; PYTHON names the
# interpreter, `rerun` must be on PATH) and, where there is no GPU, Mesa's software Vulkan
# (Debian: `apt-get install mesa-vulkan-drivers`).
set -euo pipefail
show=("$1") picture=$(realpath "$2") seconds=${3:-} size=${4:-1600x900} port=${PORT:-9877}
if [ -z "${VK_DRIVER_FILES:-}" ] && [ ! -e /dev/dri ]; then
  export VK_DRIVER_FILES=/usr/share/vulkan/icd.d/lvp_icd.x86_64.json
fi
work=$(mktemp -d) viewer=
export XDG_RUNTIME_DIR=$work
trap '[ -z "$viewer" ] || kill -- "-$viewer" 2>/dev/null || true; rm -rf "$work"' EXIT
rerun rrd verify "$1"
if [ -n "$seconds" ]; then
  # The viewer shows the end of what it was given: give it the part up to the moment.
  nanos=$(awk -v s="$seconds" 'BEGIN { printf "%.0f", s * 1e9 }')
  mkdir "$work/cut"
  rerun rrd split --output-dir "$work/cut" --timeline time --time "$nanos" "$1" 2>/dev/null
  show+=("$work"/cut/*_0ns__*.rrd) # the whole one stays, for its layout
fi
set -m # the viewer gets a process group of its own: `rerun` is a wrapper around it
# --bind: it would otherwise listen on every interface.
rerun --bind 127.0.0.1 --port "$port" --headless --hide-welcome-screen --window-size "$size" "${show[@]}" \
  >/dev/null 2>&1 &
viewer=$!
sleep 9 # its own messages lie over the picture at first
"${PYTHON:-python3}" - "rerun+http://127.0.0.1:$port/proxy" "$picture" <<'PYTHON'
import sys, time
from rerun.experimental import ViewerClient
ViewerClient.connect(sys.argv[1]).save_screenshot(sys.argv[2])
time.sleep(3)  # the viewer writes the file by itself
PYTHON
test -s "$picture"
