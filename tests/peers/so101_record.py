"""What a hand shows with two arms, recorded by vela: in LeRobot's names and units, to the number that LeRobot reads.

Usage: python tests/peers/so101_record.py [VELA [SERVO_BUS]]     (needs lerobot >= 0.6, Python >= 3.12; not part of CI)
`pip install 'lerobot[dataset]==0.6.1' feetech-servo-sdk deepdiff pyserial`; the servos are
`cargo build --release -p vela-robots --example servo_bus`.

For degrees and for -100 to 100: vela follows and records, LeRobot opens the dataset, and its own drivers say where the
same servos are. Then the last recorded action goes to the arm by LeRobot: it does not move.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig
from lerobot.teleoperators.so_leader import SO101Leader, SO101LeaderConfig

here = pathlib.Path(__file__).resolve().parent
root = here.parent.parent
vela = sys.argv[1] if len(sys.argv) > 1 else str(root / "target/release/vela")
servo_bus = sys.argv[2] if len(sys.argv) > 2 else str(root / "target/release/examples/servo_bus")
JOINTS = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
# Homing offset and range of each servo, ticks.
CALIBRATIONS = {
    "follower": [(-14, 1000, 3000), (0, 800, 3200), (3, 900, 3101), (3, 900, 3100), (-90, 0, 4095), (12, 2000, 3400)],
    "leader": [(44, 1100, 3100), (-9, 1000, 3100), (0, 950, 3050), (3, 900, 3200), (20, 0, 4095), (2, 1900, 2700)],
}
# What the hand does to the leader's servos, ticks.
HAND = {1: 410, 2: -300, 3: 150, 4: -222, 5: 77, 6: 390}


class Arm:
    """Emulated servos, their calibration in LeRobot's folder, and the file for vela."""

    def __init__(self, folder, name, units):
        self.name, self.folder = name, folder
        self.process = subprocess.Popen([servo_bus], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = self.process.stdout.readline().strip()
        motors = {
            joint: {"id": k + 1, "drive_mode": 0, "homing_offset": offset, "range_min": low, "range_max": high}
            for k, (joint, (offset, low, high)) in enumerate(zip(JOINTS, CALIBRATIONS[name]))
        }
        (folder / f"{name}.json").write_text(json.dumps(motors))
        robot = (root / "configs/robots/so101.toml").read_text().split("[[cameras]]")
        body = robot[0] + robot[-1][robot[-1].index("# Its body") :]
        (folder / "blind.toml").write_text(body.replace('"so101.urdf"', f'"{root}/configs/robots/so101.urdf"'))
        self.file = folder / f"{name}.toml"
        self.file.write_text(
            f"robot = 'blind.toml'\ncalibration = '{name}.json'\npolicy_units = '{units}'\n"
            f"[servos]\nport = '{self.port}'\n"
        )
        applied = subprocess.run(
            [vela, "robot", "--config", str(self.file), "--apply-calibration"], input="\n", text=True, capture_output=True
        )
        assert applied.returncode == 0, applied.stderr

    def turn(self, servo, ticks):
        self.process.stdin.write(f"{servo} {ticks}\n")
        self.process.stdin.flush()

    def lerobot(self, kind, config, in_degrees):
        robot = kind(config(port=self.port, id=self.name, calibration_dir=self.folder, use_degrees=in_degrees))
        robot.bus.connect()
        assert robot.is_calibrated
        return robot


def sessions(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"'tcp/127.0.0.1:{free.getsockname()[1]}'"
    for name, listen, connect in (("robot", endpoint, ""), ("other", "", endpoint)):
        (folder / f"{name}.json5").write_text(
            f"{{mode: 'peer', listen: {{endpoints: [{listen}]}}, connect: {{endpoints: [{connect}]}}, "
            "scouting: {multicast: {enabled: false}, gossip: {enabled: false}}}"
        )
    return [str(folder / "robot.json5"), str(folder / "other.json5")]


def main(folder, units):
    in_degrees = units == "lerobot_degrees"
    arm, hand = Arm(folder, "follower", units), Arm(folder, "leader", units)
    robot, other = sessions(folder)
    follows = subprocess.Popen(
        [vela, "robot", "--config", str(arm.file), "--leader", str(hand.file), "--zenoh", robot],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "following the leader" not in (line := follows.stderr.readline()):
        assert line, "vela ended"
    recording = subprocess.Popen(
        [vela, "record", "--robot", str(arm.file), "--out", str(folder / "shown"), "--task", "hand it over"]
        + ["--episodes", "1", "--episode-secs", "6", "--zenoh", other, "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    while not (folder / "shown/meta/.pending").exists():
        assert recording.poll() is None, "the recorder ended"
        time.sleep(0.05)
    for k in range(20):
        for servo, ticks in HAND.items():
            hand.turn(servo, ticks * (k + 1) // 20 - ticks * k // 20)
        time.sleep(0.1)
    said = json.loads(recording.communicate()[0])
    assert recording.returncode == 0 and said["frames"] == 180, said
    follows.kill()
    follows.communicate()

    dataset = LeRobotDataset("local/x", root=folder / "shown", video_backend="pyav")
    driver = arm.lerobot(SO101Follower, SO101FollowerConfig, in_degrees)
    person = hand.lerobot(SO101Leader, SO101LeaderConfig, in_degrees)
    last = dataset[len(dataset) - 1]
    sees = driver.get_observation()
    # By angle the arms agree; in parts of their ranges, which differ, each has a number of its own.
    does, near = (person.get_action(), 1e-4) if in_degrees else (sees, 0.06)
    assert dataset.meta.features["observation.state"]["names"] == list(driver._motors_ft) == list(sees)
    assert dataset.meta.features["action"]["names"] == list(driver.action_features) == list(does)
    seen = max(abs(a - b) for a, b in zip(last["observation.state"].tolist(), sees.values()))
    done = max(abs(a - b) for a, b in zip(last["action"].tolist(), does.values()))
    print(f"{units}: LeRobot reads {json.dumps({k: round(v, 3) for k, v in sees.items()})}")
    whose = "the leader's" if in_degrees else "that, where a tick is 0.1,"
    print(f"  the dataset's last state differs by {seen:.1e} at most, its last action from {whose} by {done:.1e}")
    assert seen < 1e-4 and done < near
    # The recorded action, by LeRobot, to the same servos.
    stands = driver.bus.sync_read("Present_Position", normalize=False)
    driver.bus.enable_torque()
    driver.send_action(dict(zip(driver.action_features, last["action"].tolist())))
    time.sleep(0.2)
    goes = driver.bus.sync_read("Present_Position", normalize=False)
    moved = max(abs(goes[joint] - stands[joint]) for joint in stands)
    print(f"  sent by LeRobot, the action moves no servo by more than {moved} ticks")
    assert moved <= 1, (stands, goes)
    driver.bus.disconnect()
    person.bus.disconnect()
    for bus in (arm, hand):
        bus.process.kill()


if __name__ == "__main__":
    for wanted in ("lerobot_degrees", "lerobot_range"):
        with tempfile.TemporaryDirectory() as kept:
            main(pathlib.Path(kept), wanted)
    print("as expected")
