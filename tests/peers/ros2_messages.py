"""Every ROS 2 message that vela speaks, in each direction that it has, with code of others at the other end.

Usage: python tests/peers/ros2_messages.py [VELA]                                  (Python 3.12; not part of CI)
`pip install zenoh-ros2-sdk pillow xxhash ros-jazzy-rclpy ros-jazzy-sensor-msgs ros-jazzy-trajectory-msgs
ros-jazzy-std-msgs ros-jazzy-geometry-msgs ros-jazzy-rmw-fastrtps-cpp`

What `vela sim` and `vela robot` say is decoded twice: by zenoh-ros2-sdk, which finds keys, type hashes and CDR itself,
and by ROS 2 Jazzy from the bytes; both must agree, also with what is true. What they hear is said three times: by the
SDK, in Jazzy's bytes, and as big-endian CDR. A plain zenoh session is the router, where rmw_zenoh has its own. The
gripper's action has a file of its own, ros2_gripper.py.
"""

import array
import collections
import contextlib
import io
import json
import pathlib
import struct
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import xml.etree.ElementTree as xml

import numpy as np
import xxhash
import zenoh
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import TransformStamped
from PIL import Image as Picture
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Bool, Float64MultiArray, String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint
from zenoh_ros2_sdk import ROS2Publisher, ROS2Subscriber
from zenoh_ros2_sdk.discovery import get_topic_info
from zenoh_ros2_sdk.message_registry import get_registry
from zenoh_ros2_sdk.session import ZenohSession

root = pathlib.Path(__file__).resolve().parent.parent.parent
vela = sys.argv[1] if len(sys.argv) > 1 else str(root / "target/release/vela")
hashes = json.loads((root / "tests/golden/ros2/type_hashes.json").read_text())
limits = {j["name"]: j["velocity"] for j in tomllib.loads((root / "configs/robots/so101.toml").read_text())["joints"]}
urdf = xml.parse(root / "configs/robots/so101.urdf").getroot()
# Jazzy's wheels bring the definitions, which the SDK reads, and the hashes that ROS 2 itself has made of them.
share = pathlib.Path(sys.prefix) / "share"
get_registry(str(share))
TF, TF_DEFINITION = "tf2_msgs/msg/TFMessage", "geometry_msgs/TransformStamped[] transforms"  # PyPI has no tf2_msgs.
JOINTS = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
TRAJECTORY, FORWARD = "/arm_controller/joint_trajectory", "/forward_position_controller/commands"
GRIPPER = "/gripper_controller/commands"
WAYS = ["SDK", "Jazzy", "big-endian"]
folder = tempfile.TemporaryDirectory()
client = root / "configs/zenoh/client.json5"
router = zenoh.open(zenoh.Config.from_json5(
    "{mode: 'router', listen: {endpoints: ['tcp/127.0.0.1:7447']}, scouting: {multicast: {enabled: false}}}"))
sdk = ZenohSession.get_instance()
# Messages by type and direction, then by who decoded or sent them; who published what we heard.
counts, gids = collections.defaultdict(collections.Counter), set()


def kind_of(message):
    return message if message is TF else f"{message.__module__.split('.')[0]}/msg/{message.__name__}"


def parts(message):
    """The names of a message's fields, be it Jazzy's or the SDK's."""
    if hasattr(message, "get_fields_and_field_types"):
        return list(message.get_fields_and_field_types())
    return [name for name in getattr(message, "__dataclass_fields__", ()) if name != "__msgtype__"]


def plain(value):
    """A message of either as tuples that can be compared."""
    if isinstance(value, (array.array, np.ndarray)):
        return value.tobytes()
    if isinstance(value, (list, tuple)):
        return tuple(map(plain, value))
    return tuple(plain(getattr(value, name)) for name in parts(value)) or value


def foreign(value):
    """Jazzy's message as the SDK's."""
    if isinstance(value, list):
        return [foreign(item) for item in value]
    if names := parts(value):
        return sdk.store.types[kind_of(type(value))](**{name: foreign(getattr(value, name)) for name in names})
    return np.array(value) if isinstance(value, array.array) else value


def frames(payload):
    """The elements of a TFMessage by Jazzy's TransformStamped, whose numbers begin at a multiple of eight: the name
    before them is made longer where that is needed."""
    aligned = lambda at, size: at + (4 - at) % size
    at, found = 8, []
    for _ in range(struct.unpack_from("<I", payload, 4)[0]):
        (size,) = struct.unpack_from("<I", payload, at + 8)
        shift = (at - 4) % 8
        longer = payload[at : at + 8] + struct.pack("<I", size + shift) + b"-" * shift + payload[at + 12 :]
        frame = deserialize_message(payload[:4] + longer, TransformStamped)
        frame.header.frame_id = frame.header.frame_id[shift:]
        found.append(plain(frame))
        at = aligned(aligned(at + 12 + size, 4) + 4 + len(frame.child_frame_id) + 1, 8) + 7 * 8
    assert at == len(payload), "something comes after the last"
    return (tuple(found),)


def wait(condition, what, secs=10.0):
    end = time.monotonic() + secs
    while not condition():
        assert time.monotonic() < end, f"not within {secs} s: {what}"
        time.sleep(0.02)


class Topic:
    def __init__(self, topic, message):
        self.topic, self.message, self.kind = topic, message, kind_of(message)
        package, _, name = self.kind.split("/")
        self.key = f"0{topic}/{package}::msg::dds_::{name}_/{hashes[self.kind]}"

    def of(self, node, side):
        """The same when the SDK has found this node's endpoint with its type and hash."""
        def found():
            info = get_topic_info(self.topic, verbose=True, timeout=0.2)
            ends = [(end.node_name.strip("/"), end.topic_type, end.type_hash) for end in getattr(info, side, [])]
            return (node, self.kind, hashes[self.kind]) in ends
        wait(found, f"{node} among the {side} of {self.topic}")
        return self


class Ear(Topic):
    """A topic heard as bytes and by the SDK."""

    def __init__(self, topic, message, node):
        super().__init__(topic, message)
        self.raw, self.said = [], []
        take = lambda s: self.raw.append((str(s.key_expr), s.payload.to_bytes(), s.attachment.to_bytes()))
        self.plain = router.declare_subscriber(f"0{topic}/*/*", take)
        self.sdk = ROS2Subscriber(topic, self.kind, self.said.append, TF_DEFINITION if message is TF else None)
        assert self.sdk.keyexpr == self.key
        self.of(node, "publishers")
        found = router.liveliness().get(f"@ros2_lv/0/*/*/*/MP/*/*/{node}/{topic.replace('/', '%')}/**")
        tokens = [str(reply.ok.key_expr) for reply in found if reply.ok]
        self.tokens = [xxhash.xxh3_128_intdigest(token.encode()).to_bytes(16, "little") for token in tokens]

    def close(self):
        """What was said, which the two have decoded alike."""
        self.sdk.close()
        time.sleep(0.1)
        self.plain.undeclare()
        assert {key for key, _, _ in self.raw} == {self.key}
        beside = [struct.unpack("<qqB16s", attachment) for _, _, attachment in self.raw]
        assert all(b[0] > a[0] and b[1] >= a[1] and b[2:] == a[2:] and b[2] == 16 for a, b in zip(beside, beside[1:]))
        assert beside[0][3] in self.tokens, "an identity is the 128-bit XXH3 of its publisher's token"
        assert beside[0][3] not in gids, "two publishers have one identity"
        gids.add(beside[0][3])
        decode = frames if self.message is TF else lambda payload: plain(deserialize_message(payload, self.message))
        jazzy = {decode(payload) for _, payload, _ in self.raw}
        agreed = sum(plain(message) in jazzy for message in self.said)
        assert agreed == len(self.said) >= 3, f"{self.topic}: {agreed} of {len(self.said)} are the same"
        counts[self.kind, "out"].update({"SDK": len(self.said), "Jazzy": len(self.raw)})
        return self.said


class Mouth(Topic):
    """A topic on which something is said in each of the ways."""

    def __init__(self, topic, message):
        super().__init__(topic, message)
        self.sdk = ROS2Publisher(topic, self.kind)
        assert self.sdk.keyexpr == self.key

    def say(self, way, message):
        counts[self.kind, "in"][way] += 1
        theirs = foreign(message)
        if way == "SDK":
            return self.sdk.publish(**{name: getattr(theirs, name) for name in parts(theirs)})
        big = lambda: bytes(sdk.store.serialize_cdr(theirs, self.kind, little_endian=False))
        payload = serialize_message(message) if way == "Jazzy" else big()
        beside = struct.pack("<qqB16s", counts[self.kind, "in"][way], time.time_ns(), 16, way.encode())
        router.put(self.key, payload, attachment=beside)


@contextlib.contextmanager
def running(*words):
    """A process of vela's, and the lines that it writes to stderr."""
    process = subprocess.Popen([vela, *words, "--zenoh", client], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    lines = []
    threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, "")), daemon=True).start()
    try:
        yield process, lines
    finally:
        process.kill()
        process.wait()


def release():
    subprocess.run([vela, "robot", "--release", "vela/arm", "--zenoh", client], check=True)


def trajectory(joints, *points):
    """One point a second."""
    made = [JointTrajectoryPoint(positions=at, time_from_start=Duration(sec=k + 1)) for k, at in enumerate(points)]
    return JointTrajectory(joint_names=joints, points=made)


def stamp(message):
    return message.header.stamp.sec + message.header.stamp.nanosec * 1e-9


def slow_enough(joints, rows, secs):
    """No joint is sent further in so many seconds than the robot's file allows."""
    most = np.array([limits[joint] for joint in joints]) * np.reshape(secs, (-1, 1))
    assert np.all(np.abs(np.diff(rows, axis=0)) <= most * 1.01)


def described(texts):
    """The URDF is the SO-101's."""
    assert all({joint.get("name") for joint in xml.fromstring(text.data).iter("joint")} > set(JOINTS) for text in texts)


def turned(said, states):
    """Each link is where the URDF has it, turned about its joint's axis by what the joint states of that moment say."""
    positions, turns = {stamp(state): dict(zip(state.name, state.position)) for state in states}, 0
    numbers = lambda joint, child, name: np.array(joint.find(child).get(name).split(), float)
    for message in said:
        found = {frame.child_frame_id: frame for frame in message.transforms}
        now = positions.get(stamp(message.transforms[0]), {})
        for joint in urdf.iter("joint"):
            frame = found.pop(joint.find("child").get("link"))
            place, turn = plain(frame.transform)
            assert frame.header.frame_id == joint.find("parent").get("link")
            assert np.allclose(place, numbers(joint, "origin", "xyz")) and abs(np.linalg.norm(turn) - 1.0) < 1e-9
            if joint.get("name") in now:
                half, turns = now[joint.get("name")] / 2, turns + 1
                assert np.allclose(turn, [*np.sin(half) * numbers(joint, "axis", "xyz"), np.cos(half)])
        assert not found
    assert turns > 100


def pictured(raw, compressed):
    """The JPEG of a moment shows what the raw picture does."""
    assert {(image.width, image.height, image.step, image.encoding) for image in raw} == {(96, 96, 288, "rgb8")}
    pixels = {stamp(image): image.data.reshape(96, 96, 3).astype(int) for image in raw}
    apart = [np.abs(np.array(Picture.open(io.BytesIO(image.data.tobytes())), int) - pixels[stamp(image)]).mean()
             for image in compressed if image.format == "jpeg" and stamp(image) in pixels]
    assert len(apart) >= 3 and max(apart) < 4.0, apart


def simulated():
    """`vela sim`: all that an arm of ours says, and what it obeys."""
    outs = {"/joint_states": JointState, "/joint_commands": JointState, "/tf": TF, "/robot_description": String}
    for camera in ("front", "wrist"):
        outs |= {f"/{camera}/image_raw": Image, f"/{camera}/image_raw/compressed": CompressedImage}
    ins = {TRAJECTORY: JointTrajectory, FORWARD: Float64MultiArray, GRIPPER: Float64MultiArray,
           "/emergency_stop": Bool, "/instruction": String}
    with running("sim", "--hold-secs", "60"):
        ears = [Ear(*topic, "vela_so101") for topic in outs.items()]
        follow, forward, grip, stop, instruct = (Mouth(*topic).of("vela_so101", "subscribers") for topic in ins.items())
        states, sent = ears[0].said, ears[1].said
        wait(lambda: all(ear.said for ear in ears), "a message on every topic")
        at = lambda **goals: all(abs(states[-1].position[JOINTS.index(k)] - goal) < 0.05 for k, goal in goals.items())
        rests = lambda: {message.header.frame_id for message in sent[-9:]} == {"hold"}
        for way, side in zip(WAYS, (1, -1, 1)):
            pan, roll = 0.4 * side, 0.5 * side
            follow.say(way, trajectory(["shoulder_pan", "wrist_roll"], [pan / 2, 0.0], [pan, roll]))
            stop.say(way, Bool(data=False))
            wait(lambda: at(shoulder_pan=pan, wrist_roll=roll) and rests(), f"the trajectory's end, by {way}")
            forward.say(way, Float64MultiArray(data=[-pan, *states[-1].position[1:4], -roll]))
            grip.say(way, Float64MultiArray(data=[0.6 + pan]))
            there = lambda: at(shoulder_pan=-pan, wrist_roll=-roll, gripper=0.6 + pan)
            wait(lambda: there() and rests(), f"where the commands lead, by {way}")
            follow.say(way, trajectory(["shoulder_pan"], [0.0], [pan]))
            wait(lambda: not there(), "a trajectory on its way")
            stop.say(way, Bool(data=True))
            wait(rests, f"the stop, by {way}")
            held = dict(zip(JOINTS, states[-1].position))
            time.sleep(2.0)
            assert at(**held) and not at(shoulder_pan=pan), "an arm that is stopped holds"
            release()
        asked = []
        take = lambda query: asked.append(query.payload.to_bytes())
        with router.declare_queryable("vela/arm/policy/*/chunk", take), running("act"):
            for way, colour in zip(WAYS, ("green", "blue", "yellow")):
                sentence = f"push the {colour} cube to the left"
                wait(lambda: asked and sentence.encode() not in asked[-1], "a question about another sentence")
                instruct.say(way, String(data=sentence))
                wait(lambda: sentence.encode() in asked[-1], f"a question about the sentence, by {way}")
        states, sent, tf, texts, front, front_jpeg, wrist, wrist_jpeg = (ear.close() for ear in ears)
    assert all(message.name == JOINTS for message in states + sent)
    assert {message.header.frame_id for message in sent} == {"policy", "command", "hold"}
    slow_enough(JOINTS, [message.position for message in sent], np.diff([stamp(message) for message in sent]))
    described(texts)
    turned(tf, states)
    pictured(front, front_jpeg)
    pictured(wrist, wrist_jpeg)


def goals(ear, message):
    """Where a command sends which joints."""
    if ear.message is JointTrajectory:
        return dict(zip(message.joint_names, message.points[0].positions))
    return dict(zip(JOINTS[5:] if ear.topic == GRIPPER else JOINTS[:5], message.data))


def driven(topic, command):
    """`vela robot` with the shipped file: what it says to an arm, and what it hears of one that is at once where it is
    sent. Its controller takes commands of this kind on this topic."""
    text = (root / "configs/arms/so101-ros2.toml").read_text().replace("../robots", str(root / "configs/robots"))
    text = text.replace("describe = false", "describe = true").replace("real_time = true", "real_time = false")
    if command is JointTrajectory:
        text = text.replace(f'"forward"\ntopic = "{FORWARD}"', f'"trajectory"\ntopic = "{topic}"')
    arm_file = pathlib.Path(folder.name) / "arm.toml"
    arm_file.write_text(text)
    state, stop = Mouth("/joint_states", JointState), Mouth("/emergency_stop", Bool)
    raw, jpeg = Mouth("/wrist/image_raw", Image), Mouth("/front/image_raw/compressed", CompressedImage)
    way, ears, joints, looks = WAYS[0], [], dict.fromkeys(JOINTS, 0.0), True

    def stand_in():
        grey = 0
        while robot.poll() is None:
            for ear in ears:
                joints.update(goals(ear, ear.said[-1]) if ear.said else {})
            state.say(way, JointState(name=JOINTS, position=list(joints.values())))
            if looks:
                # No two are the same: a picture that stands still while the arm moves stops it.
                grey, file = (grey + 1) % 100, io.BytesIO()
                picture = Picture.new("RGB", (96, 96), (60 + grey, 100, 100))
                picture.save(file, "JPEG")
                raw.say(way, Image(height=96, width=96, step=288, encoding="rgb8", data=picture.tobytes()))
                jpeg.say(way, CompressedImage(format="jpeg", data=file.getvalue()))
            time.sleep(0.03)

    words = ("robot", "--config", arm_file, "--json", "--hold-secs", "1")
    with running(*words) as (robot, lines), running("act"):
        threading.Thread(target=stand_in).start()
        for mouth in (state, stop, raw, jpeg):
            mouth.of("vela_cameras_so101" if mouth in (raw, jpeg) else "vela_driver_so101", "subscribers")
        tf, texts = (Ear(*topic, "vela_description_so101") for topic in (("/tf", TF), ("/robot_description", String)))
        controllers = ((topic, command), (GRIPPER, Float64MultiArray))
        ears.extend([Ear(*controller, "vela_driver_so101") for controller in controllers])
        for way in WAYS:
            wait(lambda: lines[-1:] == ["running\n"], f"the arm running, by {way}")
            before, count = dict(joints), len(lines)
            time.sleep(2.0)
            stop.say(way, Bool(data=False))
            time.sleep(0.5)
            assert len(lines) == count, f"joints and pictures by {way} were not all taken: {lines}"
            assert max(abs(joints[joint] - before[joint]) for joint in JOINTS) > 0.05, "it moves"
            stop.say(way, Bool(data=True))
            wait(lambda: "emergency stop: pressed on /emergency_stop" in lines[-1], f"the stop, by {way}")
            time.sleep(0.5)
            held = dict(joints)
            time.sleep(0.5)
            assert joints == held, "an arm that is stopped holds"
            release()
        wait(lambda: lines[-1:] == ["running\n"], "the arm running")
        looks = False
        robot.wait(20)
        report = json.loads(robot.stdout.read())
        for ear in ears:
            told = [goals(ear, message) for message in ear.close()]
            slow_enough(told[0], [list(goal.values()) for goal in told], 1 / 30)
        described(texts.close())
        tf.close()
    assert report["state"].startswith("stopped: held for 1.0 s: camera") and report["chunks"] > 10, report


def main():
    shipped = [kind for kind in hashes if (share / f"{kind}.json").exists()]
    for kind in shipped:
        types = json.loads((share / f"{kind}.json").read_text())["type_hashes"]
        assert {"type_name": kind, "hash_string": hashes[kind]} in types
    sdk.register_message_type(None, "geometry_msgs/msg/TransformStamped")
    simulated()
    driven(TRAJECTORY, JointTrajectory)
    driven(FORWARD, Float64MultiArray)
    for (kind, way), tally in sorted(counts.items()):
        by = ", ".join(f"{who} {count}" for who, count in tally.items())
        print(f"{kind:35} {way:3}  {'decoded' if way == 'out' else 'sent'} by {by}")
        assert set(tally) == set(WAYS if way == "in" else WAYS[:2])
    every = {(kind, way) for kind in hashes if "/msg/" in kind for way in ("in", "out")}
    assert set(counts) == every - {(TF, "in"), ("std_msgs/msg/Bool", "out")}
    print(f"what vela says two others decode alike, what they say it obeys; {len(shipped)} hashes are Jazzy's own")


with router, contextlib.closing(sdk):
    main()
