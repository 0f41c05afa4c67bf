"""LeRobot opens what vela wrote, killed recordings included, and vela opens what LeRobot wrote; frame by frame.

Usage: python tests/peers/lerobot_both_ways.py [VELA]     (needs lerobot >= 0.6, Python >= 3.12; not part of CI)
`pip install 'lerobot[dataset]==0.6.1'` into a virtual environment: it brings torch.
"""

import contextlib
import json
import logging
import os
import pathlib
import signal
import socket
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
arm_file = here.parent.parent / "configs/arms/so101-ros2.toml"


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


def in_the_second(recording, folder, enough):
    """Waits until a recorder has committed one episode and its journal of the second is longer than so many bytes."""
    journal = folder / "meta/.pending"
    while True:
        assert recording.poll() is None, "the recorder ended before it could be killed"
        if journal.exists():
            with contextlib.suppress(FileNotFoundError), journal.open("rb") as file:
                if b'"episode":1,' in file.read(64) and journal.stat().st_size > enough:
                    return
        time.sleep(0.002)


def left(killed):
    """What LeRobot reads of a killed recording: frames as it is, the dataset once repaired, frames that were found."""
    # As it is, it opens, and what was committed is read.
    whole = opened(killed)
    tasks = {whole[k]["task"] for k in range(len(whole))}
    repaired = run("episodes", "check", killed, "--repair")
    mended = sound(killed)
    assert len(mended) >= len(whole) > 0 and tasks <= {mended[k]["task"] for k in range(len(mended))}
    return len(whole), mended, repaired["repaired"]["recovered_frames"]


@contextlib.contextmanager
def live_arm(folder):
    """The simulated arm and a policy that drives it, each a process of its own; the zenoh file of who joins them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    files = {}
    for side in ("robot", "policy"):
        files[side] = folder / f"{side}-{port}.json5"
        shipped = (here.parent.parent / f"configs/zenoh/{side}.json5").read_text()
        assert "7447" in shipped
        files[side].write_text(shipped.replace("7447", port))
    # A scene whose task the policy does not solve: the arm moves for 15 s.
    sim = ["sim", "--task", "stack", "--seed", "2000002", "--wait-secs", "120", "--hold-secs", "120", "--no-log"]
    commands = ([*sim, "--zenoh", files["robot"]], ["act", "--zenoh", files["policy"]])
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = [subprocess.Popen([vela, *command], **quiet) for command in commands]
    try:
        yield files["policy"]
        assert [process.poll() for process in running] == [None, None], "arm or policy ended"
    finally:
        for process in running:
            process.kill()
            process.wait()


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
        in_the_second(recording, killed, enough)
        recording.send_signal(signal.SIGKILL)
        recording.wait()
        read, mended, found = left(killed)
        name = " of video" if form else ""
        print(f"a killed recording{name}: LeRobot reads {read} frames, after the repair {len(mended)} ({found} found)")

    for form in ([], ["--video", "h264"]):
        killed = folder / f"killed-live{len(form)}"
        with live_arm(folder) as joins:
            recording = subprocess.Popen(
                [
                    vela, "record", "--robot", arm_file, "--out", killed, "--episodes", "2", "--task", "stack them",
                    "--episode-secs", "2", "--zenoh", joins, *form,
                ],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            in_the_second(recording, killed, 0)
            begun = time.monotonic()
            time.sleep(1.5)
            passed = round(30 * (time.monotonic() - begun))
            recording.send_signal(signal.SIGKILL)
            recording.wait()
        read, mended, found = left(killed)
        # Two seconds at 30 Hz were committed; of the second episode at most the last second is lost.
        assert read == 60 and len(mended) == 60 + found, (read, len(mended), found)
        assert passed - 30 <= found < 60, (passed, found)
        assert mended[59]["task"] == mended[60]["task"] == "stack them"
        assert [mended[60 + k]["frame_index"].item() for k in range(found)] == list(range(found))
        moved = torch.stack([mended[k]["observation.state"] for k in range(len(mended))]).std(0).max().item()
        assert moved > 0.01, f"the arm moved by {moved} rad"
        name = ", as video" if form else ""
        print(
            f"a killed recording of a live arm{name}: LeRobot reads {read} frames, after the repair {len(mended)} "
            f"({found} found; its second episode had run for {passed})"
        )

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
