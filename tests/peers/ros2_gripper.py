"""A gripper's action as others serve it, moved by `vela robot`: zenoh-ros2-sdk's services, ROS 2 Jazzy's own messages.

Usage: python tests/peers/ros2_gripper.py [VELA]                                   (Python 3.12; not part of CI)
`pip install zenoh-ros2-sdk ros-jazzy-rclpy ros-jazzy-sensor-msgs ros-jazzy-trajectory-msgs ros-jazzy-action-msgs
ros-jazzy-rmw-fastrtps-cpp`

The joints and pictures of the arm are real Jazzy messages. The three services are the SDK's, which finds its own CDR
bytes, key expressions, attachments and liveliness tokens; what is ours is only the type hashes (PyPI has no
control_msgs; see examples/ros2/make_gripper_golden.py). `vela act` moves the arm; the gripper follows its goals.
"""

import json
import pathlib
import struct
import subprocess
import sys
import tempfile
import threading
import time

import zenoh
from action_msgs.srv import CancelGoal
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import Image, JointState
from trajectory_msgs.msg import JointTrajectory
from zenoh_ros2_sdk import ROS2ServiceServer
from zenoh_ros2_sdk.session import ZenohSession

root = pathlib.Path(__file__).resolve().parent.parent.parent
vela = sys.argv[1] if len(sys.argv) > 1 else str(root / "target/release/vela")
hashes = json.loads((root / "tests/golden/ros2/type_hashes.json").read_text())
ACTION = "/gripper_controller/gripper_cmd"
JOINTS = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
UUID = "unique_identifier_msgs/UUID goal_id\n"
STATE = "float64 position\nfloat64 effort\nbool stalled\nbool reached_goal"
ARM = f"""
robot = "{root}/configs/robots/so101.toml"
key = "vela/peer"
[loop]
real_time = false
[ros2.gripper_action]
name = "{ACTION}"
max_effort = 3.0
[cameras.front]
topic = "/front/image_raw"
kind = "raw"
[cameras.wrist]
topic = "/wrist/image_raw"
kind = "raw"
"""


class Gripper:
    """One controller: a new goal replaces the one before, and is reached in a while unless it is cancelled."""

    def __init__(self, session):
        self.session, self.position, self.goals, self.cancels = session, 0.2, [], []
        self.active, self.asked, self.lock = None, {}, threading.Lock()
        session.register_message_type("uint8[16] uuid", "unique_identifier_msgs/msg/UUID")
        session.register_message_type("float64 position\nfloat64 max_effort", "control_msgs/msg/GripperCommand")
        session.register_message_type("int32 sec\nuint32 nanosec", "builtin_interfaces/msg/Time")
        info = "action_msgs/GoalInfo"
        session.register_message_type(f"{UUID}builtin_interfaces/Time stamp", "action_msgs/msg/GoalInfo")
        self.send = self.serve("send_goal", "control_msgs/action/GripperCommand_SendGoal",
                               UUID + "control_msgs/GripperCommand command",
                               "bool accepted\nbuiltin_interfaces/Time stamp", self.take)
        self.cancel = self.serve("cancel_goal", "action_msgs/srv/CancelGoal", f"{info} goal_info",
                                 f"int8 return_code\n{info}[] goals_canceling", self.give_up)
        self.result = self.serve("get_result", "control_msgs/action/GripperCommand_GetResult", UUID.strip(),
                                 f"int8 status\n{STATE}", None)
        threading.Thread(target=self.results, daemon=True).start()

    def serve(self, part, kind, request, response, act):
        return ROS2ServiceServer(f"{ACTION}/_action/{part}", kind, act, request, response, type_hash=hashes[kind],
                                 node_name="gripper_controller", mode="callback" if act else "queue")

    def take(self, goal):
        with self.lock:
            self.end(5)
            self.goals.append((time.monotonic(), goal.command.position, goal.command.max_effort))
            self.active = bytes(goal.goal_id.uuid)
        return self.send.response_msg_class(True, self.time())

    def time(self):
        return self.session.store.types["builtin_interfaces/msg/Time"](1, 0)

    def give_up(self, request):
        # The same bytes through Jazzy's own message.
        uuid = bytes(request.goal_info.goal_id.uuid)
        real = deserialize_message(
            b"\0\1\0\0" + uuid + struct.pack("<iI", request.goal_info.stamp.sec, request.goal_info.stamp.nanosec),
            CancelGoal.Request)
        with self.lock:
            self.cancels.append(bytes(real.goal_info.goal_id.uuid))
            if self.active == uuid:
                self.end(5)
        return self.cancel.response_msg_class(0, [request.goal_info])

    def results(self):
        while True:
            key, request = self.result.take_request()
            with self.lock:
                self.asked[bytes(request.goal_id.uuid)] = key

    def end(self, status):
        """Answers for the active goal; with the lock held."""
        key = self.asked.pop(self.active, None)
        if key:
            answer = self.result.response_msg_class(status, self.position, 0.5, False, status == 4)
            self.result.send_response(key, answer)
            self.active = None

    def step(self):
        """A part of the way to the goal; when it is there, the goal has succeeded."""
        with self.lock:
            if self.active is None:
                return
            goal = self.goals[-1][1]
            self.position += 0.3 * (goal - self.position)
            if abs(goal - self.position) < 1e-3:
                self.end(4)


def main():
    with tempfile.TemporaryDirectory() as folder:
        arm = pathlib.Path(folder) / "arm.toml"
        arm.write_text(ARM)
        # The robot's session listens where ROS 2 nodes look for their router; both come and go with this process.
        robot = subprocess.Popen([vela, "robot", "--config", arm, "--json", "--wait-secs", "60", "--hold-secs", "1"],
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(2.0)
        session = ZenohSession.get_instance()
        tokens = set()
        watching = session.liveliness.declare_subscriber(
            "@ros2_lv/**", lambda sample: tokens.add(str(sample.key_expr)), history=True)
        gripper = Gripper(session)
        act = subprocess.Popen([vela, "act", "--key", "vela/peer", "--for-secs", "25"], stderr=subprocess.DEVNULL)
        hand = [0.0] * 5
        sequence, begun = 0, time.monotonic()

        def put(topic, kind, message):
            nonlocal sequence
            sequence += 1
            key = f"0{topic}/sensor_msgs::msg::dds_::{kind}_/{hashes[f'sensor_msgs/msg/{kind}']}"
            beside = struct.pack("<qqB", sequence, time.time_ns(), 16) + bytes(range(16))
            session.session.put(key, serialize_message(message), attachment=beside)

        # The arm goes where it is sent at once.
        def move(sample):
            point = deserialize_message(sample.payload.to_bytes(), JointTrajectory)
            hand[:] = list(point.points[0].positions)

        moving = session.session.declare_subscriber("0/arm_controller/joint_trajectory/*/*", move)
        while robot.poll() is None and time.monotonic() - begun < 60.0:
            gripper.step()
            state = JointState(name=JOINTS, position=[*hand, gripper.position])
            put("/joint_states", "JointState", state)
            for camera in ("front", "wrist"):
                # No two are the same: a picture that stands still while the arm moves stops it.
                grey = bytes([60 + sequence % 100])
                picture = Image(height=96, width=96, step=288, encoding="rgb8", data=grey * (96 * 288))
                put(f"/{camera}/image_raw", "Image", picture)
            time.sleep(0.03)
        act.wait()
        out, err = robot.communicate(timeout=10)
        del watching, moving
        # Or its threads keep this process from ending, now and then.
        session.close()
    print(err.strip())
    report = json.loads(out)["gripper"]
    print(json.dumps(report))
    positions = [round(position, 3) for _, position, _ in gripper.goals]
    print(f"{len(positions)} goals: {positions[:8]} ...; {len(gripper.cancels)} cancelled")
    assert "gripper" not in err, "a goal, or its answer, was lost"
    assert report["goals"] == len(positions) > 20 and report["action"] == ACTION
    assert all(-0.175 <= position <= 1.75 for position in positions), "outside the robot's limits"
    assert all(effort == 3.0 for _, _, effort in gripper.goals)
    # On the way here one may catch up with another: the rate is that of all of them.
    secs = gripper.goals[-1][0] - gripper.goals[0][0]
    assert len(positions) - 1 <= 5.0 * secs + 1.0, f"{len(positions)} goals in {secs:.1f} s"
    assert report["canceled"] == len(gripper.cancels)
    mine = [token for token in tokens if "/vela_driver_so101/" in token]
    for part, kind in [("send_goal", "SC"), ("get_result", "SC"), ("cancel_goal", "SC"), ("feedback", "MS")]:
        assert any(f"/{kind}/" in token and f"_action%{part}/" in token for token in mine), (part, mine)
    print("the SDK's gripper was moved, and knows vela as the action's client")


main()
