#!/usr/bin/env bash
# A link cut and healed between two machines: two network namespaces, the simulated arm in one, the policy in the other,
# and the cable between them pulled out for a second and a half, again and again. The arm must hold and go on each time,
# and a recording beside it must have every joint inside its limits.
#
#   cargo build --release && sudo tests/peers/link_cut.sh     (needs iproute2, Python 3.11 and the right to make namespaces)
set -euo pipefail
cd "$(dirname "$0")/../.."
vela=${VELA:-target/release/vela}
[ -x "$vela" ] || { echo "no $vela: run cargo build --release first" >&2; exit 1; }
one=vela-arm-$$ two=vela-policy-$$
work=$(mktemp -d)
export VELA_STATE_DIR="$work/state"
tidy() {
  kill $(jobs -p) 2>/dev/null || true
  ip netns del "$one" 2>/dev/null || true
  ip netns del "$two" 2>/dev/null || true
  rm -rf "$work"
}
trap tidy EXIT
ip netns add "$one" && ip netns add "$two" || { echo "network namespaces cannot be made here" >&2; exit 1; }
ip link add a$$ netns "$one" type veth peer name b$$ netns "$two"
ip -n "$one" addr add 10.91.0.1/24 dev a$$
ip -n "$two" addr add 10.91.0.2/24 dev b$$
for n in "$one" "$two"; do ip -n "$n" link set lo up; done
ip -n "$one" link set a$$ up
ip -n "$two" link set b$$ up

# The arm is reached over the cable by the policy, and on its own machine by the recorder.
sed 's|"tcp/127\.0\.0\.1:7447"|"tcp/10.91.0.1:7447", "tcp/127.0.0.1:7447"|' configs/zenoh/robot.json5 > "$work/robot.json5"
sed 's/127\.0\.0\.1:7447/10.91.0.1:7447/' configs/zenoh/policy.json5 > "$work/policy.json5"
ip netns exec "$two" "$vela" act --zenoh "$work/policy.json5" 2> "$work/act.txt" &
ip netns exec "$one" "$vela" sim --task stack --hold-secs 30 --zenoh "$work/robot.json5" --json \
  > "$work/sim.json" 2> "$work/sim.txt" &
arm=$!
# On the arm's own machine: what its joints were measured at.
ip netns exec "$one" "$vela" record --robot configs/arms/so101-ros2.toml --task stack --out "$work/live" --json \
  --episodes 1 --episode-secs 600 --wait-secs 10 --zenoh configs/zenoh/policy.json5 > /dev/null 2> "$work/record.txt" &
recorder=$!
count() { grep -c "^$1" "$work/sim.txt" || true; }
now() { date +%s%3N; }
# Until there are more such lines than before, or the episode is over: for how long, ms; -1 when it was over.
until_more() {
  local begun; begun=$(now)
  for _ in $(seq 1000); do
    [ "$(count "$1")" -gt "$2" ] && { echo $(($(now) - begun)); return; }
    kill -0 "$arm" 2>/dev/null || break
    sleep 0.01
  done
  echo -1
}
for _ in $(seq 100); do [ "$(count running)" -gt 0 ] && break; sleep 0.2; done
[ "$(count running)" -gt 0 ] || { echo "the arm never moved" >&2; cat "$work"/*.txt >&2; exit 1; }
# As often as the episode lasts: out for a second and a half, in again until the arm moves.
told=()
while kill -0 "$arm" 2>/dev/null; do
  sleep 1
  holds=$(count holding)
  ip -n "$one" link set a$$ down
  held=$(until_more holding "$holds")
  sleep 1.5
  runs=$(count running)
  ip -n "$one" link set a$$ up
  again=$(until_more running "$runs")
  [ "$held" -lt 0 ] || [ "$again" -lt 0 ] || told+=("held after $held ms, moved again after $again ms")
done
wait "$arm" || { echo "vela sim failed" >&2; cat "$work/sim.txt" >&2; exit 1; }
wait "$recorder" || { echo "vela record failed" >&2; cat "$work/record.txt" >&2; exit 1; }
cat "$work/sim.json"
holds=$(count holding)
runs=$(count running)
echo "held $holds times, ran again $runs times"
# The episode may end while the arm holds.
[ "$holds" -ge 1 ] && [ "$runs" -ge "$holds" ] || {
  echo "expected a hold for each cut, and its end" >&2
  cat "$work/sim.txt" >&2
  exit 1
}
grep -q '"state":"stopped: the episode is over"' "$work/sim.json" \
  || { echo "expected the episode to end by itself" >&2; exit 1; }
"$vela" episodes check "$work/live" --json > "$work/check.json" || { cat "$work/check.json" >&2; exit 1; }
"$vela" episodes stats "$work/live" --json > "$work/stats.json"
excess=$(python3 - "$work/stats.json" configs/robots/so101.urdf <<'PY'
import json, sys, xml.etree.ElementTree as xml
seen = json.load(open(sys.argv[1]))["stats"]["observation.state"]
limits = [joint.find("limit") for joint in xml.parse(sys.argv[2]).iter("joint") if joint.find("limit") is not None]
worst = 0.0
for limit, low, high in zip(limits, seen["min"], seen["max"], strict=True):
    worst = max(worst, float(limit.get("lower")) - low, high - float(limit.get("upper")))
print(f"{worst:.4f}")
PY
)
frames=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["frames"])' "$work/check.json")
for line in "${told[@]}"; do
  echo "fault: link between two machines cut for 1.5 s and healed: $line, worst joint excess $excess rad in $frames frames"
done
[ "$excess" = 0.0000 ] || { echo "expected every measured joint inside its limits" >&2; exit 1; }
echo "ok"
