"""Listens to a vela arm as any ROS 2 program on zenoh would: prints its joints.

    pip install eclipse-zenoh            # needed
    vela sim                             # in another shell (or vela demo)
    python examples/ros2/listen.py [--seconds 5] [--connect tcp/127.0.0.1:7447] [--instruction "pick up the red cube"]

Decodes the CDR with plain struct. Where ROS 2 itself is installed (rclpy, sensor_msgs; Python 3.12 wheels:
pip install ros-jazzy-rclpy ros-jazzy-sensor-msgs ros-jazzy-rmw-fastrtps-cpp), real ROS code decodes it as well and both
must agree.
"""

import argparse
import json
import struct
import sys
import time

import zenoh

TEXT_KEY = "0/instruction/std_msgs::msg::dds_::String_/RIHS01_df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18"


class Cdr:
    """Reads XCDR1, little endian; alignment counts from after the four header bytes."""

    def __init__(self, payload):
        assert payload[:2] == b"\x00\x01", f"not little-endian CDR: {payload[:4].hex()}"
        self.body, self.at = payload[4:], 0

    def take(self, form, size):
        self.at += -self.at % size
        (value,) = struct.unpack_from("<" + form, self.body, self.at)
        self.at += size
        return value

    def text(self):
        size = self.take("I", 4)
        value = self.body[self.at : self.at + size - 1].decode()
        self.at += size
        return value

    def sequence(self, read):
        return [read() for _ in range(self.take("I", 4))]


def joint_state(payload):
    cdr = Cdr(payload)
    stamp = cdr.take("i", 4) + cdr.take("I", 4) * 1e-9
    frame = cdr.text()
    names = cdr.sequence(cdr.text)
    positions = cdr.sequence(lambda: cdr.take("d", 8))
    return {"stamp": stamp, "frame": frame, "name": names, "position": positions}


def rclpy_joint_state(payload):
    from rclpy.serialization import deserialize_message
    from sensor_msgs.msg import JointState

    message = deserialize_message(payload, JointState)
    return list(message.name), list(message.position)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--connect", default="tcp/127.0.0.1:7447")
    arguments.add_argument("--seconds", type=float, default=5.0)
    arguments.add_argument("--instruction", help="say this sentence to the arm")
    arguments = arguments.parse_args()

    config = zenoh.Config()
    for key, value in {
        "mode": '"peer"',
        "connect/endpoints": json.dumps([arguments.connect]),
        "listen/endpoints": "[]",
        "scouting/multicast/enabled": "false",
        "scouting/gossip/enabled": "false",
    }.items():
        config.insert_json5(key, value)
    try:
        import rclpy  # noqa: F401

        real = True
    except ImportError:
        real = False

    heard, tokens = [], []
    with zenoh.open(config) as session:
        watch = session.liveliness().declare_subscriber("@ros2_lv/**", lambda s: tokens.append(str(s.key_expr)), history=True)
        ears = session.declare_subscriber("0/joint_states/**", lambda s: heard.append((bytes(s.payload), bytes(s.attachment))))
        if arguments.instruction:
            words = arguments.instruction.encode() + b"\0"
            stamp = struct.pack("<qqB", 1, 0, 16) + bytes(16)
            session.put(TEXT_KEY, b"\0\1\0\0" + struct.pack("<I", len(words)) + words, attachment=stamp)
        start, shown = time.monotonic(), 0
        while time.monotonic() - start < arguments.seconds:
            time.sleep(0.2)
            if len(heard) > shown:
                shown = len(heard)
                state = joint_state(heard[-1][0])
                print(f"{state['stamp']:8.3f} s ", " ".join(f"{n}={p:+.3f}" for n, p in zip(state["name"], state["position"])))
        del watch, ears

    if not heard:
        sys.exit(f"no joint states at {arguments.connect} in {arguments.seconds} s: is `vela sim` running?")
    payload, attachment = heard[-1]
    sequence, nanos, size = struct.unpack("<qqB", attachment[:17])
    assert len(attachment) == 33 and size == 16, "not an rmw_zenoh attachment"
    print(f"{len(heard)} messages, the last is number {sequence}; {len(tokens)} liveliness tokens, among them:")
    for token in sorted(tokens)[:3]:
        print("  " + token)
    if real:
        names, positions = rclpy_joint_state(payload)
        plain = joint_state(payload)
        assert (names, positions) == (plain["name"], plain["position"]), (names, positions, plain)
        print(f"rclpy agrees: {len(names)} joints")


if __name__ == "__main__":
    main()
