"""Makes a Gymnasium environment a robot for vela.

vela drives it in lockstep over zenoh: it resets episodes by seed, sends absolute joint targets that its safety gate
has checked, looks through the cameras when somebody wants to see, and may ask the environment's own expert. Here is
only the environment's side: vela's messages (`pack`, `unpack`), what the robot is (`Robot`), how the environment is
read and told (`Served`).

    robot = Robot("so101", [Joint("shoulder_pan", -1.92, 1.92), ...], {"front": (128, 128)}, control_hz=10)
    Served(lambda task: gymnasium.make("..."), robot).serve("vela/gym")

README.md says how vela drives it.
"""

import argparse
import json
import logging
import math
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import gymnasium
import msgpack
import numpy as np
import zenoh

VERSION = 2
KINDS = {"hello": 3, "reset": 6, "step": 7, "moment": 8, "view": 9, "label": 10}
LONGEST = 32 << 20


def pack(kind: str, body: dict) -> bytes:
    """One of vela's messages: VELA, its kind, the version, a MessagePack map."""
    return b"VELA" + bytes([KINDS[kind], VERSION]) + msgpack.packb(body, use_bin_type=True)


def unpack(kind: str, data: bytes) -> dict:
    """The body of a message of this kind; ValueError says what is wrong with it."""
    if len(data) > LONGEST or len(data) < 6 or data[:4] != b"VELA":
        raise ValueError(f"expected a message that starts with VELA, got {len(data)} bytes: {data[:4]!r}")
    if data[5] != VERSION:
        raise ValueError(f"expected version {VERSION}, got {data[5]}: update the older side")
    if data[4] != KINDS[kind]:
        raise ValueError(f"expected {kind}, got kind {data[4]}")
    return msgpack.unpackb(data[6:], raw=False)


def numbers(values) -> bytes:
    """Numbers as vela sends them: f64, little endian."""
    return np.ascontiguousarray(values, dtype="<f8").tobytes()


def rows(body: dict) -> np.ndarray:
    """Rows of equal width, `[rows, width]`."""
    values = np.frombuffer(body["numbers"], dtype="<f8")
    return values.reshape(-1, body["width"]) if values.size else values.reshape(0, 0)


@dataclass
class Joint:
    """One joint: positions in rad ("revolute") or m ("prismatic"), per s, per s^2."""

    name: str
    lower: float
    upper: float
    velocity: float = 3.0
    acceleration: float = 30.0
    kind: str = "revolute"


@dataclass
class Robot:
    """What the environment is as a robot; must agree with the robot file that vela is given."""

    name: str
    joints: list[Joint]
    cameras: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Width and height by name."""
    control_hz: float = 10.0
    gripper: tuple[str, float, float] | None = None
    """A joint, and where it is open and closed."""
    tip_link: str = "tip"

    @classmethod
    def of(cls, env: gymnasium.Env, name: str, cameras: dict[str, tuple[int, int]]) -> "Robot":
        """A robot whose joints are the numbers of the environment's (bounded) Box of actions."""
        space, hz = env.action_space, float(env.metadata.get("render_fps", 10))
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1 or not space.is_bounded():
            raise ValueError(f"expected a bounded one-dimensional Box of actions, got {space}: name the joints")
        bounds = [(float(low), float(high)) for low, high in zip(space.low, space.high, strict=True)]
        joints = [
            Joint(f"joint_{k}", low, high, (high - low) * hz, (high - low) * hz * hz, "prismatic")
            for k, (low, high) in enumerate(bounds)
        ]
        return cls(name, joints, cameras, hz)

    def message(self) -> dict:
        """The robot as vela's messages say it."""
        limits = ("lower", "upper", "velocity", "acceleration")
        return {
            "name": self.name,
            "joints": [
                {"name": j.name, "kind": j.kind, "limits": {name: float(getattr(j, name)) for name in limits}}
                for j in self.joints
            ],
            "gripper": dict(zip(("joint", "open", "closed"), self.gripper, strict=True)) if self.gripper else None,
            "cameras": [{"name": n, "width": w, "height": h} for n, (w, h) in self.cameras.items()],
            "control_hz": float(self.control_hz),
            "tip_link": self.tip_link,
        }

    def write(self, folder: Path) -> Path:
        """Writes a robot file for vela, with a URDF in which every joint stands on the base by itself (positions and
        speeds are limited, there is no kinematics to limit). Returns the robot file."""
        folder.mkdir(parents=True, exist_ok=True)
        links, joints = ['<link name="base"/><link name="tip"/>'], []
        joints.append('<joint name="to_tip" type="fixed"><parent link="base"/><child link="tip"/></joint>')
        for j in self.joints:
            links.append(f'<link name="{j.name}_link"/>')
            limit = f'<limit lower="{j.lower}" upper="{j.upper}" velocity="{j.velocity}" effort="0"/>'
            ends = f'<parent link="base"/><child link="{j.name}_link"/><axis xyz="0 0 1"/>'
            joints.append(f'<joint name="{j.name}" type="{j.kind}">{ends}{limit}</joint>')
        urdf = f'<robot name="{self.name}">' + "\n".join(links + joints) + "</robot>\n"
        (folder / f"{self.name}.urdf").write_text(urdf)
        said = [f'name = "{self.name}"\nurdf = "{self.name}.urdf"\ntip_link = "tip"']
        said.append(f"control_hz = {float(self.control_hz)}\njoints = [")
        said += [f'  {{ name = "{j.name}", acceleration = {j.acceleration} }},' for j in self.joints] + ["]"]
        if self.gripper:
            said.append('[gripper]\njoint = "{}"\nopen = {}\nclosed = {}'.format(*self.gripper))
        said += [f'[[cameras]]\nname = "{n}"\nwidth = {w}\nheight = {h}' for n, (w, h) in self.cameras.items()]
        path = folder / f"{self.name}.toml"
        path.write_text("\n".join(said) + "\n")
        return path


def agent_pos(env: gymnasium.Env, observation, count: int) -> np.ndarray:
    """The joints where LeRobot's environments have them: `agent_pos`, or the observation itself."""
    said = observation["agent_pos"] if isinstance(observation, Mapping) else observation
    return np.asarray(said, dtype=np.float64).reshape(-1)[:count]


def pixels(env: gymnasium.Env, observation, camera: str) -> np.ndarray:
    """The picture where LeRobot's environments have it: `pixels`, by camera or alone; else what `render` draws."""
    said = observation.get("pixels") if isinstance(observation, Mapping) else None
    if isinstance(said, Mapping):
        said = said[camera]
    return np.asarray(env.render() if said is None else said)


def said_success(info: dict) -> bool:
    """Success as most environments say it."""
    return any(bool(info.get(name, False)) for name in ("is_success", "success", "succeed"))


@dataclass
class Served:
    """An environment and how it is read and told. What it does not say by itself is a function of yours."""

    make: Callable[[str], gymnasium.Env]
    """The environment of a task; each is made once."""
    robot: Robot
    joints: Callable[[gymnasium.Env, object, int], np.ndarray] = agent_pos
    """Measured joints, rad or m, in the robot's order, from an observation."""
    picture: Callable[[gymnasium.Env, object, str], np.ndarray] = pixels
    """RGB bytes `[height, width, 3]` of a camera; called only when somebody looks."""
    action: Callable[[gymnasium.Env, np.ndarray], np.ndarray] = lambda env, targets: targets
    """The environment's action for absolute joint targets, rad or m."""
    sentence: Callable[[gymnasium.Env, str], str] = lambda env, task: task
    """What the robot is asked to do in this task."""
    success: Callable[[dict], bool] = said_success
    """Whether a step's `info` says that the task is done."""
    expert: Callable[[gymnasium.Env, object], np.ndarray] | None = None
    """The joint targets that an expert would choose now; asked once per tick at most."""

    def __post_init__(self):
        self.environments: dict[str, gymnasium.Env] = {}
        self.env, self.task = None, ""
        # A name for as long as it is there, as every robot has one.
        self.name = uuid.uuid4().hex

    def reset(self, task: str, seed: int, randomise: bool = False) -> bytes:
        """Sets up an episode: same task and seed, same scene, if the environment keeps Gymnasium's rules. One that is to
        be randomised is asked for with the option `randomise`."""
        if task not in self.environments:
            self.environments[task] = self.make(task)
        # An environment that cannot be reset leaves no episode behind.
        self.env, env = None, self.environments[task]
        asked = {"options": {"randomise": True}} if randomise else {}
        self.observation, _ = env.reset(seed=seed, **asked)
        self.env, self.task, self.tick = env, task, 0
        self.done, self.ended, self.labelled = False, False, None
        self.applied = self.measured()
        return self.moment()

    def step(self, tick: int, actions: np.ndarray) -> bytes:
        """Carries out targets, `[ticks, joints]`, until they or the episode end."""
        if self.env is None or tick != self.tick:
            raise ValueError(f"expected targets for tick {self.tick if self.env else 'of no episode'}, got {tick}")
        if actions.ndim != 2 or actions.shape[1] != len(self.robot.joints) or not np.isfinite(actions).all():
            raise ValueError(f"expected finite targets for {len(self.robot.joints)} joints, got {actions.shape}")
        for targets in actions:
            if self.ended:
                break
            space, action = self.env.action_space, np.asarray(self.action(self.env, targets.copy()))
            if isinstance(space, gymnasium.spaces.Box):
                action = np.clip(action, space.low, space.high).astype(space.dtype)
            self.observation, _, terminated, truncated, info = self.env.step(action)
            self.done = self.done or bool(self.success(info))
            self.ended = self.done or bool(terminated) or bool(truncated)
            self.tick, self.applied, self.labelled = self.tick + 1, targets, None
        return self.moment()

    def measured(self) -> np.ndarray:
        values = np.asarray(self.joints(self.env, self.observation, len(self.robot.joints)), dtype=np.float64)
        if values.shape != (len(self.robot.joints),):
            raise ValueError(f"expected {len(self.robot.joints)} measured joints, got {values.shape}")
        return values

    def moment(self) -> bytes:
        body = {"tick": self.tick, "instruction": str(self.sentence(self.env, self.task))}
        body |= {"joints": numbers(self.measured()), "applied": numbers(self.applied), "success": self.done}
        return pack("moment", body | {"finished": self.ended, "seconds": self.tick / float(self.robot.control_hz)})

    def view(self) -> bytes:
        """What every camera shows."""
        frames = []
        for camera, (width, height) in self.robot.cameras.items():
            rgb = np.ascontiguousarray(self.picture(self.env, self.observation, camera))
            if rgb.shape != (height, width, 3) or rgb.dtype != np.uint8:
                expected = f"camera '{camera}': expected {height}x{width}x3 of uint8"
                raise ValueError(f"{expected}, got {rgb.shape} of {rgb.dtype}")
            frames.append({"camera": camera, "width": width, "height": height, "stamp": 0, "rgb": rgb.tobytes()})
        return pack("view", {"tick": self.tick, "frames": frames})

    def label(self) -> bytes:
        """What the expert would do now."""
        if self.expert is None:
            raise ValueError("this environment has no expert")
        if self.labelled is None:
            self.labelled = np.asarray(self.expert(self.env, self.observation), dtype=np.float64)
        return pack("label", {"tick": self.tick, "targets": numbers(self.labelled)})

    def answer(self, name: str, payload: bytes) -> bytes:
        """The reply to a query at `BASE/env/NAME`."""
        if name == "hello":
            return pack("hello", {"robot": self.name, "embodiment": self.robot.message()})
        if name == "reset":
            body = unpack("reset", payload)
            return self.reset(body["task"], body["seed"], body.get("randomise", False))
        if name == "step":
            body = unpack("step", payload)
            return self.step(body["tick"], rows(body["actions"]))
        if name not in ("view", "label"):
            raise ValueError(f"unknown query '{name}'; known: hello, reset, step, view, label")
        if self.env is None:
            raise ValueError("the environment has not been reset")
        return self.view() if name == "view" else self.label()

    def serve(self, key: str = "vela/gym", connect: str = "tcp/127.0.0.1:7447", seconds: float = math.inf) -> None:
        """Answers vela at this base key, for so long or until Ctrl-C; on this thread, as most simulators want it."""
        config = zenoh.Config.from_json5(json.dumps({
            "mode": "peer",
            "listen": {"endpoints": []},
            # Keeps trying: whoever comes first waits for the other.
            "connect": {"endpoints": [connect], "timeout_ms": -1, "exit_on_failure": False},
            "scouting": {"multicast": {"enabled": False}, "gossip": {"enabled": False}},
        }))
        end = time.monotonic() + seconds
        with zenoh.open(config) as session:
            queries = session.declare_queryable(f"{key}/env/*")
            while time.monotonic() < end:
                query = queries.try_recv()
                if query is None:
                    time.sleep(0.0005)
                    continue
                payload = query.payload.to_bytes() if query.payload else b""
                try:
                    reply = self.answer(str(query.key_expr).rsplit("/", 1)[-1], payload)
                except Exception as error:  # the other side hears of whatever it was
                    logging.exception("a query was refused")
                    query.reply_err(f"{type(error).__name__}: {error}")
                else:
                    query.reply(query.key_expr, reply)
                query.drop()


def main() -> None:
    said = argparse.ArgumentParser(description="Serve a Gymnasium environment whose actions are joint targets to vela.")
    said.add_argument("id", help="as in gymnasium.make; module:Name-v0 imports a module first")
    said.add_argument("--key", default="vela/gym")
    said.add_argument("--connect", default="tcp/127.0.0.1:7447")
    said.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), help="of the camera 'front': what render draws")
    said.add_argument("--robot", type=Path, default=Path("."), help="the folder for the robot file that vela needs")
    args = said.parse_args()
    env = gymnasium.make(args.id, render_mode="rgb_array")
    name = args.id.split(":")[-1].split("/")[-1].lower()
    robot = Robot.of(env, name, {"front": tuple(args.size)} if args.size else {})
    print(f"robot file: {robot.write(args.robot)}", flush=True)
    Served(lambda task: env, robot, sentence=lambda env, task: task or name).serve(args.key, args.connect)


if __name__ == "__main__":
    main()
