"""LeRobot opens what vela wrote, killed recordings included, and vela opens what LeRobot wrote; frame by frame.

Usage: python tests/peers/lerobot_both_ways.py [VELA]     (needs lerobot >= 0.6, Python >= 3.12; not part of CI)
`pip install 'lerobot[dataset]==0.6.1'` into a virtual environment: it brings torch.
"""

import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"
logging.disable(logging.WARNING)
import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

here = pathlib.Path(__file__).resolve().parent
vela = sys.argv[1] if len(sys.argv) > 1 else str(here.parent.parent / "target/release/vela")


def run(*args):
    done = subprocess.run([vela, *map(str, args), "--json"], capture_output=True, text=True)
    assert done.returncode == 0, f"{args}: {done.stderr}"
    return json.loads(done.stdout)


def opened(folder, **more):
    return LeRobotDataset("local/x", root=folder, video_backend="pyav", **more)


def sound(folder):
    """Opens a dataset with LeRobot and uses it as training does."""
    dataset = opened(folder)
    said = run("episodes", "inspect", folder)
    assert len(dataset) == said["frames"] and dataset.num_episodes == len(said["episodes"]), folder
    batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=5, shuffle=True)))
    assert batch["action"].shape == (5, len(said["action"]))
    chunk = opened(folder, delta_timestamps={"action": [0, 1 / said["fps"], 2 / said["fps"]]})
    last = said["episodes"][0]["frames"] - 1
    assert chunk[last]["action_is_pad"].tolist() == [False, True, True]
    for stats in dataset.meta.stats.values():
        assert {"min", "max", "mean", "std", "count", "q01", "q99"} <= set(stats)
    return dataset


def same(a, b, pairs):
    """The frames of two datasets are equal, every column but the numbers of episode and row."""
    for i, j in pairs:
        one, two = a[i], b[j]
        assert one["task"] == two["task"] and set(one) == set(two)
        for key, value in one.items():
            if torch.is_tensor(value) and key not in ("index", "episode_index", "task_index"):
                assert torch.equal(value, two[key]), (i, j, key)


def psnr(a, b):
    """Peak signal to noise of two pictures with values from 0 to 1, dB."""
    return -10 * torch.log10(((a - b) ** 2).mean().clamp(min=1e-12)).item()


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    data = folder / "recorded"
    run("record", "--out", data, "--episodes", 3, "--task", "reach")
    recorded = sound(data)
    print(f"LeRobot reads a recording of vela's: {len(recorded)} frames, cameras {recorded.meta.camera_keys}")

    before = time.perf_counter()
    for k in range(len(recorded)):
        recorded[k]
    print(f"  {len(recorded) / (time.perf_counter() - before):.0f} frames per second, both pictures decoded")

    film = folder / "film"
    run("record", "--out", film, "--episodes", 3, "--task", "reach", "--video", "h264")
    run("episodes", "convert", data, "--out", folder / "av1-made", "--video", "av1")
    for codec, made, least in (("H.264", film, 33), ("AV1", folder / "av1-made", 28)):
        run("episodes", "convert", made, "--out", folder / f"{codec}-decoded", "--images")
        theirs, ours = sound(made), sound(folder / f"{codec}-decoded")
        assert len(theirs) == len(ours) == len(recorded)
        agree, seen = [], []
        for k in range(len(theirs)):
            frame = theirs[k]
            assert torch.equal(frame["action"], recorded[k]["action"])
            for key in theirs.meta.camera_keys:
                agree.append(psnr(frame[key], ours[k][key]))
                seen.append(psnr(frame[key], recorded[k][key]))
        assert min(agree) > 40 and min(seen) > least, (min(agree), min(seen))
        print(
            f"LeRobot reads vela's {codec}: {len(theirs)} frames; against vela's own decoding at worst "
            f"{min(agree):.1f} dB, against what was seen {min(seen):.1f} dB, {size(made)} bytes on disk"
        )
    print(f"  with PNG {size(data)} bytes on disk")

    for form, enough in (([], 300_000), (["--video", "h264"], 30_000)):
        killed = folder / f"killed{len(form)}"
        recording = subprocess.Popen(
            [vela, "record", "--out", killed, "--episodes", "50", "--task", "pick", *form],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        pending = killed / "meta/.pending"
        info = killed / "meta/info.json"
        # In the middle of the second episode.
        while not (
            info.exists()
            and json.loads(info.read_text())["total_episodes"] == 1
            and pending.exists()
            and pending.stat().st_size > enough
        ):
            assert recording.poll() is None
            time.sleep(0.002)
        recording.send_signal(signal.SIGKILL)
        recording.wait()
        # As it is, it opens, and what was committed is read.
        whole = opened(killed)
        tasks = {whole[k]["task"] for k in range(len(whole))}
        repaired = run("episodes", "check", killed, "--repair")
        mended = sound(killed)
        assert len(mended) >= len(whole) > 0 and tasks <= {mended[k]["task"] for k in range(len(mended))}
        found = repaired["repaired"]["recovered_frames"]
        name = " of video" if form else ""
        print(f"a killed recording{name}: LeRobot reads {len(whole)} frames, after the repair {len(mended)} ({found} found)")

    split = run("episodes", "split", data, "--out", folder / "split", "--parts", "a=0:2,b=2:3")
    run("episodes", "merge", folder / "split/a", folder / "split/b", "--out", folder / "merged")
    same(recorded, sound(folder / "merged"), [(k, k) for k in range(len(recorded))])
    print("split and merged again: the same frames in LeRobot")

    for mode in ("image", "av1", "h264"):
        made = folder / mode
        subprocess.run(
            [sys.executable, here / "lerobot_make.py", made, mode], check=True, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        found = run("episodes", "check", made)
        assert found["problems"] == [] and found["frames"] == 15, found
        run("episodes", "convert", made, "--out", folder / f"{mode}-copy")
        same(opened(made), sound(folder / f"{mode}-copy"), [(k, k) for k in range(15)])
        print(f"vela reads LeRobot's own {mode} dataset, and LeRobot reads vela's copy of it: the same frames")

    # v2.1 as LeRobot 0.3.3 wrote it: LeRobot itself no longer opens it, but vela's conversion.
    old = here.parent / "golden/lerobot_v21"
    run("episodes", "convert", old, "--out", folder / "v30")
    new = sound(folder / "v30")
    made = opened(folder / "image")
    same(made, new, [(k, k) for k in range(15)])
    print("v2.1, converted by vela: the frames that LeRobot records as v3.0")
print("all well")
