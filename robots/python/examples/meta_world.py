"""Meta-World as a robot for vela: every task by its name, its scripted experts, two views that cross: `corner4` and
`front`.

    pip install ./robots/python metaworld         # MUJOCO_GL=egl or osmesa without a screen
    python robots/python/examples/meta_world.py

The environment is told displacements of the hand. Here the hand's place (m) and the fingers' opening (0 closed, 1 open)
are four joints, and what it is told is the way from where the hand's guide is to where it is to be.

Fifty seeds share one draw of Meta-World's fifty scenes of a task: other fifties are other scenes. An episode that is
asked to be randomised (`vela record --randomise`) shakes the hand off the way it is told to go, so that what is recorded
shows the way back.
"""

import argparse
import math

import metaworld
import mujoco
import numpy as np
from metaworld.policies import ENV_POLICY_MAP

from vela_gym import Joint, Robot, Served

SIZE = 96
# `corner4` is the suite's own. `front` is ours: from the far side of the table, across the way of `corner4`, so that the
# two together say how far a point is; narrow, so that a marked point is four or five pixels wide. Degrees and m.
FRONT = {"lookat": (0.0, 0.72, 0.15), "distance": 1.25, "azimuth": -135.0, "elevation": -30.0}
FRONT_FOVY = 38.0
# The hand's guide goes this far at most in one step, m.
STEP = 0.01
# A shaken hand is off by this share of a step (one standard deviation), of which so much is left after a step; what has
# not come right after so many steps is given up.
SHAKE, KEPT, LONGEST = 0.2, 0.7, 200
SENTENCES = {
    "reach-v3": "reach the red point",
    "push-v3": "push the puck to the green point",
    "pick-place-v3": "put the puck at the blue point",
    "door-open-v3": "open the door",
    "drawer-open-v3": "open the drawer",
    "drawer-close-v3": "close the drawer",
    "button-press-topdown-v3": "press the button from above",
    "peg-insert-side-v3": "put the peg into the hole",
    "window-open-v3": "open the window",
    "window-close-v3": "close the window",
}


class Table:
    """One task's environment, its pictures and its expert; a Gymnasium environment in all that `Served` needs."""

    def __init__(self, task):
        self.task, self.suite, self.drawn = task, metaworld.MT1(task, seed=0), 0
        self.env = self.suite.train_classes[task](render_mode="rgb_array")
        self.expert = ENV_POLICY_MAP[task]()
        self.action_space = self.env.action_space
        model = self.env.model
        model.vis.quality.shadowsize, model.vis.quality.offsamples = 0, 0
        model.vis.global_.fovy = FRONT_FOVY
        self.front = mujoco.MjvCamera()
        for name, value in FRONT.items():
            setattr(self.front, name, value)
        self.renderer, self.steps, self.shaken, self.off = None, 0, None, np.zeros(3)

    def reset(self, seed, options=None):
        draw, scene = divmod(seed, len(self.suite.train_tasks))
        if draw != self.drawn:
            self.suite, self.drawn = metaworld.MT1(self.task, seed=draw), draw
        self.env.set_task(self.suite.train_tasks[scene])
        self.steps, self.off = 0, np.zeros(3)
        self.shaken = np.random.default_rng(seed) if (options or {}).get("randomise") else None
        return self.env.reset(seed=seed)

    def step(self, action):
        if self.shaken is not None:
            fresh = self.shaken.normal(0.0, SHAKE * math.sqrt(1.0 - KEPT**2), 3)
            self.off = KEPT * self.off + fresh
            action = np.append(np.clip(action[:3] + self.off, -1.0, 1.0), action[3:])
        seen, reward, terminated, truncated, info = self.env.step(action.astype(np.float32))
        self.steps += 1
        longest = self.env.max_path_length - 1 if self.shaken is None else LONGEST
        return seen, reward, terminated, truncated or self.steps >= longest, info

    def guide(self):
        return self.env.data.mocap_pos[0].copy()

    def picture(self, camera):
        if self.renderer is None:
            self.renderer = mujoco.Renderer(self.env.model, SIZE, SIZE)
        self.renderer.update_scene(self.env.data, camera=self.front if camera == "front" else camera)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self.renderer.scene.flags[flag] = 0
        rgb = self.renderer.render()
        # The suite's camera stands on its head.
        return rgb.copy() if camera == "front" else rgb[::-1].copy()


def action(env, targets):
    """Toward the hand's place; fingers 1 (open) is -1, 0 (closed) is 1."""
    return np.append((targets[:3] - env.guide()) / STEP, 1.0 - 2.0 * targets[3])


def expert(env, seen):
    """Where the expert's displacement leads."""
    told = np.clip(env.expert.get_action(seen), -1.0, 1.0)
    return np.append(env.guide() + told[:3] * STEP, 0.5 * (1.0 - told[3]))


def served():
    """All tasks."""
    slide = {"velocity": 1.0, "acceleration": 200.0, "kind": "prismatic"}
    joints = [
        Joint("hand_x", -0.6, 0.6, **slide),
        Joint("hand_y", 0.2, 1.2, **slide),
        Joint("hand_z", 0.0, 0.6, **slide),
        Joint("fingers", 0.0, 1.0, velocity=90.0, acceleration=15000.0, kind="prismatic"),
    ]
    cameras = {name: (SIZE, SIZE) for name in ("corner4", "front")}
    robot = Robot("metaworld", joints, cameras, control_hz=80.0)
    return Served(
        Table,
        robot,
        joints=lambda env, seen, count: seen[:4],
        picture=lambda env, seen, camera: env.picture(camera),
        action=action,
        sentence=lambda env, task: SENTENCES.get(task, task.removesuffix("-v3").replace("-", " ")),
        expert=expert,
    )


if __name__ == "__main__":
    said = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    said.add_argument("--key", default="vela/gym")
    said.add_argument("--connect", default="tcp/127.0.0.1:7447")
    said.add_argument("--seconds", type=float, default=math.inf)
    args = said.parse_args()
    served().serve(args.key, args.connect, args.seconds)
