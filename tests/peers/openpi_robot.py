"""openpi's own client against `vela serve --openpi`: metadata, chunks, the broker, refusals, health.

Usage: python tests/peers/openpi_robot.py [VELA]      (needs openpi-client and typing_extensions; not part of CI)
"""

import contextlib
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

HOME = np.array([0.0, -0.5, 0.5, 0.6, 0.0, 0.5])
CAMERAS = {"front": "exterior_image_1_left", "wrist": "wrist_image_left"}  # the simulator's, and DROID's


def picture(seed, size):
    """A noisy picture: what it shows does not matter here."""
    return np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8)


def observation(metadata, style="flat"):
    """What the policy asks for, in one of the ways in which openpi's robots say it."""
    images = {name: picture(k, size) for k, (name, size) in enumerate(metadata["cameras"].items())}
    prompt = {"prompt": "pick up the red cube"}
    if style == "flat":  # as LIBERO
        return {"observation/state": HOME} | {f"observation/images/{k}": v for k, v in images.items()} | prompt
    if style == "nested":  # as ALOHA: planes first, float32 state
        planes = {name: np.moveaxis(image, -1, 0).copy() for name, image in images.items()}
        return {"state": HOME.astype(np.float64), "images": planes} | prompt
    return {"observation.state": HOME.tolist()} | {f"observation.images.{k}": v for k, v in images.items()} | prompt


def droid_observation(metadata):
    """The keys of openpi's examples/droid/main.py: the state in two parts."""
    cameras = CAMERAS.values()
    images = {f"observation/{name}": picture(k, metadata["cameras"][name]) for k, name in enumerate(cameras)}
    parts = {"observation/joint_position": HOME[:-1], "observation/gripper_position": HOME[-1:]}
    return images | parts | {"prompt": "pick up the red cube"}


@contextlib.contextmanager
def serving(vela, *more):
    """The address of a server, which ends well."""
    server = subprocess.Popen(
        [vela, "serve", "--openpi", "--port", "0", *more], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield server.stdout.readline().split("ws://")[-1].strip()
    finally:
        server.terminate()
        assert server.wait(timeout=30) == 0


def refused(address, change, expected):
    """What does not fit is a RuntimeError with a sentence; the next client is served."""
    client = WebsocketClientPolicy(f"ws://{address}")
    wrong = observation(client.get_server_metadata())
    change(wrong)
    try:
        client.infer(wrong)
    except RuntimeError as error:
        assert re.search(expected, str(error)), error
        return str(error).splitlines()[-1]
    raise AssertionError(f"expected a refusal: {expected}")


def main():
    """Everything."""
    vela = sys.argv[1] if len(sys.argv) > 1 else "target/release/vela"
    with serving(vela) as address:
        health = urllib.request.urlopen(f"http://{address}/healthz").read()
        assert health == b"OK\n", health
        client = WebsocketClientPolicy(f"ws://{address}")
        metadata = client.get_server_metadata()
        print("metadata:", metadata)
        horizon, joints = metadata["action_horizon"], len(metadata["joint_names"])

        first = client.infer(observation(metadata))
        actions = first["actions"]
        assert actions.shape == (horizon, joints) and actions.dtype == np.float64, (actions.shape, actions.dtype)
        assert np.isfinite(actions).all() and np.abs(actions - HOME).max() < 3.0
        assert first["server_timing"]["infer_ms"] > 0 and first["policy_timing"]["infer_ms"] > 0
        took = []
        for _ in range(20):
            begun = time.perf_counter()
            answer = client.infer(observation(metadata))
            took.append(1e3 * (time.perf_counter() - begun))
        assert answer["server_timing"]["prev_total_ms"] > 0

        # Another connection asks the same first question, said in other ways: the same numbers.
        for style in ["flat", "nested", "dotted"]:
            again = WebsocketClientPolicy(f"ws://{address}").infer(observation(metadata, style))["actions"]
            assert np.array_equal(actions, again), style

        broker = ActionChunkBroker(WebsocketClientPolicy(f"ws://{address}"), action_horizon=metadata["execute"])
        steps = [broker.infer(observation(metadata))["actions"] for _ in range(2 * metadata["execute"])]
        assert np.array_equal(steps[0], actions[0]) and steps[-1].shape == (joints,)

        camera = next(iter(metadata["cameras"]))
        key = f"observation/images/{camera}"
        print("refused:", refused(address, lambda o: o.update({key: picture(0, (224, 224, 3))}), r"got \[224, 224, 3\]"))
        print("refused:", refused(address, lambda o: o.pop(key), f"'{camera}' is missing"))
        print("refused:", refused(address, lambda o: o.update({"observation/state": HOME[:5]}), "expected 6 numbers"))
        print("refused:", refused(address, lambda o: o.update({"observation/depth": HOME}), "'depth' is not of this"))
        print("refused:", refused(address, lambda o: o.update({"observation/state": HOME * np.nan}), "finite"))
        print("refused:", refused(address, lambda o: o.update({key: picture(0, (96, 96, 3)).astype(">i2")}), "dtype"))
        assert np.array_equal(WebsocketClientPolicy(f"ws://{address}").infer(observation(metadata))["actions"], actions)
        infer = answer["server_timing"]["infer_ms"]
        print(f"round trip {statistics.median(took):.1f} ms, of which the policy {infer:.1f} ms")
    droid(vela, actions)
    print("openpi's client and vela agree")


def droid(vela, actions):
    """A robot that speaks as DROID's does gets what the same one gets that says it in another way."""
    root = pathlib.Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        shutil.copytree(root / "models/tabletop", folder / "policy")
        shutil.copytree(root / "configs/robots", folder / "robots")
        for name in ["policy/config.json", "policy/embodiment.json", "robots/so101.toml"]:
            text = (folder / name).read_text()
            for ours, theirs in CAMERAS.items():
                text = text.replace(f'"{ours}"', f'"{theirs}"')
            (folder / name).write_text(text)
        with serving(vela, "--model", folder / "policy", "--robot", folder / "robots/so101.toml") as address:
            client = WebsocketClientPolicy(f"ws://{address}")
            seen = droid_observation(client.get_server_metadata())
            assert np.array_equal(client.infer(seen)["actions"], actions)
            for key, other in [("joint", "gripper"), ("gripper", "joint")]:
                part = {name: value for name, value in seen.items() if f"{key}_position" not in name}
                try:
                    WebsocketClientPolicy(f"ws://{address}").infer(part)
                except RuntimeError as error:
                    assert f"'{key}_position' is missing beside '{other}_position'" in str(error), error
                else:
                    raise AssertionError(f"expected a refusal of a state without its {key}")


if __name__ == "__main__":
    main()
