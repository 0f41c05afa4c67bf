"""Writes the gripper's part of tests/golden/ros2: type hashes and CDR bytes of control_msgs/action/GripperCommand.

Python 3.12: pip install ros-jazzy-rclpy ros-jazzy-sensor-msgs ros-jazzy-trajectory-msgs ros-jazzy-action-msgs
             ros-jazzy-rmw-fastrtps-cpp rosbags
Run from the repository's root. PyPI has no control_msgs, so its two definitions stand below, and Jazzy's own generator
(rosidl_generator_type_description) computes their hashes. Before these are taken it must find again every hash that
Jazzy ships for std_msgs, sensor_msgs, trajectory_msgs and action_msgs, and those that others wrote down of an
action (example_interfaces/action/Fibonacci). CancelGoal's bytes are Jazzy's own, the rest are rosbags'.
"""

import json
import pathlib
import shutil
import sys
import tempfile

import numpy
from action_msgs.srv import CancelGoal
from rclpy.serialization import serialize_message
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosidl_adapter import convert_to_idl
from rosidl_generator_type_description import generate_type_hash

share = pathlib.Path(sys.prefix) / "share"
golden = pathlib.Path("tests/golden/ros2")
STATE = "float64 position\nfloat64 effort\nbool stalled\nbool reached_goal\n"
COMMAND = "float64 position\nfloat64 max_effort\n"
DEFINITIONS = {
    "control_msgs/msg/GripperCommand.msg": COMMAND,
    "control_msgs/action/GripperCommand.action": f"control_msgs/GripperCommand command\n---\n{STATE}---\n{STATE}",
    "example_interfaces/action/Fibonacci.action": "int32 order\n---\nint32[] sequence\n---\nint32[] sequence\n",
}
# As others wrote them down from ROS 2 Jazzy.
SEEN = {
    "example_interfaces/action/Fibonacci_GetResult":
        "RIHS01_1b0de0d5d29dc955d92f546706568428632771db13ec84c15ec1c1a59f424a57",
    "example_interfaces/action/Fibonacci_FeedbackMessage":
        "RIHS01_c1de71afd52e49a89c53d8262366884185bc0a02f78ce051c4e46b0a7fe59bb2",
}


def described(folder):
    """Type name to hash, as each generated description says of itself."""
    hashes = {}
    for path in folder.rglob("*.json"):
        text = json.loads(path.read_text())
        if "type_hashes" in text:
            name = text["type_description_msg"]["type_description"]["type_name"]
            hashes |= {h["type_name"]: h["hash_string"] for h in text["type_hashes"] if h["type_name"] == name}
    return hashes


def generated(package, work):
    """The hashes that Jazzy's generator computes from the definitions of a package."""
    made = work / "made" / package.name
    sources = sorted(p for p in package.glob("*/*") if p.suffix in (".msg", ".srv", ".action"))
    for source in sources:
        convert_to_idl(package, package.name, source.relative_to(package), made)
    args = {
        "package_name": package.name,
        "output_dir": str(made / "descriptions"),
        "idl_tuples": [f"{made}:{s.relative_to(package).with_suffix('.idl')}" for s in sources],
        "include_paths": [f"{p.name}:{p}" for p in share.iterdir() if (p / "msg").exists()],
    }
    (work / "args.json").write_text(json.dumps(args))
    generate_type_hash(str(work / "args.json"))
    return described(made / "descriptions")


with tempfile.TemporaryDirectory() as folder:
    work = pathlib.Path(folder)
    again = 0
    for name in ["std_msgs", "sensor_msgs", "trajectory_msgs", "action_msgs"]:
        shutil.copytree(share / name, work / name)
        shipped, computed = described(share / name), generated(work / name, work)
        for known in shipped.keys() & computed.keys():
            assert shipped[known] == computed[known], known
            again += 1
    for path, text in DEFINITIONS.items():
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        (work / path).write_text(text)
    fibonacci = generated(work / "example_interfaces", work)
    for known, seen in SEEN.items():
        assert fibonacci[known] == seen, known
    gripper = generated(work / "control_msgs", work)
print(f"{again} hashes of Jazzy and {len(SEEN)} of an action found again")

hashes = json.loads((golden / "type_hashes.json").read_text())
for part in ["SendGoal", "GetResult", "FeedbackMessage"]:
    hashes[f"control_msgs/action/GripperCommand_{part}"] = gripper[f"control_msgs/action/GripperCommand_{part}"]
hashes["action_msgs/srv/CancelGoal"] = described(share / "action_msgs")["action_msgs/srv/CancelGoal"]
(golden / "type_hashes.json").write_text(json.dumps(hashes, indent=1) + "\n")

goal = list(range(1, 17))
request = CancelGoal.Request()
request.goal_info.goal_id.uuid, request.goal_info.stamp.sec = goal, 7
(golden / "cancel_goal_request.cdr").write_bytes(serialize_message(request))
response = CancelGoal.Response(return_code=CancelGoal.Response.ERROR_GOAL_TERMINATED)
response.goals_canceling = [request.goal_info]
(golden / "cancel_goal_response.cdr").write_bytes(serialize_message(response))

store = get_typestore(Stores.ROS2_JAZZY)
ID = "unique_identifier_msgs/UUID goal_id\n"
for name, text in {
    "GripperCommand": COMMAND,
    "State": STATE,
    "SendGoalRequest": ID + "control_msgs/GripperCommand command\n",
    "SendGoalResponse": "bool accepted\nbuiltin_interfaces/Time stamp\n",
    "GetResultResponse": "int8 status\ncontrol_msgs/State result\n",
    "Feedback": ID + "control_msgs/State feedback\n",
}.items():
    store.register(get_types_from_msg(text, f"control_msgs/msg/{name}"))


def write(file, name, *values):
    full = f"control_msgs/msg/{name}"
    (golden / file).write_bytes(store.serialize_cdr(store.types[full](*values), full))


def made(name, *values):
    return store.types[name](*values)


uuid = made("unique_identifier_msgs/msg/UUID", numpy.array(goal, dtype=numpy.uint8))
state = made("control_msgs/msg/State", 0.25, -1.5, True, False)
write("gripper_send_goal_request.cdr", "SendGoalRequest", uuid, made("control_msgs/msg/GripperCommand", 0.5, 4.0))
write("gripper_send_goal_response.cdr", "SendGoalResponse", True, made("builtin_interfaces/msg/Time", 3, 4))
write("gripper_get_result_response.cdr", "GetResultResponse", 6, state)
write("gripper_feedback.cdr", "Feedback", uuid, state)
