"""vela drives Gymnasium environments that no one here wrote: the SO-101 of lerobot-env-so101 and Meta-World.

Usage: MUJOCO_GL=egl python tests/peers/gym_env.py [--episodes N] [--tasks a-v3,b-v3] [VELA]     (not part of CI)
`pip install "./robots/python[so101]"` and, in another environment (it wants another mujoco), `pip install ./robots/python
metaworld packaging imageio`, Python 3.12; what is missing is left out.

Shown: the experts through vela's gate and into a LeRobot dataset; an ACT (the reference run in tests/golden/act: random
weights, so that it moves the arm and succeeds at nothing) served by `vela act` in another process; that the same seed
gives the same bytes; what is refused.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile

here = pathlib.Path(__file__).resolve().parent
root = here.parent.parent
sys.path.insert(0, str(root / "robots/python"))
examples = root / "robots/python/examples"


class Network:
    """zenoh on a port of its own, for vela as the robot and for everyone else."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.endpoint = f"tcp/127.0.0.1:{port}"
        quiet = {"multicast": {"enabled": False}, "gossip": {"enabled": False}}
        for name, listen, connect in (("robot", [self.endpoint], []), ("policy", [], [self.endpoint])):
            connect = {"endpoints": connect, "timeout_ms": -1, "exit_on_failure": False}
            said = {"mode": "peer", "listen": {"endpoints": listen}, "connect": connect}
            (folder / f"{name}.json5").write_text(json.dumps(said | {"scouting": quiet}))
        self.robot, self.policy = str(folder / "robot.json5"), str(folder / "policy.json5")


class Background:
    """A process that is ended with the block."""

    def __init__(self, *command):
        path = {**os.environ, "PYTHONPATH": str(root / "robots/python")}
        self.process = subprocess.Popen([str(word) for word in command], stderr=subprocess.DEVNULL, env=path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def vela(*words, fails=False):
    done = subprocess.run([VELA, *map(str, words), "--json"], capture_output=True, text=True)
    if fails:
        assert done.returncode == 1, done
        return done.stderr
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return json.loads(done.stdout)


def so101(folder, episodes):
    net, robot = Network(folder), root / "configs/robots/so101-gym.toml"
    env = ["--env", "vela/gym", "--env-robot", robot, "--zenoh", net.robot]
    with Background(sys.executable, examples / "so101.py", "--connect", net.endpoint):
        found = vela("eval", *env, "--policy", "expert", "--episodes", episodes, "--seed", 0)
        row = found["tasks"][0]
        done, held = f"{row['successes']} of {row['episodes']}", row["held_ticks"]
        print(f"so101: the expert through the gate: {done}, {held} ticks held")
        assert row["successes"] >= 0.9 * episodes, found
        sets = [folder / "one", folder / "two"]
        for out in sets:
            said = vela("record", *env, "--policy", "expert", "--episodes", 2, "--seed", 5, "--out", out)
            assert said["successes"] == 2 and said["episodes"] == 2, said
        tables = [sorted((out / "data").rglob("*.parquet")) for out in sets]
        assert tables[0] and [t.read_bytes() for t in tables[0]] == [t.read_bytes() for t in tables[1]]
        said = vela("episodes", "check", sets[0])
        looked = vela("episodes", "inspect", sets[0])
        print(f"so101: 2 episodes, {looked['frames']} frames recorded twice from one seed: the same bytes; {said}")
        other = root / "configs/robots/so101.toml"
        wrong = vela("eval", *env[:2], "--env-robot", other, *env[4:], "--policy", "expert", fails=True)
        assert "embodiments differ" in wrong, wrong
        print(f"so101: another robot's file is refused: {wrong.strip()}")


def act(folder):
    net = Network(folder)
    spec = importlib.util.spec_from_file_location("served_so101", examples / "so101.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    robot = module.served("top", 64, 96).robot.write(folder)
    env = ["--env", "vela/gym", "--env-robot", robot, "--zenoh", net.robot]
    served = [sys.executable, examples / "so101.py", "--connect", net.endpoint, "--camera", "top", "--size", 64, 96]
    policy = [VELA, "act", "--key", "vela/gym", "--robot", robot, "--zenoh", net.policy]
    policy += ["--policy", root / "tests/golden/act"]
    with Background(*served), Background(*policy):
        said = vela("record", *env, "--policy", "remote", "--episodes", 1, "--seed", 3, "--out", folder / "driven")
        looked = vela("episodes", "inspect", folder / "driven")
        print(f"so101: an episode driven by `vela act`: {looked['frames']} frames, {said['successes']} successes")
        assert looked["frames"] > 20, looked


def meta_world(folder, tasks, episodes):
    net, robot = Network(folder), root / "configs/robots/metaworld.toml"
    env = ["--env", "vela/gym", "--env-robot", robot, "--zenoh", net.robot]
    with Background(sys.executable, examples / "meta_world.py", "--connect", net.endpoint):
        found = vela("eval", *env, "--policy", "expert", "--task", tasks, "--episodes", episodes, "--seed", 0)
        for row in found["tasks"]:
            print(f"meta-world: {row['task']}: the expert through the gate: {row['successes']} of {row['episodes']}")
        one = ["--task", "reach-v3", "--episodes", 1, "--seed", 0, "--out", folder / "mw"]
        said = vela("record", *env, "--policy", "expert", *one)
        print(f"meta-world: recorded {said['frames']} frames")
        assert sum(row["successes"] for row in found["tasks"]) >= 0.9 * episodes * len(found["tasks"]), found


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("vela", nargs="?", default=str(root / "target/release/vela"))
    arguments.add_argument("--episodes", type=int, default=10)
    arguments.add_argument("--tasks", default="reach-v3,drawer-open-v3")
    arguments = arguments.parse_args()
    VELA = arguments.vela
    for module, act_on in {
        "lerobot_env_so101": [lambda f: so101(f, arguments.episodes), act],
        "metaworld": [lambda f: meta_world(f, arguments.tasks, arguments.episodes)],
    }.items():
        if importlib.util.find_spec(module) is None:
            print(f"{module} is not installed: left out")
            continue
        for one in act_on:
            with tempfile.TemporaryDirectory() as kept:
                one(pathlib.Path(kept))
    print("as expected")
