"""A small image-mode dataset made by LeRobot itself: mk.py FOLDER."""
import sys, os, shutil
os.environ["HF_HUB_OFFLINE"] = "1"
import numpy as np
try:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
except ImportError:
    from lerobot.datasets import LeRobotDataset
root = sys.argv[1]
shutil.rmtree(root, ignore_errors=True)
names = ["shoulder_pan.pos", "gripper.pos"]
features = {
    "observation.state": {"dtype": "float32", "shape": (2,), "names": names},
    "action": {"dtype": "float32", "shape": (2,), "names": names},
    "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
    "next.done": {"dtype": "bool", "shape": (1,), "names": None},
    "observation.images.front": {"dtype": "image", "shape": (6, 8, 3), "names": ["height", "width", "channels"]},
}
d = LeRobotDataset.create("local/tiny", fps=10, features=features, root=root, robot_type="so101", use_videos=False)
for episode, task in enumerate(["push the cube", "lift the ball", "push the cube"]):
    n = 4 + episode
    for k in range(n):
        pixels = (np.arange(6 * 8 * 3).reshape(6, 8, 3) * 3 + 40 * episode + 11 * k) % 256
        frame = {
            "observation.state": np.array([episode + k / 16, k / 8], dtype=np.float32),
            "action": np.array([episode + k / 16 + 0.5, -k / 8], dtype=np.float32),
            "next.reward": np.array([k / 4], dtype=np.float32),
            "next.done": np.array([k == n - 1], dtype=bool),
            "observation.images.front": pixels.astype(np.uint8),
        }
        try:
            d.add_frame(frame, task=task)
        except TypeError:
            d.add_frame({**frame, "task": task})
    d.save_episode()
if hasattr(d, "finalize"):
    d.finalize()
print(len(d), d.meta.info["codebase_version"] if isinstance(d.meta.info, dict) else d.meta.info.codebase_version)
