"""Writes tests/golden/ros2/*: CDR bytes and type hashes made by real ROS 2 Jazzy.

Python 3.12: pip install ros-jazzy-rclpy ros-jazzy-sensor-msgs ros-jazzy-trajectory-msgs ros-jazzy-rmw-fastrtps-cpp
Run from the repository's root. The Rust tests in robots/src/ros2 compare our encoder and decoder with these files;
when one changes, ROS changed its format: look before you commit.
"""

import json, pathlib, sys
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

out = pathlib.Path("tests/golden/ros2")
out.mkdir(parents=True, exist_ok=True)

joints = JointState()
joints.header.stamp.sec, joints.header.stamp.nanosec, joints.header.frame_id = 1, 2, "base"
joints.name = ["shoulder_pan", "gripper"]
joints.position, joints.velocity, joints.effort = [0.5, -1.25], [0.125, 3.0], []
(out / "joint_state.cdr").write_bytes(serialize_message(joints))

image = CompressedImage()
image.header.stamp.sec, image.header.stamp.nanosec, image.header.frame_id = 3, 4, "front"
image.format, image.data = "rgb8; jpeg compressed bgr8", [0xFF, 0xD8, 0xFF, 0xD9, 7]
(out / "compressed_image.cdr").write_bytes(serialize_message(image))

(out / "string.cdr").write_bytes(serialize_message(String(data="pick up the green cube, bitte schön")))

trajectory = JointTrajectory()
trajectory.header.stamp.sec, trajectory.header.frame_id = 5, "b"
trajectory.joint_names = ["shoulder_pan", "gripper"]
for k in range(2):
    point = JointTrajectoryPoint()
    point.positions, point.velocities = [0.1 * (k + 1), -0.2], [1.0] if k == 0 else []
    point.time_from_start.sec, point.time_from_start.nanosec = k, 500_000_000
    trajectory.points.append(point)
(out / "joint_trajectory.cdr").write_bytes(serialize_message(trajectory))

# What make_gripper_golden.py has found stays.
kept = out / "type_hashes.json"
hashes = json.loads(kept.read_text()) if kept.exists() else {}
for package, name in [("sensor_msgs", "JointState"), ("sensor_msgs", "CompressedImage"), ("std_msgs", "String"),
                      ("trajectory_msgs", "JointTrajectory")]:
    text = pathlib.Path(f"{sys.prefix}/share/{package}/msg/{name}.json").read_text()
    full = f"{package}/msg/{name}"
    hashes[full] = next(h["hash_string"] for h in json.loads(text)["type_hashes"] if h["type_name"] == full)
kept.write_text(json.dumps(hashes, indent=1) + "\n")
