#!/usr/bin/env bash
# Renders a recording to a picture, without a screen, some seconds after it began to play:
#   scripts/rerun-screenshot.sh run.rrd out.png [SECONDS] [WIDTHxHEIGHT]
# Needs the viewer of the same version with its Python module (`pip install rerun-sdk==0.36.3`; PYTHON names the
# interpreter, `rerun` must be on PATH) and, where there is no GPU, Mesa's software Vulkan
# (Debian: `apt-get install mesa-vulkan-drivers`). Under 8 seconds the viewer's own messages are in the picture.
set -euo pipefail
recording=$1 picture=$(realpath "$2") seconds=${3:-8} size=${4:-1600x900} port=${PORT:-9877}
if [ -z "${VK_DRIVER_FILES:-}" ] && [ ! -e /dev/dri ]; then
  export VK_DRIVER_FILES=/usr/share/vulkan/icd.d/lvp_icd.x86_64.json
fi
XDG_RUNTIME_DIR=$(mktemp -d)
export XDG_RUNTIME_DIR
rerun rrd verify "$recording"
# --bind: the viewer would otherwise listen on every interface.
set -m # the viewer gets a process group of its own: `rerun` is a wrapper around it
rerun --bind 127.0.0.1 --port "$port" --headless --hide-welcome-screen --window-size "$size" "$recording" >/dev/null 2>&1 &
viewer=$!
trap 'kill -- "-$viewer" 2>/dev/null || true; rm -rf "$XDG_RUNTIME_DIR"' EXIT
sleep "$seconds"
"${PYTHON:-python3}" - "rerun+http://127.0.0.1:$port/proxy" "$picture" <<'PYTHON'
import sys, time
from rerun.experimental import ViewerClient
ViewerClient.connect(sys.argv[1]).save_screenshot(sys.argv[2])
time.sleep(3)  # the viewer writes the file by itself
PYTHON
test -s "$picture"
