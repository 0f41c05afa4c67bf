#!/usr/bin/env bash
# The fleet of docs/fleet.md behind zenoh's own router: certificates by its `openssl` recipe, the files of configs/fleet, the
# simulated arm and the policy as two machines. The arm plays an episode through the router, holds when the router is killed in
# the middle of another and goes on when it is started again, and nobody without a certificate or with another's user is let in.
#
#   cargo build --release && cargo install zenohd --version 1.10.2 && tests/peers/zenohd.sh        (needs openssl)
set -euo pipefail
cd "$(dirname "$0")/../.."
vela=${VELA:-target/release/vela}
zenohd=${ZENOHD:-zenohd}
[ -x "$vela" ] || { echo "no $vela: run cargo build --release first" >&2; exit 1; }
command -v "$zenohd" > /dev/null || { echo "no zenohd: cargo install zenohd --version 1.10.2" >&2; exit 1; }
work=$(mktemp -d)
tidy() {
  kill $(jobs -p) 2>/dev/null || true
  rm -rf "$work"
}
trap tidy EXIT

# As in docs/fleet.md.
certify() {
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$1" -keyout "$1.key" -out "$1.csr"
  openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 365 -out "$1.pem" \
    -extfile <(printf "basicConstraints=CA:FALSE\n${2:+subjectAltName=DNS:$2}")
}
(
  cd "$work"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj /CN=fleet -keyout ca.key -out ca.pem
  certify router localhost
  for name in arm1 arm2 policy1 operator; do certify "$name"; done
  printf '%s\n' arm1:SECRET1 arm2:SECRET2 policy1:SECRET3 operator:SECRET4 > users.txt
) 2> "$work/openssl.txt" || { cat "$work/openssl.txt" >&2; exit 1; }

port=$((20000 + RANDOM % 20000))
# The simulated arm's key is vela/arm, which the rules know as vela/arm1.
for file in router arm policy operator; do
  sed "s#router.fleet.example:7447#localhost:$port#; s#/etc/vela#$work#; s#vela/arm1/#vela/arm/#; s#change-me-arm1#SECRET1#
    s#change-me-policy1#SECRET3#; s#change-me-operator#SECRET4#" "configs/fleet/$file.json5" > "$work/$file.json5"
done
router() { "$zenohd" --config "$work/router.json5" >> "$work/router.txt" 2>&1 & }
failed() { echo "$1" >&2; tail -n 20 "$work"/*.txt >&2; exit 1; }

router
of_router=$!
"$vela" act --zenoh "$work/policy.json5" 2> "$work/act.txt" &
"$vela" sim --task reach --zenoh "$work/arm.json5" --json > "$work/first.json" 2> "$work/first.txt" ||
  failed "the arm did not play its episode through the router"
echo "through zenohd: $(cat "$work/first.json")"

"$vela" doctor --zenoh "$work/operator.json5" --secs 1 > "$work/doctor.txt" 2>&1 || true
grep -q 'vela/arm' "$work/doctor.txt" || failed "an operator does not see the policy"

"$vela" sim --task stack --hold-secs 30 --zenoh "$work/arm.json5" --json > "$work/second.json" 2> "$work/second.txt" &
arm=$!
for _ in $(seq 100); do grep -q '^running' "$work/second.txt" && break; sleep 0.2; done
grep -q '^running' "$work/second.txt" || failed "the arm never moved"
sleep 1
kill -9 "$of_router"
wait "$of_router" 2> /dev/null || true
sleep 1.5
router
before=$(grep -c '^running' "$work/second.txt")
for _ in $(seq 100); do
  [ "$(grep -c '^running' "$work/second.txt")" -gt "$before" ] && break
  kill -0 "$arm" 2>/dev/null || break
  sleep 0.2
done
wait "$arm" || true
[ -s "$work/second.json" ] || failed "the arm did not end its episode after the router came back"
grep -q '^holding' "$work/second.txt" || failed "the arm did not hold while there was no router"
echo "router killed and started again: $(cat "$work/second.json")"

# Without a certificate, and with another's user.
sed '/connect_certificate/d; /connect_private_key/d' "$work/operator.json5" > "$work/nobody.json5"
sed 's#user: "operator", password: "SECRET4"#user: "arm1", password: "SECRET4"#' "$work/operator.json5" > "$work/other.json5"
for stranger in nobody other; do
  if timeout 20 "$vela" robot --stop vela/arm --zenoh "$work/$stranger.json5" > "$work/$stranger.txt" 2>&1; then
    failed "$stranger was let in"
  fi
  echo "$stranger: $(tail -n 1 "$work/$stranger.txt")"
done
echo ok
