"""Meta-World as a robot for vela: every task by its name, its scripted experts, the view `corner2`.

    pip install ./robots/python metaworld         # MUJOCO_GL=egl or osmesa without a screen
    python robots/python/examples/meta_world.py

The environment is told displacements of the hand. Here the hand's place (m) and the fingers' opening (0 closed, 1 open)
are four joints, and what it is told is the way from where the hand's guide is to where it is to be.
"""

import argparse
import math

import metaworld
import mujoco
import numpy as np
from metaworld.policies import ENV_POLICY_MAP

from vela_gym import Joint, Robot, Served

SIZE = 128
# The hand's guide goes this far at most in one step, m.
STEP = 0.01
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
        suite = metaworld.MT1(task, seed=0)
        self.env = suite.train_classes[task](render_mode="rgb_array")
        self.scenes, self.expert = suite.train_tasks, ENV_POLICY_MAP[task]()
        self.action_space = self.env.action_space
        model = self.env.model
        model.vis.quality.shadowsize, model.vis.quality.offsamples = 0, 0
        self.renderer, self.steps = None, 0

    def reset(self, seed):
        self.env.set_task(self.scenes[seed % len(self.scenes)])
        self.steps = 0
        return self.env.reset(seed=seed)

    def step(self, action):
        seen, reward, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        return seen, reward, terminated, truncated or self.steps >= self.env.max_path_length - 1, info

    def guide(self):
        return self.env.data.mocap_pos[0].copy()

    def picture(self):
        if self.renderer is None:
            self.renderer = mujoco.Renderer(self.env.model, SIZE, SIZE)
        self.renderer.update_scene(self.env.data, camera="corner2")
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self.renderer.scene.flags[flag] = 0
        # The camera stands on its head.
        return self.renderer.render()[::-1].copy()


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
    robot = Robot("metaworld", joints, {"corner2": (SIZE, SIZE)}, control_hz=80.0)
    return Served(
        Table,
        robot,
        joints=lambda env, seen, count: seen[:4],
        picture=lambda env, seen, camera: env.picture(),
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
