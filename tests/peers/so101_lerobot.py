"""LeRobot's own driver of the SO-101 and vela's, on the same emulated servos: one calibration, one set of degrees.

Usage: python tests/peers/so101_lerobot.py [VELA [SERVO_BUS]]     (needs lerobot >= 0.6, Python >= 3.12; not part of CI)
`pip install lerobot==0.6.1 feetech-servo-sdk deepdiff pyserial`; the servos are
`cargo build --release -p vela-robots --example servo_bus`.

Both calibrate the same arm, moved by the same hand: the files must say the same. Then each reads with the other's file.
"""

import builtins
import json
import pathlib
import subprocess
import sys
import tempfile
import time

from lerobot.motors import motors_bus
from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

here = pathlib.Path(__file__).resolve().parent
root = here.parent.parent
vela = sys.argv[1] if len(sys.argv) > 1 else str(root / "target/release/vela")
servo_bus = sys.argv[2] if len(sys.argv) > 2 else str(root / "target/release/examples/servo_bus")
# Where the horns happen to sit, and how far each joint goes from its middle; ticks.
MIDDLES = {1: 700, 2: -650, 3: 33, 4: 0, 5: 1500, 6: -1}
STOPS = {1: (-900, 950), 2: (-1000, 800), 3: (-1100, 1000), 4: (-700, 720), 6: (-10, 1300)}


class Bus:
    """Emulated servos, one hand."""

    def __init__(self):
        self.process = subprocess.Popen([servo_bus], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = self.process.stdout.readline().strip()
        for servo, ticks in MIDDLES.items():
            self.turn(servo, ticks)

    def turn(self, servo, ticks):
        self.process.stdin.write(f"{servo} {ticks}\n")
        self.process.stdin.flush()
        time.sleep(0.12)

    def sweep(self):
        """Yields after every movement of every joint, stop to stop and back."""
        for servo, (low, high) in STOPS.items():
            for ticks in (low, -low, high, -high):
                self.turn(servo, ticks)
                yield


def by_vela(bus, config, *words):
    process = subprocess.Popen(
        [vela, "robot", "--config", str(config), "--json", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def after(words):
        while words not in (line := process.stderr.readline()):
            assert line, "vela ended"
        process.stdin.write("\n")
        process.stdin.flush()

    after("Hold the arm")
    if "--calibrate" in words:
        after("middle of its motion")
        while "from stop to stop" not in process.stderr.readline():
            pass
        for _ in bus.sweep():
            pass
        process.stdin.write("\n")
        process.stdin.flush()
    said, complaint = process.communicate()
    assert process.returncode == 0, complaint
    return json.loads(said)["motors"]


def look(config, zenoh):
    done = subprocess.run(
        [vela, "robot", "--config", str(config), "--look", "--json", "--zenoh", str(zenoh)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {row["joint"]: row["lerobot"] for row in json.loads(done.stdout)["joints"]}


def by_lerobot(port, folder):
    robot = SO101Follower(SO101FollowerConfig(port=port, id="mine", calibration_dir=folder))
    robot.bus.connect()
    return robot


def arm_file(folder, name, bus, calibration):
    path = folder / f"{name}.toml"
    robot = root / "configs/robots/so101.toml"
    path.write_text(f"robot = '{robot}'\ncalibration = '{calibration}'\n[servos]\nport = '{bus.port}'\n")
    return path


def main(folder):
    zenoh = folder / "zenoh.json5"
    zenoh.write_text("{mode: 'peer', listen: {endpoints: []}, scouting: {multicast: {enabled: false}}}")
    ours, theirs = Bus(), Bus()

    config = arm_file(folder, "ours", ours, folder / "ours/mine.json")
    made = by_vela(ours, config, "--calibrate")

    robot = by_lerobot(theirs.port, folder / "theirs")
    builtins.input = lambda *_: ""
    moves = theirs.sweep()
    # LeRobot looks, then asks whether Enter was pressed: the hand moves in between.
    motors_bus.enter_pressed = lambda: next(moves, "over") == "over"
    robot.calibrate()
    robot.bus.disconnect()
    file = json.loads((folder / "theirs/mine.json").read_text())
    assert file == made == json.loads((folder / "ours/mine.json").read_text()), (file, made)
    print(f"one arm, one hand, two calibrations: the same file\n{json.dumps(made['shoulder_pan'])}")

    # Each with the other's file, somewhere in the range.
    for bus in (ours, theirs):
        for servo in (1, 2, 3, 4, 5, 6):
            bus.turn(servo, 37 * servo)
    robot = by_lerobot(ours.port, folder / "ours")
    assert robot.is_calibrated, "LeRobot takes vela's calibration for its own"
    said = {name.removesuffix(".pos"): value for name, value in robot.get_observation().items()}
    robot.bus.disconnect()
    seen = look(arm_file(folder, "theirs", theirs, folder / "theirs/mine.json"), zenoh)
    worst = max(abs(said[joint] - seen[joint]) for joint in said)
    print(f"degrees and the gripper's percent: LeRobot {said}\n  worst difference {worst:.2e}")
    assert set(said) == set(seen) and worst < 1e-9, (said, seen)

    # LeRobot writes another calibration into the servos: vela refuses the old file, and applies it when asked.
    robot = by_lerobot(theirs.port, folder / "theirs")
    for motor in robot.calibration.values():
        motor.homing_offset -= 5
    robot.bus.write_calibration(robot.calibration)
    robot.bus.disconnect()
    config = folder / "theirs.toml"
    command = [vela, "robot", "--config", str(config), "--look", "--zenoh", str(zenoh)]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 1 and "the file says offset" in refused.stderr, refused
    by_vela(theirs, config, "--apply-calibration")
    assert all(abs(look(config, zenoh)[joint] - seen[joint]) < 1e-9 for joint in seen)
    robot = by_lerobot(theirs.port, folder / "theirs")
    assert robot.is_calibrated
    robot.bus.disconnect()
    print("another calibration in the servos is refused, the file applied to them: as LeRobot reads it")
    print("as expected")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as kept:
        main(pathlib.Path(kept))
