#!/usr/bin/env bash
# A link cut and healed between two machines: two network namespaces, the simulated arm in one, the policy in the other,
# and the cable between them pulled out for a second and a half, again and again. The arm must hold and go on each time.
#
#   cargo build --release && sudo tests/peers/link_cut.sh        (needs iproute2 and the right to make namespaces)
set -euo pipefail
cd "$(dirname "$0")/../.."
vela=${VELA:-target/release/vela}
[ -x "$vela" ] || { echo "no $vela: run cargo build --release first" >&2; exit 1; }
one=vela-arm-$$ two=vela-policy-$$
work=$(mktemp -d)
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

for side in robot policy; do sed 's/127\.0\.0\.1:7447/10.91.0.1:7447/' "configs/zenoh/$side.json5" > "$work/$side.json5"; done
ip netns exec "$two" "$vela" act --zenoh "$work/policy.json5" 2> "$work/act.txt" &
ip netns exec "$one" "$vela" sim --task stack --hold-secs 30 --zenoh "$work/robot.json5" --json \
  > "$work/sim.json" 2> "$work/sim.txt" &
arm=$!
for _ in $(seq 100); do grep -q '^running' "$work/sim.txt" && break; sleep 0.2; done
grep -q '^running' "$work/sim.txt" || { echo "the arm never moved" >&2; cat "$work"/*.txt >&2; exit 1; }
# As often as the episode lasts: out for a second and a half, in again until the arm moves.
while kill -0 "$arm" 2>/dev/null; do
  sleep 1
  ip -n "$one" link set a$$ down
  sleep 1.5
  ip -n "$one" link set a$$ up
  before=$(grep -c '^running' "$work/sim.txt")
  for _ in $(seq 100); do
    kill -0 "$arm" 2>/dev/null && [ "$(grep -c '^running' "$work/sim.txt")" -le "$before" ] || break
    sleep 0.1
  done
done
wait "$arm" || { echo "vela sim failed" >&2; cat "$work/sim.txt" >&2; exit 1; }
cat "$work/sim.json"
holds=$(grep -c '^holding' "$work/sim.txt") || true
runs=$(grep -c '^running' "$work/sim.txt") || true
echo "held $holds times, ran again $runs times"
# The episode may end while the arm holds.
[ "$holds" -ge 1 ] && [ "$runs" -ge "$holds" ] || {
  echo "expected a hold for each cut, and its end" >&2
  cat "$work/sim.txt" >&2
  exit 1
}
grep -q '"state":"Stopped' "$work/sim.json" && grep -q 'the episode is over' "$work/sim.json" \
  || { echo "expected the episode to end by itself" >&2; exit 1; }
echo "ok"
