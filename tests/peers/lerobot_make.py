"""A small dataset made by LeRobot itself, with whatever version of it is installed: what tests/golden/lerobot_* are.

Usage: python tests/peers/lerobot_make.py FOLDER [image|av1|h264]     (needs lerobot; not part of CI)
lerobot 0.3.3 writes v2.1, 0.6.1 writes v3.0. In the two video modes `decoded.rgb` holds every fifth frame as pyav, one
of LeRobot's decoders, reads it back, `[frames, height, width, 3]` bytes.
"""

import os
import pathlib
import shutil
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
import numpy as np

from lerobot.datasets.lerobot_dataset import LeRobotDataset

root = pathlib.Path(sys.argv[1])
mode = sys.argv[2] if len(sys.argv) > 2 else "image"
shutil.rmtree(root, ignore_errors=True)
height, width = (6, 8) if mode == "image" else (48, 64)
names = ["shoulder_pan.pos", "gripper.pos"]
features = {
    "observation.state": {"dtype": "float32", "shape": (2,), "names": names},
    "action": {"dtype": "float32", "shape": (2,), "names": names},
    "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
    "next.done": {"dtype": "bool", "shape": (1,), "names": None},
    "observation.images.front": {
        "dtype": "image" if mode == "image" else "video",
        "shape": (height, width, 3),
        "names": ["height", "width", "channels"],
    },
}
more = {}
if mode != "image":
    try:
        from lerobot.configs.video import RGBEncoderConfig

        more["rgb_encoder"] = RGBEncoderConfig(vcodec={"av1": "libsvtav1", "h264": "h264"}[mode])
    except ImportError:
        assert mode == "av1", "this version of lerobot encodes AV1 only"


def picture(episode, k):
    """Image mode: every byte tells its place. Video mode: a smooth ground and a bright square that moves."""
    if mode == "image":
        place = np.arange(height * width * 3).reshape(height, width, 3)
        return ((place * 3 + 40 * episode + 11 * k) % 256).astype(np.uint8)
    y, x = np.mgrid[0:height, 0:width]
    ground = np.stack([x * 2, y * 3, np.full_like(x, 40 + 60 * episode)], axis=-1).astype(np.uint8)
    ground[8:20, 4 + 6 * k : 16 + 6 * k] = [230, 200, 20]
    return ground


dataset = LeRobotDataset.create(
    "local/tiny", fps=10, features=features, root=root, robot_type="so101", use_videos=mode != "image", **more
)
for episode, task in enumerate(["push the cube", "lift the ball", "push the cube"]):
    n = 4 + episode
    for k in range(n):
        frame = {
            "observation.state": np.array([episode + k / 16, k / 8], dtype=np.float32),
            "action": np.array([episode + k / 16 + 0.5, -k / 8], dtype=np.float32),
            "next.reward": np.array([k / 4], dtype=np.float32),
            "next.done": np.array([k == n - 1], dtype=bool),
            "observation.images.front": picture(episode, k),
        }
        try:
            dataset.add_frame(frame, task=task)
        except TypeError:
            dataset.add_frame({**frame, "task": task})
    dataset.save_episode()
if hasattr(dataset, "finalize"):
    dataset.finalize()
if mode != "image":
    import av

    # One file per camera in v3.0, one per episode in v2.1: in order of their names, the frames are in order.
    frames = []
    for film in sorted(root.glob("videos/**/*.mp4")):
        with av.open(str(film)) as container:
            frames += [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == len(dataset)
    (root / "decoded.rgb").write_bytes(np.stack(frames[::5]).tobytes())
print(len(dataset), "frames")
