"""What `robots/python/vela_gym.py` says to vela, message by message, of an environment of two joints: tests/golden/gym.

Usage: python scripts/golden_gym.py      (gymnasium, eclipse-zenoh, msgpack, numpy)
"""

import pathlib
import sys

import gymnasium
import numpy as np

root = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root / "robots/python"))
import vela_gym


class Still(gymnasium.Env):
    """Two joints that are where they are sent; done at the second step."""

    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float64)
    observation_space = gymnasium.spaces.Dict({"agent_pos": gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float64)})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.joints, self.steps = np.array([0.25, -0.5]), 0
        return {"agent_pos": self.joints}, {}

    def step(self, action):
        self.joints, self.steps = action.copy(), self.steps + 1
        return {"agent_pos": self.joints}, 0.0, self.steps == 2, False, {"is_success": self.steps == 2}


env = Still()
served = vela_gym.Served(
    make=lambda task: env,
    robot=vela_gym.Robot.of(env, "still", {"front": (2, 1)}),
    picture=lambda env, seen, camera: np.arange(6, dtype=np.uint8).reshape(1, 2, 3),
    expert=lambda env, seen: np.array([0.5, 0.5]),
)
served.name = "still-1"
out = root / "tests/golden/gym"
out.mkdir(exist_ok=True)
(out / "hello.bin").write_bytes(served.answer("hello", b""))
(out / "moment_first.bin").write_bytes(served.reset("stand", 3))
(out / "view.bin").write_bytes(served.answer("view", b""))
(out / "label.bin").write_bytes(served.answer("label", b""))
(out / "moment_last.bin").write_bytes(served.step(0, np.array([[0.1, 0.2], [0.3, 0.4]])))
